"""Activation shards as batches for training: plain reads, in an order that is already a good shuffle."""

import bisect
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.activations import SITE
from saelib.errors import CheckpointError, ConfigError
from saelib.rng import random_order

__all__ = ["ShuffledRows"]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Column:
    """One tensor of a safetensors file, read by rows with plain reads: mapped pages would count as our memory."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            entry = header[name]
            self.dtype, self.shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            self.start = 8 + size + entry["data_offsets"][0]
            end = 8 + size + entry["data_offsets"][1]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise CheckpointError(
                f"{path} is no readable activation shard ({error}); delete its artifact and harvest again"
            ) from error
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path} is truncated: {path.stat().st_size} bytes where {end} are wanted; harvest again"
            )
        self.path = path
        self.row_bytes = self.shape[1] * self.dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)

    def read(self, first: int, out: Tensor) -> None:
        """Rows first … first + len(out) into `out`."""
        view = memoryview(out.view(torch.uint8).numpy().reshape(-1).data)
        offset = self.start + first * self.row_bytes
        while view:
            got = os.preadv(self._file, [view], offset)
            if got == 0:
                raise CheckpointError(f"{self.path} ended early; harvest again")
            view, offset = view[got:], offset + got

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


class ShuffledRows:
    """Harvested rows of some sites as batches for training, epoch after epoch; row i is one token at all of them.

    `interleave` shards are read in turn, a slice of each, so that a batch mixes the documents of all of them.
    """

    def __init__(  # noqa: PLR0913
        self,
        paths: Sequence[Path],
        sites: Sequence[int],
        batch_tokens: int,
        seed: int,
        device: str = "cpu",
        interleave: int = 8,
    ) -> None:
        self.columns = [[_Column(path, SITE.format(site)) for site in sites] for path in paths]
        self.sizes = [columns[0].shape[0] for columns in self.columns]
        self.n_rows = sum(self.sizes)
        if self.n_rows < batch_tokens:
            raise ConfigError(
                f"the corpus gives {self.n_rows} training tokens, fewer than one batch of {batch_tokens}; "
                "add text or lower training.batch_tokens"
            )
        self.batch_tokens, self.seed, self.device = batch_tokens, seed, device
        self.interleave = interleave
        self._epoch = -1
        self._pieces: list[tuple[int, int, int]] = []
        self._starts: list[int] = []

    def batch(self, step: int) -> tuple[Float[Tensor, "batch _"], ...]:
        """Batch `step`: rows step · batch_tokens … of the endless sequence of epochs, in the dtype they are kept in."""
        return self._rows(step * self.batch_tokens, self.batch_tokens)

    def sample(self) -> tuple[Float[Tensor, "sample _"], ...]:
        """The first rows of the first epoch, for scale and mean."""
        return self._rows(0, min(self.n_rows, 8 * self.batch_tokens, 65_536))

    def position(self) -> dict[str, int]:
        """Nothing: any step can be had at any time."""
        return {}

    def seek(self, position: dict[str, int]) -> None:
        """Nothing to do."""

    def _rows(self, first: int, count: int) -> tuple[Tensor, ...]:
        out = [torch.empty(count, column.shape[1], dtype=column.dtype) for column in self.columns[0]]
        done = 0
        while done < count:
            epoch, row = divmod(first + done, self.n_rows)
            self._open(epoch)
            index = bisect.bisect_right(self._starts, row) - 1
            shard, start, size = self._pieces[index]
            skip = row - self._starts[index]
            take = min(size - skip, count - done)
            for column, rows in zip(self.columns[shard], out, strict=True):
                column.read(start + skip, rows[done : done + take])
            done += take
        return tuple(rows.to(self.device) for rows in out)

    def _open(self, epoch: int) -> None:
        """Lay out an epoch: shards in a seeded order, `interleave` at a time, in turn by slices."""
        if epoch == self._epoch:
            return
        order = random_order(len(self.columns), "epoch", self.seed, epoch)
        size = max(1, self.batch_tokens // self.interleave)
        pieces = []
        for start in range(0, order.size, self.interleave):
            group = [int(shard) for shard in order[start : start + self.interleave]]
            longest = max(self.sizes[shard] for shard in group)
            for first in range(0, longest, size):
                for shard in group:
                    rest = self.sizes[shard] - first
                    if rest > 0:
                        pieces.append((shard, first, min(size, rest)))
        self._pieces, self._epoch = pieces, epoch
        self._starts = [0, *np.cumsum([piece[2] for piece in pieces])[:-1].tolist()]
