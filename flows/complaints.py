"""What pydantic complains of in a run file, in our words: the key, what was got, and the nearest known key."""

import difflib
from typing import get_type_hints

from pydantic import BaseModel, ValidationError

__all__ = ["complaint"]


def complaint(error: ValidationError, model: type[BaseModel], before: str = "") -> str:
    """The first complaint about a `model`. `before` stands in front of its keys."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    name = f"{before}{'.'.join(keys)}"
    if first["type"] != "extra_forbidden":
        return f"{name} = {first.get('input')!r}: {first['msg']}"
    known = _known_keys(model, keys[:-1])
    near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.0)
    meant = f"; did you mean {near[0]!r}? Known are {', '.join(sorted(known))}" if near else ""
    return f"unknown key {name!r}{meant}"


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit() or part not in model.model_fields:
            continue
        declared = get_type_hints(model)[part]
        options = [declared, *getattr(declared, "__args__", ())]
        model = next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
