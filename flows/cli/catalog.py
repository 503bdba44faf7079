"""Commands that read the catalog: sql, query, features, show, verify."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import pyarrow as pa
import typer
from rich.table import Table

from catalog import Damage, Labels, QueryError, Store, connect, current, query, verify
from catalog import console as sql_console
from catalog.keeping import forget_query, save_query, saved_sql
from catalog.lookup import check_feature, find_sae
from catalog.query import QUERIES
from flows.cli.answers import Format, show_answer
from flows.cli.common import DEFAULT_STORE, StoreOption, UserOption, open_store, out, text, user_name
from flows.cli.feature_text import show_feature

__all__ = ["register"]

LONGEST = 100_000  # rows of the answer to a saved question
Check = Callable[[Store], list[Damage]]
FACTS = ("card", "histogram", "tokens_of", "logits_of", "examples", "neighbors_of")
Sort = Literal["density", "feature", "act_max", "delta_ce_linear", "reconstructive", "explanation_score"]
Status = Literal["alive", "dead", "rare", "dense"]

FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="How to answer [default: table, or what --output ends in].", show_default=False),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the answer to this file.", show_default=False)
]
SAEArgument = Annotated[
    str | None,
    typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.", show_default=False),
]


def register(app: typer.Typer, extra_checks: Sequence[Check] = ()) -> None:
    """Add the commands to `app`; `extra_checks` are what `verify` looks at beside the catalog."""
    app.command("sql")(sql_command)
    app.command("query")(query_command)
    app.command("features")(features_command)
    app.command("show")(show_command)

    @app.command("verify")
    def verify_command(store: StoreOption = None) -> None:
        """Check that every file is what was published, and every label what was recorded.

        Example:  almanac verify --store ./almanac
        """
        opened = open_store(store)
        damages = [*verify(opened), *(damage for check in extra_checks for damage in check(opened))]
        _show_damages(opened, damages)


def sql_command(  # noqa: PLR0913 (one parameter per option)
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT; see docs/reference/tables.md for the tables.")],
    form: FormatOption = None,
    output: OutputOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Stop after so many seconds.")] = 60.0,
    save: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep the question for `almanac query`.", show_default=False)
    ] = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Ask the catalog a question in SQL. Nothing that is typed here can write.

    Example:  almanac sql "select feature, name, density from feature_card where status = 'alive' limit 5"
    """
    opened = open_store(store)
    answer = sql_console.run(opened, sql, limit + 1, timeout)
    show_answer(answer, form, output, limit)
    if save:
        with Labels(opened) as labels:
            save_query(connect(opened), labels, user_name(user), save, sql)


def query_command(  # noqa: PLR0913 (one parameter per option)
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The question.", show_default=False)] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value", show_default=False)] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take a saved question off the list.")] = False,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Ask one of the questions that come with the catalog, or one that was saved; without NAME, list them.

    The parameter sae_id takes a family or a part of it, and may be left out where there is only one SAE.

    Example:  almanac query read_feature --param sae_id=batchtopk --param feature=7
    """
    if name is None:
        _list_queries(store)
        return
    connection = connect(open_store(store))
    if forget:
        with Labels(open_store(store)) as labels:
            forget_query(connection, labels, user_name(user), name)
        out().print(text(f"{name!r} is off the list"))
        return
    if name not in QUERIES:
        show_answer(sql_console.run(open_store(store), saved_sql(connection, name), LONGEST, 60.0), form, output)
        return
    pairs = [given.partition("=") for given in param or []]
    for key, equals, _ in pairs:
        if not equals:
            raise QueryError(f"--param wants name=value, got {key!r}; write for example --param n=10")
    given: dict[str, Any] = {key: value for key, _, value in pairs}
    show_answer(query(connection, name, **_with_sae(connection, name, given)), form, output)


def features_command(  # noqa: PLR0913 (one parameter per option)
    sae: SAEArgument = None,
    search: Annotated[str | None, typer.Option(help="Text in the name, or in the tokens.", show_default=False)] = None,
    token: Annotated[str | None, typer.Option(help="A token that the feature fires on.", show_default=False)] = None,
    status: Annotated[Status | None, typer.Option(help="Only these.", show_default=False)] = None,
    sort: Annotated[Sort, typer.Option(help="Highest first.")] = "density",
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 25,
    store: StoreOption = None,
) -> None:
    """List and search the features of an SAE (the only one, if there is only one).

    Example:  almanac features --search import --sort act_max --limit 10
    """
    connection = connect(open_store(store))
    sae_id = find_sae(connection, sae)
    filters = {"search": search, "token": token, "status": status, "sort": sort, "n": limit + 1}
    answer = query(connection, "features", sae_id=sae_id, **filters)
    out().print(text(sae_id, "bold"))
    columns = ["feature", "status", "name", "fires on", "density", "act_max"]
    shown = [*columns, *([sort] if sort not in columns else [])]
    show_answer(_with_words(answer).select(shown), None, None, limit)


def show_command(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")],
    feature: Annotated[int, typer.Argument(help="The feature's number.")],
    store: StoreOption = None,
) -> None:
    """Show one feature: statistics, tokens, and examples with the firing tokens highlighted.

    Example:  almanac show batchtopk 7
    """
    connection = connect(open_store(store))
    sae_id = find_sae(connection, sae)
    check_feature(connection, sae_id, feature)
    facts = {name: query(connection, name, sae_id=sae_id, feature=feature).to_pylist() for name in FACTS}
    if not facts["card"]:
        raise QueryError(f"{sae_id} was published without the table `feature`; run describe and publish it again")
    show_feature(out(), facts)


def _with_sae(connection: duckdb.DuckDBPyConnection, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The SAE as people name it, or the only one; and a feature that it has."""
    is_required = any(each.name == "sae_id" and each.is_required for each in QUERIES[name].parameters)
    if not is_required and "sae_id" not in given:
        return given
    sae_id = find_sae(connection, given.get("sae_id"))
    if str(given.get("feature", "")).isdigit():
        check_feature(connection, sae_id, int(given["feature"]))
    return {**given, "sae_id": sae_id}


def _with_words(answer: pa.Table) -> pa.Table:
    """The tokens of each feature as one text, their spaces made visible."""
    words = [
        "  ".join(token.replace(" ", "·") for token in tokens or []) for tokens in answer["top_tokens_at"].to_pylist()
    ]
    return answer.append_column("fires on", pa.array(words, pa.string()))


def _list_queries(store: Path | None) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("query", "question", "parameters"):
        table.add_column(title, overflow="fold")
    for name, asked in QUERIES.items():
        parameters = ", ".join(map(str, asked.parameters))
        table.add_row(text(name, "bold"), text(asked.question), text(parameters, "dim"))
    if store is not None or DEFAULT_STORE.exists():
        for row in query(connect(open_store(store)), "saved_queries").to_pylist():
            table.add_row(text(row["query_id"], "bold"), text(row["sql"]), text(f"saved by {row['author']}", "dim"))
    out().print(table)


def _show_damages(store: Store, damages: Sequence[Damage]) -> None:
    console = out()
    if not damages:
        snapshot = current(store)
        n_bytes = sum(part.bytes for part in snapshot.parts)
        console.print(
            text(f"{store.root} is whole: snapshot {snapshot.number}, {len(snapshot.parts)} files, {n_bytes:,} bytes")
        )
        return
    for damage in damages:
        console.print(text(damage.path, "bold red"), soft_wrap=True)
        console.print(text(f"  {damage.problem}\n".rstrip()), soft_wrap=True)
        console.print(text(f"  do: {damage.advice}", "dim"), soft_wrap=True)
    raise typer.Exit(1)
