"""One writer at a time, across processes and threads: a file lock that says who holds it."""

import contextlib
import fcntl
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from catalog.errors import LockedError

__all__ = ["exclusive"]


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, timeout_seconds: float) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; the kernel lets go when a holder dies.

    Raises LockedError, naming the holder, after `timeout_seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        _wait(file, path, timeout_seconds)
        _sign(file, purpose)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _wait(file: TextIO, path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"{path} is held by {_holder(path)}; waited {timeout_seconds:g} s. "
                    "Wait for it to finish, or end that process, and try again"
                ) from None
        time.sleep(random.uniform(0.005, 0.05))


def _sign(file: TextIO, purpose: str) -> None:
    file.truncate(0)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    json.dump({"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
    file.flush()


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} ({held['purpose']}, since {held['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
