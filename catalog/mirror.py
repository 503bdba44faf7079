"""A copy of people's events as Parquet, one file per table, for readers that are not ours (the duckdb CLI, notebooks).

Every process of ours that records events writes the copy soon after (`MIRROR_SECONDS`, so that a burst of labels is
copied once), and once more when it ends; `connect` and `publish` bring it up to date where a killed process left it
behind. So it is at most 5 s old while one of our processes works with labels. The truth is the label store alone.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.errors import CatalogError, DamagedError
from catalog.events import EVENT_TABLES, Event
from catalog.files import replacing
from catalog.labels import LabelStore
from catalog.locks import exclusive
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import Store

__all__ = ["MIRROR_SECONDS", "Labels", "bring_up_to_date", "mirror_file", "mirrored", "refuse_lost_events"]

MIRROR_SECONDS = 2.0
LOCK_SECONDS = 30.0
log = logging.getLogger(__name__)


class Labels(SQLiteLabels):
    """The label store of a store, with its Parquet copy kept. Close it (or use `with`) to write the copy at once."""

    def __init__(self, store: Store) -> None:
        store.labels.mkdir(exist_ok=True)
        super().__init__(store.labels)
        refuse_lost_events(store, self)
        self._store = store
        self._timer: threading.Timer | None = None
        self._timer_lock = threading.Lock()

    def append(self, events: Sequence[Event]) -> int:
        added = super().append(events)
        with self._timer_lock:
            if added and self._timer is None:
                # not a daemon: a program that ends without `close` waits until the copy is written
                self._timer = threading.Timer(MIRROR_SECONDS, self._copy)
                self._timer.start()
        return added

    def close(self) -> None:
        with self._timer_lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self._copy()
        super().close()

    def _copy(self) -> None:
        with self._timer_lock:
            self._timer = None
        try:
            bring_up_to_date(self._store, self)
        except (CatalogError, OSError) as error:  # the events themselves are safe: say it, and try with the next one
            log.warning("the Parquet copy of the labels is behind: %s", error)


def mirror_file(store: Store, table: str) -> Path:
    return store.labels / "mirror" / f"{table}.parquet"


def mirrored(store: Store) -> int:
    """The moment (`LabelStore.last`) that the copy shows; -1 where it is not complete."""
    if not all(mirror_file(store, table).exists() for table in EVENT_TABLES):
        return -1
    try:
        return int((store.labels / "mirror" / "last").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return -1


def refuse_lost_events(store: Store, labels: LabelStore) -> None:
    """Raises DamagedError where the copy holds more events than the store itself: then the copy is all there is.

    What `last` says is no proof of it; only where a file of the copy cannot be counted, it is believed.
    """
    counted = _n_copied(store)  # before the store's, which grows
    copied, last = mirrored(store) if counted is None else counted, labels.last()
    if copied > last:
        raise DamagedError(
            f"the label store in {store.labels} holds {last} events, but {copied} were recorded; restore a backup. "
            f"Until then its copy in {store.labels / 'mirror'} is kept as it is"
        )


def _n_copied(store: Store) -> int | None:
    """The events in the files of the copy; None where one of them is damaged."""
    n_copied = 0
    for table in EVENT_TABLES:
        try:
            n_copied += pq.read_metadata(mirror_file(store, table)).num_rows
        except FileNotFoundError:
            continue
        except (OSError, pa.ArrowException):
            return None
    return n_copied


def bring_up_to_date(store: Store, labels: LabelStore) -> None:
    """Write the files of the tables that have new events; a reader finds each file whole, old or new."""
    if mirrored(store) == labels.last():
        return
    refuse_lost_events(store, labels)
    with exclusive(store.locks / "mirror.lock", "copying labels", LOCK_SECONDS):
        seen, last = mirrored(store), labels.last()
        if seen != _n_copied(store):
            seen = -1  # killed in between, or damaged: all of it is written anew
        (store.labels / "mirror").mkdir(parents=True, exist_ok=True)
        for table in EVENT_TABLES:
            path = mirror_file(store, table)
            if seen < 0 or labels.events(table, after=seen).num_rows:
                with replacing(path, durable=False) as aside:
                    pq.write_table(labels.events(table), aside, compression="zstd")
        with replacing(store.labels / "mirror" / "last", durable=False) as aside:
            aside.write_text(str(last), encoding="ascii")
