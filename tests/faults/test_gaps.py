"""Faults that the product does not yet answer as it promises (see docs/faults.md). When one is mended its test passes:
then take its mark away."""

from pathlib import Path

import pytest
from catalog_samples import publication, published_store

from catalog import Event, Labels, Store, StoreError, append, connect, publish, verify
from catalog.sqlite_labels import SQLiteLabels

gap = pytest.mark.xfail(strict=False, reason="a known gap, in catalog/")


@pytest.fixture
def published(tmp_path: Path) -> Store:
    store = published_store(tmp_path / "store")
    connect(store)
    return store


def flip(path: Path, at: bytes) -> None:
    """One bit, in the last place that reads `at`."""
    content = bytearray(path.read_bytes())
    content[content.rindex(at) + len(at) // 2] ^= 0x01
    path.write_bytes(bytes(content))


@gap
@pytest.mark.parametrize("key", [b'"snapshot"', b'"root"'])
def test_bit_in_a_key_of_the_view_files_stamp_costs_nothing_but_a_new_view_file(published: Store, key: bytes) -> None:
    flip(published.catalog / "view_file.json", key)
    assert connect(published).execute("select count(*) from feature").fetchall() == [(8,)]


@gap
def test_store_killed_while_it_is_made_is_an_empty_store(tmp_path: Path) -> None:
    """The marker is written first, the folders after it."""
    store = Store.create(tmp_path / "store")
    for folder in (store.labels, store.catalog, store.locks, store.artifacts):
        folder.rmdir()
    assert connect(Store.open(store.root)).execute("select count(*) from feature").fetchall() == [(0,)]


@gap
def test_damaged_old_snapshot_stops_no_publisher_and_is_named(published: Store) -> None:
    """Only readers that began long ago need it."""
    append(published, "run", {"run_id": ["r"], "step": ["train"], "state": ["finished"]}, "f" * 64)
    old = min((published.catalog / "snapshots").glob("*.json"))
    old.write_bytes(old.read_bytes()[:100])
    assert [damage.path for damage in verify(published)] == [old]
    assert publish(published, publication(8, train=2)).version == 2


@gap
def test_publishing_the_same_again_mends_a_damaged_part(published: Store) -> None:
    """What `verify` advises."""
    part = min(published.catalog.glob("feature/*/*/part-0.parquet"))
    part.chmod(0o644)
    part.write_bytes(part.read_bytes()[:100])
    assert verify(published)
    publish(published, publication(8))
    assert not verify(published)


@gap
def test_bit_in_the_copys_own_count_does_not_stop_labelling(published: Store) -> None:
    """labels/mirror/last can be made again; the label store is the truth."""
    with Labels(published) as labels:
        labels.append([Event("label_event", "ada", "write", {"sae_id": "a@1", "feature": 1, "text": "one"})])
    last = published.labels / "mirror" / "last"
    assert last.read_text() == "1"
    last.write_text("3")
    with Labels(published) as labels:
        assert labels.last() == 1


@gap
def test_labels_that_do_not_fit_are_refused_in_our_words(tmp_path: Path) -> None:
    """More than SQLite holds in memory: the disk is full before the commit."""
    with SQLiteLabels(tmp_path) as labels:
        labels._connection.execute("pragma max_page_count = 20")
        values = {"sae_id": "a@1", "feature": 1, "text": "x" * 5_000}
        many = [Event("label_event", "ada", "write", values) for _ in range(50)]
        with pytest.raises(StoreError, match="make room"):
            labels.append(many)
