"""Harvest: run the language model over token shards and keep the activations at its sites, in a seeded order.

Every row goes to its place in the permutation as soon as it is computed, so that a sequential read is a good shuffle
and no second copy of a shard is made. Rows that nobody may learn from are closed up at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch, auto_batch_tokens, batches_of, pad_id
from saelib.devices import OnTheWay, computing
from saelib.errors import ActivationError
from saelib.lm import LanguageModel, read_sites
from saelib.model_files import ModelShape
from saelib.rng import random_order
from saelib.text import TokenShard

__all__ = [
    "COLUMNS",
    "MASKS",
    "ActivationShard",
    "HarvestConfig",
    "Harvester",
    "NotFinite",
    "Seen",
    "rows_bytes",
    "text_tokens",
]

MASKS = ("special", "sink", "not_finite")
"""Reasons for which a token is left out: no text, an attention sink, or of a document with NaN or Inf."""

COLUMNS = ("token_id", "document_id", "sequence", "position")
"""What stands beside the rows of a shard."""

_CHUNK_ROWS = 8192


class HarvestConfig(Frozen):
    """How activations are read, and in which dtype they are kept."""

    sites: tuple[Site, ...]
    batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of a batch, padding counted; `auto`: what the model and the device suggest."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the rows; `auto`: the model's own."""
    sink_norm_multiple: NonNegativeFloat = 10.0
    sink_sample_sequences: PositiveInt = 64
    seed: int = 0

    def row_dtype(self, lm: LanguageModel) -> torch.dtype:
        """What `dtype` means for a model."""
        return lm.dtype if self.dtype == "auto" else getattr(torch, self.dtype)


class NotFinite(NamedTuple):
    """A document that is left out, since the model gave NaN or Inf for it."""

    document_id: int
    detail: str


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
    not_finite: tuple[NotFinite, ...] = ()

    def columns(self) -> dict[str, Tensor]:
        """What stands beside the rows, by name."""
        return {name: torch.from_numpy(getattr(self, name)) for name in COLUMNS}


def rows_bytes(n_rows: int, widths: Iterable[int], dtype: torch.dtype) -> int:
    """Bytes that `n_rows` of harvested activations take on disk: the rows, and 20 bytes of what stands beside each."""
    return n_rows * (sum(widths) * dtype.itemsize + 20)


def text_tokens(lm: LanguageModel, shard: TokenShard) -> np.ndarray:
    """Which tokens of a shard are text, by their index; the rest is special and never kept."""
    return np.flatnonzero(~np.isin(shard.token_ids, lm.special_ids))


class Seen(NamedTuple):
    """What a batch gives at one site, on the host."""

    rows: Float[Tensor, "batch position d_model"]
    """In the dtype in which they are kept."""
    norms: Float[Tensor, "batch position"]
    """In float32, of the activations as the model gave them. NaN or Inf where they are not finite."""


