"""People's events in one SQLite file: write-ahead log, synchronous=FULL, so that what was acknowledged is on the disk.

SQLite needs a local disk, not NFS.
"""

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pyarrow as pa

from catalog.errors import DamagedError, LabelError, LockedError, StoreError
from catalog.events import HEAD, Event, validate
from catalog.schema import TABLES, arrow_schema

__all__ = ["SQLiteLabels"]

BUSY_SECONDS = 30.0
EPOCH = datetime(1970, 1, 1)
MAX_SEQ = 2**63 - 1
UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

CREATE = """
create table if not exists event (
    seq integer primary key autoincrement, event_id text not null unique, kind text not null,
    created_at integer not null, author text not null, action text not null, undoes text,
    sae_id text, feature integer, body text not null, digest text not null
) strict;
create index if not exists event_by_feature on event (sae_id, feature);
create unique index if not exists event_undone_once on event (undoes) where undoes is not null;
create trigger if not exists event_is_never_changed before update on event
    begin select raise(abort, 'events are never changed'); end;
create trigger if not exists event_is_never_removed before delete on event
    begin select raise(abort, 'events are never removed'); end;
"""
COLUMNS = "seq, event_id, kind, created_at, author, action, undoes, sae_id, feature, body"
Stored = tuple[Any, ...]  # one row of COLUMNS


class SQLiteLabels:
    """Events in `events.sqlite` of a folder. Safe for any number of processes and threads."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.path = folder / "events.sqlite"
        self._lock = threading.Lock()
        try:
            self._connection = _connect(self.path, read_only)
            if not read_only:
                self._prepare()
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path} cannot be opened: {error}; allow writing to its folder") from error
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path, error) from error

    def append(self, events: Sequence[Event]) -> int:
        for event in events:
            validate(event)
        with self._writing() as connection:
            return sum(self._insert(connection, event) for event in events)

    def rehearse(self, events: Sequence[Event]) -> list[str]:
        answers = []
        with self._writing() as connection:
            for event in events:
                try:
                    validate(event)
                    answers.append("new" if self._insert(connection, event) else "known")
                except LabelError as error:
                    answers.append(str(error))
            connection.execute("rollback")
        return answers

    def events(self, table: str, after: int = 0, until: int | None = None) -> pa.Table:
        rows = self._read(
            f"select {COLUMNS} from event where kind = ? and seq > ? and seq <= ? order by seq",
            (table, after, MAX_SEQ if until is None else until),
        )
        return _as_arrow(table, [_as_row(row) for row in rows])

    def of_feature(self, sae_id: str, feature: int) -> pa.Table:
        """Every label_event of one feature, in order."""
        rows = self._read(
            f"select {COLUMNS} from event where sae_id = ? and feature = ? and kind = 'label_event' order by seq",
            (sae_id, feature),
        )
        return _as_arrow("label_event", [_as_row(row) for row in rows])

    def find(self, event_id: str) -> Event | None:
        rows = self._read(f"select {COLUMNS} from event where event_id = ?", (event_id,))
        return _as_event(rows[0]) if rows else None

    def last(self) -> int:
        return int(self._read("select coalesce(max(seq), 0) from event", ())[0][0])

    def check(self) -> list[str]:
        """What is wrong with the file, by SQLite's own check and ours; empty if nothing."""
        found = [str(row[0]) for row in self._read("pragma integrity_check", ())]
        if found != ["ok"]:
            return found
        rows = self._read(f"select {COLUMNS}, digest from event order by seq", ())
        problems = [f"event {row[1]!r} was changed" for row in rows if _digest(row[1:-1]) != row[-1]]
        if rows and rows[-1][0] != len(rows):
            problems.append(f"{rows[-1][0] - len(rows)} of {rows[-1][0]} events are missing")
        return problems

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _prepare(self) -> None:
        for pragma in ("journal_mode=wal", "synchronous=full", "wal_autocheckpoint=1000"):
            self._patiently(f"pragma {pragma}")
        if not self._read("select 1 from sqlite_master where name = 'event_is_never_removed'", ()):
            with self._writing() as connection:
                for statement in CREATE.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that takes the write lock at once, waiting for other writers with jitter."""
        with self._lock:
            self._patiently("begin immediate")
            try:
                yield self._connection
                if self._connection.in_transaction:
                    self._patiently("commit")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:  # full, damaged
                    raise _damaged(self.path, error) from error
                raise

    def _patiently(self, statement: str) -> None:
        """SQLite's own busy handler starves writers under load; random waits do not."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise _damaged(self.path, error) from error
                if time.monotonic() > deadline:
                    raise LockedError(
                        f"{self.path} was busy for {BUSY_SECONDS:g} s, nothing was recorded; try again, "
                        "and look for a process that hangs while writing labels"
                    ) from error
            time.sleep(random.uniform(0.001, 0.02))

    def _read(self, sql: str, parameters: tuple[Any, ...]) -> list[Stored]:
        with self._lock:
            deadline = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    return self._connection.execute(sql, parameters).fetchall()
                except sqlite3.DatabaseError as error:
                    if not _is_busy(error) or time.monotonic() > deadline:
                        raise _damaged(self.path, error) from error
                time.sleep(random.uniform(0.001, 0.02))

    def _insert(self, connection: sqlite3.Connection, event: Event) -> int:
        found = connection.execute(f"select {COLUMNS} from event where event_id = ?", (event.event_id,)).fetchall()
        if found:
            if _as_event(found[0]).content != event.content:
                raise LabelError(f"event_id {event.event_id!r} was used before for something else; mint a new one")
            return 0
        if event.undoes is not None:
            _check_undo(connection, event)
        (latest,) = connection.execute("select created_at from event order by seq desc limit 1").fetchone() or (0,)
        created_at = _recorded_before(event.created_at) if event.created_at else max(_now(), latest + 1)
        stored = (event.event_id, event.table, created_at, event.author, event.action, event.undoes,
                  event.values.get("sae_id"), event.values.get("feature"), _body(event))  # fmt: skip
        connection.execute(
            f"insert into event ({COLUMNS.removeprefix('seq, ')}, digest) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*stored, _digest(stored)),
        )
        return 1


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    if not path.exists():  # nobody labelled anything yet
        empty = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        empty.executescript(CREATE)
        return empty
    # in a folder that nobody can write to, the log cannot be opened either: then the file is all there is
    has_log = path.with_name(path.name + "-wal").exists() or os.access(path.parent, os.W_OK)
    mode = "mode=ro" if has_log else "immutable=1"
    location = f"file:{quote(str(path))}?{mode}"
    return sqlite3.connect(location, uri=True, timeout=0, isolation_level=None, check_same_thread=False)


