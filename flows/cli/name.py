"""`almanac name`: a first name for every feature."""

from typing import Annotated

import typer
from rich.table import Table

from catalog import connect
from catalog.guard import answering
from flows.cli.common import StoreOption, open_store, out, text
from flows.cli.progress import TerminalWatch

__all__ = ["name_command", "register"]

_SUMMARY = """
with named as (
    select text, (evidence ->> '$.f')::double as f,
           case evidence ->> '$.is_clear' when 'true' then evidence ->> '$.pattern.kind'
                else 'nothing clear' end as kind
    from explanation where fingerprint = ?
)
select kind, count(*) as n, median(f) as f, arg_max(text, f) as one
from named group by kind order by kind = 'nothing clear', n desc
"""


def name_command(
    sae: Annotated[
        str | None,
        typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.", show_default=False),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Give every feature that fires a first name, from its own tables; no language model is asked.

    A name says what the feature fires on, or "no clear pattern"; a label that a person wrote is shown instead of it.

    Example:  almanac name batchtopk
    """
    from flows.place import Place
    from flows.steps.name import name_features

    opened, console = open_store(store), out()
    made = name_features(Place(opened, TerminalWatch(console)), sae)
    with answering(_SUMMARY):
        rows = connect(opened).execute(_SUMMARY, [made.fingerprint]).fetchall()
    table = Table("names by", "features", "median F", "for example", box=None, pad_edge=False, header_style="bold")
    for kind, n, f, one in rows:
        table.add_row(text(kind), text(f"{n:,}"), text("–" if f is None else f"{f:.2f}"), text(one))
    console.print(text(made.manifest["plan"]["sae_id"], "bold"))
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("name")(name_command)