@dataclass(frozen=True)
class Harvester:
    """Turns token shards into activation shards. `max_norms` holds each site's sink threshold."""

    lm: LanguageModel
    config: HarvestConfig
    max_norms: tuple[float | None, ...]

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch: part of the plan, since a batch's numbers depend on its composition."""
        if self.config.batch_tokens != "auto":
            return self.config.batch_tokens
        shape = ModelShape.of(self.lm.model.config, self.lm.dtype)
        return auto_batch_tokens(shape, self.lm.context_tokens, self.lm.device)

    def __call__(self, shard: TokenShard, name: str, tick: Callable[[int], None] = lambda _: None) -> ActivationShard:
        """All unmasked rows of a shard, permuted; documents with NaN or Inf are left out and named.

        Raises ActivationError where no document is finite, and for numbers that the rows' dtype cannot hold;
        BatchTooLarge and DeviceError for what may happen to a device.
        """
        text = text_tokens(self.lm, shard)
        flat = text[random_order(text.size, "rows", self.config.seed, int(shard.sequence_id[0]))]
        place = np.full(shard.token_ids.size, text.size)
        place[flat] = np.arange(text.size)
        filled = [_Filled(text.size) for _ in self.config.sites]
        for batch, seen in self.passes(shard, name):
            starts, inside = shard.sequence_starts[batch.sequences], batch.attention_mask.numpy() == 1
            at = np.full(inside.shape, text.size)
            at[inside] = place[(starts[:, None] + np.arange(inside.shape[1]))[inside]]
            for site, rows in zip(seen, filled, strict=True):
                rows.add(torch.from_numpy(at).view(-1), site)
            tick(int((at < text.size).sum()))
        return _Shard(self, shard, name, flat, filled).finished()

    def passes(self, shard: TokenShard, name: str) -> Iterator[tuple[Batch, list[Seen]]]:
        """Every batch of a shard with what it gives at each site; on a GPU one is copied while the next one runs."""
        under_way: list[tuple[Batch, OnTheWay]] = []
        most = 1 if self.lm.device.type == "cuda" else 0
        for batch in batches_of(shard, self.batch_tokens, pad_id(self.lm)):
            with computing(self.lm.device, batch.shape, name):
                under_way.append((batch, OnTheWay(self._read(batch))))
            if len(under_way) > most:
                yield self._landed(*under_way.pop(0), name)
        for batch, tensors in under_way:
            yield self._landed(batch, tensors, name)

    def _read(self, batch: Batch) -> list[Tensor]:
        """Rows and norms of every site in turn, on the device."""
        device, dtype = self.lm.device, self.config.row_dtype(self.lm)
        read = read_sites(self.lm, batch.input_ids.to(device), batch.attention_mask.to(device), self.config.sites)
        hidden = [read[site] for site in self.config.sites]
        return [part for each in hidden for part in (each.to(dtype), each.float().norm(dim=-1))]

    def _landed(self, batch: Batch, tensors: OnTheWay, name: str) -> tuple[Batch, list[Seen]]:
        with computing(self.lm.device, batch.shape, name):
            parts = tensors.arrived()
        return batch, [Seen(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


class _Filled:
    """Rows of one site in their final order, as they come. One more row takes whatever is no text."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.rows = torch.empty(0)
        self.norms = torch.zeros(n_rows + 1)

    def add(self, at: Tensor, seen: Seen) -> None:
        """The rows of a batch, to the places `at`."""
        if not self.rows.numel():
            self.rows = torch.empty(self.n_rows + 1, seen.rows.shape[-1], dtype=seen.rows.dtype)
        self.rows.index_copy_(0, at, seen.rows.flatten(0, 1))
        self.norms.index_copy_(0, at, seen.norms.flatten())

    def norm(self) -> np.ndarray:
        """Of every row."""
        return self.norms[: self.n_rows].numpy()

    def closed_up(self, keep: np.ndarray) -> Tensor:
        """The rows that are kept, moved together where they lie, a few at a time: no second copy is made."""
        rows, stop = self.rows[: self.n_rows], 0
        if keep.all():
            return rows
        kept = torch.from_numpy(keep)
        for first in range(0, self.n_rows, _CHUNK_ROWS):
            chunk = slice(first, first + _CHUNK_ROWS)
            part = rows[chunk][kept[chunk]]
            rows[stop : stop + part.shape[0]] = part
            stop += part.shape[0]
        return rows[:stop]


@dataclass(frozen=True)
class _Shard:
    """All rows of a shard, and what is left out of them. `flat` says which token each row is."""

    harvester: Harvester
    tokens: TokenShard
    name: str
    flat: np.ndarray
    filled: list[_Filled]

    def finished(self) -> ActivationShard:
        """Without sinks and without documents that are not finite."""
        document = self.tokens.token_document[self.flat]
        finite = np.logical_and.reduce([np.isfinite(site.norm()) for site in self.filled])
        not_finite = self._not_finite(document, finite)
        poisoned = np.isin(document, [each.document_id for each in not_finite])
        limits = [np.inf if limit is None else limit for limit in self.harvester.max_norms]
        sink = np.logical_or.reduce([site.norm() > limit for site, limit in zip(self.filled, limits, strict=True)])
        keep = ~(sink | poisoned)
        self._check_range(keep)
        n_special = self.tokens.token_ids.size - self.flat.size
        sequence, position = self._where(self.flat[keep])
        return ActivationShard(
            [site.closed_up(keep) for site in self.filled],
            token_id=self.tokens.token_ids[self.flat[keep]].astype(np.int32),
            document_id=document[keep].astype(np.int64),
            sequence=sequence.astype(np.int32),
            position=position.astype(np.int32),
            n_masked=dict(zip(MASKS, (n_special, int((sink & ~poisoned).sum()), int(poisoned.sum())), strict=True)),
            not_finite=not_finite,
        )

    def _where(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sequence = np.searchsorted(self.tokens.sequence_starts, flat, side="right") - 1
        return sequence, flat - self.tokens.sequence_starts[sequence]

    def _not_finite(self, document: np.ndarray, finite: np.ndarray) -> tuple[NotFinite, ...]:
        """Documents with NaN or Inf, each with its first place. Raises ActivationError where no document is finite."""
        bad = np.flatnonzero(~finite)
        found = {int(document[row]): row for row in bad[np.argsort(-self.flat[bad])]}  # the first in the text stays
        details = {each: self._detail(int(row)) for each, row in sorted(found.items())}
        n_documents = np.unique(document).size
        if details and len(details) == n_documents > 1:
            first, detail = next(iter(details.items()))
            raise ActivationError(
                f"activations hold NaN or Inf in {self.name}, document {first}, and in all {n_documents} documents of "
                f"that shard ({detail}); finite numbers are wanted: set lm.dtype to 'float32', or mend the model"
            )
        return tuple(NotFinite(*each) for each in details.items())

    def _detail(self, row: int) -> str:
        sites = zip(self.harvester.config.sites, self.filled, strict=True)
        site = next(site for site, rows in sites if not np.isfinite(rows.norm()[row]))
        return f"NaN or Inf at {site}, {self._named(row)}"

    def _named(self, row: int) -> str:
        (sequence,), (position,) = self._where(self.flat[[row]])
        return f"position {position} of sequence {self.tokens.sequence_id[sequence]}"

    def _check_range(self, keep: np.ndarray) -> None:
        """Only where a norm is beyond the dtype's range may a number of the row be."""
        for site, rows in zip(self.harvester.config.sites, self.filled, strict=True):
            most = torch.finfo(rows.rows.dtype).max
            suspect = np.flatnonzero(keep & (rows.norm() > most))
            over = suspect[~torch.isfinite(rows.rows[suspect]).all(dim=-1).numpy()]
            if over.size:
                row, dtype = int(over[self.flat[over].argmin()]), str(rows.rows.dtype).removeprefix("torch.")
                document = self.tokens.token_document[self.flat[row]]
                raise ActivationError(
                    f"activations at {site} are too large for {dtype} in {self.name}, document {document}, "
                    f"{self._named(row)}: the row has norm {rows.norm()[row]:.3g}, and {dtype} ends at {most:.3g}; "
                    "set harvest.dtype to 'bfloat16' or 'float32'"
                )
