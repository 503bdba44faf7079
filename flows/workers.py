"""Shards to workers: one is this process itself, more are processes beside it.

A thread stands for each worker and waits for it: a plain pool of threads here, an orchestrator's in flows.tasks. Each
shard is a function of the plan and its number, so the bytes do not depend on who does it, or how often.
"""

import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from copy import copy
from functools import cached_property, wraps
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from flows.errors import WorkerError

if TYPE_CHECKING:
    from flows.config import RunConfig
    from flows.place import Tick

__all__ = ["Each", "Job", "Step", "Workers", "each", "in_order"]

TIMES_AGAIN = 3
"""How often a shard is done again whose worker was lost."""


class Job:
    """What the shards of a step share. It crosses to another process without its tick and without its cached
    properties: those are loaded there, once."""

    tick: "Tick"

    @cached_property
    def key(self) -> str:
        """Its name among all jobs, by which another process knows what it has loaded for it."""
        return uuid.uuid4().hex

    def __getstate__(self) -> dict[str, Any]:
        loaded = {name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)}
        return {name: value for name, value in self.__dict__.items() if name not in loaded | {"tick"}}


Step = Callable[[int, Any], Any]
"""What is done with a shard, by its number and the step's job. A function of a module, so that a worker finds it."""

Each = Callable[[Step, Sequence[int], Any], list[Any]]
"""A step on every shard; what it gives, in the order of the shards."""


def in_order(step: Step, shards: Sequence[int], job: Any) -> list[Any]:
    """One shard after another, here."""
    return [step(shard, job) for shard in shards]


class Workers:
    """As many as `config.workers`, each started when it is first needed. Use it with `with`: then none is left over.

    A worker loads the language model for itself and computes with the plan's threads; on a machine with GPUs, worker i
    sees the i-th one alone (they share where there are fewer).
    """

    def __init__(self, config: "RunConfig", say: Callable[[str], None]) -> None:
        self.n, self._say = config.workers, say
        gpus = _gpus(config) if self.n > 1 else []
        self._all = [_Worker(gpus[number % len(gpus)] if gpus else None) for number in range(self.n)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End every process at once. A shard under way is lost, and its piece was never there."""
        for worker in self._all:
            worker.end()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Where one shard fails, or somebody wants to stop, nobody waits for the others."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def each(self, step: Step, shards: Sequence[int], job: Any) -> list[Any]:
        """A step on every shard. Raises what a shard raised, as soon as it did."""
        if self.n == 1:
            return in_order(step, shards, job)
        with ThreadPoolExecutor(self.n) as threads, self.at_work():
            futures = [threads.submit(self.doing(step), shard, job) for shard in shards]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]

    def doing(self, step: Step) -> Step:
        """The step, done by whichever worker is idle while the caller waits. Raises WorkerError for a shard whose
        workers were lost again and again."""
        if self.n == 1:
            return step

        @wraps(step)
        def by_a_worker(shard: int, job: Any) -> Any:
            for times in range(TIMES_AGAIN + 1):
                worker = self._idle.get()
                try:
                    result, n_done = worker.do(step, shard, job)
                except BrokenProcessPool:
                    if times < TIMES_AGAIN:
                        again = f"it is done again ({times + 1} of at most {TIMES_AGAIN} times)"
                        self._say(f"a worker was lost in {step.__name__} of shard {shard}; {again}")
                else:
                    job.tick(n_done)
                    return result
                finally:
                    self._idle.put(worker)
            raise WorkerError(
                f"{step.__name__} of shard {shard} was given up: the process that did it was lost {TIMES_AGAIN + 1} "
                "times (killed, or out of memory?); finished shards stay. Lower workers or corpus.shard_tokens and "
                "run again"
            )

        return by_a_worker


def each(workers: Workers) -> Each:
    """How the shards of a step are shared out."""
    return workers.each


def _gpus(config: "RunConfig") -> list[str]:
    """Those that this process may use, where the run does not name one."""
    if config.lm.resolved_device() != "cuda":
        return []
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]


class _Worker:
    """One process, started when there is work for it, and again after it was lost.

    It holds one end of a line; when the other one closes, by `end` or because this process is gone, it ends at once.
    """

    def __init__(self, gpu: str | None) -> None:
        self._gpu, self._lock, self._has_ended = gpu, Lock(), False
        self._running: tuple[ProcessPoolExecutor, Connection] | None = None

    def do(self, step: Step, shard: int, job: Job) -> tuple[Any, int]:
        """What the step gives, and how far its ticks came. Raises BrokenProcessPool where the process is lost."""
        try:
            return self._pool().submit(_do, step, shard, job.key, job).result()
        except BrokenProcessPool:
            with self._lock:
                self._stop()
            if self._has_ended:
                raise WorkerError("the workers were ended; run again: finished shards stay") from None
            raise

    def end(self) -> None:
        """For good."""
        with self._lock:
            self._has_ended = True
            self._stop()

    def _pool(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._has_ended:
                raise WorkerError("the workers were ended; run again: finished shards stay")
            if self._running is None:
                context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
                theirs, ours = context.Pipe(duplex=False)
                pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(theirs, self._gpu))
                self._running = pool, ours
            return self._running[0]

    def _stop(self) -> None:
        if self._running is not None:
            pool, line = self._running
            self._running = None
            line.close()
            pool.shutdown()


def _begin(line: Connection, gpu: str | None) -> None:
    """In the worker: Ctrl-C is for whoever started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    Thread(target=_end_with, args=(line,), daemon=True).start()


def _end_with(line: Connection) -> None:
    with suppress(EOFError, OSError):
        line.recv_bytes()
    os._exit(1)


_under_way: dict[str, Job] = {}
"""In a worker: the job that it works for, by its key, with what it has loaded."""


def _do(step: Step, shard: int, key: str, job: Job) -> tuple[Any, int]:
    """In the worker: one shard. An error arrives as what it is, or with its words where it cannot cross."""
    if key not in _under_way:
        _under_way.clear()
        _under_way[key] = job
    mine, ticks = _under_way[key], list[int]()
    mine.tick = ticks.append
    try:
        return step(shard, mine), sum(ticks)
    except Exception as error:
        if _can_cross(error):
            raise
        raise WorkerError(f"{step.__name__} of shard {shard} failed: {type(error).__name__}: {error}") from None


def _can_cross(error: Exception) -> bool:
    """Whether it can be made again from what it hands on."""
    try:
        again = copy(error)
    except Exception:
        return False
    return str(again) == str(error)
