"""`almanac gc`: what nothing needs is listed, and removed on request; what is published stays, and so do labels."""

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny_builds import Record
from typer.testing import CliRunner

from catalog import LockedError, Store, verify
from catalog.garbage import size_of
from catalog.locks import exclusive
from flows.artifact import Work, every, lock_file, making, verify_artifacts
from flows.cli import app
from flows.config import RunConfig
from flows.disk import write_piece
from flows.errors import ArtifactError
from flows.garbage import collect, waste_of
from flows.path import path
from flows.place import Place
from flows.retention import building

Built = tuple[RunConfig, Place]
NOW = datetime(9999, 1, 1, tzinfo=UTC)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def store(built: Built, tmp_path: Path) -> Store:
    """A copy of the tiny run's."""
    return Store.create(shutil.copytree(built[1].store.root, tmp_path / "store"))


def artifacts(store: Store) -> set[str]:
    return {path.relative_to(store.artifacts).as_posix() for path in store.artifacts.glob("*/*")}


def gc(store: Store, *words: str) -> str:
    answer = CliRunner().invoke(app, ["gc", *words, "--store", str(store.root)], env={"COLUMNS": "250"})
    assert answer.exit_code == 0, answer.output
    return answer.output


def unpublished(store: Store) -> Path:
    with making(store, Work("sae", 1, {"not": "published"}), [].append) as draft:
        assert draft is not None
        write_piece(draft.directory / "weights", bytes(500_000))
    return Work("sae", 1, {"not": "published"}).directory(store)


def partial(store: Store, name: str, days_ago: float) -> Path:
    folder = store.artifacts / "sae" / f".partial-{name * 64}"
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(bytes(1000))
    for file in (folder / "checkpoint.safetensors", folder):
        os.utime(file, (time.time() - days_ago * 86_400,) * 2)
    return folder


def test_whatever_a_published_sae_was_made_from_stays_and_a_build_finds_all_of_it(built: Built, store: Store) -> None:
    before = artifacts(store)
    assert all(waste.path.parent.name == "snapshots" for waste in waste_of(store, NOW))
    collect(store, NOW)
    place = Place(store, Record())
    path(built[0], place)
    assert artifacts(store) == before and [report.state for report in place.reports] == ["reused"] * 6


def test_tables_of_an_earlier_setting_go_and_those_that_replaced_them_stay(
    store: Store, rebuild: Callable[..., Built]
) -> None:
    old = {artifact.directory for artifact in every(store) if artifact.kind in ("features", "publication")}
    rebuild(store, describe={"n_tokens_listed": 5})
    assert waste_of(store, YESTERDAY) == []
    gone = {waste.path for waste in collect(store, NOW)}
    assert old <= gone and not any(folder.exists() for folder in old)
    assert verify(store) == [] == [artifact for artifact in every(store) if artifact.directory in old]
    verify_artifacts(store, pytest.fail)
    _, again = rebuild(store, describe={"n_tokens_listed": 5})
    assert [report.state for report in again.reports] == ["reused"] * 6


def test_gc_lists_by_default_and_removes_with_delete(store: Store) -> None:
    folder, before = unpublished(store), artifacts(store)
    n_bytes = size_of(folder)
    said = gc(store)
    assert "nothing to remove" in said and "more are younger than 1 day(s) (--older-than 0 lists them)" in said
    said = gc(store, "--older-than", "0")
    assert f"artifacts/sae/{folder.name}" in said and f"{n_bytes / 1e6:.1f} MB" in said
    assert "sae that nothing published was made from" in said and "`almanac gc --delete` does it" in said
    assert artifacts(store) == before
    assert "removed" in gc(store, "--older-than", "0", "--delete")
    assert artifacts(store) == before - {f"sae/{folder.name}"}


def test_gc_evicts_activations_by_a_rule(store: Store) -> None:
    (activations,) = every(store, "activations")
    said = gc(store, "--keep-activations", "none")
    assert f"{activations.n_bytes / 1e6:,.1f} MB" in said and "evicted by the rule 'none'" in said
    assert not next(every(store, "activations")).is_evicted
    assert "nothing to remove" in gc(store, "--keep-activations", "last")
    gc(store, "--keep-activations", "none", "--delete")
    assert next(every(store, "activations")).is_evicted


def test_halves_of_killed_steps_go_after_a_day_unless_somebody_holds_them(store: Store) -> None:
    old, held, young = partial(store, "a", 2), partial(store, "b", 2), partial(store, "c", 0.5)
    half = store.artifacts / "sae" / f".gone-{'d' * 64}"
    half.mkdir()
    with exclusive(lock_file(store, "sae", "b" * 64), "making sae", 1):
        assert {waste.path for waste in collect(store, YESTERDAY)} == {old, half}
    assert [folder.exists() for folder in (old, held, young, half)] == [False, True, True, False]
    assert {waste.path for waste in collect(store, YESTERDAY)} == {held}


def test_nothing_is_collected_while_a_build_runs_or_a_manifest_is_damaged(store: Store) -> None:
    unpublished(store)
    before = artifacts(store)
    with building(store), pytest.raises(LockedError, match="a build is running"):
        collect(store, NOW)
    (metrics,) = every(store, "metrics")
    (metrics.directory / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json .*build again"):
        collect(store, NOW)
    assert artifacts(store) == before
