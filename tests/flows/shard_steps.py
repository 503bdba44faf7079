"""Steps that are over in a moment, or that end their worker: a worker imports them by name, so they have a file."""

import os
import signal
import time
from pathlib import Path

from flows.errors import ArtifactError
from flows.workers import Job


class Folder(Job):
    """Where steps leave their marks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ticked = folder, 0
        self.tick = self.add

    def add(self, n: int) -> None:
        self.ticked += n


class Odd(ValueError):
    """Its pickle cannot be read again: it wants two arguments and hands on one."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


def square(shard: int, job: Folder) -> tuple[int, int]:
    time.sleep(0.05)
    job.tick(10)
    job.tick(shard)
    return shard * shard, os.getpid()


def end_its_worker_once(shard: int, job: Folder) -> int:
    mark = job.folder / f"mark-{shard}"
    if shard == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    job.tick(1)
    return shard


def end_its_worker(shard: int, job: Folder) -> None:
    with open(job.folder / "tries", "a") as file:
        file.write(".")
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(shard: int, job: Folder) -> None:
    if shard == 0:
        time.sleep(60)
    if shard == 1:
        raise ArtifactError(f"{job.folder} is damaged; make it again")


def refuse_oddly(shard: int, job: Folder) -> None:
    raise Odd("shard", shard)


def read_gpu(shard: int, job: Folder) -> str | None:
    time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def wait_long(shard: int, job: Folder) -> None:
    (job.folder / f"pid-{os.getpid()}").touch()
    time.sleep(600)
