"""What every command shares: where the store is, how errors are said, how text of others is made safe to print."""

import getpass
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from catalog import Store

__all__ = ["DEFAULT_STORE", "StoreOption", "UserOption", "open_store", "out", "run_app", "safe", "text", "user_name"]

PIPE_WIDTH = 160
STOPPED = 130  # exit code after Ctrl-C
DEFAULT_STORE = Path("almanac")

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="ALMANAC_STORE", help="Folder of the store [default: ./almanac].", show_default=False
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option("--user", envvar="ALMANAC_USER", help="Who you are [default: your login name].", show_default=False),
]

# C0 and C1 control characters, and those that turn the direction of writing round
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
GLYPHS = {"\n": "↵", "\t": "→", "\r": "␍", "\x1b": "␛", "\x7f": "␡"}


def open_store(path: Path | None) -> Store:
    """The store that was named, else ./almanac."""
    return Store.open(path or DEFAULT_STORE)


def user_name(given: str | None) -> str:
    return given or getpass.getuser()


def out() -> Console:
    """The terminal (or file) that answers go to."""
    is_read_by_program = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_WIDTH if is_read_by_program else None)


def safe(value: str) -> str:
    """Text from corpora, models or people, with every control character as a visible glyph: nothing in it can move
    the cursor, change colours, or hide."""
    return UNSAFE.sub(lambda found: GLYPHS.get(found.group(), f"\\x{ord(found.group()):02x}"), value)


def text(value: object, style: str = "") -> Text:
    """The same as a piece of rich text, in which square brackets mean nothing."""
    return Text(safe(str(value)), style=style)


def run_app(app: typer.Typer, errors: tuple[type[Exception], ...]) -> None:
    """Run the command line. Errors of the given trees are said in one message, with exit code 1, and no traceback."""
    try:
        app()
    except errors as error:
        message = "\n".join(safe(line) for line in str(error).split("\n"))
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message, style="red"))
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != STOPPED:  # typer makes a silent exit of Ctrl-C
            raise
        Console(stderr=True).print(Text("stopped; what was finished stays, the next run goes on from there"))
        sys.exit(STOPPED)
