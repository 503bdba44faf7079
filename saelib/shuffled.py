"""Activation shards as batches for training, in an order that is already a good shuffle; the next is read ahead."""

import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.errors import ConfigError
from saelib.rng import random_order
from saelib.shard_files import Column

__all__ = ["Rows", "ShuffledRows"]


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


class _Ahead:
    """A batch that is read in the background, by a thread that ends with it."""

    def __init__(self, step: int, read: Callable[[int], tuple[Tensor, ...]]) -> None:
        self.step, self._read = step, read
        self._got: tuple[Tensor, ...] | Exception = ()
        self._thread = Thread(target=self._run, name="almanac-read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._got = self._read(self.step)
        except Exception as error:  # raised where the batch is asked for, if it ever is
            self._got = error

    def ended(self) -> tuple[Tensor, ...] | Exception:
        """Waits for the thread: the batch, or what reading it raised."""
        self._thread.join()
        return self._got


class ShuffledRows(Rows):
    """Harvested rows of some sites, read from activation shards; row i is one token at all of them.

    `shards` holds the files of each shard, one a site.
    """

    def __init__(self, shards: Sequence[Sequence[Path]], batch_tokens: int, seed: int, device: str = "cpu") -> None:
        super().__init__(len(shards), batch_tokens, seed)
        self.columns = [[Column(path) for path in paths] for paths in shards]
        self.device = torch.device(device)
        self._ahead: _Ahead | None = None
        n_rows = sum(columns[0].n_rows for columns in self.columns)
        if n_rows < batch_tokens:
            raise ConfigError(too_few(n_rows, batch_tokens))

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Batch `step`; while it is used, the one after it is read."""
        ahead, got = self._ahead, self._settled()
        rows = got if ahead is not None and ahead.step == step else super().batch(step)
        if isinstance(rows, Exception):
            raise rows
        self._ahead = _Ahead(step + 1, super().batch)
        return rows

    def sample(self) -> tuple[Tensor, ...]:
        """As of any rows."""
        self._settled()
        return super().sample()

    def _settled(self) -> tuple[Tensor, ...] | Exception:
        """Nobody else is reading from now on; what was read ahead."""
        ahead, self._ahead = self._ahead, None
        return () if ahead is None else ahead.ended()

    def size(self, shard: int) -> int:
        """Rows of a shard, as its file says."""
        return self.columns[shard][0].n_rows

    def read(self, shard: int, first: int, count: int) -> list[Tensor]:
        """Rows from the files, on the device."""
        sites = []
        for column in self.columns[shard]:
            rows = torch.empty(count, column.shape[1], dtype=column.dtype, pin_memory=self.device.type == "cuda")
            column.read(first, rows)
            sites.append(rows.to(self.device, non_blocking=True))
        return sites
