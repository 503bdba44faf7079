"""Small damage and small disks in the catalog: what the product did not answer as it promises, and does now (a new gap
is written here first, marked as expected to fail, and named in docs/faults.md)."""

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import duckdb
import pytest
from catalog_samples import publication, published_store

from catalog import DamagedError, Event, Labels, Store, StoreError, append, connect, publish, verify, view_file
from catalog.sqlite_labels import SQLiteLabels


@pytest.fixture
def published(tmp_path: Path) -> Store:
    store = published_store(tmp_path / "store")
    connect(store)
    return store


def write_label(store: Store, text: str) -> None:
    with Labels(store) as labels:
        labels.append([Event("label_event", "ada", "write", {"sae_id": "a@1", "feature": 1, "text": text})])


def flip(path: Path, at: bytes) -> None:
    """One bit, in the last place that reads `at`."""
    content = bytearray(path.read_bytes())
    content[content.rindex(at) + len(at) // 2] ^= 0x01
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("key", [b'"snapshot"', b'"root"'])
def test_bit_in_a_key_of_the_view_files_stamp_costs_nothing_but_a_new_view_file(published: Store, key: bytes) -> None:
    flip(published.catalog / "view_file.json", key)
    for _ in range(2):  # and not one at every read
        assert connect(published).execute("select count(*) from feature").fetchall() == [(8,)]
        written = published.view_file.stat().st_mtime_ns
    connect(published)
    assert published.view_file.stat().st_mtime_ns == written and not verify(published)


def test_store_killed_while_it_is_made_is_an_empty_store(tmp_path: Path) -> None:
    """The marker is written first, the folders after it."""
    store = Store.create(tmp_path / "store")
    for folder in (store.labels, store.catalog, store.locks, store.artifacts):
        folder.rmdir()
    assert connect(Store.open(store.root)).execute("select count(*) from feature").fetchall() == [(0,)]


def test_damaged_old_snapshot_stops_no_publisher_and_is_named(published: Store) -> None:
    """Only readers that began long ago need it."""
    append(published, "run", {"run_id": ["r"], "step": ["train"], "state": ["finished"]}, "f" * 64)
    old = min((published.catalog / "snapshots").glob("*.json"))
    old.write_bytes(old.read_bytes()[:100])
    assert [damage.path for damage in verify(published)] == [old]
    assert publish(published, publication(8, train=2)).version == 2


def test_publishing_the_same_again_mends_a_damaged_part(published: Store) -> None:
    """What `verify` advises. The view file, made while the part was damaged, shows its rows again."""
    part = min(published.catalog.glob("feature/*/*/part-0.parquet"))
    part.chmod(0o644)
    part.write_bytes(part.read_bytes()[:100])
    published.view_file.unlink()
    connect(published)
    assert [damage.path for damage in verify(published)] == [part]
    assert not publish(published, publication(8)).is_new
    assert not verify(published)
    with duckdb.connect(str(published.view_file), read_only=True) as outsider:
        assert outsider.execute("select count(*) from feature").fetchall() == [(8,)]


def test_publishing_the_same_again_leaves_whole_parts_alone(published: Store) -> None:
    parts = [*published.catalog.glob("*/**/part-0.parquet"), published.view_file]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in parts]
    assert not publish(published, publication(8)).is_new
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in parts] == before


@pytest.mark.parametrize("count", ["3", "0", "-1", "q", ""])
def test_bit_in_the_copys_own_count_does_not_stop_labelling(published: Store, count: str) -> None:
    """labels/mirror/last can be made again; the label store is the truth."""
    write_label(published, "one")
    last = published.labels / "mirror" / "last"
    assert last.read_text() == "1"
    last.write_text(count)
    with Labels(published) as labels:
        assert labels.last() == 1
    connect(published)
    assert last.read_text() == "1" and not verify(published)


@pytest.mark.parametrize("count", [None, "0", "q"])
def test_copy_with_more_labels_than_the_store_is_kept_whatever_its_count_says(
    published: Store, count: str | None
) -> None:
    write_label(published, "one")
    shutil.copy(published.labels / "events.sqlite", published.root / "backup.sqlite")
    write_label(published, "two")
    copy = published.labels / "mirror" / "label_event.parquet"
    kept = copy.read_bytes()
    shutil.move(published.root / "backup.sqlite", published.labels / "events.sqlite")
    if count is not None:
        (published.labels / "mirror" / "last").write_text(count)
    for use in (Labels, connect):
        with pytest.raises(DamagedError, match="holds 1 events, but 2 were recorded; restore a backup"):
            use(published)
    assert copy.read_bytes() == kept


def test_labels_that_do_not_fit_are_refused_in_our_words(tmp_path: Path) -> None:
    """More than SQLite holds in memory: the disk is full before the commit."""
    with SQLiteLabels(tmp_path) as labels:
        labels._connection.execute("pragma max_page_count = 20")
        values = {"sae_id": "a@1", "feature": 1, "text": "x" * 5_000}
        many = [Event("label_event", "ada", "write", values) for _ in range(50)]
        for record in (labels.append, labels.rehearse):
            with pytest.raises(StoreError, match="make room"):
                record(many)
        labels._connection.execute("pragma max_page_count = 1000000")
        assert labels.last() == 0
        assert labels.append(many) == 50


def test_labelling_where_sqlite_cannot_open_its_files_asks_for_a_store_that_can_be_written(tmp_path: Path) -> None:
    """As on a read-only mount: nothing is damaged."""
    with SQLiteLabels(tmp_path):
        pass
    (tmp_path / "events.sqlite-wal").unlink(missing_ok=True)
    (tmp_path / "events.sqlite-wal").mkdir()
    with pytest.raises(StoreError, match="allow writing") as refused:
        SQLiteLabels(tmp_path)
    assert "backup" not in str(refused.value)
    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)


def test_view_file_for_which_there_is_no_room_says_so(published: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise duckdb.IOException(f'IO Error: Could not write file "x": {os.strerror(errno.ENOSPC)}')

    monkeypatch.setattr(view_file, "_build", full)
    published.view_file.unlink()
    with pytest.raises(StoreError, match=r"catalog.duckdb could not be written: .*; make room"):
        connect(published)
    monkeypatch.undo()
    assert connect(published).execute("select count(*) from feature").fetchall() == [(8,)]
