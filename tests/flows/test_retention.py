"""Activations that no rule keeps are evicted: what hangs on them stays done, and they come back byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny_builds import Record

from catalog import LockedError, Store, append, connect, verify
from flows.artifact import Artifact, Work, every, find, finished, making, verify_artifacts
from flows.config import RunConfig
from flows.disk import write_piece
from flows.errors import ArtifactError, RunConfigError
from flows.path import path
from flows.place import Place
from flows.planning import plan_run
from flows.retention import building, evict, unwanted

Built = tuple[RunConfig, Place]
Rebuild = Callable[..., Built]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def built_store(built: Built, tmp_path: Path) -> Store:
    """A copy of the tiny run's."""
    return Store.create(shutil.copytree(built[1].store.root, tmp_path / "built"))


def files(store: Store, kind: str) -> dict[str, bytes]:
    return {
        path.relative_to(store.artifacts).as_posix(): path.read_bytes()
        for path in (store.artifacts / kind).rglob("*")
        if path.is_file()
    }


def damages(store: Store) -> list[object]:
    found: list[object] = []
    verify_artifacts(store, lambda where, problem: found.append((where, problem)))
    return [*found, *verify(store)]


def test_run_that_keeps_none_leaves_the_manifest_and_a_second_build_does_nothing(
    built: Built, built_store: Store, rebuild: Rebuild
) -> None:
    (before,) = every(built_store, "activations")
    config, first = rebuild(built_store, keep_activations="none")
    assert f"activations {before.fingerprint[:12]}: evicted (none), {before.n_bytes / 1e6:,.1f} MB" in first.watch.lines  # type: ignore[attr-defined]
    (after,) = every(built_store, "activations")
    assert after.is_evicted and after.manifest["evicted"]["rule"] == "none" and after.manifest["evicted"]["at"] > "2026"
    assert [path.name for path in after.directory.iterdir()] == ["manifest.json"]
    assert {**before.manifest, "sha256": 0} == {
        key: value if key != "sha256" else 0 for key, value in after.manifest.items() if key != "evicted"
    }
    assert damages(built_store) == []
    uri = before.directory.relative_to(built_store.root).as_posix()
    lineage = connect(built_store).execute("select count(*) from lineage where uri = ?", [uri]).fetchall()
    assert lineage == connect(built[1].store).execute("select count(*) from lineage where uri = ?", [uri]).fetchall()
    rows = {row.step: row for row in plan_run(config, built_store)}
    assert all(row.is_done for row in rows.values()) and rows["harvest"].size.endswith(" MB evicted")
    _, again = rebuild(built_store, keep_activations="none")
    assert [report.state for report in again.reports] == ["reused"] * 6
    with pytest.raises(ArtifactError, match="were removed on .* to make room"):
        after.files("")


def test_build_that_reads_evicted_rows_harvests_them_again_byte_for_byte(
    built: Built, built_store: Store, rebuild: Rebuild
) -> None:
    evict(built_store, "none")
    config = built[0].model_copy(update={"training": built[0].training.model_copy(update={"seed": 5})})
    assert [row.step for row in plan_run(config, built_store) if row.is_done] == ["tokenize"]
    _, place = rebuild(built_store, training={"seed": 5})
    states = {report.step: report.state for report in place.reports}
    assert states["harvest"] == states["train"] == "finished"
    assert files(built_store, "activations") == files(built[1].store, "activations")
    assert damages(built_store) == []


def made(store: Store, kind: str, plan: dict[str, object], *parents: Artifact) -> Artifact:
    work = Work(kind, 1, plan, parents)
    with making(store, work, [].append) as draft:
        if draft is not None:
            for name in ("a", "b"):
                write_piece(draft.directory / name, name.encode() * 1000)
    return finished(store, work)


def harvested(store: Store, model: str, text: str, cut: int, days_ago: float) -> Artifact:
    """Activations of a model and a corpus that a run used so long ago; `cut` is how the text was cut."""
    tokens = made(store, "tokens", {"corpus": {"sources": [text], "cut": cut}})
    activations = made(store, "activations", {"model": model}, tokens)
    ended = (datetime.now(UTC) - timedelta(days=days_ago)).replace(tzinfo=None)
    run = {"step": "harvest", "state": "finished", "fingerprint": activations.fingerprint}
    times = {"started_at": ended, "ended_at": ended}
    row = {"run_id": f"{model}{text}{cut}{days_ago}", **run, **times}
    append(store, "run", {name: [value] for name, value in row.items()}, activations.fingerprint)
    return activations


