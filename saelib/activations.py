"""Harvest: run the language model over token shards, keep the activations at its sites, read them back shuffled.

Rows are permuted when they are written and read from several shards in turn, so that a sequential read is a good
shuffle and a batch is a function of its number alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch, batches_of, pad_id
from saelib.errors import ActivationError
from saelib.lm import LanguageModel, read_sites
from saelib.rng import mix, random_order
from saelib.text import TokenShard

__all__ = ["MASKS", "SITE", "ActivationShard", "HarvestConfig", "Harvester", "ReadBatch", "rows_bytes", "sink_norms"]

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


class ReadBatch(NamedTuple):
    """What one batch of sequences gives: rows of every site, which positions they are, and what was left out."""

    sites: list[Tensor]
    keep: Bool[Tensor, "batch position"]
    n_masked: dict[str, int]


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
        for batch in self.batches(shard):
            read = self.read(shard, batch, name)
            for reason, count in read.n_masked.items():
                masked[reason] += count
            for site, kept in zip(read.sites, rows, strict=True):
                kept.append(site.cpu())
            row, position = read.keep.numpy().nonzero()
            ids = batch.input_ids.numpy()[row, position]
            where.append(np.stack([ids, batch.sequences[row], position]).astype(np.int32))
            tick(row.size + read.n_masked["sink"])
        return self._permuted([torch.cat(each) for each in rows], np.concatenate(where, axis=1), shard, masked)

    def batches(self, shard: TokenShard) -> list[Batch]:
        """The batches of a shard: part of the plan, since a batch's numbers depend on its composition."""
        return batches_of(shard, self.config.batch_sequences, pad_id(self.lm))

    def read(self, shard: TokenShard, batch: Batch, name: str) -> "ReadBatch":
        """The unmasked rows of one batch at every site, sequence by sequence, on the model's device."""
        device, special = self.lm.device, torch.tensor(self.lm.special_ids)
        read = read_sites(self.lm, batch.input_ids.to(device), batch.attention_mask.to(device), self.config.sites)
        text = (batch.attention_mask == 1) & ~torch.isin(batch.input_ids, special)
        keep = self._not_sink(read, text)
        self._check_finite(read, shard, batch, name)
        masked = {"special": int(batch.attention_mask.sum() - text.sum()), "sink": int(text.sum() - keep.sum())}
        return ReadBatch([read[site][keep.to(device)] for site in self.config.sites], keep, masked)

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
