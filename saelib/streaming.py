"""Harvest → train with nothing on disk: the language model runs just ahead of training, through a shuffle buffer.

The stream is one long row of rows: the batches of the corpus in a seeded order, epoch after epoch, shuffled a buffer at
a time. Where a buffer starts is a small position, so that a resumed run harvests one buffer anew and goes on exactly.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.activations import Harvester
from saelib.errors import ConfigError
from saelib.rng import random_order
from saelib.text import TokenShard

__all__ = ["StreamedRows"]


class _Position(NamedTuple):
    """Where a buffer starts: at which row of the stream, in which epoch, after how many batches of it."""

    row: int
    epoch: int
    n_batches: int


class _Buffer(NamedTuple):
    start: _Position
    next: _Position
    sites: list[Tensor]


class StreamedRows:
    """Rows of the harvester's sites as batches for training; row i is one token at all of them.

    `load` gives a token shard by its number. Memory: two buffers of `buffer_tokens` rows, and the language model.
    """

    def __init__(  # noqa: PLR0913
        self,
        harvester: Harvester,
        n_shards: int,
        load: Callable[[int], TokenShard],
        batch_tokens: int,
        seed: int,
        buffer_tokens: int = 131_072,
    ) -> None:
        self.harvester, self.n_shards, self.load = harvester, n_shards, load
        self.batch_tokens, self.seed, self.buffer_tokens = batch_tokens, seed, max(buffer_tokens, batch_tokens)
        start = _Position(0, 0, 0)
        self._known = {start.row: start}
        self._buffers: list[_Buffer] = []

    def batch(self, step: int) -> tuple[Float[Tensor, "batch _"], ...]:
        """Batch `step`, in the dtype of the language model. Steps may be asked for in any order; forward is cheap."""
        return self._rows(step * self.batch_tokens, self.batch_tokens)

    def sample(self) -> tuple[Float[Tensor, "sample _"], ...]:
        """The first rows of the stream, for scale and mean."""
        return self._rows(0, min(self.buffer_tokens, 8 * self.batch_tokens, 65_536))

    def position(self) -> dict[str, int]:
        """Where the buffer of the last batch starts."""
        return self._buffers[0].start._asdict() if self._buffers else {}

    def seek(self, position: dict[str, int]) -> None:
        """Remember where a buffer starts, so that its rows can be had without those before it."""
        if position:
            self._known[position["row"]] = _Position(**position)

    def _rows(self, first: int, count: int) -> tuple[Tensor, ...]:
        self._reach(first, first + count)
        parts = []
        for buffer in self._buffers:
            skip = max(0, first - buffer.start.row)
            parts.append([site[skip : first + count - buffer.start.row] for site in buffer.sites])
        return tuple(torch.cat(site) for site in zip(*parts, strict=True))

    def _reach(self, first: int, stop: int) -> None:
        """Hold the buffers of rows first … stop, and no others."""
        self._buffers = [buffer for buffer in self._buffers if buffer.start.row <= first < buffer.next.row]
        while not self._buffers or self._buffers[-1].next.row < stop:
            following = self._buffers[-1].next if self._buffers else self._nearest(first)
            self._buffers.append(self._fill(following))
            self._buffers = [buffer for buffer in self._buffers if first < buffer.next.row]

    def _nearest(self, row: int) -> _Position:
        """The last known start of a buffer at or before a row."""
        return self._known[max(known for known in self._known if known <= row)]

    def _fill(self, start: _Position) -> _Buffer:
        rows: list[list[Tensor]] = []
        n_rows, after, reads = 0, start, self._reads(start)
        while n_rows < self.buffer_tokens:
            after, read = next(reads)
            rows.append(read)
            n_rows += read[0].shape[0]
        order = torch.from_numpy(random_order(n_rows, "buffer", self.seed, start.epoch, start.n_batches))
        sites = [torch.cat(site)[order.to(site[0].device)] for site in zip(*rows, strict=True)]
        buffer = _Buffer(start, after._replace(row=start.row + n_rows), sites)
        self._known[buffer.next.row] = buffer.next
        return buffer

    def _reads(self, start: _Position) -> Iterator[tuple[_Position, list[Tensor]]]:
        """Batches of the corpus from a position on, without end, each with the position after it."""
        epoch, skip = start.epoch, start.n_batches
        while True:
            index = n_rows = 0
            for shard_index in random_order(self.n_shards, "stream", self.seed, epoch).tolist():
                shard = self.load(shard_index)
                batches = self.harvester.batches(shard)
                for which in random_order(len(batches), "stream", self.seed, epoch, shard_index).tolist():
                    index += 1
                    if index > skip:
                        read = self.harvester.read(shard, batches[which], f"shard {shard_index}").sites
                        n_rows += read[0].shape[0]
                        yield _Position(0, epoch, index), read
            if n_rows == 0 and skip == 0:
                raise ConfigError("the corpus has no token to train on: all are special tokens or attention sinks")
            epoch, skip = epoch + 1, 0
