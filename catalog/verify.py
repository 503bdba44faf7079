"""Is every file of the catalog what was published, and every label what was recorded?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.errors import CatalogError, DamagedError
from catalog.events import EVENT_TABLES
from catalog.files import read_parquet, sha256_of
from catalog.mirror import mirror_file, mirrored, refuse_lost_events
from catalog.schema import SCHEMA_VERSION, TABLES, arrow_schema
from catalog.snapshot import Part, Snapshot, current, recorded
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import MARKER, Store
from catalog.view_file import is_view_file_whole
from catalog.views import schema_part

__all__ = ["Damage", "verify"]

AGAIN = (
    "to publish again, delete the folder artifacts/publication of the store and run `almanac build` as before "
    "(a build passes over what is in that folder), or restore the file from a backup"
)
FORWARD = f"bring the store forward to version {SCHEMA_VERSION} with `almanac migrate`; nothing is lost"
HISTORY = "delete it; it is history, which nothing but a reader that began long ago needs"
REWRITTEN = "delete it; the next command writes it anew"
UNREADABLE = (OSError, pa.ArrowException)


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it should be."""

    path: Path
    problem: str
    advice: str


def verify(store: Store) -> list[Damage]:
    """Everything that is damaged, by file; nothing is changed."""
    try:
        snapshot = current(store)
    except DamagedError as error:
        return [Damage(store.catalog / "current", str(error), "restore it from a backup"), *_check_labels(store)]
    is_old = store.schema_version < SCHEMA_VERSION
    return [
        *([Damage(store.root / MARKER, f"says schema version {store.schema_version}", FORWARD)] if is_old else []),
        *(damage for part in snapshot.parts for damage in _check_part(store, part, is_old)),
        *_check_history(store),
        *_check_keys(store, snapshot),
        *_check_schema_parts(store),
        *_check_view_file(store),
        *_check_labels(store),
    ]


def _check_history(store: Store) -> Iterator[Damage]:
    """The current snapshot is whole, or there would be nothing to compare the parts with."""
    for path, named in recorded(store).items():
        if named is None:
            yield Damage(path, "is an earlier snapshot that cannot be read", HISTORY)


def _check_part(store: Store, part: Part, is_old: bool) -> Iterator[Damage]:
    path = store.catalog / part.path
    if not path.exists():
        yield Damage(path, "is missing", AGAIN)
        return
    try:
        size = path.stat().st_size
        if size != part.bytes:
            yield Damage(path, f"has {size:,} bytes, published were {part.bytes:,}", AGAIN)
        elif sha256_of(path) != part.sha256:
            yield Damage(path, "has another content than was published (its sha256 differs)", AGAIN)
        else:
            yield from _check_metadata(path, part, is_old)
    except UNREADABLE as error:
        yield Damage(path, f"cannot be read: {error}", AGAIN)


def _check_metadata(path: Path, part: Part, is_old: bool) -> Iterator[Damage]:
    metadata = pq.read_metadata(path)
    if metadata.num_rows != part.rows:
        yield Damage(path, f"has {metadata.num_rows:,} rows, published were {part.rows:,}", AGAIN)
    if not is_old and not metadata.schema.to_arrow_schema().equals(arrow_schema(part.table)):
        yield Damage(path, f"has other columns than the table {part.table!r}", AGAIN)


def _check_keys(store: Store, snapshot: Snapshot) -> Iterator[Damage]:
    """Keys are unique inside a part since it was published; here across the parts of a table."""
    for name, table in TABLES.items():
        paths = [store.catalog / part.path for part in snapshot.parts_of(name)]
        partitions = [part.partition for part in snapshot.parts_of(name)]
        if table.volatile or not table.key or len(set(partitions)) == len(partitions):
            continue
        keys = ", ".join(table.key)
        try:
            with duckdb.connect(":memory:", config={"threads": 2}) as connection:
                doubled = connection.execute(
                    f"select {keys} from {read_parquet(paths)} group by all having count(*) > 1 limit 1"
                ).fetchall()
        except duckdb.Error:
            continue  # a damaged file, which was named above
        if doubled:
            yield Damage(store.catalog / name, f"has the key ({keys}) = {doubled[0]} more than once", AGAIN)


def _check_schema_parts(store: Store) -> Iterator[Damage]:
    for table in TABLES:
        path = schema_part(store, table)
        if path.exists():
            try:
                if not pq.read_table(path).schema.equals(arrow_schema(table)):
                    yield Damage(path, f"has other columns than the table {table!r}", REWRITTEN)
            except UNREADABLE as error:
                yield Damage(path, f"cannot be read: {error}", REWRITTEN)


def _check_view_file(store: Store) -> Iterator[Damage]:
    if not store.view_file.exists():
        return  # the next command writes it
    if not is_view_file_whole(store):
        yield Damage(store.view_file, "has another content than was written (its sha256 differs)", REWRITTEN)


def _check_labels(store: Store) -> Iterator[Damage]:
    path = store.labels / "events.sqlite"
    try:
        with SQLiteLabels(store.labels, read_only=True) as labels:
            refuse_lost_events(store, labels)
            for problem in labels.check():
                yield Damage(path, problem, "restore it from a backup; labels are nowhere else")
            yield from _check_mirror(store, labels)
    except CatalogError as error:
        yield Damage(path, str(error), "restore it from a backup; labels are nowhere else")


def _check_mirror(store: Store, labels: SQLiteLabels) -> Iterator[Damage]:
    if mirrored(store) != labels.last():
        return  # behind, and brought up to date by the next command
    for table in EVENT_TABLES:
        path = mirror_file(store, table)
        try:
            if not pq.read_table(path).equals(labels.events(table)):
                yield Damage(path, "is not what the label store holds", REWRITTEN)
        except UNREADABLE as error:
            yield Damage(path, f"cannot be read: {error}", REWRITTEN)
