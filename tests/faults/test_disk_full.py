"""A disk that fills up: one message that says what to do, nothing half-written, and with room again it goes on."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from fault_store import ForkServer, Mounts, Outcome, Whole, step_inside

from catalog import Event, LabelError, Labels, Store, StoreError

MEGABYTE = 1 << 20


def is_told(refused: Outcome) -> bool:
    """A named error that says what to do."""
    words = ("make room", "no space left on device")  # the second where DuckDB wrote: see docs/faults.md
    return refused.error in ("DiskError", "StoreError") and any(word in refused.message.lower() for word in words)


def test_build_on_a_disk_that_is_too_small_goes_on_when_there_is_room(
    server: ForkServer, whole: Whole, text: Path, mounts: Mounts, figures: list[str]
) -> None:
    """A real file system, made a little larger after every failure."""
    tokens, activations = (n_bytes(whole.store / "artifacts" / kind) for kind in ("tokens", "activations"))
    sizes = [tokens // 2, tokens + activations // 2, tokens + activations + MEGABYTE // 2]
    disk, failed = mounts.tmpfs(sizes[0]), []
    store = disk / "store"
    for size in (*sizes, *(sizes[-1] + n * MEGABYTE * 2 // 3 for n in range(1, 40))):
        mounts.resize(disk, size)
        done = server.run("build", store=store, corpus=text)
        if done.status == 0:
            break
        assert is_told(done), (done.error, done.message)
        failed.append(step_inside(store))
        # on a disk without a free byte SQLite cannot even read, and says so: nothing else may be wrong
        assert all("make room" in line for line in server.run("damages", store=store).made)
    figures.append(f"disk full: {len(failed)} times, in {sorted(set(failed))}")
    assert len(set(failed)) >= 3
    assert server.run("damages", store=store).made == []
    assert server.run("compare", store=store, other=whole.store).made == []


def test_build_that_cannot_sync_goes_on_when_there_is_room(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path, figures: list[str]
) -> None:
    """The same where no file system can be mounted: ENOSPC from every fsync after the first so many."""
    store, failed = tmp_path / "store", []
    share = max(10, whole.n_syncs // 8)
    for _ in range(30):
        done = server.run("build", store=store, corpus=text, full_from=share)
        if done.status == 0:
            break
        assert is_told(done), (done.error, done.message)
        failed.append(step_inside(store))
        assert server.run("damages", store=store).made == []
        share += 5  # what is done already says so in `run`, at a few syncs a step
    figures.append(f"no sync: {len(failed)} times, in {sorted(set(failed))}")
    assert len(failed) >= 3
    assert server.run("compare", store=store, other=whole.store).made == []


def test_label_on_a_full_disk_is_refused_and_nothing_of_it_is_kept(
    server: ForkServer, mounts: Mounts, text: Path
) -> None:
    disk = mounts.tmpfs(2 * MEGABYTE)
    store = disk / "store"
    Store.create(store)
    assert server.run("label", store=store, event_id="before").made is None
    fill(disk / "full")
    refused = server.run("label", store=store, event_id="refused", times=1)
    assert refused.is_named_error and "make room" in refused.message
    assert all("make room" in line for line in server.run("damages", store=store).made)
    (disk / "full").unlink()
    assert server.run("damages", store=store).made == []
    assert server.run("label", store=store, event_id="after").made is None
    found = server.run("ask", store=store, sql="select event_id from label_event order by created_at").made
    assert found == [["before"], ["after"]]


def test_store_on_a_full_disk_says_to_make_room_and_is_read_when_there_is(
    server: ForkServer, whole: Whole, mounts: Mounts
) -> None:
    disk = mounts.tmpfs(60 * MEGABYTE)
    store = disk / "store"
    os.system(f"cp -a '{whole.store}' '{store}'")
    fill(disk / "full")
    refused = server.run("ask", store=store, sql="select count(*) from feature")
    assert refused.status == 0 or (refused.is_named_error and "make room" in refused.message)
    (disk / "full").unlink()
    assert server.run("ask", store=store, sql="select count(*) from feature").made == [[128]]
    assert server.run("damages", store=store).made == []


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(path: Path) -> None:
    """To the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_many_labels_at_once_that_do_not_fit_are_all_refused(tmp_path: Path) -> None:
    """SQLite's own word for a full disk, where no file system can be mounted."""
    with Labels(Store.create(tmp_path / "store")) as labels:
        values = {"sae_id": "a@1", "feature": 1, "text": "x" * 5_000}
        labels.append([Event("label_event", "ada", "write", values, event_id="before")])
        labels._connection.execute("pragma max_page_count = 20")
        many = [Event("label_event", "ada", "write", values, event_id=f"e{i}") for i in range(50)]
        with pytest.raises((LabelError, StoreError, sqlite3.OperationalError)):
            labels.append(many)
        labels._connection.execute("pragma max_page_count = 1000000")
        assert labels.events("label_event")["event_id"].to_pylist() == ["before"]
        assert labels.append(many) == 50
