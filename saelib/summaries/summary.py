"""All of pass 1 in one value: made of a shard, merged, saved, loaded."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from saelib.summaries.candidates import Candidates
from saelib.summaries.moments import Core
from saelib.summaries.rows import ShardFirings
from saelib.summaries.tokens import TokenCounts

__all__ = ["Summary"]


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
        """As one safetensors file."""
        named = {f"core.{name}": array for name, array in self.core._asdict().items()}
        named |= {f"tokens.{name}": array for name, array in self.tokens.arrays().items()}
        named |= {f"candidates.{name}": array for name, array in self.candidates._asdict().items()}
        return save({name: np.ascontiguousarray(array) for name, array in named.items()})

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """What `save` wrote."""
        named = load_file(path)

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}

        return cls(Core(**part("core.")), TokenCounts.from_arrays(part("tokens.")), Candidates(**part("candidates.")))

    @classmethod
    def merged(cls, paths: Sequence[Path]) -> "Summary":
        """Those of all shards, in shard order."""
        return reduce(cls.merge, (cls.load(path) for path in paths))
