"""Where a run works and what it tells of itself: the store, the progress that people see, and the rows of `run`."""

import json
import os
import resource
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Protocol

from catalog import CatalogError, Store, append
from flows.artifact import Artifact, Draft, Work, code_version, finished, making

__all__ = ["Place", "Quiet", "StepReport", "Tick", "Watch"]

Tick = Callable[[int], None]


class Watch(Protocol):
    """Who looks on: a terminal with bars, a log, or nobody."""

    def bar(self, step: str, total: int, unit: str) -> AbstractContextManager[Tick]:
        """A piece of long work of `total` units; the tick is told of what is done. total 0: not known yet."""

    def say(self, text: str) -> None:
        """One line."""


class Quiet:
    """Nobody looks on."""

    def bar(self, step: str, total: int, unit: str) -> AbstractContextManager[Tick]:  # noqa: ARG002
        """Counts nothing."""
        return nullcontext(lambda _: None)

    def say(self, text: str) -> None:
        """Says nothing."""


@dataclass
class StepReport:
    """What one step did, as it goes into the table `run`."""

    step: str
    run_id: str
    started_at: datetime
    state: str = "running"
    seconds: float = 0.0
    n_tokens: int = 0
    peak_memory_bytes: int = 0
    made: Artifact | None = None
    read: tuple[Artifact, ...] = ()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Place:
    """A store and a watch. `flow` and `prefect_run_id` are set where an orchestrator runs the path.

    A plain object on purpose: an orchestrator takes collections and dataclasses among a task's arguments apart.
    """

    def __init__(self, store: Store, watch: Watch, flow: str = "local", prefect_run_id: str | None = None) -> None:
        self.store, self.watch = store, watch
        self.flow, self.prefect_run_id = flow, prefect_run_id
        self.reports: list[StepReport] = []
        self._lock = threading.Lock()

    def make(self, name: str, work: Work, fill: Callable[[Draft, StepReport], None], is_read: bool = True) -> Artifact:
        """The artifact of `work`: found, or filled now and finished. Either way one row of `run` says so.

        One that was evicted will do where nobody reads its files.
        """
        with self.making(name, work, is_read) as (draft, report):
            if draft is not None:
                fill(draft, report)
        return finished(self.store, work)

    @contextmanager
    def making(self, name: str, work: Work, is_read: bool = True) -> Iterator[tuple[Draft | None, StepReport]]:
        """The draft to fill (None: the artifact is there) and the report; finished when the block ends."""
        with self._step(name, work) as report:
            with making(self.store, work, self.watch.say, is_read) as draft:
                report.state = "reused" if draft is None else "finished"
                yield draft, report
            report.made = finished(self.store, work)

    @contextmanager
    def _step(self, name: str, work: Work) -> Iterator[StepReport]:
        """Record one step: its time, its memory, what it read and made, or why it failed."""
        report = StepReport(name, uuid.uuid4().hex, datetime.now(UTC), read=work.parents)
        try:
            yield report
        except BaseException as caught:
            report.state = "failed"
            with suppress(CatalogError):  # a full disk stops this as well; what stopped the step is what is told
                self._ended(report, work, f"{type(caught).__name__}: {caught}")
            raise
        self._ended(report, work, None)
        rate = f", {report.n_tokens / report.seconds:,.0f} tokens/s" if report.n_tokens and report.seconds else ""
        if report.state == "reused":
            gone = ", its files evicted and not needed" if report.made and report.made.is_evicted else ""
            self.watch.say(f"{name}: done already ({work.fingerprint[:12]}){gone}")
        else:
            memory = report.peak_memory_bytes / 1e9
            self.watch.say(f"{name}: {report.seconds:.1f} s{rate}, peak memory {memory:.2f} GB")

    def _ended(self, report: StepReport, work: Work, error: str | None) -> None:
        ended = datetime.now(UTC)
        report.seconds = (ended - report.started_at).total_seconds()
        report.peak_memory_bytes = peak_memory_bytes()
        self.reports.append(report)
        self._record(report, work, ended, error)

    def _record(self, report: StepReport, work: Work, ended: datetime, error: str | None) -> None:
        config = json.dumps(work.plan, sort_keys=True)
        made = report.made.fingerprint if report.made else None
        row: dict[str, Any] = {
            "run_id": report.run_id,
            "step": report.step,
            "flow": self.flow,
            "trigger": "manual",
            "prefect_run_id": self.prefect_run_id,
            "author": os.environ.get("USER") or os.environ.get("LOGNAME"),
            "fingerprint": made,
            "code_version": code_version(),
            "config": config,
            "config_sha256": sha256(config.encode()).hexdigest(),
            "host": socket.gethostname(),
            "device": work.plan.get("device", "cpu"),
            "state": report.state,
            "started_at": report.started_at.replace(tzinfo=None),
            "ended_at": ended.replace(tzinfo=None),
            "n_tokens": report.n_tokens or None,
            "tokens_per_second": report.n_tokens / report.seconds if report.n_tokens and report.seconds else None,
            "peak_memory_bytes": report.peak_memory_bytes,
            "error": error,
        }
        with self._lock:
            append(self.store, "run", {key: [value] for key, value in row.items()}, fingerprint=work.fingerprint)
            lineage = [("in", parent) for parent in report.read] + [("out", made) for made in [report.made] if made]
            if lineage and report.state != "reused":
                append(
                    self.store, "lineage", _lineage(report.run_id, lineage, self.store), fingerprint=work.fingerprint
                )

    def train_progress(self, points: list[dict[str, Any]]) -> None:
        """Points of training curves, a few at a time; each names the artifact that it is of."""
        if points:
            columns = {key: [point[key] for point in points] for key in points[0]}
            fingerprints = {point["fingerprint"] for point in points}
            with self._lock:
                append(self.store, "train_progress", columns, fingerprints.pop() if len(fingerprints) == 1 else "")


def _lineage(run_id: str, entries: list[tuple[str, Artifact]], store: Store) -> dict[str, list[Any]]:
    return {
        "run_id": [run_id] * len(entries),
        "direction": [direction for direction, _ in entries],
        "kind": [artifact.kind for _, artifact in entries],
        "fingerprint": [artifact.fingerprint for _, artifact in entries],
        "uri": [artifact.directory.relative_to(store.root).as_posix() for _, artifact in entries],
        "sha256": [
            sha256(json.dumps(dict(artifact.manifest), sort_keys=True).encode()).hexdigest() for _, artifact in entries
        ],
        "n_rows": [sum(artifact.manifest["rows"].values()) for _, artifact in entries],
        "n_bytes": [artifact.n_bytes for _, artifact in entries],
    }