def test_rules_keep_what_they_say_of_each_model_and_corpus(store: Store) -> None:
    old, new = harvested(store, "m", "books", 1, days_ago=9), harvested(store, "m", "books", 2, days_ago=3)
    other_text, other_model = harvested(store, "m", "code", 1, 20), harvested(store, "n", "books", 1, 30)
    everything = {old.fingerprint, new.fingerprint, other_text.fingerprint, other_model.fingerprint}

    def gone(rule: str, like: Artifact | None = None) -> set[str]:
        return {artifact.fingerprint for artifact in unwanted(store, rule, like)}

    assert gone("all") == set()
    assert gone("none") == everything
    assert gone("last") == {old.fingerprint}
    assert gone("7 days") == everything - {new.fingerprint}
    assert gone("10 days") == {other_text.fingerprint, other_model.fingerprint}
    assert gone("none", like=new) == {old.fingerprint, new.fingerprint}
    assert gone("1 day", like=other_text) == {other_text.fingerprint}
    harvested(store, "m", "books", 1, days_ago=1)  # found done by a later run
    assert gone("last") == {new.fingerprint}
    with pytest.raises(RunConfigError, match="'a week': give all, none, last, or as many days"):
        unwanted(store, "a week")


def test_nothing_is_evicted_while_a_build_is_running(built: Built, built_store: Store) -> None:
    with building(built_store), building(built_store):
        with pytest.raises(LockedError, match="a build is running in .*; try again when it has ended"):
            evict(built_store, "none")
        place = Place(built_store, Record())
        path(built[0].model_copy(update={"keep_activations": "none"}), place)
    assert place.watch.lines[-1].startswith("activations are kept for now.")  # type: ignore[attr-defined]
    assert not next(every(built_store, "activations")).is_evicted


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from catalog import Store
from flows import retention
kills = {{"before the mark": ("os.replace", 0), "after the mark": ("Path.unlink", 0), "between": ("Path.unlink", 1)}}
function, n = kills[sys.argv[2]]
owner, name = (os, "replace") if function == "os.replace" else (Path, "unlink")
whole, calls = getattr(owner, name), []
def stopped(path, *rest, **named):
    if "activations" in str(path):
        calls.append(path)
        if len(calls) > n:
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(path, *rest, **named)
setattr(owner, name, stopped)
retention.evict(Store.open(sys.argv[1]), "none")
"""


@pytest.mark.parametrize("moment", [pytest.param("before the mark", marks=pytest.mark.slow), "after the mark",
                                    pytest.param("between", marks=pytest.mark.slow)])  # fmt: skip
def test_eviction_killed_at_any_moment_leaves_it_whole_or_evicted(store: Store, moment: str) -> None:
    artifact = harvested(store, "m", "books", 1, days_ago=1)
    script = KILLED.format(root=str(Path(__file__).parents[2]))
    killed = subprocess.run([sys.executable, "-c", script, str(store.root), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    (now,) = every(store, "activations")
    assert now.is_evicted == (moment != "before the mark") and damages(store) == []
    if not now.is_evicted:
        assert [path.read_bytes() for path in now.files("")] == [b"a" * 1000, b"b" * 1000]
    evict(store, "none")
    (now,) = every(store, "activations")
    assert now.is_evicted and os.listdir(now.directory) == ["manifest.json"]
    assert now.fingerprint == artifact.fingerprint and json.loads((now.directory / "manifest.json").read_text())


def test_manifest_of_evicted_activations_is_still_checked(store: Store) -> None:
    artifact = harvested(store, "m", "books", 1, days_ago=1)
    evict(store, "none")
    manifest = artifact.directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rule": "none"', '"rule": "nine"'))
    assert [str(where) for where, _ in damages(store)] == [str(manifest)]  # type: ignore[misc]


def test_evicted_is_made_again_only_where_its_files_are_read(store: Store) -> None:
    tokens = made(store, "tokens", {"corpus": {"sources": []}})
    work = Work("activations", 1, {"model": "m"}, (tokens,))
    made(store, "activations", {"model": "m"}, tokens)
    evict(store, "none")
    with making(store, work, [].append, is_read=False) as draft:
        assert draft is None
    found = find(store, work)
    assert found is not None and found.is_evicted
    assert not made(store, "activations", {"model": "m"}, tokens).is_evicted
