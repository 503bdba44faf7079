"""Reading the catalog: a connection that sees one snapshot whole, and people's labels as they are now."""

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

import duckdb

from catalog.errors import LockedError
from catalog.events import EVENT_TABLES
from catalog.guard import answering
from catalog.locks import exclusive
from catalog.mirror import bring_up_to_date
from catalog.snapshot import Snapshot, current, current_number
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import Store
from catalog.view_file import is_view_file_current, refresh_view_file
from catalog.views import create_views, files_of, has_schema_parts

__all__ = ["Limits", "Reader", "Version", "connect"]

FIRST_LOCK_SECONDS = 60.0  # to make what no view can do without
LATER_LOCK_SECONDS = 0.2  # a publisher that holds the lock will write the view file itself


@dataclass(frozen=True)
class Limits:
    """What a connection may use. `memory` as DuckDB writes it."""

    memory: str = "2GB"
    threads: int = 2


@dataclass(frozen=True)
class Version:
    """What a reader sees: cheap to ask for, and a key for caches."""

    snapshot: int
    labels: int


DEFAULT_LIMITS = Limits()


def connect(store: Store | Path | str, limits: Limits = DEFAULT_LIMITS) -> duckdb.DuckDBPyConnection:
    """A connection to the current snapshot: every table and view of the catalog, labels included.

    It reads the files of this snapshot and nothing else (no other file, no network, no Python object), and its
    configuration is locked. It keeps its snapshot and its labels however long it lives; `Reader` follows both.
    It is a database in memory: what is created in it is gone with it. SQL that others typed goes through
    `catalog.guarded`, or, with hard limits on time and memory, through `catalog.console`.
    """
    with contextlib.closing(Reader(store, limits)) as reader:
        return reader.connection


class Reader:
    """A long-lived reader, for any number of threads. `cursor` follows new snapshots and new labels."""

    def __init__(self, store: Store | Path | str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.store, self._limits = Store.open(store), limits
        self._lock = threading.Lock()
        self._labels = SQLiteLabels(self.store.labels, read_only=not self.store.is_writable)
        if self.store.is_writable:
            _repair(self.store, self._labels)
        self._open()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection to the snapshot of the last `cursor` call."""
        return self._connection

    def version(self) -> Version:
        """What `cursor` would show now."""
        return Version(current_number(self.store), self._labels.last())

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one thread on the current snapshot with the labels of this moment.

        A cursor taken before keeps its snapshot; labels appear in it at once.
        """
        with self._lock:
            if current_number(self.store) != self.snapshot.number:
                self._open()
            elif self._labels.last() != self._seen:
                self._load_labels()
            return self._connection.cursor()

    def close(self) -> None:
        """Let go of the label store. Cursors and the connection live on."""
        self._labels.close()

    def _open(self) -> None:
        self.snapshot: Snapshot = current(self.store)
        self._connection = _open_views(self.store, self.snapshot, self._limits)
        self._seen = 0
        self._load_labels()

    def _load_labels(self) -> None:
        last = self._labels.last()
        for table in EVENT_TABLES:
            rows = self._labels.events(table, after=self._seen, until=last)
            if rows.num_rows:
                self._connection.register("incoming_events", rows)
                self._connection.execute(f"insert into {table} by name from incoming_events").fetchall()
                self._connection.unregister("incoming_events")
        self._seen = last


def _open_views(store: Store, snapshot: Snapshot, limits: Limits) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config={"threads": limits.threads, "memory_limit": limits.memory})
    paths = [str(path) for path in files_of(store, snapshot)]
    for setting, value in (
        ("parquet_metadata_cache", True),
        ("temp_directory", ""),
        ("autoinstall_known_extensions", False),
        ("autoload_known_extensions", False),
        ("allow_community_extensions", False),
        ("allowed_paths", paths),
        ("enable_external_access", False),
        ("python_enable_replacements", False),
        ("lock_configuration", True),
    ):
        connection.execute(f"set {setting} = $value", {"value": value}).fetchall()
    with answering(""):
        create_views(connection, store, snapshot, live=True)
    return connection


def _repair(store: Store, labels: SQLiteLabels) -> None:
    """After a killed process, or a move of the store: view file and copy of the labels are made to fit again."""
    wait = LATER_LOCK_SECONDS if has_schema_parts(store) else FIRST_LOCK_SECONDS
    if not has_schema_parts(store) or not is_view_file_current(store, current(store)):
        try:
            with exclusive(store.locks / "catalog.lock", "writing the view file", wait):
                refresh_view_file(store, current(store))
        except LockedError:
            if not has_schema_parts(store):
                raise
    bring_up_to_date(store, labels)
