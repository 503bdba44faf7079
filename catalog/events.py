"""One thing that a person did, and the rules that every such event obeys before it is recorded."""

import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from catalog.errors import LabelError, nearest
from catalog.schema import TABLES, Table

__all__ = ["EVENT_TABLES", "HEAD", "MAX_TEXT", "Event", "new_event_id", "validate"]

MAX_TEXT = 10_000
MAX_NAME = 200
EVENT_TABLES = tuple(name for name, table in TABLES.items() if table.writing == "event")
HEAD = ("event_id", "created_at", "author", "action", "undoes")  # columns that every event table has
NEEDS_TEXT = ("accept", "edit", "write", "carry", "confirm_carry")
BOUNDS = {"confidence": (1, 3), "safety": (0, 3), "feature": (0, 2**31 - 1)}


def new_event_id() -> str:
    """The idempotency key: mint one when a form is drawn, send it with every try."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Event:
    """A row of an event table. `values` holds the columns that are its table's own; `created_at` (UTC, naive) is set
    by the store, in the order of recording, unless the event was recorded elsewhere before."""

    table: str
    author: str
    action: str
    values: Mapping[str, Any] = field(default_factory=dict)
    undoes: str | None = None
    event_id: str = field(default_factory=new_event_id)
    created_at: datetime | None = None

    @property
    def content(self) -> tuple[Any, ...]:
        """What must be equal when the same event_id comes twice."""
        values = {key: value for key, value in self.values.items() if value is not None}
        return (self.table, self.author, self.action, self.undoes, values)


def validate(event: Event) -> None:
    """Raises LabelError where the event breaks a rule that it can break by itself."""
    if event.table not in EVENT_TABLES:
        raise LabelError(f"{event.table!r} is not a table of people's events; {nearest(event.table, EVENT_TABLES)}")
    table = TABLES[event.table]
    actions = table.column("action").one_of
    if event.action not in actions:
        raise LabelError(f"unknown action {event.action!r} for {event.table}; {nearest(event.action, actions)}")
    for name in ("author", "event_id"):
        _check_name(name, getattr(event, name))
    if (event.action == "undo") != (event.undoes is not None):
        raise LabelError(
            "an undo names the event that it undoes, and nothing else does; give `undoes` with action 'undo'"
        )
    for name, value in event.values.items():
        _check_value(table, name, value)
    _check_present(table, event)


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise LabelError(f"{name} is {value!r}; it must be a text")
    if not value.strip():
        raise LabelError(
            f"{name} is empty; say who you are with --user" if name == "author" else f"{name} is empty; mint one"
        )
    if len(value) > MAX_NAME:
        raise LabelError(f"{name} has {len(value):,} characters; at most {MAX_NAME} are kept")
    _refuse_control(name, value)


def _check_present(table: Table, event: Event) -> None:
    if event.action == "undo" and table.name != "label_event":
        return  # what it undoes says the rest
    for column in table.columns:
        if column.name not in HEAD and not column.nullable and event.values.get(column.name) is None:
            raise LabelError(f"{table.name} needs {column.name} ({column.meaning}); give it")
    if table.name == "label_event" and event.action in NEEDS_TEXT and not str(event.values.get("text") or "").strip():
        raise LabelError(f"the text of a label is empty; write what the feature is about (action {event.action!r})")


def _check_value(table: Table, name: str, value: Any) -> None:
    if name not in table.names or name in HEAD:
        raise LabelError(f"{table.name} has no column {name!r}; {nearest(name, set(table.names) - set(HEAD))}")
    if value is None:
        return
    column = table.column(name)
    if column.one_of and value not in column.one_of:
        raise LabelError(f"{name} is {value!r}; it must be one of {', '.join(column.one_of)}")
    if name in BOUNDS:
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise LabelError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    for text in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(text, str):
            _check_text(name, text)
    try:
        if pa.types.is_list(column.type) != isinstance(value, (list, tuple)):
            raise TypeError(type(value).__name__)
        pa.scalar(value, column.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise LabelError(f"{name} is {value!r}; it must be {column.type} ({column.meaning})") from error


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise LabelError(f"{name} has {len(text):,} characters; at most {MAX_TEXT:,} are kept. Shorten it")
    _refuse_control(name, text)


def _refuse_control(name: str, text: str) -> None:
    for at, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise LabelError(f"{name} has the control character U+{ord(character):04X} at place {at}; remove it")
