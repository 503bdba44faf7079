"""Harvest → train with nothing on disk: the rows that a harvest would write, in the order it would be read in.

One shard is held at a time. The language model runs once an epoch over each shard, so that a run of one epoch costs
what a harvest costs; what trains from a stream equals, bit for bit, what trains from the shards on disk.
"""

from collections.abc import Callable

from torch import Tensor

from saelib.activations import Harvester
from saelib.shuffled import Rows
from saelib.text import TokenShard

__all__ = ["StreamedRows"]


class StreamedRows(Rows):
    """Rows of the harvester's sites; `load` gives a token shard by its number."""

    def __init__(
        self, harvester: Harvester, load: Callable[[int], TokenShard], n_shards: int, batch_tokens: int, seed: int
    ) -> None:
        super().__init__(n_shards, batch_tokens, seed)
        self.harvester, self.load = harvester, load
        self._sizes: dict[int, int] = {}
        self._held: tuple[int, list[Tensor]] = (-1, [])

    def size(self, shard: int) -> int:
        """Rows of a shard: harvested to know it, unless a checkpoint said so."""
        if shard not in self._sizes:
            self._sizes[shard] = self._sites(shard)[0].shape[0]
        return self._sizes[shard]

    def read(self, shard: int, first: int, count: int) -> list[Tensor]:
        """Rows of the shard that is held, or of another, which is held from now on."""
        return [site[first : first + count].to(self.harvester.lm.device) for site in self._sites(shard)]

    def position(self) -> dict[str, int]:
        """The sizes of the shards seen so far: with them a resumed run harvests only the shard that it stands in."""
        return {str(shard): size for shard, size in self._sizes.items()}

    def seek(self, position: dict[str, int]) -> None:
        """Told the sizes."""
        self._sizes |= {int(shard): size for shard, size in position.items()}

    def _sites(self, shard: int) -> list[Tensor]:
        if self._held[0] != shard:
            self._held = (-1, [])  # let go of one before the next is made
            self._held = (shard, self.harvester(self.load(shard), f"shard {shard}").sites)
        return self._held[1]
