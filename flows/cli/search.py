"""`almanac search` and `almanac collection`: finding features, and keeping what was found."""

from pathlib import Path
from typing import Annotated

import duckdb
import pyarrow as pa
import typer

from catalog import Labels, Store, connect, query, search
from catalog.keeping import collect, collected, drop
from catalog.lookup import check_feature, find_sae
from catalog.search import Role
from flows.cli.answers import Format, show_answer
from flows.cli.common import StoreOption, UserOption, open_store, out, text, user_name

__all__ = ["register"]

InOption = Annotated[str | None, typer.Option("--in", help="Only in this SAE.", show_default=False)]
LimitOption = Annotated[int, typer.Option(min=1, help="At most so many rows.")]
FormatOption = Annotated[Format | None, typer.Option("--format", help="How to answer.", show_default=False)]
IntoOption = Annotated[
    str | None, typer.Option("--into", metavar="COLLECTION", help="Keep what is found.", show_default=False)
]
TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="The token, with or without a space before it.")]
SAEArgument = Annotated[str, typer.Argument(metavar="SAE", help="sae_id, family, or a part of it that is unique.")]
CollectionArgument = Annotated[str, typer.Argument(metavar="COLLECTION", help="Its name.")]
FeaturesArgument = Annotated[list[int], typer.Argument(metavar="FEATURE...", help="Features' numbers.")]


def register(app: typer.Typer) -> None:
    """Add `search` and `collection` with their commands to `app`."""
    searches = typer.Typer(no_args_is_help=True, help="Find features by text, token, logit, direction or condition.")
    searches.command("text")(by_text)
    searches.command("token")(by_token)
    searches.command("logit")(by_logit)
    searches.command("like")(like)
    searches.command("where")(where)
    app.add_typer(searches, name="search")
    collections = typer.Typer(no_args_is_help=True, help="Sets of features under a name.")
    collections.command("add")(add)
    collections.command("remove")(remove)
    collections.command("list")(list_collections)
    collections.command("show")(show)
    app.add_typer(collections, name="collection")


def by_text(  # noqa: PLR0913 (one parameter per option)
    words: Annotated[str, typer.Argument(metavar="TEXT", help="Words; their spelling may be a little off.")],
    sae: InOption = None,
    limit: LimitOption = 25,
    form: FormatOption = None,
    into: IntoOption = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Search what people and machines say of features, the best first.

    Example:  almanac search text "import statemnts"
    """
    opened, connection = _open(store)
    _answer(opened, search.by_text(connection, words, _sae(connection, sae), limit), form, (into, user))


def by_token(  # noqa: PLR0913 (one parameter per option)
    token: TokenArgument,
    role: Annotated[Role, typer.Option(help="Where the token stands: where they fire, before, after.")] = "at",
    sae: InOption = None,
    limit: LimitOption = 25,
    form: FormatOption = None,
    into: IntoOption = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Search features that fire on a token, the most selective first.

    Example:  almanac search token import
    """
    opened, connection = _open(store)
    _answer(opened, search.by_token(connection, token, _sae(connection, sae), role, limit), form, (into, user))


def by_logit(  # noqa: PLR0913 (one parameter per option)
    token: TokenArgument,
    suppressed: Annotated[bool, typer.Option("--suppressed", help="Those that make it less likely.")] = False,
    sae: InOption = None,
    limit: LimitOption = 25,
    form: FormatOption = None,
    into: IntoOption = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Search features that promote a token, or suppress it.

    Example:  almanac search logit return
    """
    opened, connection = _open(store)
    found = search.by_logit(connection, token, _sae(connection, sae), not suppressed, limit)
    _answer(opened, found, form, (into, user))


def like(  # noqa: PLR0913 (one parameter per option)
    sae: SAEArgument,
    feature: Annotated[int, typer.Argument(help="The feature's number.")],
    among: Annotated[str | None, typer.Option(help="Among those of another SAE.", show_default=False)] = None,
    limit: LimitOption = 25,
    form: FormatOption = None,
    into: IntoOption = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Search features whose decoder direction is nearest to one feature's: cosines with all, from the weights.

    Example:  almanac search like batchtopk 7
    """
    opened, connection = _open(store)
    own, other = find_sae(connection, sae), _sae(connection, among)
    _answer(opened, search.by_direction(connection, opened, own, feature, other, limit), form, (into, user))


def where(  # noqa: PLR0913 (one parameter per option)
    condition: Annotated[str, typer.Argument(metavar="CONDITION", help="SQL over the columns of feature_card.")],
    sae: InOption = None,
    limit: LimitOption = 25,
    form: FormatOption = None,
    into: IntoOption = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Search features of which a condition in SQL is true.

    Example:  almanac search where "density < 0.001 and token_entropy < 0.5"
    """
    opened, connection = _open(store)
    _answer(opened, search.by_condition(connection, condition, _sae(connection, sae), limit), form, (into, user))


def add(  # noqa: PLR0913 (one parameter per option)
    collection: CollectionArgument,
    sae: SAEArgument,
    features: FeaturesArgument,
    note: Annotated[str | None, typer.Option(help="Why they are in there.", show_default=False)] = None,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Put features into a collection.

    Example:  almanac collection add syntax batchtopk 7 12 40
    """
    opened, connection = _open(store)
    with Labels(opened) as labels:
        n = collect(labels, user_name(user), collection, _members(connection, sae, features), note)
    out().print(text(f"{n} features put into {collection!r}"))


def remove(
    collection: CollectionArgument,
    sae: SAEArgument,
    features: FeaturesArgument,
    user: UserOption = None,
    store: StoreOption = None,
) -> None:
    """Take features out of a collection. The history stays.

    Example:  almanac collection remove syntax batchtopk 12
    """
    opened, connection = _open(store)
    collected(connection, collection)
    with Labels(opened) as labels:
        drop(labels, user_name(user), collection, _members(connection, sae, features))
    out().print(text(f"{len(features)} features taken out of {collection!r}"))


def list_collections(form: FormatOption = None, store: StoreOption = None) -> None:
    """List the collections.

    Example:  almanac collection list
    """
    show_answer(query(_open(store)[1], "collections"), form, None)


def show(collection: CollectionArgument, form: FormatOption = None, store: StoreOption = None) -> None:
    """List what is in a collection (`almanac share page --collection` makes a page of it).

    Example:  almanac collection show syntax
    """
    connection = _open(store)[1]
    collected(connection, collection)
    show_answer(query(connection, "collection_features", collection_id=collection), form, None)


def _open(store: Path | None) -> tuple[Store, duckdb.DuckDBPyConnection]:
    opened = open_store(store)
    return opened, connect(opened)


def _sae(connection: duckdb.DuckDBPyConnection, name: str | None) -> str | None:
    return find_sae(connection, name) if name else None


def _members(connection: duckdb.DuckDBPyConnection, sae: str, features: list[int]) -> list[tuple[str, int]]:
    sae_id = find_sae(connection, sae)
    for feature in features:
        check_feature(connection, sae_id, feature)
    return [(sae_id, feature) for feature in features]


def _answer(store: Store, found: pa.Table, form: Format | None, keep: tuple[str | None, str | None]) -> None:
    show_answer(found, form, None)
    into, user = keep
    if into and found.num_rows:
        pairs = zip(found["sae_id"].to_pylist(), found["feature"].to_pylist(), strict=True)
        with Labels(store) as labels:
            n = collect(labels, user_name(user), into, dict.fromkeys(pairs), None)
        out().print(text(f"{n} features put into {into!r}", "dim"))
