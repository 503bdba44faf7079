"""Bringing a store forward to the schema version of this program: its parts written anew, one snapshot, nothing lost.

Columns that are new are null in old rows, columns that are gone are left out, a table that is now kept in other
partitions is cut anew. What needs more than that has a step of its own here, under the version it comes from.
The earlier snapshots stay as they are, for readers that have one open and for whoever wants to go back.
"""

import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.checks import checks_for
from catalog.errors import DamagedError, StoreError
from catalog.locks import exclusive
from catalog.parts import Staging
from catalog.schema import SCHEMA_VERSION, TABLES, arrow_schema
from catalog.snapshot import Part, Snapshot, commit, current
from catalog.store import Store
from catalog.view_file import refresh_view_file

__all__ = ["STEPS", "Migrated", "migrate"]

LOCK_SECONDS = 600.0
Step = Mapping[str, Callable[[pa.Table], pa.Table]]


@dataclass(frozen=True)
class Migrated:
    """From which version to which, and how many parts were written anew."""

    before: int
    after: int
    n_parts: int


def migrate(store: Store, timeout_seconds: float = LOCK_SECONDS) -> Migrated:
    """Bring the store forward; where it is there already, nothing happens. Killed anywhere, do it again.

    Raises StoreError, LockedError, DamagedError; then the store is as it was.
    """
    with exclusive(store.locks / "catalog.lock", "migrating the store", timeout_seconds):
        version = store.schema_version
        if version == SCHEMA_VERSION:
            return Migrated(version, version, 0)
        before = current(store)
        old = [part for part in before.parts if _is_old(store, part)]
        folder = store.catalog / ".staging" / uuid.uuid4().hex
        try:
            folder.mkdir(parents=True)
            if old:
                _rewrite(store, before, old, Staging(folder, checks_for(None)), version)
        except OSError as error:
            raise StoreError(
                f"migrating {store.root} failed: {error.strerror or error}; it is as it was. Make room, and try again"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        store.mark_as_present()
        refresh_view_file(store, current(store), anew=True)
    return Migrated(version, SCHEMA_VERSION, len(old))


def _rewrite(store: Store, before: Snapshot, old: list[Part], staging: Staging, version: int) -> None:
    for part in old:
        rows = _rows(store, part)
        for step in range(version, SCHEMA_VERSION):
            if part.table in STEPS[step]:
                rows = STEPS[step][part.table](rows)
        kept = [name for name in TABLES[part.table].names if name in rows.column_names]
        staging.add(part.table, rows.select(kept), {})
    staging.place(store.catalog)
    kept_parts = tuple(part for part in before.parts if part not in old)
    commit(store, replace(before, number=before.number + 1, parts=(*kept_parts, *staging.parts)))


def _is_old(store: Store, part: Part) -> bool:
    try:
        schema = pq.read_schema(store.catalog / part.path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(store, part, error) from error
    is_cut = bool(part.partition) != bool(TABLES[part.table].partition)
    return is_cut or not schema.equals(arrow_schema(part.table))


def _rows(store: Store, part: Part) -> pa.Table:
    try:
        return pq.read_table(store.catalog / part.path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(store, part, error) from error


def _damaged(store: Store, part: Part, error: Exception) -> DamagedError:
    return DamagedError(
        f"{store.catalog / part.path} cannot be read: {error}; nothing was migrated. Run `almanac verify`, restore the "
        "file from a backup, and migrate again"
    )


def _sequences_of_one_document(rows: pa.Table) -> pa.Table:
    """Before, a sequence held one document, which began with it."""
    document_ids = pa.array([[each] for each in rows["document_id"].to_pylist()], pa.list_(pa.int64()))
    starts = pa.array([[0]] * rows.num_rows, pa.list_(pa.int32()))
    return rows.append_column("document_ids", document_ids).append_column("document_starts", starts)


#: version of the store -> what its rows need, table by table, on their way to the next version
STEPS: dict[int, Step] = {1: {"sequence": _sequences_of_one_document}}
