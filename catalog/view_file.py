"""`catalog.duckdb`: the views of the current snapshot in a file, for the duckdb CLI, notebooks, any reader of DuckDB.

It can be made again at any time; any command of ours does so where it is missing, damaged, moved or behind.
"""

import errno
import json
import os
from pathlib import Path

import duckdb

from catalog.errors import StoreError
from catalog.files import replacing, sha256_of, write_json
from catalog.mirror import bring_up_to_date
from catalog.snapshot import Snapshot
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import Store
from catalog.views import create_views, definition, has_schema_parts, write_schema_parts

__all__ = ["is_view_file_current", "is_view_file_whole", "refresh_view_file"]

STORAGE_VERSION = "v1.0.0"  # the oldest that the wheel writes
NO_ROOM = os.strerror(errno.ENOSPC).lower()  # DuckDB says it in these words too


def is_view_file_current(store: Store, snapshot: Snapshot) -> bool:
    stamp = _stamp_of_file(store)
    shown = {"snapshot": snapshot.number, "root": str(store.root), "definition": definition()}
    return stamp is not None and {key: stamp.get(key) for key in shown} == shown


def is_view_file_whole(store: Store) -> bool:
    """Is the view file one that we wrote? It may still show an earlier snapshot; then the next command rewrites it."""
    return _stamp_of_file(store) is not None


def refresh_view_file(store: Store, snapshot: Snapshot, anew: bool = False) -> None:
    """Make `catalog.duckdb` show this snapshot, where the store lies now; `anew` where it shows it already too (a
    view of a part that was damaged still says so). The caller holds the catalog lock."""
    if not anew and is_view_file_current(store, snapshot) and has_schema_parts(store):
        return
    write_schema_parts(store)
    with SQLiteLabels(store.labels) as labels:
        bring_up_to_date(store, labels)
    try:
        with replacing(store.view_file, durable=False) as aside:
            _build(aside, store, snapshot)
            before = _stamp_of_file(store)
            shown = {"snapshot": snapshot.number, "root": str(store.root), "definition": definition()}
            stamp = {**shown, "sha256": sha256_of(aside)}
            # both, and before the file takes its place: killed in between, the old file is still known
            write_json(_stamp_path(store), {"written": [stamp, *([before] if before else [])]}, durable=False)
    except duckdb.Error as error:
        advice = "make room, and run this again" if NO_ROOM in str(error).lower() else "run `almanac verify`"
        raise StoreError(f"{store.view_file} could not be written: {error}; {advice}") from error


def _build(path: Path, store: Store, snapshot: Snapshot) -> None:
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        quoted = str(path).replace("'", "''")
        connection.execute(f"attach '{quoted}' as catalog (storage_version '{STORAGE_VERSION}')").fetchall()
        connection.execute("use catalog").fetchall()
        create_views(connection, store, snapshot, live=False)
        connection.execute("use memory").fetchall()
        connection.execute("detach catalog").fetchall()


def _stamp_path(store: Store) -> Path:
    return store.catalog / "view_file.json"


def _stamp_of_file(store: Store) -> dict[str, object] | None:
    """What was written down when the view file was made: its snapshot and root. None where the file is not ours."""
    try:
        sha256 = sha256_of(store.view_file)
        written = json.loads(_stamp_path(store).read_bytes())["written"]
        return next((stamp for stamp in written if stamp["sha256"] == sha256), None)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
