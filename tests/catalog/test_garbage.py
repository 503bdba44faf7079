"""What the catalog may forget, and what it never does."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from catalog_samples import FAMILY, explanation_rows, fingerprint, publication, published_store

from catalog import Labels, LockedError, Store, append, connect, current, labelling, publish, verify
from catalog.garbage import collect_catalog, needed_fingerprints, size_of, waste_of_catalog
from catalog.locks import exclusive
from catalog.snapshot import Snapshot, commit

NOW = datetime(9999, 1, 1, tzinfo=UTC)
"""After everything: nothing is young."""


def part_files(store: Store) -> set[str]:
    return {path.relative_to(store.catalog).as_posix() for path in store.catalog.glob("*/**/part-0.parquet")}


def named(snapshot: Snapshot) -> set[str]:
    return {part.path for part in snapshot.parts}


def retired(store: Store, sae_id: str) -> None:
    """A version out of the current snapshot: its rows are in earlier ones alone."""
    before = current(store)
    parts = tuple(part for part in before.parts if part.partition != sae_id)
    saes = tuple(sae for sae in before.saes if sae.sae_id != sae_id)
    with exclusive(store.locks / "catalog.lock", "test", 1):
        commit(store, Snapshot(before.number + 1, parts, saes))


@pytest.fixture
def changed_twice(tmp_path: Path) -> Store:
    """Version 1 with other numbers than at first, then version 2."""
    store = published_store(tmp_path / "store")
    publish(store, publication(content=1))
    publish(store, publication(train=2))
    return store


def test_what_only_superseded_snapshots_name_goes_and_what_is_published_stays(changed_twice: Store) -> None:
    store, before = changed_twice, part_files(changed_twice)
    answer = connect(store).execute("select * from feature_card order by all").fetchall()
    waste = waste_of_catalog(store, NOW)
    assert part_files(store) == before, "looking changes nothing"
    assert sum(one.n_bytes for one in waste) == sum(size_of(one.path) for one in waste) > 0
    assert {one.path for one in collect_catalog(store, NOW)} == {one.path for one in waste}
    assert part_files(store) == named(current(store)) < before
    assert [path.name for path in (store.catalog / "snapshots").iterdir()] == [f"{current(store).number:08d}.json"]
    assert connect(store).execute("select * from feature_card order by all").fetchall() == answer
    assert verify(store) == [] == waste_of_catalog(store, NOW)
    assert publish(store, publication(train=2)).is_new is False


def test_snapshot_that_was_current_not_long_ago_stays_with_its_parts(changed_twice: Store) -> None:
    """A reader may have it open; how long ago it was written does not matter, but when the next one came."""
    store, before = changed_twice, part_files(changed_twice)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    snapshots = sorted((store.catalog / "snapshots").iterdir())
    for snapshot in snapshots[:-1]:
        os.utime(snapshot, (time.time() - 9e5,) * 2)
    found = {one.path for one in waste_of_catalog(store, yesterday)}
    assert {path for path in found if path.parent.name == "snapshots"} == set(snapshots[:-2])
    collect_catalog(store, yesterday)
    assert part_files(store) < before and snapshots[-2].exists()


def test_version_that_somebody_labelled_keeps_its_tables_after_it_was_taken_out(changed_twice: Store) -> None:
    store = changed_twice
    with Labels(store) as labels:
        labelling.add(labels, "ann", labelling.Of(f"{FAMILY}@1", 3), "imports")
    ones = {part.path for part in current(store).parts if part.partition == f"{FAMILY}@1"}
    twos = {part.path for part in current(store).parts if part.partition == f"{FAMILY}@2"}
    retired(store, f"{FAMILY}@1")
    retired(store, f"{FAMILY}@2")
    collect_catalog(store, NOW)
    kept = part_files(store)
    assert ones and ones <= kept
    assert needed_fingerprints(store, NOW) >= {fingerprint(1)}
    assert twos <= kept, "the snapshot that holds the labelled version is kept whole"
    assert len(list((store.catalog / "snapshots").iterdir())) == 2


def test_version_that_nobody_spoke_of_goes_when_it_was_taken_out(changed_twice: Store) -> None:
    store = changed_twice
    retired(store, f"{FAMILY}@1")
    assert needed_fingerprints(store, datetime.now(UTC) - timedelta(days=1)) >= {fingerprint(1), fingerprint(2)}
    collect_catalog(store, NOW)
    assert not [path for path in part_files(store) if "%401" in path or f"{FAMILY}@1" in path]
    assert needed_fingerprints(store, NOW) >= {fingerprint(2)}
    assert fingerprint(1) not in needed_fingerprints(store, NOW)
    assert not [path for path in store.catalog.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_appended_rows_stay_and_orphans_of_a_killed_publisher_go(store: Store) -> None:
    append(store, "explanation", explanation_rows(f"{FAMILY}@1", [1, 2]), "e" * 64)
    orphan = store.catalog / "feature" / "sae_id=x" / "a-b" / "part-0.parquet"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"rows")
    (store.catalog / ".staging" / "1").mkdir(parents=True)
    (store.catalog / ".staging" / "1" / "0.parquet").write_bytes(b"half")
    found = {one.path for one in collect_catalog(store, NOW)}
    assert {orphan.parent, store.catalog / ".staging" / "1"} <= found
    assert not orphan.exists() and verify(store) == []
    assert connect(store).execute("select count(*) from explanation").fetchall() == [(2,)]


def test_nothing_is_collected_while_somebody_publishes(changed_twice: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store, before = changed_twice, part_files(changed_twice)
    monkeypatch.setattr("catalog.garbage.LOCK_SECONDS", 0.05)
    with exclusive(store.locks / "catalog.lock", "publishing", 1), pytest.raises(LockedError, match="publishing"):
        collect_catalog(store, NOW)
    assert part_files(store) == before
