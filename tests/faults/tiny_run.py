"""The run of tests/flows (its configuration and its corpus), here as well and as a TOML file."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def _conftest_of_flows() -> ModuleType:
    path = Path(__file__).parent.parent / "flows" / "conftest.py"
    sys.path.append(str(path.parent))  # what it imports lies beside it
    spec = importlib.util.spec_from_file_location("conftest_of_flows", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_flows = _conftest_of_flows()
tiny, corpus, Record = _flows.tiny, _flows.corpus, _flows.Record


def as_toml(value: Any) -> str:
    """A run as a TOML file; nested tables are written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(part)}" for key, part in value.items() if part is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(part) for part in value) + "]"
    return json.dumps(value)


def toml_file(path: Path, corpus_file: Path, **changes: object) -> Path:
    """The tiny run as a file for the command line."""
    settings = tiny(corpus_file, **changes).model_dump(mode="json")
    lines = [f"{key} = {as_toml(value)}" for key, value in settings.items() if value is not None]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
