"""A run small enough for tests, and a watch that remembers what it was told."""

from pathlib import Path

from flows.config import RunConfig
from flows.place import Quiet


class Record(Quiet):
    """A watch that remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def tiny(corpus: Path, /, **changes: object) -> RunConfig:
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
