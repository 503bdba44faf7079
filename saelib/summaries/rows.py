"""One shard, seen by feature: where each feature fires, in the order of the text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelib.activations import ActivationShard
from saelib.kernels import sort_by_column
from saelib.rng import mix
from saelib.sae import SAE
from saelib.sparse import dot_pairs
from saelib.summaries.kernels import context_hashes
from saelib.text import TokenShard

__all__ = ["WINDOW", "Rows", "ShardFirings", "shard_firings", "stretches"]

WINDOW = 12
"""Tokens shown on either side of an example's token."""


class Rows(NamedTuple):
    """The unmasked tokens of a shard in the order of the text. Rows of one sequence are neighbours."""

    token_id: np.ndarray
    previous_id: np.ndarray
    """Token before it, −1 where another document ends there or the sequence starts."""
    next_id: np.ndarray
    """Token after it, −1 where another document starts there or the sequence ends."""
    sequence: np.ndarray
    """Index of the sequence within the shard."""
    sequence_id: np.ndarray
    document_id: np.ndarray
    """Its own, of the several that a packed sequence holds."""
    position: np.ndarray
    hash: np.ndarray
    """64 bits from (seed, sequence, position): the order in which rows are sampled."""
    context: np.ndarray
    """64 bits from the tokens of the window, inside the document: equal where the text is equal."""

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.token_id.size


class ShardFirings(NamedTuple):
    """Compressed columns: firings of feature i lie in starts[i] : starts[i + 1], rows ascending."""

    rows: Rows
    starts: np.ndarray
    row: np.ndarray
    value: np.ndarray
    gain: np.ndarray
    """‖e + f d‖² − ‖e‖²: what the reconstruction of that token would lose without the feature."""
    y_sum: np.ndarray
    y_square_sum: float

    @property
    def n_features(self) -> int:
        """Width of the SAE."""
        return self.starts.size - 1

    def feature(self) -> np.ndarray:
        """The feature of each firing."""
        return np.repeat(np.arange(self.n_features, dtype=np.int32), np.diff(self.starts))


def shard_firings(  # noqa: PLR0913
    sae: SAE,
    tokens: TokenShard,
    shard: ActivationShard,
    read: int | Sequence[int],
    seed: int,
    write: Sequence[int] | None = None,
) -> ShardFirings:
    """Encode a harvested shard and turn its firings around, from by token to by feature.

    `read` and `write` are the places of the SAE's sites in the shard; several lie side by side. The share in the
    reconstruction is ‖e + f d‖² − ‖e‖² = 2 f e·d + f²‖d‖² with e = y − ŷ and d the decoder row, f in units of the
    output (`SAE.gain`).
    """
    order = np.lexsort((shard.position, shard.sequence))
    rows = _rows(tokens, shard, order, seed)
    read = (read,) if isinstance(read, int) else tuple(read)
    write = read if write is None else tuple(write)
    starts, features, values, gains = [np.zeros(1, dtype=np.int64)], [], [], []
    y_sum, y_square_sum = np.zeros(sae.d_out), 0.0
    squared_norm = sae.W_dec.square().sum(dim=1)
    for chosen in torch.split(torch.from_numpy(order), 8192):
        x = _side_by_side(shard, read, chosen).to(sae.W_enc.device).float()
        y = x if read == write else _side_by_side(shard, write, chosen).to(sae.W_enc.device).float()
        firings = sae.fire(x)
        alignment = dot_pairs(firings, y - sae.rebuild(x, firings), sae.W_dec)
        value = firings.value * sae.gain(x).expand(x.shape[0], 1)[firings.rows(), 0]
        gain = value * (2 * alignment + value * squared_norm[firings.feature])
        starts.append(firings.row_starts[1:].cpu().numpy() + starts[-1][-1])
        features.append(firings.feature.to(torch.int32).cpu().numpy())
        values.append(firings.value.cpu().numpy())
        gains.append(gain.cpu().numpy())
        y_sum += y.sum(dim=0, dtype=torch.float64).cpu().numpy()
        y_square_sum += float(torch.linalg.vector_norm(y, dtype=torch.float64)) ** 2
    return _transposed(rows, sae.n_features, (starts, features, values, gains), y_sum, y_square_sum)


def _side_by_side(shard: ActivationShard, sites: tuple[int, ...], chosen: Tensor) -> Tensor:
    """Chosen rows of some sites."""
    return torch.cat([shard.sites[site][chosen] for site in sites], dim=1)


def _transposed(
    rows: Rows, n_features: int, parts: tuple[list[np.ndarray], ...], y_sum: np.ndarray, y_square_sum: float
) -> ShardFirings:
    starts, feature, value, gain = (np.concatenate(part) for part in parts)
    column_starts = np.zeros(n_features + 1, dtype=np.int64)
    row, order = np.empty_like(feature), np.empty_like(feature)
    sort_by_column(starts, feature, column_starts, row, order)
    return ShardFirings(rows, column_starts, row, value[order], gain[order], y_sum, y_square_sum)


def _rows(tokens: TokenShard, shard: ActivationShard, order: np.ndarray, seed: int) -> Rows:
    sequence, position = shard.sequence[order], shard.position[order]
    flat = tokens.sequence_starts[sequence] + position
    documents, ids = tokens.token_document, tokens.token_ids
    first, stop = stretches(documents, tokens.sequence_starts, flat)
    sequence_id = tokens.sequence_id[sequence]
    return Rows(
        token_id=ids[flat],
        previous_id=np.where(flat > first, ids[np.maximum(flat - 1, 0)], -1).astype(np.int32),
        next_id=np.where(flat + 1 < stop, ids[np.minimum(flat + 1, ids.size - 1)], -1).astype(np.int32),
        sequence=sequence,
        sequence_id=sequence_id,
        document_id=documents[flat],
        position=position,
        hash=mix(seed, sequence_id, position),
        context=context_hashes(ids, flat, first, stop, WINDOW),
    )


def stretches(
    token_document: np.ndarray, sequence_starts: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First token, and one past the last, of the stretch around each place: one document's tokens in one sequence."""
    change = np.flatnonzero(np.diff(token_document)) + 1
    edges = np.union1d(sequence_starts, change)
    at = np.searchsorted(edges, place, side="right")
    return edges[at - 1], edges[at]
