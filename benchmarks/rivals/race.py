"""Long-lived processes that train in turn: all are loaded, one runs at a time."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rivals.environments import environment, python_of
from rivals.worker import Task

PAUSE_SECONDS = 0.3
"""Between racers, so that the threads of the one before have gone to sleep."""


DISTURBED_SHARE = 0.1
"""Share of the machine that others may use during a turn; above it two threads wait for each other, and the turn tells
nothing. Such a turn is run again, whatever its result was."""

TRIES = 5


class RacerFailed(RuntimeError):
    """A racer's process has ended: the last line of what it said."""


@dataclass(frozen=True)
class Entry:
    """One row of a race: an implementation, in what it trains and how."""

    racer: str
    architecture: str
    precision: str = "fp32"

    @property
    def module(self) -> str:
        """What its process runs."""
        return f"rivals.{self.racer}"

    def name(self, race: str) -> str:
        """As the table calls it."""
        own = "" if self.architecture == race else f" {self.architecture}"
        return f"{self.racer}{own}{'' if self.precision == 'fp32' else ' ' + self.precision}"


class Process:
    """One racer's process."""

    def __init__(self, entry: Entry, task: Any, setting: str, rivals: Path) -> None:
        command = [python_of(entry.racer, rivals), "-P", "-m", entry.module, json.dumps(asdict(task))]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        variables = environment(entry.racer, setting, task.threads)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.said, text=True, env=variables)
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, order: str) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        assert self.process.stdin is not None
        print(order, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End it; whatever it was doing, its memory is needed."""
        self.process.kill()
        self.process.wait()
        self.said.close()

    def _answer(self) -> dict[str, Any]:
        """The next line that is JSON; libraries print other things."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self.process.wait()
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        code = self.process.returncode
        self.close()
        raise RacerFailed(lines[-1] if lines else f"ended with status {code}, silently (out of memory?)")


def race(entries: dict[Entry, Task], setting: str, rivals: Path, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row a racer and round, then one with its quality. A racer that fails yields why, and is left out."""
    with ExitStack() as stack:
        running: dict[Entry, Process] = {}
        for entry, task in entries.items():
            try:
                running[entry] = process = Process(entry, task, setting, rivals)
            except RacerFailed as failure:
                yield {"kind": "failed", **asdict(entry), "why": str(failure)}
                continue
            stack.callback(process.close)
            yield {"kind": "versions", "racer": entry.racer, "versions": process.versions}
        for number in range(rounds):
            for entry in turned(list(running), number):
                figures = undisturbed(running[entry], steps)
                yield {"kind": "time", **asdict(entry), "round": number, "load": os.getloadavg()[0], **figures}
        for entry, process in running.items():
            yield {"kind": "quality", **asdict(entry), **process.ask("eval")}


def undisturbed(process: Process, steps: int) -> dict[str, Any]:
    """A turn in which others left the machine alone; the least disturbed of some where there is none."""
    turns: list[dict[str, Any]] = []
    for _ in range(TRIES):
        os.sync()  # nobody waits for what the one before has left to be written
        time.sleep(PAUSE_SECONDS * (1 + 5 * len(turns)))
        busy, start = _busy_seconds(), time.perf_counter()
        figures = process.ask(f"go {steps}")
        capacity = (time.perf_counter() - start) * (os.cpu_count() or 1)
        others = max(0.0, _busy_seconds() - busy - figures["turn_cpu_s"]) / capacity
        turns.append(figures | {"others_share": others, "disturbed": others > DISTURBED_SHARE})
        if others <= DISTURBED_SHARE:
            break
    return min(turns, key=lambda turn: float(turn["others_share"]))


def _busy_seconds() -> float:
    """CPU time that the machine has spent on anybody, stolen time included."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, *more = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


def turned(entries: list[Entry], by: int) -> list[Entry]:
    """Another one begins each round."""
    by %= len(entries) or 1
    return entries[by:] + entries[:by]
