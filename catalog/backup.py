"""All that people did, in one file, and out of it again: every event of every table, each known by its event_id.

The file is JSON lines, gzip: a head that says how many events follow and their hash, then one event a line, in the
order of their recording within each table.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from catalog.errors import DamagedError, LabelError
from catalog.events import EVENT_TABLES, HEAD, Event
from catalog.files import replacing
from catalog.labels import LabelStore

__all__ = ["Restored", "backup", "restore"]

FORMAT = "sae-almanac events"


@dataclass(frozen=True)
class Restored:
    """Events of the file that were recorded now, and that were there already."""

    n_new: int
    n_known: int


def backup(labels: LabelStore, path: Path) -> int:
    """Write every event to `path`, whole or not at all; the same events give the same bytes. Returns how many."""
    lines = [json.dumps(_as_row(event), ensure_ascii=False, sort_keys=True) for event in _events(labels)]
    body = "".join(line + "\n" for line in lines).encode()
    head = {"format": FORMAT, "version": 1, "n_events": len(lines), "sha256": hashlib.sha256(body).hexdigest()}
    content = gzip.compress(json.dumps(head).encode() + b"\n" + body, mtime=0)
    try:
        with replacing(path.resolve()) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise LabelError(f"{path} cannot be written: {error.strerror or error}; name another file") from error
    return len(lines)


def restore(labels: LabelStore, path: Path) -> Restored:
    """Record the events of a backup: all, or none. Those that are there already stay as they are, so that doing it
    twice, or into a store with other people's work in it, is harmless. Raises DamagedError, LabelError."""
    events = _read(path)
    n_new = labels.append(events)
    return Restored(n_new, len(events) - n_new)


def _events(labels: LabelStore) -> Iterator[Event]:
    for table in EVENT_TABLES:
        for row in labels.events(table).to_pylist():
            head = {name: row.pop(name) for name in HEAD}
            yield Event(table, values={key: value for key, value in row.items() if value is not None}, **head)


def _as_row(event: Event) -> dict[str, Any]:
    assert event.created_at is not None, "an event that was recorded has a time"
    return {**asdict(event), "created_at": event.created_at.isoformat()}


def _read(path: Path) -> list[Event]:
    try:
        first, _, body = gzip.decompress(path.read_bytes()).partition(b"\n")
        head = json.loads(first)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DamagedError(f"{path} cannot be read as a backup: {error}; nothing was restored. Name another") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != 1:
        raise DamagedError(f"{path} is not a backup of this program (its head says {first[:80]!r}); name another")
    if hashlib.sha256(body).hexdigest() != head.get("sha256"):
        raise DamagedError(f"{path} is damaged: its events are not those that were written; nothing was restored")
    rows = [json.loads(line) for line in body.split(b"\n") if line]
    return [Event(**{**row, "created_at": datetime.fromisoformat(row["created_at"])}) for row in rows]
