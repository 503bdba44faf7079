"""One shard, seen by feature: where each feature fires, in the order of the text."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from saelib.activations import SITE, ActivationShard
from saelib.rng import mix
from saelib.sae import SAE
from saelib.sparse import dot_pairs
from saelib.text import TokenShard

__all__ = ["ROW_COLUMNS", "WINDOW", "Rows", "ShardFirings", "shard_firings", "tensors_of"]

WINDOW = 12
"""Tokens shown on either side of an example's token."""


ROW_COLUMNS = ("token_id", "document_id", "sequence", "position")
"""Tensors of a harvested shard that say which token a row is."""


class Rows(NamedTuple):
    """The unmasked tokens of a shard in the order of the text. Rows of one sequence are neighbours."""

    token_id: np.ndarray
    previous_id: np.ndarray
    """Token before it, −1 at the start of a sequence."""
    next_id: np.ndarray
    """Token after it, −1 at the end of a sequence."""
    sequence: np.ndarray
    """Index of the sequence within the shard."""
    sequence_id: np.ndarray
    document_id: np.ndarray
    position: np.ndarray
    hash: np.ndarray
    """64 bits from (seed, sequence, position): the order in which rows are sampled."""
    context: np.ndarray
    """64 bits from the tokens of the window: equal where the text is equal."""

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
    x, y = (_side_by_side(shard, sites, order) for sites in (read, write))
    starts, features, values, gains = [np.zeros(1, dtype=np.int64)], [], [], []
    y_sum, y_square_sum = np.zeros(sae.d_out), 0.0
    squared_norm = sae.W_dec.square().sum(dim=1)
    for x_rows, y_rows in zip(torch.split(x, 8192), torch.split(y, 8192), strict=True):
        x_chunk, y_chunk = (part.to(sae.W_enc.device).float() for part in (x_rows, y_rows))
        firings = sae.fire(x_chunk)
        error = y_chunk - sae.rebuild(x_chunk, firings)
        alignment = dot_pairs(firings, error, sae.W_dec)
        value = firings.value * sae.gain(x_chunk).expand(x_chunk.shape[0], 1)[firings.rows(), 0]
        gain = value * (2 * alignment + value * squared_norm[firings.feature])
        starts.append(firings.row_starts[1:].cpu().numpy() + starts[-1][-1])
        features.append(firings.feature.to(torch.int32).cpu().numpy())
        values.append(firings.value.cpu().numpy())
        gains.append(gain.cpu().numpy())
        y_sum += y_chunk.double().sum(dim=0).cpu().numpy()
        y_square_sum += float(y_chunk.double().square().sum())
    return _transposed(rows, sae.n_features, (starts, features, values, gains), y_sum, y_square_sum)


def _side_by_side(shard: ActivationShard, sites: tuple[int, ...], order: np.ndarray) -> Tensor:
    """The rows of some sites in the order of the text."""
    chosen = torch.from_numpy(order)
    return torch.cat([shard.sites[site][chosen] for site in sites], dim=1)


def _transposed(
    rows: Rows, n_features: int, parts: tuple[list[np.ndarray], ...], y_sum: np.ndarray, y_square_sum: float
) -> ShardFirings:
    starts, feature, value, gain = (np.concatenate(part) for part in parts)
    place = np.arange(feature.size, dtype=np.int32)
    by_row = scipy.sparse.csr_matrix((place, feature, starts), shape=(rows.n, n_features))
    by_feature = by_row.tocsc()
    order = by_feature.data
    starts = by_feature.indptr.astype(np.int64)
    return ShardFirings(rows, starts, by_feature.indices, value[order], gain[order], y_sum, y_square_sum)


def _rows(tokens: TokenShard, shard: ActivationShard, order: np.ndarray, seed: int) -> Rows:
    sequence, position = shard.sequence[order], shard.position[order]
    flat = tokens.sequence_starts[sequence] + position
    last = tokens.sequence_starts[sequence + 1] - 1
    first = tokens.sequence_starts[sequence]
    ids = tokens.token_ids
    context = np.zeros(flat.size, dtype=np.uint64)
    for offset in range(-WINDOW, WINDOW + 1):
        at = flat + offset
        inside = (at >= first) & (at <= last)
        context = mix(0, context, np.where(inside, ids[np.clip(at, 0, ids.size - 1)], -1))
    sequence_id = tokens.sequence_id[sequence]
    return Rows(
        token_id=ids[flat],
        previous_id=np.where(position > 0, ids[np.maximum(flat - 1, 0)], -1).astype(np.int32),
        next_id=np.where(flat < last, ids[np.minimum(flat + 1, ids.size - 1)], -1).astype(np.int32),
        sequence=sequence,
        sequence_id=sequence_id,
        document_id=tokens.document_id[sequence],
        position=position,
        hash=mix(seed, sequence_id, position),
        context=context,
    )


def tensors_of(shard: Mapping[str, Tensor], sites: Sequence[int]) -> ActivationShard:
    """Some sites of an activation shard, from the tensors of its file."""
    columns = {name: shard[name].numpy() for name in ROW_COLUMNS}
    return ActivationShard([shard[SITE.format(site)] for site in sites], **columns, n_masked={})
