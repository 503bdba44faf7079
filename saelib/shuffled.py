"""Activation shards as batches for training: plain reads, in an order that is already a good shuffle."""

import bisect
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.activations import SITE
from saelib.errors import CheckpointError, ConfigError
from saelib.rng import random_order

__all__ = ["Rows", "ShuffledRows"]

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


class Rows:
    """Rows of shards as batches, epoch after epoch: the shards in a seeded order, the rows of each as they stand there.

    Rows were permuted when they were harvested and documents shared out by hash, so that reading in order is a good
    shuffle. Sizes of shards are asked for when a batch reaches them.
    """

    def __init__(self, n_shards: int, batch_tokens: int, seed: int) -> None:
        self.n_shards, self.batch_tokens, self.seed = n_shards, batch_tokens, seed
        self._starts: list[int] = []
        self._shards: list[int] = []
        self._stop = 0

    def size(self, shard: int) -> int:
        """Rows of a shard."""
        raise NotImplementedError

    def read(self, shard: int, first: int, count: int) -> list[Tensor]:
        """Some rows of a shard, one tensor a site, in the dtype that they are kept in."""
        raise NotImplementedError

    def batch(self, step: int) -> tuple[Float[Tensor, "batch _"], ...]:
        """Rows step · batch_tokens … of the endless sequence of epochs; the same whenever they are asked for."""
        return self._rows(step * self.batch_tokens, self.batch_tokens)

    def sample(self) -> tuple[Float[Tensor, "sample _"], ...]:
        """The first rows of the first epoch, for scale and mean."""
        return self._rows(0, min(8 * self.batch_tokens, 65_536))

    def position(self) -> dict[str, int]:
        """What a checkpoint must know of the stream: nothing, where any row can be had at any time."""
        return {}

    def seek(self, position: dict[str, int]) -> None:
        """Told what `position` said."""

    def _rows(self, first: int, count: int) -> tuple[Tensor, ...]:
        parts, done = [], 0
        while done < count:
            self._reach(first + done)
            index = bisect.bisect_right(self._starts, first + done) - 1
            shard, skip = self._shards[index], first + done - self._starts[index]
            take = min(self.size(shard) - skip, count - done)
            parts.append(self.read(shard, skip, take))
            done += take
        return tuple(torch.cat(site) if len(site) > 1 else site[0] for site in zip(*parts, strict=True))

    def _reach(self, row: int) -> None:
        """Lay out shards until one holds the row; shards without rows are passed over."""
        while row >= self._stop:
            if len(self._shards) % self.n_shards == 0:
                self._lay_out(len(self._shards) // self.n_shards)
            shard = self._order[len(self._shards) % self.n_shards]
            self._starts.append(self._stop)
            self._shards.append(shard)
            self._stop += self.size(shard)

    def _lay_out(self, epoch: int) -> None:
        if epoch == 1 and self._stop < self.batch_tokens:
            raise ConfigError(too_few(self._stop, self.batch_tokens))
        self._order = random_order(self.n_shards, "epoch", self.seed, epoch).tolist()


def too_few(n_rows: int, batch_tokens: int) -> str:
    """What to say of a corpus that does not fill a batch."""
    return (
        f"the corpus gives {n_rows} training tokens, fewer than one batch of {batch_tokens}; "
        "add text or lower training.batch_tokens"
    )


class ShuffledRows(Rows):
    """Harvested rows of some sites, read from activation shards; row i is one token at all of them."""

    def __init__(
        self, paths: Sequence[Path], sites: Sequence[int], batch_tokens: int, seed: int, device: str = "cpu"
    ) -> None:
        super().__init__(len(paths), batch_tokens, seed)
        self.columns = [[_Column(path, SITE.format(site)) for site in sites] for path in paths]
        self.device = device
        n_rows = sum(columns[0].shape[0] for columns in self.columns)
        if n_rows < batch_tokens:
            raise ConfigError(too_few(n_rows, batch_tokens))

    def size(self, shard: int) -> int:
        """Rows of a shard, as its file says."""
        return int(self.columns[shard][0].shape[0])

    def read(self, shard: int, first: int, count: int) -> list[Tensor]:
        """Rows from the files, on the device."""
        sites = []
        for column in self.columns[shard]:
            rows = torch.empty(count, column.shape[1], dtype=column.dtype)
            column.read(first, rows)
            sites.append(rows.to(self.device))
        return sites
