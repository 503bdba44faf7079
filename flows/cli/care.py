"""Commands that look after a store: migrate, retire, backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from catalog import Labels, connect, current
from catalog.backup import backup, restore
from catalog.lookup import find_sae
from catalog.migrate import migrate
from catalog.retire import bring_back, retire
from flows.cli.common import StoreOption, open_store, out, text

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("migrate", migrate_command), ("retire", retire_command), ("backup", backup_command),
        ("restore", restore_command),
    ):  # fmt: skip
        app.command(name)(command)


def migrate_command(store: StoreOption = None) -> None:
    """Bring a store of an older version of the program forward. Killed, it is done again; done, nothing happens.

    Example:  almanac migrate --store ./almanac
    """
    opened = open_store(store)
    done = migrate(opened)
    if done.before == done.after:
        out().print(text(f"{opened.root} has schema version {done.after} already"))
    else:
        out().print(text(f"{opened.root}: schema version {done.before} → {done.after}, {done.n_parts} files rewritten"))


def retire_command(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")],
    undo: Annotated[bool, typer.Option("--undo", help="Put it back.")] = False,
    store: StoreOption = None,
) -> None:
    """Take a version of an SAE out of the catalog. Its labels stay, and its files as long as snapshots name them.

    Examples:  almanac retire batchtopk@1      almanac retire demo_lm/model.layers.1/batchtopk-4096@1 --undo
    """
    opened = open_store(store)
    if undo:
        meant = [each.sae_id for each in current(opened).retired if sae in each.sae_id]
        sae_id = meant[0] if len(meant) == 1 else sae  # of several, only a whole name says which
        snapshot = bring_back(opened, sae_id)
        out().print(text(f"{sae_id} is back (snapshot {snapshot.number})"))
    else:
        sae_id = find_sae(connect(opened), sae)
        snapshot = retire(opened, sae_id)
        out().print(
            text(f"{sae_id} is retired (snapshot {snapshot.number}); `almanac retire {sae_id} --undo` undoes it")
        )


def backup_command(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    store: StoreOption = None,
) -> None:
    """Write everything people did (labels, collections, saved queries, watchlists …) to one file.

    Example:  almanac backup labels-2026-11-22.jsonl.gz
    """
    with Labels(open_store(store)) as labels:
        n = backup(labels, file)
    out().print(text(f"wrote {n:,} events to {file}"))


def restore_command(
    file: Annotated[Path, typer.Argument(help="What `almanac backup` wrote.")],
    store: StoreOption = None,
) -> None:
    """Bring back what a backup holds. What is there already stays as it is, so twice is once.

    Example:  almanac restore labels-2026-11-22.jsonl.gz
    """
    with Labels(open_store(store)) as labels:
        done = restore(labels, file)
    out().print(text(f"{done.n_new:,} events restored, {done.n_known:,} were there already"))
