"""One worker or several, undisturbed or killed: the same bytes; errors arrive as they are; nothing is left running."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
from shard_steps import (
    Folder,
    end_its_worker,
    end_its_worker_once,
    read_gpu,
    refuse,
    refuse_oddly,
    square,
)
from tiny_builds import Record

from catalog import Store
from flows.config import RunConfig
from flows.errors import ArtifactError, WorkerError
from flows.path import path
from flows.place import Place
from flows.workers import Workers

Built = tuple[RunConfig, Place]


def workers(n: int, said: list[str] | None = None) -> Workers:
    return Workers(RunConfig(workers=n), [].append if said is None else said.append)


def files(store: Store, kind: str) -> dict[str, bytes]:
    found = (path for path in (store.artifacts / kind).rglob("*") if path.is_file())
    return {path.relative_to(store.artifacts).as_posix(): path.read_bytes() for path in found}


def without(built: Built, folder: Path, kind: str) -> Store:
    """The tiny run's store, as if this step had not run."""
    store = Store.create(shutil.copytree(built[1].store.root, folder))
    shutil.rmtree(store.artifacts / kind)
    return store


@pytest.mark.parametrize(
    ("kind", "step", "piece"),
    [
        ("activations", "harvest_shard", "shard-*"),
        pytest.param("features", "describe_shard", "pieces/sample-*", marks=pytest.mark.slow),
    ],
)
def test_two_workers_make_the_bytes_of_one_though_one_of_them_is_killed(
    built: Built, tmp_path: Path, kind: str, step: str, piece: str
) -> None:
    """SIGKILL hits a worker when the first shard is done and others are under way."""
    store = without(built, tmp_path / "store", kind)
    watch, killed = Record(), list[int]()

    def kill() -> None:
        while not list(store.artifacts.glob(f"{kind}/.partial-*/{piece}")):
            time.sleep(0.005)
        victim = active_children()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    threading.Thread(target=kill, daemon=True).start()
    path(built[0].model_copy(update={"workers": 2}), Place(store, watch))
    assert len(killed) == 1
    lost = [line for line in watch.lines if f"a worker was lost in {step}" in line]
    assert len(lost) == 1 and "done again (1 of at most 3 times)" in lost[0]
    assert files(store, kind) == files(built[1].store, kind)
    assert active_children() == []


def test_shards_are_shared_out_and_come_back_in_order_with_their_ticks(tmp_path: Path) -> None:
    job, shards = Folder(tmp_path), [5, 3, 8, 1, 2, 9, 4, 7]
    with workers(2) as two:
        made = two.each(square, shards, job)
        again = two.each(square, shards, job)
    assert [result for result, _ in made] == [shard * shard for shard in shards]
    assert job.ticked == 2 * (10 * len(shards) + sum(shards))
    processes = {process for _, process in made}
    assert len(processes) == 2 and os.getpid() not in processes
    assert {process for _, process in again} == processes, "a worker stays for the next step"
    with workers(1) as one:
        assert {process for _, process in one.each(square, shards, job)} == {os.getpid()}


def test_shard_of_a_killed_worker_is_done_by_another_and_that_is_said(tmp_path: Path) -> None:
    job, said = Folder(tmp_path), list[str]()
    with workers(2, said) as two:
        assert two.each(end_its_worker_once, [0, 1, 2, 3, 4], job) == [0, 1, 2, 3, 4]
    assert job.ticked == 5
    assert said == ["a worker was lost in end_its_worker_once of shard 2; it is done again (1 of at most 3 times)"]


def test_shard_that_kills_every_worker_is_given_up_after_three_more_tries(tmp_path: Path) -> None:
    with workers(2) as two, pytest.raises(WorkerError, match=r"shard 7 was given up: .* was lost 4 times"):
        two.each(end_its_worker, [7], Folder(tmp_path))
    assert (tmp_path / "tries").read_text() == "...."


def test_error_of_a_shard_arrives_as_what_it_is_and_nobody_waits_for_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    with workers(2) as two, pytest.raises(ArtifactError, match=f"^{tmp_path} is damaged; make it again$"):
        two.each(refuse, [0, 1, 2, 3], Folder(tmp_path))
    assert time.monotonic() - started < 30
    assert active_children() == []
    with workers(2) as two, pytest.raises(WorkerError, match="refuse_oddly of shard 3 failed: Odd: shard 3"):
        two.each(refuse_oddly, [3], Folder(tmp_path))


def test_every_worker_sees_a_gpu_of_its_own_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    config = RunConfig.model_validate({"workers": 2, "lm": {"device": "cuda"}})
    with Workers(config, [].append) as two:
        assert sorted(two.each(read_gpu, [0, 1, 2, 3], Folder(tmp_path))) == ["4", "4", "6", "6"]


SLEEPERS = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from pathlib import Path
from types import SimpleNamespace
from shard_steps import Folder, wait_long
from flows.workers import Workers
lm = SimpleNamespace(resolved_device=lambda: "cpu")
with Workers(SimpleNamespace(workers=2, lm=lm), print) as workers:
    workers.each(wait_long, [0, 1], Folder(Path({folder!r})))
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    script = SLEEPERS.format(here=str(Path(__file__).parent), root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    started = [int(mark.name.removeprefix("pid-")) for mark in tmp_path.glob("pid-*")]
    assert all(map(is_running, started))
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == -number
    assert eventually(lambda: not any(map(is_running, started)))
    assert stderr.count("Traceback") <= (number == signal.SIGINT), "workers end without a word"
