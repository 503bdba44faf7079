"""SQL of strangers, in a process of its own that can be stopped: hard limits on time, memory and writing.

DuckDB's own limits do not stop every query (one scalar call can run on, and past its memory limit), so the question
runs in a child with resource limits, which is killed when its time is over. The child can write no file at all.
"""

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pyarrow as pa

from catalog import errors
from catalog.errors import QueryError, QueryTimeout, StoreError
from catalog.store import Store

__all__ = ["Console", "run"]

START_SECONDS = 60.0
RESIDENT_BYTES = 1_500_000_000  # of the child; its DuckDB is given a third of that
HEAD = struct.Struct(">cQ")  # kind of frame, length of its body
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from catalog.console_child import serve; serve(sys.argv[2])"


def run(store: Store, sql: str, limit: int = 1000, timeout_seconds: float = 30.0) -> pa.Table:
    """The first `limit` rows of one SELECT. Raises QueryError, QueryTimeout, DamagedError."""
    with Console(store) as console:
        return console.run(sql, limit, timeout_seconds)


class Console:
    """A warm child for one question after another; it sees new snapshots and labels. One thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._child: subprocess.Popen[bytes] | None = None

    def warm(self) -> None:
        """Start the child, if none is waiting, and wait until it is ready."""
        if self._child is None or self._child.poll() is not None:
            self._child = _start(self._store)
            self._answer(START_SECONDS)

    def run(self, sql: str, limit: int = 1000, timeout_seconds: float = 30.0) -> pa.Table:
        """The first `limit` rows of one SELECT; the child is killed at the time-out; the next run starts anew."""
        self.warm()
        stdin = _pipe(self._child, "stdin")
        body = json.dumps({"sql": sql, "limit": limit, "timeout_seconds": timeout_seconds}).encode()
        try:
            stdin.write(HEAD.pack(b"Q", len(body)) + body)
            stdin.flush()
        except BrokenPipeError:
            self.close()
            raise StoreError("the SQL console ended by itself; try again") from None
        return pa.ipc.open_stream(self._answer(timeout_seconds)).read_all()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self, timeout_seconds: float) -> bytes:
        """The body of the child's next frame; its error is raised here."""
        try:
            kind, body = self._frame(time.monotonic() + timeout_seconds, timeout_seconds)
        except BaseException:
            self.close()
            raise
        if kind == b"E":
            error = json.loads(body)
            if error["type"] not in ("QueryError", "SchemaError"):
                self.close()
            raise getattr(errors, error["type"])(error["message"])
        return body

    def _frame(self, deadline: float, timeout_seconds: float) -> tuple[bytes, bytes]:
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(_pipe(self._child, "stdout"), selectors.EVENT_READ)
            while len(received) < HEAD.size or len(received) < HEAD.size + HEAD.unpack_from(received)[1]:
                self._check(deadline, timeout_seconds)
                if selector.select(timeout=0.05):
                    chunk = os.read(_pipe(self._child, "stdout").fileno(), 1 << 20)
                    if not chunk:
                        raise self._died()
                    received += chunk
        return HEAD.unpack_from(received)[0], bytes(received[HEAD.size :])

    def _check(self, deadline: float, timeout_seconds: float) -> None:
        if time.monotonic() > deadline:
            raise QueryTimeout(
                f"no answer within {timeout_seconds:g} s; the question was stopped. Ask for less at once"
            )
        if self._child is not None and _resident_bytes(self._child.pid) > RESIDENT_BYTES:
            raise QueryTimeout(
                f"the question took more than {RESIDENT_BYTES / 1e9:g} GB of memory and was stopped; ask for less"
            )

    def _died(self) -> QueryError:
        code = None if self._child is None else self._child.wait()
        reason = signal.Signals(-code).name if code and code < 0 else f"exit {code}"
        return QueryTimeout(
            f"the question was stopped ({reason}): it took more memory or time than it may; ask for less"
        )


def _start(store: Store) -> subprocess.Popen[bytes]:
    package_folder = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-I", "-c", BOOT, package_folder, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
    )


def _pipe(child: subprocess.Popen[bytes] | None, name: str) -> IO[bytes]:
    pipe = None if child is None else getattr(child, name)
    assert pipe is not None, "the child was started with both pipes"
    return pipe  # type: ignore[no-any-return]


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # no /proc here: the address space limit of the child remains
