"""What a person does to a feature: add, accept, edit, reject, undo; and what has been said of it so far."""

from typing import Any, NamedTuple, TypedDict, Unpack

from catalog.errors import LabelError
from catalog.events import Event
from catalog.labels import LabelStore

__all__ = ["Details", "Of", "accept", "add", "current", "edit", "history", "last_of", "reject", "undo"]

SAID = ("accept", "edit", "write", "reject", "carry", "confirm_carry")


class Of(NamedTuple):
    """The feature that is spoken of."""

    sae_id: str
    feature: int


class Details(TypedDict, total=False):
    """What may go with a label. `event_id` is the idempotency key of the form it came from."""

    event_id: str
    tags: list[str]
    confidence: int
    kind: str
    safety: int
    note: str
    visit_id: str
    queue_id: str
    seconds: float
    keys: int
    clicks: int
    examples_seen: int
    app_version: str


def add(labels: LabelStore, author: str, of: Of, text: str, **details: Unpack[Details]) -> Event:
    """Say in one's own words what the feature is about."""
    return _record(labels, author, "write", {**of._asdict(), "text": text, **details})


def accept(labels: LabelStore, author: str, of: Of, text: str, based_on: str, **details: Unpack[Details]) -> Event:
    """Take over the text of a machine's explanation, or of another label, as one's own."""
    return _record(labels, author, "accept", {**of._asdict(), "text": text, "based_on": based_on, **details})


def edit(labels: LabelStore, author: str, of: Of, text: str, based_on: str, **details: Unpack[Details]) -> Event:
    """The same with changes."""
    return _record(labels, author, "edit", {**of._asdict(), "text": text, "based_on": based_on, **details})


def reject(labels: LabelStore, author: str, of: Of, **details: Unpack[Details]) -> Event:
    """Say that the feature cannot be interpreted."""
    return _record(labels, author, "reject", {**of._asdict(), **details})


def undo(labels: LabelStore, author: str, event_id: str) -> Event:
    """Take back an event of one's own. Raises LabelError: not there, an undo, somebody else's, undone already."""
    undone = labels.find(event_id)
    if undone is None:
        raise LabelError(f"there is no event {event_id!r} to undo; look it up with `almanac label history`")
    same = {name: undone.values.get(name) for name in ("sae_id", "feature")} if undone.table == "label_event" else {}
    event = Event(undone.table, author, "undo", same, undoes=event_id)
    labels.append([event])
    return event


def history(labels: LabelStore, of: Of) -> list[dict[str, Any]]:
    """Everything that was said of the feature, in order; `is_undone` tells what was taken back."""
    rows: list[dict[str, Any]] = labels.of_feature(*of).to_pylist()
    undone = {row["undoes"] for row in rows}
    return [{**row, "is_undone": row["event_id"] in undone} for row in rows]


def current(labels: LabelStore, of: Of) -> list[dict[str, Any]]:
    """The last word of each author that was not undone (the view `label` shows the same)."""
    said = [row for row in history(labels, of) if row["action"] in SAID and not row["is_undone"]]
    said.sort(key=lambda row: (row["created_at"], row["event_id"]))
    return list({row["author"]: row for row in said}.values())


def last_of(labels: LabelStore, author: str) -> str:
    """The event_id of the author's last labelling that can be undone. Raises LabelError where there is none."""
    rows = labels.events("label_event").to_pylist()
    undone = {row["undoes"] for row in rows}
    own = [
        r["event_id"] for r in rows if r["author"] == author and r["action"] != "undo" and r["event_id"] not in undone
    ]
    if not own:
        raise LabelError(f"{author!r} has labelled nothing that could be undone; say who you are with --user")
    return str(own[-1])


def _record(labels: LabelStore, author: str, action: str, values: dict[str, Any]) -> Event:
    event_id = values.pop("event_id", None)
    given = {"event_id": event_id} if event_id is not None else {}
    event = Event("label_event", author, action, values, **given)
    labels.append([event])
    return event
