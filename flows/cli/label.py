"""Commands for people's labels: add, list, undo, history, export, import."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer

from catalog import Labels, Store, connect, labelling
from catalog.files import replacing
from catalog.label_files import Format, exported, import_labels, read_events
from catalog.labelling import Details, Of
from catalog.lookup import check_feature, find_sae
from flows.cli.answers import show_answer
from flows.cli.common import StoreOption, UserOption, open_store, out, text, user_name

__all__ = ["register"]

Kind = Literal["input", "output", "both", "unclear", "polysemantic", "junk"]
SAEArgument = Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")]
FeatureArgument = Annotated[int, typer.Argument(help="The feature's number.")]
HISTORY = ("created_at", "author", "action", "text", "tags", "confidence", "safety", "is_undone", "event_id")


def register(app: typer.Typer) -> None:
    """Add `label` with its commands to `app`."""
    labels = typer.Typer(no_args_is_help=True, help="Say what features are about; take it back; carry labels around.")
    labels.command("add")(add)
    labels.command("list")(list_labels)
    labels.command("undo")(undo)
    labels.command("history")(history)
    labels.command("export")(export)
    labels.command("import")(import_file)
    app.add_typer(labels, name="label")


def add(  # noqa: PLR0913 (one parameter per option)
    sae: SAEArgument,
    feature: FeatureArgument,
    label: Annotated[str, typer.Argument(metavar="TEXT", help="What the feature is about.")],
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag; may be given several times.", show_default=False)
    ] = None,
    confidence: Annotated[int | None, typer.Option(min=1, max=3, show_default=False)] = None,
    kind: Annotated[Kind | None, typer.Option(help="What it is about.", show_default=False)] = None,
    safety: Annotated[
        int | None, typer.Option(min=0, max=3, help="0 none, 1 watch, 2 dual use, 3 harmful.", show_default=False)
    ] = None,
    note: Annotated[str | None, typer.Option(help="Anything else.", show_default=False)] = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Label a feature. Your earlier label stays in the history.

    Example:  almanac label add batchtopk 7 "import statements" --tag syntax --confidence 3
    """
    opened = open_store(store)
    of = _feature(opened, sae, feature)
    given = {"tags": tag, "confidence": confidence, "kind": kind, "safety": safety, "note": note}
    details: Details = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    with Labels(opened) as labels:
        event = labelling.add(labels, user_name(user), of, label, **details)
    out().print(text(f"labelled feature {feature} of {of.sae_id} (event {event.event_id})"))


def list_labels(
    sae: Annotated[str | None, typer.Argument(metavar="SAE", help="Only of this SAE.", show_default=False)] = None,
    author: Annotated[str | None, typer.Option(help="Only of this person.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 50,
    store: StoreOption = None,
) -> None:
    """List the current labels, the newest first.

    Example:  almanac label list batchtopk --author ada
    """
    connection = connect(open_store(store))
    sae_id = find_sae(connection, sae) if sae else None
    answer = connection.sql(
        "select sae_id, feature, text, author, created_at, tags, confidence, safety, action from label "
        "where sae_id = coalesce($sae_id, sae_id) and author = coalesce($author, author) "
        "order by created_at desc, event_id limit $n",
        params={"sae_id": sae_id, "author": author, "n": limit + 1},
    ).to_arrow_table()
    show_answer(answer, None, None, limit)


def undo(
    event_id: Annotated[
        str | None, typer.Argument(help="What to take back [default: your last].", show_default=False)
    ] = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Take back one of your own labels. The history keeps both.

    Example:  almanac label undo
    """
    author = user_name(user)
    with Labels(open_store(store)) as labels:
        undone = event_id or labelling.last_of(labels, author)
        event = labelling.undo(labels, author, undone)
    out().print(
        text(f"took back event {undone} (feature {event.values.get('feature')} of {event.values.get('sae_id')})")
    )


def history(sae: SAEArgument, feature: FeatureArgument, store: StoreOption = None) -> None:
    """Show everything that was said of a feature.

    Example:  almanac label history batchtopk 7
    """
    opened = open_store(store)
    of = _feature(opened, sae, feature)
    with Labels(opened) as labels:
        rows = labelling.history(labels, of)
    show_answer(pa.table({name: [row[name] for row in rows] for name in HISTORY}), None, None)


def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file.", show_default=False)
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="[default: by the file, else csv]", show_default=False)
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write every label event as CSV or JSONL; `label import` reads both back.

    Example:  almanac label export --output labels.jsonl
    """
    with Labels(open_store(store)) as labels:
        content = exported(labels, form or ("jsonl" if output and output.suffix == ".jsonl" else "csv"))
    if output is None:
        sys.stdout.write(content)  # not `typer.echo`, which takes escape sequences out of data
        return
    with replacing(output.resolve()) as aside:
        aside.write_text(content, encoding="utf-8", newline="")
    out().print(text(f"wrote {output}"))


def import_file(
    file: Annotated[
        Path, typer.Argument(help="CSV or JSONL with sae_id, feature, text (and what else label_event has).")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Add labels from a file: all lines, or none if one cannot be used. Doing it twice adds nothing.

    Example:  almanac label import labels.csv --dry-run
    """
    with Labels(open_store(store)) as labels:
        report = import_labels(labels, read_events(file, user_name(user)), dry_run)
    console = out()
    for line, reason in report.refused:
        console.print(text(f"line {line} {reason}", "red"))
    done = "recorded" if report.is_written else "would be new; nothing was recorded"
    console.print(
        text(f"{report.n_new} labels {done}, {report.n_known} were there already, {len(report.refused)} refused")
    )
    if report.refused:
        raise typer.Exit(1)


def _feature(store: Store, sae: str, feature: int) -> Of:
    connection = connect(store)
    sae_id = find_sae(connection, sae)
    check_feature(connection, sae_id, feature)
    return Of(sae_id, feature)
