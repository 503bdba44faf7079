"""The views: SQL over the exact files of one snapshot, by absolute path.

Every view begins with its table's zero-row schema part, so that a table without rows is still a table. A table of
which a file is damaged becomes a view that says so when it is asked; the others are as ever.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.files import read_parquet, replacing
from catalog.mirror import mirror_file
from catalog.parts import write_empty
from catalog.schema import TABLES, arrow_schema
from catalog.snapshot import Snapshot
from catalog.store import Store

__all__ = ["create_views", "definition", "files_of", "has_schema_parts", "schema_part", "write_schema_parts"]

DERIVED = (
    "label",
    "label_agreement",
    "best_explanation",
    "feature_card",
    "current_sae",
    "examples_of",
    "example_place",
)  # in this order


def create_views(connection: duckdb.DuckDBPyConnection, store: Store, snapshot: Snapshot, live: bool) -> None:
    """Create every view and macro, all at once. With `live`, people's tables are real, empty ones, to be filled from
    the label store; without, they are views of its Parquet copy."""
    try:
        _create(connection, _statements(store, snapshot, live, {}))
    except duckdb.Error:
        damaged = _damaged(connection, store, snapshot, live)
        if not damaged:
            raise
        _create(connection, _statements(store, snapshot, live, damaged))


def files_of(store: Store, snapshot: Snapshot) -> list[Path]:
    """Every file that the views of our own connections read."""
    return [path for table in TABLES for path in _table_files(store, snapshot, table, live=True)]


def schema_part(store: Store, table: str) -> Path:
    return store.catalog / table / "schema.parquet"


def has_schema_parts(store: Store) -> bool:
    return all(schema_part(store, table).exists() for table in TABLES)


def write_schema_parts(store: Store) -> None:
    for table in TABLES:
        path = schema_part(store, table)
        if not _has_schema(path, table):
            path.parent.mkdir(exist_ok=True)
            with replacing(path, durable=False) as aside:
                write_empty(table, aside)


def _has_schema(path: Path, table: str) -> bool:
    try:
        return bool(pq.read_schema(path).equals(arrow_schema(table)))
    except (FileNotFoundError, pa.ArrowInvalid):
        return False


def _create(connection: duckdb.DuckDBPyConnection, statements: list[str]) -> None:
    connection.execute("begin").fetchall()  # all or none, and one write to the disk
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
        connection.execute("commit").fetchall()
    except duckdb.Error:
        connection.execute("rollback").fetchall()
        raise


def _statements(store: Store, snapshot: Snapshot, live: bool, damaged: Mapping[str, str]) -> list[str]:
    statements = []
    for name, table in TABLES.items():
        kind = "table" if live and table.writing == "event" else "view"
        source = f"from {read_parquet(_table_files(store, snapshot, name, live))}"
        if name in damaged:
            message = damaged[name].replace("'", "''")
            schema = read_parquet([schema_part(store, name)])
            source = f"select s.* from (select 1 where error('{message}') is null) left join {schema} as s on true"
        statements.append(f'create {kind} "{name}" as {source}')
    return [*statements, *_derived()]


def _damaged(connection: duckdb.DuckDBPyConnection, store: Store, snapshot: Snapshot, live: bool) -> dict[str, str]:
    """Table -> what DuckDB says of its files."""
    found = {}
    for name in TABLES:
        try:
            connection.execute(f"from {read_parquet(_table_files(store, snapshot, name, live))} limit 0").fetchall()
        except duckdb.Error as error:
            found[name] = str(error).split("\n")[0]
    return found


def _table_files(store: Store, snapshot: Snapshot, table: str, live: bool) -> list[Path]:
    if TABLES[table].writing == "event":
        return [schema_part(store, table)] if live else [schema_part(store, table), mirror_file(store, table)]
    return [schema_part(store, table), *(store.catalog / part.path for part in snapshot.parts_of(table))]


@cache
def definition() -> str:
    """Changes when a table gets another column, or a view says something else: what was made of it before is old."""
    tables = [(name, [(c.name, str(c.type), c.nullable) for c in table.columns]) for name, table in TABLES.items()]
    return hashlib.sha256(repr((tables, _derived())).encode()).hexdigest()[:16]


@cache
def _derived() -> tuple[str, ...]:
    folder = Path(__file__).parent / "views"
    return tuple((folder / f"{name}.sql").read_text(encoding="utf-8") for name in DERIVED)
