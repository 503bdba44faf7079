"""Harvest: run the language model over token shards, keep the activations at its sites, read them back shuffled.

Rows are permuted when they are written and read from several shards in turn, so that a sequential read is a good
shuffle and a batch is a function of its number alone.
"""

import bisect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch, batches_of, pad_id
from saelib.errors import ActivationError, CheckpointError, ConfigError
from saelib.lm import LanguageModel, read_sites
from saelib.rng import mix, random_order
from saelib.text import TokenShard

__all__ = ["MASKS", "ActivationShard", "HarvestConfig", "Harvester", "ShuffledRows", "rows_bytes", "sink_norms"]

MASKS = ("special", "sink")
"""Reasons for which a token is left out: no text, or an attention sink."""

SITE = "site_{}"
"""Name of a site's tensor in a shard file, by the site's place in the plan."""


class HarvestConfig(Frozen):
    """How activations are read."""

    sites: tuple[Site, ...]
    batch_sequences: PositiveInt = 32
    sink_norm_multiple: NonNegativeFloat = 10.0
    sink_sample_sequences: PositiveInt = 64
    seed: int = 0


class ActivationShard(NamedTuple):
    """Rows in a seeded order, aligned: row i of every site, its token, and where that token stands."""

    sites: list[Tensor]
    token_id: np.ndarray
    document_id: np.ndarray
    sequence: np.ndarray
    """Index of the sequence within the token shard."""
    position: np.ndarray
    """Index of the token within its sequence, BOS counted."""
    n_masked: dict[str, int]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is saved, by name."""
        named = {SITE.format(index): site for index, site in enumerate(self.sites)}
        for name in ("token_id", "document_id", "sequence", "position"):
            named[name] = torch.from_numpy(getattr(self, name))
        return named


def rows_bytes(n_rows: int, widths: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes that `n_rows` of harvested activations take on disk: the rows, and 20 bytes of alignment each."""
    return n_rows * (sum(widths) * dtype.itemsize + 20)


def sink_norms(lm: LanguageModel, shards: Sequence[TokenShard], config: HarvestConfig) -> list[float | None]:
    """Norm above which a position is an attention sink, one a site: a multiple of the median over sampled sequences.

    The sample is chosen by hash, so that it is part of the plan and not of the order of work.
    """
    if config.sink_norm_multiple == 0:
        return [None] * len(config.sites)
    keys = [(int(mix(config.seed, np.array([sequence_id]))[0]), s, i)
            for s, shard in enumerate(shards) for i, sequence_id in enumerate(shard.sequence_id.tolist())]  # fmt: skip
    norms: list[list[Tensor]] = [[] for _ in config.sites]
    special = torch.tensor(lm.special_ids)
    for _, s, i in sorted(keys)[: config.sink_sample_sequences]:
        first, last = shards[s].sequence_starts[i], shards[s].sequence_starts[i + 1]
        ids = torch.from_numpy(shards[s].token_ids[first:last].astype(np.int64)).unsqueeze(0)
        keep = ~torch.isin(ids[0], special)
        read = read_sites(lm, ids.to(lm.device), torch.ones_like(ids).to(lm.device), config.sites)
        for index, site in enumerate(config.sites):
            norms[index].append(read[site][0].float().norm(dim=-1).cpu()[keep])
    return [config.sink_norm_multiple * torch.cat(each).median().item() for each in norms]


