"""Every kind of file, damaged in every way: named, with what to do."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from catalog_samples import FAMILY, explanation_rows, fingerprint, publication, published_store

from catalog import DamagedError, Event, Labels, Store, append, connect, current, publish, verify
from catalog import snapshot as snapshots
from catalog.mirror import mirror_file

TEXT = "digits " * 40


@pytest.fixture(scope="module")
def example_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with something of everything in it."""
    store = published_store(tmp_path_factory.mktemp("verify") / "store")
    append(store, "explanation", explanation_rows(f"{FAMILY}@1", [1]), fingerprint(1))
    with Labels(store) as labels:
        labels.append([Event("label_event", "ada", "write", {"sae_id": f"{FAMILY}@1", "feature": 1, "text": TEXT})])
    connect(store)
    return store


@pytest.fixture
def full(example_store: Store, tmp_path: Path) -> Store:
    """A copy of it to damage."""
    shutil.copytree(example_store.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_a_store_that_nothing_happened_to_is_whole(example_store: Store) -> None:
    assert verify(example_store) == []


def test_a_store_that_was_copied_is_whole(full: Store) -> None:
    assert verify(full) == []


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("table", ["sae", "feature", "example", "sequence", "sae_metric", "explanation"])
def test_a_damaged_part_is_named(full: Store, table: str, damage: str) -> None:
    path = full.catalog / current(full).parts_of(table)[0].path
    path.chmod(0o644)
    DAMAGES[damage](path)
    (found,) = verify(full)
    assert found.path == path and "publish again" in found.advice and found.problem


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("name", ["current", "snapshots/00000002.json"])
def test_a_damaged_pointer_or_snapshot_is_named(full: Store, name: str, damage: str) -> None:
    DAMAGES[damage](full.catalog / name)
    (found,) = verify(full)
    assert name.split("/")[-1] in found.problem and "restore it from a backup" in found.advice


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
@pytest.mark.parametrize(
    "name", ["catalog.duckdb", "catalog/feature/schema.parquet", "labels/mirror/label_event.parquet"]
)
def test_what_can_be_made_again_is_named_and_comes_back(full: Store, name: str, damage: str) -> None:
    path = full.root / name
    before = connect(full).sql("from label_event").to_arrow_table() if "mirror" in name else None
    DAMAGES[damage](path)
    if not verify(full):  # a byte that says nothing
        assert damage == "flipped" and name != "catalog.duckdb"
        assert before is None or pq.read_table(path).equals(before.cast(pq.read_schema(path)))
        return
    (found,) = verify(full)
    assert found.path == path and "delete it" in found.advice
    path.unlink()
    assert connect(full).execute("select name is not null from feature_card where feature = 1").fetchall() == [(True,)]
    assert path.exists() and verify(full) == []


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "zeroed", "changed text"])
def test_a_damaged_label_store_is_named(full: Store, damage: str) -> None:
    path = full.labels / "events.sqlite"
    sqlite3.connect(path).execute("pragma wal_checkpoint(truncate)").connection.close()
    content = path.read_bytes()
    if damage == "zeroed":
        path.write_bytes(content[:4096] + bytes(len(content) - 4096))
    elif damage == "changed text":
        path.write_bytes(content.replace(b"digits digits", b"digits digitz", 1))
    else:
        DAMAGES[damage](path)
    assert [found.path for found in verify(full)][:1] == [path]
    with pytest.raises(DamagedError) if damage != "changed text" else contextlib.nullcontext():
        Labels(full).close()
    with duckdb.connect() as outsider:
        copy = mirror_file(full, "label_event")
        assert outsider.execute(f"select text from '{copy}'").fetchall() == [(TEXT,)], "the copy is kept"


def test_a_key_that_two_parts_share_is_named(full: Store) -> None:
    append(full, "explanation", explanation_rows(f"{FAMILY}@1", [1]), fingerprint(2))
    (found,) = verify(full)
    assert found.path == full.catalog / "explanation" and "('x1',)" in found.problem


def test_a_part_of_other_rows_or_columns_is_named(full: Store) -> None:
    """Even where somebody wrote the hash of the wrong file into the snapshot."""
    before = current(full)
    (feature,) = before.parts_of("feature")
    (logit,) = before.parts_of("feature_logit")
    swapped = [
        snapshots.Part("feature", logit.path, feature.partition, "", feature.rows, logit.bytes, logit.sha256)
        if part.table == "feature" else part
        for part in before.parts
    ]  # fmt: skip
    snapshots.commit(full, snapshots.Snapshot(before.number + 1, tuple(swapped), before.saes))
    problems = [found.problem for found in verify(full)]
    assert any("rows, published were 8" in problem for problem in problems)
    assert any("other columns than the table 'feature'" in problem for problem in problems)


def test_a_store_of_several_versions_is_whole(full: Store) -> None:
    for train in (2, 3):
        publish(full, publication(8, train=train))
    assert verify(full) == []


def test_verify_writes_nothing(full: Store) -> None:
    def state() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in full.root.rglob("*")
            if path.suffix in (".parquet", ".json", ".duckdb")
        }

    before = state()
    verify(full)
    assert state() == before


def test_a_part_holds_what_the_schema_says(full: Store) -> None:
    for part in current(full).parts:
        metadata = pq.read_metadata(full.catalog / part.path)
        assert metadata.num_rows == part.rows and metadata.row_group(0).column(0).compression == "ZSTD"
