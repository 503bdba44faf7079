"""A run small enough for tests, on the real demo model and real Python sources."""

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_builds import Record, tiny

from catalog import Store
from flows.config import RunConfig
from flows.path import path
from flows.place import Place


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve modules of the standard library as one JSONL file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [
        "bisect",
        "heapq",
        "textwrap",
        "shlex",
        "csv",
        "fnmatch",
        "glob",
        "queue",
        "sched",
        "stat",
        "types",
        "string",
    ]
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": (root / f"{name}.py").read_text(encoding="utf-8")}) for name in names]
    (folder / "modules.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "modules.jsonl"


@pytest.fixture(scope="session")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Place]:
    """The tiny run, once for all tests. Treat the store as read-only."""
    config = tiny(corpus)
    place = Place(Store.create(tmp_path_factory.mktemp("built") / "store"), Record())
    path(config, place)
    return config, place


@pytest.fixture
def rebuild(corpus: Path) -> Callable[..., tuple[RunConfig, Place]]:
    """Run the path (again) in a store, with changes."""

    def run(store: Store, **changes: object) -> tuple[RunConfig, Place]:
        config = tiny(corpus, **changes)
        place = Place(store, Record())
        path(config, place)
        return config, place

    return run


@pytest.fixture(scope="session")
def begin(corpus: Path) -> Callable[..., tuple[RunConfig, Place]]:
    """The tiny run in a store, with changes, before any step."""
    return lambda store, **changes: (tiny(corpus, **changes), Place(store, Record()))
