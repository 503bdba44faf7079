"""Forks one process per job. What takes seconds to import is imported once, here; killing a job costs nothing more.

Reads requests as lines of JSON and answers each with one:
{"do": "start", "job": …, "arguments": {…}, "result": FILE, "uid": N?} -> {"pid": N}
{"do": "poll", "pid": N} -> {"status": null while it runs, else the exit code, -9 where it was killed}
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's allocator: no thread before the fork

import fault_jobs
import transformers.models.llama.modeling_llama  # noqa: F401 (transformers would import it when a model is loaded)

import flows.cli  # noqa: F401

PR_SET_PDEATHSIG = 1
children: set[int] = set()


def start(request: dict[str, Any]) -> dict[str, Any]:
    """A fork that does one job and writes what came of it to a file."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a fork of {threads} threads would not be safe"
    pid = os.fork()
    if pid == 0:
        _live(request)
    children.add(pid)
    return {"pid": pid}


def poll(request: dict[str, Any]) -> dict[str, Any]:
    """Its exit code, once it ended."""
    pid, status = os.waitpid(request["pid"], os.WNOHANG)
    if pid == 0:
        return {"status": None}
    children.discard(pid)
    return {"status": os.waitstatus_to_exitcode(status)}


def _live(request: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a job never outlives the tests
    result = Path(request["result"])
    code = 1
    try:
        log = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        answer = os.open(result, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # before it becomes somebody else
        content, code = _done(request)
        os.write(answer, json.dumps(content, default=str).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _done(request: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What the job returned, or how it failed."""
    try:
        if request.get("uid"):
            os.setgid(request["uid"])
            os.setuid(request["uid"])
        return {"made": getattr(fault_jobs, request["job"])(**request["arguments"])}, 0
    except SystemExit as exit_:
        return {"exit": exit_.code}, int(exit_.code or 0)
    except BaseException as error:
        traceback.print_exc()
        family = [kind.__name__ for kind in type(error).__mro__]
        return {"error": type(error).__name__, "family": family, "message": str(error)}, 1


def main() -> None:
    """Serve until nobody asks any more."""
    sys.stdout.write(json.dumps({"ready": os.getpid()}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"start": start, "poll": poll}[request["do"]](request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # duckdb would list what it leaks


if __name__ == "__main__":
    main()
