"""The tests' side of the fork server: start a job, wait for a marker, kill it, see what came of it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 240.0
KINDS = {
    "tokenize": "tokens",
    "harvest": "activations",
    "train": "sae",
    "evaluate": "metrics",
    "describe": "features",
    "publish": "publication",
}
"""Step -> folder of its artifacts."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `made` is what it returned; `error` and `message` how it failed."""

    status: int
    content: dict[str, Any]
    log: str

    @property
    def made(self) -> Any:
        """Its result; a job that failed is an error here."""
        assert "made" in self.content, f"exit {self.status}: {self.content}\n{self.log[-3000:]}"
        return self.content["made"]

    @property
    def error(self) -> str:
        """The class of its error."""
        return str(self.content.get("error"))

    @property
    def message(self) -> str:
        """The text of its error."""
        return str(self.content.get("message", self.log))

    @property
    def is_named_error(self) -> bool:
        """One of ours, and not a library's."""
        return bool({"FlowError", "CatalogError", "SAELibError"} & set(self.content.get("family", [])))


class Job:
    """A running child."""

    def __init__(self, server: "ForkServer", pid: int, result: Path) -> None:
        self.server, self.pid, self.result = server, pid, result
        self.status: int | None = None

    @property
    def is_running(self) -> bool:
        """Has it not ended yet?"""
        if self.status is None:
            self.status = self.server.ask({"do": "poll", "pid": self.pid})["status"]
        return self.status is None

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.is_running:
            os.kill(self.pid, number)

    def wait(self) -> Outcome:
        """Until it ends."""
        until(lambda: not self.is_running, f"the end of {self.result.stem}")
        answer = self.result.read_text() if self.result.exists() else ""
        log = self.result.with_suffix(".log")
        assert self.status is not None
        return Outcome(self.status, json.loads(answer or "{}"), log.read_text(errors="replace") if log.exists() else "")

    def kill(self) -> Outcome:
        """kill -9; status -9 says that it landed."""
        self.send(signal.SIGKILL)
        return self.wait()


class ForkServer:
    """Starts jobs of fault_jobs.py in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_started = folder, 0
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent / "catalog"))),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._read()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, job: str, uid: int | None = None, **arguments: Any) -> Job:
        """A child that does a job."""
        self.n_started += 1
        result = self.folder / f"{self.n_started:04d}-{job}.json"
        given = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        request = {"do": "start", "job": job, "arguments": given, "result": str(result), "uid": uid}
        return Job(self, int(self.ask(request)["pid"]), result)

    def run(self, job: str, uid: int | None = None, **arguments: Any) -> Outcome:
        """A child that does a job to its end."""
        return self.start(job, uid, **arguments).wait()

    def close(self) -> None:
        """End it, and with it every child."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_SECONDS)
        self._process.stdout.close()


def until(happened: Callable[[], bool], what: str) -> None:
    """Bounded polling: for markers, never for a time."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS:g} s for {what}"
        time.sleep(0.001)


def stamps(store: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """The files of a pattern, and what changes when they are written."""
    found = {}
    for path in store.glob(pattern):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found[str(path)] = (stat.st_ino, stat.st_mtime_ns)
    return found


@contextmanager
def appearing(store: Path, pattern: str) -> Iterator[Callable[[], bool]]:
    """Has anything of the pattern appeared or changed since?"""
    before = stamps(store, pattern)
    yield lambda: stamps(store, pattern) != before


def kill_after(job: Job, marker: Callable[[], bool], seconds: float) -> Outcome:
    """kill -9 so long after the marker; a job that ends before is left to end."""
    until(lambda: marker() or not job.is_running, "a marker")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and job.is_running:
        time.sleep(0.001)
    return job.kill()


def step_inside(store: Path) -> str:
    """The step that is under way: it has a partial folder and no finished one. `between` steps there is none."""
    for step, kind in KINDS.items():
        folders = [path.name for path in store.glob(f"artifacts/{kind}/*")]
        if any(name.startswith(".partial-") for name in folders):
            return step
    return "between"


def has_finished(store: Path, step: str) -> bool:
    """Is the step's artifact there?"""
    found = store.glob(f"artifacts/{KINDS[step]}/*/manifest.json")
    return any(not path.parent.name.startswith(".") for path in found)


def copied(store: Path, target: Path) -> Path:
    """A copy that may be changed; its large files are links, to be replaced and never written into."""

    def copy(source: str, destination: str) -> None:
        is_final = "/artifacts/" in source or source.endswith("part-0.parquet")
        (os.link if is_final else shutil.copy2)(source, destination)

    shutil.copytree(store, target, copy_function=copy)
    return target


def seeded(name: str) -> random.Random:
    """Random numbers that are the same in every run."""
    return random.Random(name)


class Whole:
    """A store that was built without a fault, and what it took."""

    def __init__(self, store: Path, made: dict[str, Any], inspected: dict[str, Any]) -> None:
        self.store, self.seconds = store, made["seconds"]
        self.n_syncs: int = made["syncs"]
        self.rows: dict[str, int] = next(iter(inspected["inside"].values()))


class Mounts:
    """Small disks and read-only ones, where one may mount."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mounted = folder, list[Path]()

    def tmpfs(self, n_bytes: int) -> Path:
        """A disk of that size."""
        target = self.folder / f"disk-{len(self.mounted)}"
        target.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(target))
        self.mounted.append(target)
        return target

    def resize(self, target: Path, n_bytes: int) -> None:
        """Make room."""
        self._mount("-o", f"remount,size={n_bytes}", str(target))

    def read_only(self, folder: Path) -> None:
        """Nobody can write to the folder any more."""
        self._mount("--bind", str(folder), str(folder))
        self.mounted.append(folder)
        self._mount("-o", "remount,ro,bind", str(folder))

    def close(self) -> None:
        """Take all of them away."""
        for target in reversed(self.mounted):
            subprocess.run(["umount", "--lazy", str(target)], check=True)

    @staticmethod
    def _mount(*words: str) -> None:
        try:
            done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here")
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
