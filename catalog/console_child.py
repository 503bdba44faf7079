"""The other end of `catalog.console`: opens the catalog, gives up every right it does not need, answers questions."""

import json
import os
import resource
import sys
from typing import IO

import pyarrow as pa

from catalog.connection import Limits, Reader
from catalog.console import HEAD
from catalog.errors import CatalogError, QueryError
from catalog.guard import guarded
from catalog.store import Store

MEMORY = "500MB"
ADDRESS_SPACE_BYTES = 6 * 1024**3  # DuckDB and Arrow reserve far more than they use
ANSWER_BYTES = 64_000_000


def serve(root: str) -> None:
    """Answer one question after another on stdin and stdout, until stdin ends."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else may speak on the pipe
    try:
        reader = Reader(Store.open(root), Limits(MEMORY, threads=2))
        _give_up_rights()
        _send(answers, b"R", b"")
        while head := questions.read(HEAD.size):
            question = json.loads(questions.read(HEAD.unpack(head)[1]))
            _limit_time(question["timeout_seconds"])
            _reply(answers, reader, question["sql"], question["limit"])
    except CatalogError as error:  # the store itself cannot be read
        _send_error(answers, error)


def _reply(answers: IO[bytes], reader: Reader, sql: str, limit: int) -> None:
    try:
        answer = guarded(reader.cursor(), sql, limit)
        if answer.nbytes > ANSWER_BYTES:
            raise QueryError(f"the answer has {answer.nbytes:,} bytes, at most {ANSWER_BYTES:,} are shown; select less")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, answer.schema) as stream:
            stream.write_table(answer)
        _send(answers, b"A", sink.getvalue().to_pybytes())
    except CatalogError as error:
        _send_error(answers, error)


def _send_error(answers: IO[bytes], error: CatalogError) -> None:
    _send(answers, b"E", json.dumps({"type": type(error).__name__, "message": str(error)}).encode())


def _send(answers: IO[bytes], kind: bytes, body: bytes) -> None:
    answers.write(HEAD.pack(kind, len(body)) + body)
    answers.flush()


def _give_up_rights() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def _limit_time(seconds: float) -> None:
    """Should the parent be gone when a question runs on, the kernel ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + 2 * seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
