"""What people do on the feature page: labels and undos from the browser's outbox, recorded, each answered.

The browser sends everything that was not answered yet, again and again; each act carries an id of its own, so that
sending it twice records it once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from catalog import CatalogError, Event, Labels

__all__ = ["record"]

MAX_TAGS = 20
TEXTS = ("text", "note")


def record(labels: Labels, outbox: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Event id -> "" where it is safe on the disk, else what to do about it."""
    return {str(act.get("id", "")): _record(labels, act) for act in outbox}


def _record(labels: Labels, act: Mapping[str, Any]) -> str:
    try:
        labels.append([_undo(labels, act) if act.get("undoes") else _label(act)])
    except CatalogError as error:
        return str(error)
    except (KeyError, TypeError, ValueError) as error:
        return f"the browser sent something that is no label ({type(error).__name__}: {error}); reload the page"
    return ""


def _label(act: Mapping[str, Any]) -> Event:
    values: dict[str, Any] = {"sae_id": str(act["sae"]), "feature": int(act["feature"])}
    values |= {name: str(act[name]).strip() for name in TEXTS if act.get(name)}
    values |= {name: int(act[name]) for name in ("confidence", "safety") if act.get(name) not in (None, "")}
    tags = list(dict.fromkeys(str(tag).strip() for tag in act.get("tags") or [] if str(tag).strip()))
    if tags:
        values["tags"] = tags[:MAX_TAGS]
    if act.get("seconds") is not None:
        values["seconds"] = float(act["seconds"])
    based_on = act.get("based_on")
    if based_on:
        values["based_on"] = str(based_on)
    return Event("label_event", str(act["author"]), "edit" if based_on else "write", values, event_id=str(act["id"]))


def _undo(labels: Labels, act: Mapping[str, Any]) -> Event:
    undone = labels.find(str(act["undoes"]))
    same = {} if undone is None else {name: undone.values.get(name) for name in ("sae_id", "feature")}
    return Event("label_event", str(act["author"]), "undo", same, str(act["undoes"]), str(act["id"]))
