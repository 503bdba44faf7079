"""Is a build at work in the store? Its locks tell, also where the builder was killed: the kernel lets go of them."""

import fcntl
import json
from dataclasses import dataclass

from catalog import Store

__all__ = ["Work", "at_work"]

PASSING = ("catalog", "mirror")  # held for moments by whoever writes
STEPS = {"tokens": "tokenize", "activations": "harvest", "sae": "train", "metrics": "evaluate", "features": "describe"}


@dataclass(frozen=True)
class Work:
    """One artifact in the making. `fingerprint` is the beginning of the artifact's own."""

    step: str
    fingerprint: str
    since: str
    process: str


def at_work(store: Store) -> list[Work]:
    """Every artifact that some process is making now, the oldest first."""
    found = []
    for path in store.locks.glob("*.lock"):
        kind, _, fingerprint = path.stem.rpartition("-")
        if path.stem in PASSING or not kind:
            continue
        try:
            with path.open(encoding="utf-8") as file:
                if _is_held(file.fileno()):
                    found.append(_work(kind, fingerprint, file.read()))
        except OSError:
            continue  # gone in between, or not ours to read
    return sorted(found, key=lambda work: work.since)


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _work(kind: str, fingerprint: str, signature: str) -> Work:
    try:
        signed = json.loads(signature)
    except ValueError:  # taken this moment, not signed yet
        signed = {}
    process = f"process {signed['pid']} on {signed['host']}" if {"pid", "host"} <= signed.keys() else "a process"
    return Work(STEPS.get(kind, kind), fingerprint, str(signed.get("since", "")), process)
