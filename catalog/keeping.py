"""What people keep: questions under a name, and features in collections. Events in the label store, like labels."""

from collections.abc import Iterable

import duckdb

from catalog.errors import NotFound, nearest
from catalog.events import Event
from catalog.guard import guarded
from catalog.labels import LabelStore
from catalog.query import QUERIES, query

__all__ = ["collect", "collected", "drop", "forget_query", "save_query", "saved_sql"]

Member = tuple[str, int]
"""sae_id and feature."""


def save_query(connection: duckdb.DuckDBPyConnection, labels: LabelStore, author: str, name: str, sql: str) -> None:
    """Keep a question; under a name that is taken by a saved one, it takes its place. Raises QueryError, NotFound."""
    if name in QUERIES:
        raise NotFound(f"{name!r} is a question that comes with the catalog; keep yours under another name")
    guarded(connection, sql, 0)
    labels.append([Event("saved_query", author, "put", {"query_id": name, "name": name, "sql": sql})])


def forget_query(connection: duckdb.DuckDBPyConnection, labels: LabelStore, author: str, name: str) -> None:
    """Take a saved question off the list; its history stays. Raises NotFound."""
    saved_sql(connection, name)
    labels.append([Event("saved_query", author, "remove", {"query_id": name})])


def saved_sql(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """The SQL that was kept under a name. Raises NotFound with the nearest of all questions."""
    saved = {row["query_id"]: row["sql"] for row in query(connection, "saved_queries").to_pylist()}
    if name not in saved:
        raise NotFound(f"no query {name!r}; {nearest(name, [*QUERIES, *saved])}")
    return str(saved[name])


def collect(labels: LabelStore, author: str, collection: str, members: Iterable[Member], note: str | None) -> int:
    """Put features into a collection. Returns how many were sent."""
    events = [
        Event("collection", author, "put", {**_of(collection, member), "name": collection, "note": note})
        for member in members
    ]
    labels.append(events)
    return len(events)


def drop(labels: LabelStore, author: str, collection: str, members: Iterable[Member]) -> None:
    """Take features out of a collection."""
    labels.append([Event("collection", author, "remove", _of(collection, member)) for member in members])


def collected(connection: duckdb.DuckDBPyConnection, collection: str) -> list[Member]:
    """The features of a collection, in the order they came in. Raises NotFound where it is empty."""
    rows = query(connection, "collection_features", collection_id=collection).to_pylist()
    if not rows:
        known = [row["collection_id"] for row in query(connection, "collections").to_pylist()]
        raise NotFound(f"no collection {collection!r}; {nearest(collection, known)}")
    return [(row["sae_id"], row["feature"]) for row in rows]


def _of(collection: str, member: Member) -> dict[str, object]:
    return {"collection_id": collection, "sae_id": member[0], "feature": member[1]}
