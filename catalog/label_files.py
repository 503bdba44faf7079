"""Labels out of one store and into another: every event as a line of CSV or JSONL, rehearsed before an import."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from catalog.errors import LabelError
from catalog.events import HEAD, Event
from catalog.labels import LabelStore
from catalog.schema import TABLES

__all__ = ["Format", "ImportReport", "exported", "import_labels", "read_events"]

Format = Literal["csv", "jsonl"]
TABLE = TABLES["label_event"]
CONVERT: dict[str, Callable[[str], Any]] = {"list<": json.loads, "int": int, "float": float}


@dataclass(frozen=True)
class ImportReport:
    """What an import did, or would do. `refused`: line of the file and the reason."""

    n_new: int
    n_known: int
    refused: tuple[tuple[int, str], ...]
    is_written: bool


def exported(labels: LabelStore, form: Format) -> str:
    """Every label_event, oldest first."""
    rows = [_as_text(row) for row in labels.events("label_event").to_pylist()]
    if form == "jsonl":
        given = ({key: value for key, value in row.items() if value is not None} for row in rows)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given)
    out = io.StringIO()
    writer = csv.DictWriter(out, TABLE.names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in row.items()})
    return out.getvalue()


def import_labels(labels: LabelStore, events: Iterable[tuple[int, Event | str]], dry_run: bool) -> ImportReport:
    """Record the events (line number and event, or what is wrong with the line): all of them, or, if one is refused
    or this is a dry run, none. Those that are there already are passed over, so that doing it twice is harmless."""
    lines = list(events)
    readable = [(line, event) for line, event in lines if isinstance(event, Event)]
    answers = labels.rehearse([event for _, event in readable])
    refused = [(line, event) for line, event in lines if isinstance(event, str)]
    refused += [(line, why) for (line, _), why in zip(readable, answers, strict=True) if why not in ("new", "known")]
    if not dry_run and not refused:
        labels.append([event for _, event in readable])
    return ImportReport(
        answers.count("new"), answers.count("known"), tuple(sorted(refused)), not dry_run and not refused
    )


def read_events(path: Path, author: str) -> Iterator[tuple[int, Event | str]]:
    """The events in a CSV or JSONL file. Needed are sae_id, feature and text; `author` stands in where a line names
    nobody, the action is `write` unless said otherwise, and a line without event_id is known again by its content."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read: {error}; give a CSV or JSONL file in UTF-8") from error
    if path.suffix not in (".csv", ".jsonl"):
        raise LabelError(f"{path} is neither .csv nor .jsonl; rename or convert it")
    for line, row in _csv_rows(content) if path.suffix == ".csv" else _json_rows(content):
        yield line, row if isinstance(row, str) else _as_event(row, author)


def _csv_rows(content: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, f"has {len(row[None])} values more than the header has names"
            else:
                yield reader.line_num, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        yield reader.line_num + 1, f"is not CSV: {error}"


def _json_rows(content: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"is not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else f"is not an object but {type(row).__name__}"


def _as_event(row: dict[str, Any], author: str) -> Event | str:
    unknown = set(row) - set(TABLE.names)
    if unknown:
        return f"has the unknown column {min(unknown)!r}"
    try:
        values = {name: _converted(name, value) for name, value in row.items()}
    except (ValueError, TypeError) as error:
        return f"cannot be read: {error}"
    own: dict[str, Any] = {
        "author": author,
        "action": "write",
        "undoes": None,
        "created_at": None,
        "event_id": _digest(row),
    }
    head = {name: values.pop(name, None) or own[name] for name in HEAD}
    return Event("label_event", values=values, **head)


def _converted(name: str, value: Any) -> Any:
    kind = TABLE.column(name).type
    if value is None or not isinstance(value, str):
        return value
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value)
    for start, convert in CONVERT.items():
        if str(kind).startswith(start):
            return convert(value)
    return value


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "created_at": row["created_at"].isoformat()}