def _check_undo(connection: sqlite3.Connection, event: Event) -> None:
    rows = connection.execute(f"select {COLUMNS} from event where event_id = ?", (event.undoes,)).fetchall()
    if not rows:
        raise LabelError(f"there is no event {event.undoes!r} to undo; look it up in the history")
    undone = _as_event(rows[0])
    if undone.table != event.table:
        raise LabelError(f"event {event.undoes!r} belongs to {undone.table}, not to {event.table}; undo it there")
    if undone.action == "undo":
        raise LabelError(f"event {event.undoes!r} is an undo, and an undo cannot be undone; do the thing again")
    if undone.author != event.author:
        raise LabelError(
            f"event {event.undoes!r} is {undone.author}'s; only they undo it. Write your own label beside it"
        )
    if connection.execute("select 1 from event where undoes = ?", (event.undoes,)).fetchone():
        raise LabelError(f"event {event.undoes!r} is undone already; nothing to do")


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _damaged(path: Path, error: sqlite3.Error) -> StoreError | DamagedError:
    if error.sqlite_errorcode & 0xFF in UNWRITABLE:
        return StoreError(
            f"{path} cannot be written: {error}; make room, allow writing, or name a store that you may write to. "
            "Nothing was recorded"
        )
    return DamagedError(f"{path} cannot be used: {error}; run `almanac verify`, and restore it from a backup")


def _digest(stored: Stored) -> str:
    """Tells a row that was recorded from one whose bytes changed on the disk."""
    return hashlib.sha256(json.dumps(stored, ensure_ascii=False).encode()).hexdigest()[:16]


def _body(event: Event) -> str:
    own = {k: v for k, v in event.values.items() if v is not None and k not in ("sae_id", "feature")}
    return json.dumps(own, ensure_ascii=False, sort_keys=True)


def _as_row(row: Stored) -> dict[str, Any]:
    _, event_id, _, created_at, author, action, undoes, sae_id, feature, body = row
    head = {"event_id": event_id, "author": author, "action": action, "undoes": undoes}
    when = EPOCH + timedelta(microseconds=created_at)
    return {**json.loads(body), **head, "created_at": when, "sae_id": sae_id, "feature": feature}


def _as_event(row: Stored) -> Event:
    values = _as_row(row)
    event_id, created_at, author, action, undoes = (values.pop(name) for name in HEAD)
    own = {key: value for key, value in values.items() if value is not None}
    return Event(row[2], author, action, own, undoes, event_id, created_at)


def _as_arrow(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    columns = {column.name: [row.get(column.name) for row in rows] for column in TABLES[table].columns}
    nullable = pa.schema([field.with_nullable(True) for field in arrow_schema(table)])  # an undo leaves much out
    return pa.table(columns, schema=nullable)


def _micros(moment: datetime) -> int:
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return (naive - EPOCH) // timedelta(microseconds=1)


def _recorded_before(moment: datetime) -> int:
    if _micros(moment) > _now():
        raise LabelError(f"created_at is {moment}, which is yet to come; leave it out to record the event now")
    return _micros(moment)


def _now() -> int:
    return _micros(datetime.now(UTC))
