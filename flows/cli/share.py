"""`almanac share` and `almanac export-table`: features for other people's tools, for a colleague, for a notebook."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from catalog import QueryError, append, connect, publish
from catalog.exchange import as_explanations, as_publication, content_of, shared
from catalog.exchange_files import SharedFormat, read_shared, write_shared
from catalog.files import replacing
from catalog.guard import answering, guarded
from catalog.keeping import collected
from catalog.lookup import check_feature, find_sae, find_table
from catalog.page import page
from flows.cli.answers import as_csv, as_jsonl
from flows.cli.common import StoreOption, open_store, out, text

__all__ = ["register"]

ROWS = 20_000  # written at once
SAEArgument = Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")]
FeatureOption = Annotated[
    list[int] | None, typer.Option("--feature", help="Only this one; may be given again.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add `export-table`, and `share` with its commands, to `app`."""
    app.command("export-table")(export_table)
    shares = typer.Typer(no_args_is_help=True, help="Features, examples and explanations for others, and from them.")
    for name, command in (("features", share_features), ("import", import_features), ("page", share_page)):
        shares.command(name)(command)
    app.add_typer(shares, name="share")


def export_table(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="A table or view of docs/reference/tables.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file: .parquet, .csv or .jsonl.")],
    where: Annotated[str | None, typer.Option(help="Only rows of which this SQL is true.", show_default=False)] = None,
    store: StoreOption = None,
) -> None:
    """Write a whole table or view to a file, however long it is (answers of `sql` and `query` take --output too).

    Example:  almanac export-table feature_card -o features.parquet --where "status = 'alive'"
    """
    connection = connect(open_store(store))
    sql = f'select * from "{find_table(connection, name)}"'
    if where:
        guarded(connection, f"{sql} where {where}", 0)  # without our brackets: a bracket too many is found here
        sql = f"{sql} where (\n{where}\n)"
    with answering(sql):
        batches = connection.sql(sql).to_arrow_reader(ROWS)
        n = _write(batches, output)
    out().print(text(f"wrote {n:,} rows to {output}"))


def share_features(
    sae: SAEArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")],
    form: Annotated[SharedFormat, typer.Option("--format", help="Whose files.")] = "neuronpedia",
    feature: FeatureOption = None,
    store: StoreOption = None,
) -> None:
    """Write features, examples and explanations as Neuronpedia's JSON lines or SAEDashboard's JSON.

    Example:  almanac share features batchtopk ./for_neuronpedia --feature 7 --feature 12
    """
    connection = connect(open_store(store))
    sae_id = find_sae(connection, sae)
    for each in feature or []:
        check_feature(connection, sae_id, each)
    for path in write_shared(shared(connection, sae_id, feature), folder, form):
        out().print(text(f"{path}  {path.stat().st_size:,} bytes"), soft_wrap=True)


def import_features(
    path: Annotated[Path, typer.Argument(help="Folder of Neuronpedia's or SAEDashboard's files, or one of them.")],
    name: Annotated[
        str | None, typer.Option(help="Family it becomes in the catalog [default: what the files say].")
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(metavar="SAE", help="Only the explanations, onto this SAE of the store.", show_default=False),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Put features that others described into the catalog, or what they say of the features of an SAE that is there.

    Examples:
      almanac share import ./batches --name gpt2/their-sae
      almanac share import ./for_neuronpedia --onto batchtopk
    """
    opened, given = open_store(store), read_shared(path)
    if onto is None:
        family = name or f"{given.model_id or 'unknown'}/{given.layer}"
        made = publish(opened, as_publication(given, family))
        sae_id = made.sae_id
        state = "published" if made.is_new else "was there already"
        out().print(text(f"{sae_id} {state}: {len(given.features):,} features, {len(given.activations):,} examples"))
    else:
        connection = connect(opened)
        sae_id = find_sae(connection, onto)
        for index in {int(row["index"]) for row in given.explanations}:
            check_feature(connection, sae_id, index)
    rows = as_explanations(given, sae_id)
    if rows:
        append(opened, "explanation", rows, content_of(given))
    out().print(text(f"{len(rows['text']) if rows else 0:,} explanations of {sae_id}"))


def share_page(  # noqa: PLR0913 (one parameter per option)
    sae: Annotated[str | None, typer.Argument(metavar="SAE", help="sae_id or family.", show_default=False)] = None,
    features: Annotated[list[int] | None, typer.Argument(metavar="FEATURE...", show_default=False)] = None,
    collection: Annotated[str | None, typer.Option(help="Every feature of this one.", show_default=False)] = None,
    title: Annotated[str | None, typer.Option(help="What stands at the top.", show_default=False)] = None,
    note: Annotated[str, typer.Option(help="A line below the title.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("features.html"),
    store: StoreOption = None,
) -> None:
    """Make one HTML file of features, to send to a colleague: it needs no other file and no network.

    Examples:
      almanac share page batchtopk 7 12 -o two_features.html
      almanac share page --collection syntax -o syntax.html
    """
    connection = connect(open_store(store))
    if (collection is None) == (sae is None or not features):
        raise QueryError("name either an SAE and its features, or a --collection")
    if collection is not None:
        members = collected(connection, collection)
    else:
        sae_id = find_sae(connection, sae)
        members = [(sae_id, feature) for feature in features or []]
    default = collection or f"feature {', '.join(str(feature) for _, feature in members)} of {members[0][0]}"
    content = page(connection, members, title or default, note)
    with replacing(output.resolve()) as aside:
        aside.write_text(content, encoding="utf-8")
    out().print(text(f"wrote {output}: {len(members)} features, {len(content.encode()):,} bytes"))


def _write(batches: pa.RecordBatchReader, output: Path) -> int:
    """Batch after batch, so that a table of any length fits. Returns the rows."""
    n = 0
    if output.suffix not in (".parquet", ".csv", ".jsonl"):
        raise QueryError(f"{output} ends in none of .parquet, .csv, .jsonl; name it so")
    try:
        with replacing(output.resolve()) as aside:
            if output.suffix == ".parquet":
                with pq.ParquetWriter(aside, batches.schema, compression="zstd") as writer:
                    for batch in batches:
                        writer.write_batch(batch)
                        n += batch.num_rows
            else:
                with open(aside, "w", encoding="utf-8", newline="") as file:
                    if output.suffix == ".csv":
                        file.write(as_csv(batches.schema.empty_table()))
                    for batch in batches:
                        table = pa.Table.from_batches([batch])
                        file.write(_body(table, output.suffix))
                        n += batch.num_rows
    except OSError as error:
        raise QueryError(f"{output} cannot be written: {error.strerror or error}; name another file") from error
    return n


def _body(table: pa.Table, suffix: str) -> str:
    return as_jsonl(table) if suffix == ".jsonl" else as_csv(table).split("\n", 1)[1]
