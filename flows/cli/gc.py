"""`almanac gc`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from catalog import Store
from flows.cli.common import StoreOption, open_store, out, text

__all__ = ["register"]

Row = tuple[Path, int, str]
"""What, its bytes, and why it may go."""


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without this, it is only listed.")] = False,
    keep_activations: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="Evict activations as well: none, last, or as many days: '7 days'.", show_default=False
        ),
    ] = None,
    older_than: Annotated[float, typer.Option(min=0, metavar="DAYS", help="Leave what is younger.")] = 1.0,
    store: StoreOption = None,
) -> None:
    """List what nothing needs: artifacts that nothing published was made from, halves of killed steps, old tables.

    What is published stays, and so does every table of an SAE that somebody has labelled.

    Examples:  almanac gc      almanac gc --delete --keep-activations last
    """
    from flows.garbage import collect, waste_of

    opened = open_store(store)
    before = datetime.now(UTC) - timedelta(days=older_than)
    evicted = _evicted(opened, keep_activations, delete)
    younger = 0 if delete else sum(waste.n_bytes for waste in waste_of(opened, datetime.now(UTC)))
    found = collect(opened, before) if delete else waste_of(opened, before)
    rows = [(waste.path.relative_to(opened.root), waste.n_bytes, waste.why) for waste in found]
    listed = {path for path, *_ in rows}
    _show(opened, [*(row for row in evicted if row[0] not in listed or delete), *rows], delete)
    left = younger - sum(waste.n_bytes for waste in found)
    if left > 0:
        out().print(text(f"{_size(left)} more are younger than {older_than:g} day(s) (--older-than 0 lists them)"))


def _evicted(store: Store, rule: str | None, delete: bool) -> list[Row]:
    from flows.retention import evict, unwanted

    if rule is None:
        return []
    found = evict(store, rule) if delete else unwanted(store, rule)
    return [
        (artifact.directory.relative_to(store.root), artifact.n_bytes, f"activations, evicted by the rule {rule!r}")
        for artifact in found
    ]


def _show(store: Store, rows: Sequence[Row], is_deleted: bool) -> None:
    if not rows:
        out().print(text(f"nothing to remove in {store.root}"))
        return
    table = Table("what", "size", "why")
    for path, n_bytes, why in _summed_up(rows):
        table.add_row(text(path), text(_size(n_bytes)), text(why))
    total = _size(sum(n_bytes for _, n_bytes, _ in rows))
    out().print(table)
    out().print(text(f"{total} removed" if is_deleted else f"{total} could be removed; `almanac gc --delete` does it"))


def _summed_up(rows: Sequence[Row]) -> Iterator[tuple[str, int, str]]:
    """A row each; what lies in one folder for one reason, such as earlier snapshots, in one."""
    groups: dict[tuple[Path, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[0].parent, row[2]), []).append(row)
    for (folder, why), group in groups.items():
        name = str(group[0][0]) if len(group) == 1 else f"{folder} ({len(group)} of it)"
        yield name, sum(n_bytes for _, n_bytes, _ in group), why


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(gc)
