"""All of pass 1 in one value: made of a shard, merged, saved, loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from saelib.summaries.candidates import Candidates
from saelib.summaries.moments import Core
from saelib.summaries.rows import ShardFirings
from saelib.summaries.tokens import TokenCounts

__all__ = ["Summary", "merged_candidates", "merged_statistics"]


class Summary(NamedTuple):
    """What is known of every feature after some shards."""

    core: Core
    tokens: TokenCounts
    candidates: Candidates

    @classmethod
    def of(cls, firings: ShardFirings, n_vocab: int) -> "Summary":
        """One shard's."""
        return cls(Core.of(firings), TokenCounts.of(firings, n_vocab), Candidates.of(firings))

    def merge(self, other: "Summary") -> "Summary":
        """Both together: exact for counts, examples and histograms, to rounding for moments."""
        return Summary(
            self.core.merge(other.core), self.tokens.merge(other.tokens), self.candidates.merge(other.candidates)
        )

    def save(self) -> bytes:
        """As one safetensors file, candidates so that those of some features can be read alone."""
        n_features = self.core.n_fires.size
        named = {f"core.{name}": array for name, array in self.core._asdict().items()}
        named |= {f"tokens.{name}": array for name, array in self.tokens.arrays().items()}
        named |= {f"candidates.{name}": array for name, array in self.candidates._asdict().items()}
        named["starts"] = np.searchsorted(self.candidates.feature, np.arange(n_features + 1))
        return save({name: np.ascontiguousarray(array) for name, array in named.items()})

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """What `save` wrote."""
        return cls.merged([path])

    @classmethod
    def merged(cls, paths: Sequence[Path]) -> "Summary":
        """Those of all shards, in shard order."""
        core, tokens = merged_statistics(paths)
        return cls(core, tokens, merged_candidates(paths, range(core.n_fires.size)))


def merged_statistics(paths: Sequence[Path]) -> tuple[Core, TokenCounts]:
    """Everything but the candidates of all shards, in shard order, two held at a time."""

    def statistics(path: Path) -> tuple[Core, TokenCounts]:
        return Core(**_read(path, "core.")), TokenCounts.from_arrays(_read(path, "tokens."))

    core, tokens = statistics(paths[0])
    for path in paths[1:]:
        more = statistics(path)
        core, tokens = core.merge(more[0]), tokens.merge(more[1])
    return core, tokens


def merged_candidates(paths: Sequence[Path], features: range) -> Candidates:
    """Those of all shards, for some features that follow one another: only these are read."""
    parts = []
    for path in paths:
        with safe_open(path, framework="np") as file:
            starts = file.get_slice("starts")[features.start : features.stop + 1]
            first, last = int(starts[0]), int(starts[-1])
            parts.append(Candidates(*(_rows(file, f"candidates.{name}", first, last) for name in Candidates._fields)))
    return Candidates.merged(parts, features)


def _rows(file: Any, name: str, first: int, last: int) -> np.ndarray:
    """Some rows of a tensor. safetensors refuses to slice none of them where nothing comes after."""
    rows: np.ndarray = file.get_slice(name)[first:last] if first < last else file.get_tensor(name)[:0]
    return rows


def _read(path: Path, prefix: str) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  it is no dictionary
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
