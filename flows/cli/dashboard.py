"""The command that serves the dashboard: it becomes the dashboard's own process, for neither imports the other."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import DEFAULT_STORE, StoreOption, UserOption, user_name

__all__ = ["register"]

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")]


def register(app: typer.Typer) -> None:
    """Add `dashboard` to `app`."""
    app.command("dashboard")(dashboard)


def dashboard(store: StoreOption = None, port: Port = 8501, user: UserOption = None) -> None:
    """Serve the dashboard on this machine: browse, label, ask. Stop it with Ctrl-C.

    Example:  almanac dashboard --port 8600
    """
    given = ["--store", str(Path(store or DEFAULT_STORE).resolve()), "--port", str(port), "--user", user_name(user)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "dashboard", *given])