@dataclass(frozen=True)
class Harvester:
    """Turns token shards into activation shards. `max_norms` holds each site's sink threshold."""

    lm: LanguageModel
    config: HarvestConfig
    max_norms: tuple[float | None, ...]

    def __call__(self, shard: TokenShard, name: str, tick: Callable[[int], None] = lambda _: None) -> ActivationShard:
        """All unmasked rows of a shard, permuted. Raises ActivationError for NaN or Inf, naming shard and document."""
        rows: list[list[Tensor]] = [[] for _ in self.config.sites]
        where: list[np.ndarray] = []
        masked = dict.fromkeys(MASKS, 0)
        special = torch.tensor(self.lm.special_ids)
        for batch in batches_of(shard, self.config.batch_sequences, pad_id(self.lm)):
            device = self.lm.device
            read = read_sites(self.lm, batch.input_ids.to(device), batch.attention_mask.to(device), self.config.sites)
            text = (batch.attention_mask == 1) & ~torch.isin(batch.input_ids, special)
            keep = self._not_sink(read, text)
            masked["special"] += int(batch.attention_mask.sum() - text.sum())
            masked["sink"] += int(text.sum() - keep.sum())
            self._check_finite(read, shard, batch, name)
            for index, site in enumerate(self.config.sites):
                rows[index].append(read[site][keep.to(device)].cpu())
            row, position = keep.numpy().nonzero()
            ids = batch.input_ids.numpy()[row, position]
            where.append(np.stack([ids, batch.sequences[row], position]).astype(np.int32))
            tick(int(text.sum()))
        return self._permuted([torch.cat(each) for each in rows], np.concatenate(where, axis=1), shard, masked)

    def _not_sink(self, read: dict[Site, Tensor], text: Tensor) -> Tensor:
        keep = text.clone()
        for site, limit in zip(self.config.sites, self.max_norms, strict=True):
            if limit is not None:
                # NaN compares false both ways: keep it here, so that the finite check names it
                keep &= ~(read[site].float().norm(dim=-1).cpu() > limit)
        return keep

    def _check_finite(self, read: dict[Site, Tensor], shard: TokenShard, batch: Batch, name: str) -> None:
        for site, hidden in read.items():
            bad = ~torch.isfinite(hidden).all(dim=-1).cpu() & (batch.attention_mask == 1)
            if bad.any():
                row, position = (int(index) for index in bad.nonzero()[0])
                document = int(shard.document_id[batch.sequences[row]])
                raise ActivationError(
                    f"activations at {site} hold NaN or Inf in {name}, document {document}, position {position}; "
                    "finite numbers are wanted: run the model in float32 or leave that document out"
                )

    def _permuted(
        self, sites: list[Tensor], where: np.ndarray, shard: TokenShard, masked: dict[str, int]
    ) -> ActivationShard:
        n_rows = where.shape[1]
        order = random_order(n_rows, "rows", self.config.seed, int(shard.sequence_id[0]))
        where = where[:, order]
        chosen = torch.from_numpy(order)
        return ActivationShard(
            [site[chosen] for site in sites],
            token_id=where[0].copy(),
            document_id=shard.document_id[where[1]],
            sequence=where[1].copy(),
            position=where[2].copy(),
            n_masked=masked,
        )


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
    """Harvested rows of one site as batches for training, epoch after epoch.

    `interleave` shards are read in turn, a slice of each, so that a batch mixes the documents of all of them.
    """

    def __init__(
        self, paths: Sequence[Path], site: int, batch_tokens: int, seed: int, device: str = "cpu", interleave: int = 8
    ) -> None:
        self.columns = [_Column(path, SITE.format(site)) for path in paths]
        self.n_rows = sum(column.shape[0] for column in self.columns)
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

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return int(self.columns[0].shape[1])

    def batch(self, step: int) -> Float[Tensor, "batch d"]:
        """Batch `step`: rows step · batch_tokens … of the endless sequence of epochs, in the dtype they are kept in."""
        return self._rows(step * self.batch_tokens, self.batch_tokens)

    def sample(self) -> Float[Tensor, "sample d"]:
        """The first rows of the first epoch, for scale and mean."""
        return self._rows(0, min(self.n_rows, 8 * self.batch_tokens, 65_536))

    def _rows(self, first: int, count: int) -> Tensor:
        out = torch.empty(count, self.d_model, dtype=self.columns[0].dtype)
        done = 0
        while done < count:
            epoch, row = divmod(first + done, self.n_rows)
            self._open(epoch)
            index = bisect.bisect_right(self._starts, row) - 1
            shard, start, size = self._pieces[index]
            skip = row - self._starts[index]
            take = min(size - skip, count - done)
            self.columns[shard].read(start + skip, out[done : done + take])
            done += take
        return out.to(self.device)

    def _open(self, epoch: int) -> None:
        """Lay out an epoch: shards in a seeded order, `interleave` at a time, in turn by slices."""
        if epoch == self._epoch:
            return
        order = random_order(len(self.columns), "epoch", self.seed, epoch)
        size = max(1, self.batch_tokens // self.interleave)
        pieces = []
        for start in range(0, order.size, self.interleave):
            group = [int(shard) for shard in order[start : start + self.interleave]]
            longest = max(self.columns[shard].shape[0] for shard in group)
            for first in range(0, longest, size):
                for shard in group:
                    rest = self.columns[shard].shape[0] - first
                    if rest > 0:
                        pieces.append((shard, first, min(size, rest)))
        self._pieces, self._epoch = pieces, epoch
        self._starts = [0, *np.cumsum([piece[2] for piece in pieces])[:-1].tolist()]
