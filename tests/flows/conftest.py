"""A run small enough for tests, on the real demo model and real Python sources."""

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog import Store
from flows.config import RunConfig
from flows.path import path
from flows.place import Place, Quiet


class Record(Quiet):
    """A watch that remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def tiny(corpus: Path, **changes: object) -> RunConfig:
    """The path in miniature; `changes` are top-level tables, merged one level deep."""
    table: dict[str, dict[str, object]] = {
        "corpus": {
            "name": "few-modules",
            "sources": [{"path": str(corpus)}],
            "held_out_share": 0.25,
            "max_tokens": 24_000,
            "shard_tokens": 6_000,
            "context_tokens": 64,
        },
        "harvest": {"sites": [{"path": "model.layers.1"}]},
        "training": {"n_tokens": 40_960, "batch_tokens": 512, "learning_rate": 1e-2, "checkpoint_every_steps": 10},
        "evaluation": {"max_tokens": 2_000},
        "describe": {
            "activation_tokens": 8_000,
            "effects": {"tokens": 1_000, "ablated_features": 4, "ablation_tokens": 1_000},
        },
    }
    for name, change in changes.items():
        table[name] = table.get(name, {}) | change if isinstance(change, dict) else change
    table.setdefault("recipes", [{"architecture": "batchtopk", "n_features": 128, "k": 8}])  # type: ignore[arg-type]
    return RunConfig.model_validate({"name": "tiny", "threads": 1} | table)


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
