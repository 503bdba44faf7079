"""A store is brought forward, a version is taken out and put back, people's work is saved and brought back."""

import gzip
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from catalog_samples import FAMILY, explanation_rows, fingerprint, publication

from catalog import (
    SCHEMA_VERSION,
    DamagedError,
    Event,
    LabelError,
    Labels,
    NotFound,
    Store,
    StoreError,
    append,
    arrow_schema,
    connect,
    current,
    publish,
    verify,
)
from catalog.backup import backup, restore
from catalog.events import EVENT_TABLES
from catalog.migrate import STEPS, migrate
from catalog.retire import bring_back, retire

SAE = f"{FAMILY}@1"
OLD = sorted(Path(__file__).parent.glob("store_version_*.tar.xz"))


def said(feature: int, text: str = "digits", author: str = "ada", **more: object) -> Event:
    return Event("label_event", author, "write", {"sae_id": SAE, "feature": feature, "text": text, **more})


# ---- migrate ---------------------------------------------------------------------------


@pytest.fixture(params=OLD, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store as an earlier version of the program wrote it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return Store.open(tmp_path / "old")


def test_there_is_an_old_store_for_every_earlier_version() -> None:
    assert [path.name for path in OLD] == [f"store_version_{n}.tar.xz" for n in range(1, SCHEMA_VERSION)]
    assert set(STEPS) == set(range(1, SCHEMA_VERSION))


def test_an_old_store_is_read_as_it_is_and_not_written_to(old: Store) -> None:
    answer = connect(old).execute("select name from feature_card where name is not null order by feature").fetchall()
    assert answer == [("import statements",), ("explained 2",)]
    for write in (
        lambda: publish(old, publication(3, train=2)),
        lambda: Store.create(old.root),
        lambda: retire(old, SAE),
    ):
        with pytest.raises(StoreError, match="almanac migrate"):
            write()
    (damage,) = verify(old)
    assert "almanac migrate" in damage.advice


def test_an_old_store_comes_forward_with_every_row_and_label(old: Store) -> None:
    tables = (
        "feature",
        "example",
        "sequence",
        "quarantine",
        "explanation",
        "run",
        "sae_metric",
        "label_event",
        "collection",
    )
    counts = "select " + ", ".join(f"(select count(*) from {table})" for table in tables)
    before, numbered = connect(old).execute(counts).fetchall(), current(old).number
    done = migrate(old)
    assert (done.before, done.after) == (old_version(old, done.before), SCHEMA_VERSION) and done.n_parts > 0
    assert connect(old).execute(counts).fetchall() == before and verify(old) == []
    assert current(old).number == numbered + 1, "the snapshot before stays"
    for part in current(old).parts:
        assert pq.read_schema(old.catalog / part.path).equals(arrow_schema(part.table)), part.path
    assert connect(old).execute("select distinct document_ids, document_starts from sequence").fetchall() == [
        ([0], [0])
    ]
    assert migrate(old).n_parts == 0, "twice is once"
    assert publish(old, publication(3, train=2)).version == 2


def old_version(store: Store, version: int) -> int:
    assert store.schema_version == SCHEMA_VERSION
    return version


def test_a_migration_that_was_killed_before_its_end_is_done_again(old: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = old.schema_version
    with monkeypatch.context() as patch:
        patch.setattr(Store, "mark_as_present", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            migrate(old)
    assert Store.open(old.root).schema_version == version
    migrate(old)
    assert verify(old) == [] and old.schema_version == SCHEMA_VERSION


def test_a_damaged_old_store_is_not_migrated(old: Store) -> None:
    path = old.catalog / current(old).parts_of("sequence")[0].path
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    before = current(old)
    with pytest.raises(DamagedError, match="nothing was migrated"):
        migrate(old)
    assert current(old) == before


def test_a_store_of_a_newer_program_is_refused(store: Store) -> None:
    marker = store.root / "almanac.json"
    marker.write_text(marker.read_text().replace(f": {SCHEMA_VERSION}", f": {SCHEMA_VERSION + 1}"))
    with pytest.raises(StoreError, match=rf"has schema version {SCHEMA_VERSION + 1}.*install a newer"):
        Store.open(store.root)


# ---- retire ------------------------------------------------------------------------------


def test_a_retired_version_is_in_no_view_and_its_labels_stay(store: Store) -> None:
    append(store, "explanation", explanation_rows(SAE, [1]), fingerprint(1))
    with Labels(store) as labels:
        labels.append([said(1)])
    before = current(store)
    reader = connect(store)
    retire(store, SAE)
    everything = "select (select count(*) from {}), (select count(*) from label)"
    for table in ("sae", "feature", "example", "neighbor", "explanation", "sae_metric", "feature_card"):
        assert connect(store).execute(everything.format(table)).fetchall() == [(0, 1)], table
    assert reader.execute("select count(*) from feature").fetchall() == [(8,)], "who reads keeps what they have"
    assert verify(store) == []
    with pytest.raises(NotFound, match="no published SAE"):
        retire(store, SAE)
    bring_back(store, SAE)
    assert {p.path for p in current(store).parts} == {p.path for p in before.parts} and verify(store) == []
    assert connect(store).execute("select name from feature_card where feature = 1").fetchall() == [("digits",)]
    with pytest.raises(NotFound, match="no retired SAE"):
        bring_back(store, SAE)


def test_the_number_of_a_retired_version_is_never_given_to_another(store: Store) -> None:
    retire(store, SAE)
    assert publish(store, publication(8, train=2)).sae_id == f"{FAMILY}@2"
    assert publish(store, publication(8, train=1)).sae_id == SAE, "the same training is the same version, back again"
    assert current(store).retired == () and len(current(store).saes) == 2


def test_a_retired_version_comes_back_after_many_more_snapshots(store: Store) -> None:
    retire(store, SAE)
    for number in range(20):  # more than the snapshots that are kept in any case
        append(store, "run", {"run_id": [f"r{number}"], "step": ["train"], "state": ["finished"]}, fingerprint(number))
    bring_back(store, SAE)
    assert connect(store).execute(f"select count(*) from feature where sae_id = '{SAE}'").fetchall() == [(8,)]
    assert verify(store) == []


def test_files_that_are_gone_cannot_be_brought_back(store: Store) -> None:
    path = store.catalog / current(store).parts_of("example")[0].path
    retire(store, SAE)
    path.unlink()
    with pytest.raises(NotFound, match="are gone from the store"):
        bring_back(store, SAE)


# ---- backup ------------------------------------------------------------------------------


@pytest.fixture
def worked(store: Store) -> Store:
    """People did something of everything."""
    with Labels(store) as labels:
        labels.append([said(1, tags=["a", "b"], confidence=2), said(2, "brackets\n«é»", "bob", safety=3)])
        (taken_back,) = [said(3)]
        labels.append([taken_back])
        labels.append([Event("label_event", "ada", "undo", {"sae_id": SAE, "feature": 3}, undoes=taken_back.event_id)])
        own = {"sae_id": SAE, "feature": 1}
        labels.append([
            Event("collection", "ada", "put", {"collection_id": "c", "name": "c", **own}),
            Event("saved_query", "ada", "put", {"query_id": "q", "name": "q", "sql": "select 1"}),
            Event("watch", "bob", "put", {"monitor_id": "m", **own, "statistic": "density", "threshold": 0.5}),
            Event("tag", "bob", "put", {"tag": "syntax", "is_safety": False}),
        ])  # fmt: skip
    return store


def everything(store: Store) -> dict[str, list[dict[str, object]]]:
    with Labels(store) as labels:
        return {table: labels.events(table).to_pylist() for table in EVENT_TABLES}


def test_a_backup_brings_everything_back_into_a_fresh_store_once(worked: Store, tmp_path: Path) -> None:
    fresh = Store.create(tmp_path / "fresh")
    with Labels(worked) as labels, Labels(fresh) as others:
        assert backup(labels, tmp_path / "b.gz") == 8
        assert (restore(others, tmp_path / "b.gz").n_new, restore(others, tmp_path / "b.gz").n_known) == (8, 8)
        assert others.check() == []
        assert backup(others, tmp_path / "again.gz") == 8
    assert everything(fresh) == everything(worked)
    assert (tmp_path / "again.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert connect(fresh).execute("select author, text from label order by author").fetchall() == [
        ("ada", "digits"), ("bob", "brackets\n«é»"),
    ]  # fmt: skip
    assert verify(fresh) == []


def test_a_backup_joins_what_was_done_since(worked: Store, tmp_path: Path) -> None:
    with Labels(worked) as labels:
        backup(labels, tmp_path / "b.gz")
        labels.append([said(5, "later")])
        assert restore(labels, tmp_path / "b.gz").n_new == 0
        assert labels.last() == 9


def test_a_label_store_that_was_lost_is_brought_back(worked: Store, tmp_path: Path) -> None:
    before = everything(worked)
    with Labels(worked) as labels:
        backup(labels, tmp_path / "b.gz")
    shutil.rmtree(worked.labels)
    with Labels(worked) as labels:
        restore(labels, tmp_path / "b.gz")
    assert everything(worked) == before and verify(worked) == []


@pytest.mark.parametrize("harm", ["cut", "changed", "other", "missing"])
def test_a_damaged_backup_restores_nothing(worked: Store, tmp_path: Path, harm: str) -> None:
    path, fresh = tmp_path / "b.gz", Store.create(tmp_path / "fresh")
    with Labels(worked) as labels:
        backup(labels, path)
    content = path.read_bytes()
    changed = gzip.compress(gzip.decompress(content).replace(b"digits", b"forged"))
    harmed = {"cut": content[:-20], "changed": changed, "other": gzip.compress(b'{"a": 1}\n'), "missing": None}[harm]
    path.unlink() if harmed is None else path.write_bytes(harmed)
    with Labels(fresh) as labels:
        with pytest.raises(DamagedError, match=r"b\.gz"):
            restore(labels, path)
        assert labels.last() == 0


def test_a_backup_that_cannot_be_written_says_so(worked: Store, tmp_path: Path) -> None:
    with Labels(worked) as labels, pytest.raises(LabelError, match="cannot be written"):
        backup(labels, tmp_path / "no" / "folder" / "b.gz")
