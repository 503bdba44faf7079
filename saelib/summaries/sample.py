"""Pass 2: whole sequences chosen by hash, with every firing on them. What needs zeros or pairs of features is here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from safetensors.numpy import load_file, save

from saelib.rng import mix, uniform
from saelib.summaries.candidates import OFFSETS, lowest_hashes
from saelib.summaries.rows import WINDOW, ShardFirings

__all__ = ["Pairs", "Sample"]

_COLUMNS = ("token_id", "sequence_id", "document_id", "position", "hash", "context")


class Pairs(NamedTuple):
    """For every feature its best others by some score: [n_features, n]; −1 where there are fewer."""

    other: np.ndarray
    score: np.ndarray


class Sample(NamedTuple):
    """Rows of the sampled sequences, and f as a sparse matrix [n_rows, n_features] by columns."""

    token_id: np.ndarray
    sequence_id: np.ndarray
    document_id: np.ndarray
    position: np.ndarray
    hash: np.ndarray
    context: np.ndarray
    f: scipy.sparse.csc_matrix

    @classmethod
    def of(cls, firings: ShardFirings, share: float, seed: int) -> "Sample":
        """The sequences of a shard that fall into the sample, about `share` of them."""
        keep = uniform(seed + 7, firings.rows.sequence_id) < share
        f = scipy.sparse.csc_matrix((firings.value, firings.row, firings.starts), shape=(keep.size, firings.n_features))
        columns: dict[str, np.ndarray] = {name: getattr(firings.rows, name)[keep] for name in _COLUMNS}
        return cls(**columns, f=f.tocsr()[np.flatnonzero(keep)].tocsc())

    def save(self) -> bytes:
        """As one safetensors file."""
        named = {name: getattr(self, name) for name in _COLUMNS}
        named |= {f"f.{part}": getattr(self.f, part) for part in ("data", "indices", "indptr")}
        return save({name: np.ascontiguousarray(array) for name, array in named.items()})

    @classmethod
    def merged(cls, paths: Sequence[Path]) -> "Sample":
        """Those of all shards, in the order of the corpus whatever the sharding was."""
        parts = [load_file(path) for path in paths]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
        order = np.lexsort((columns["position"], columns["sequence_id"]))
        matrices = [
            scipy.sparse.csc_matrix(
                (part["f.data"], part["f.indices"], part["f.indptr"]),
                shape=(part["hash"].size, part["f.indptr"].size - 1),
            ).tocsr()
            for part in parts
        ]
        f = scipy.sparse.vstack(matrices, format="csr")[order].tocsc()
        f.sort_indices()
        return cls(**{name: column[order] for name, column in columns.items()}, f=f)

    @property
    def n_rows(self) -> int:
        """Tokens in the sample."""
        return self.token_id.size

    def value(self, feature: np.ndarray, row: np.ndarray) -> np.ndarray:
        """f at (feature, row) pairs; 0 where the feature does not fire."""
        column = np.repeat(np.arange(self.f.shape[1], dtype=np.int64), np.diff(self.f.indptr))
        keys = column * self.n_rows + self.f.indices
        wanted = feature.astype(np.int64) * self.n_rows + row
        at = np.minimum(np.searchsorted(keys, wanted), max(0, keys.size - 1))
        if keys.size == 0:
            return np.zeros(wanted.shape, dtype=np.float32)
        found: np.ndarray = np.where(keys[at] == wanted, self.f.data[at], 0).astype(np.float32)
        return found

    def windows(self, feature: np.ndarray, row: np.ndarray) -> np.ndarray:
        """[n, 2 · WINDOW + 1] the feature's activations around each row, within its sequence."""
        window = np.zeros((row.size, OFFSETS.size), dtype=np.float32)
        for step in OFFSETS:
            other = np.clip(row + step, 0, self.n_rows - 1)
            distance = self.position[other] - self.position[row]
            near = (self.sequence_id[other] == self.sequence_id[row]) & (np.abs(distance) <= WINDOW)
            near &= other == row + step
            which = np.flatnonzero(near)
            window[which, distance[which] + WINDOW] = self.value(feature[which], other[which])
        return window

    def negatives(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(feature, row) pairs, at most `n` a feature, where f = 0: a stretch in hash order from a place of its own."""
        n_features = self.f.shape[1]
        if self.n_rows == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        in_order = np.argsort(self.hash, kind="stable")
        tries = min(self.n_rows, 8 * n)
        start = (mix(seed, np.arange(n_features)) % np.uint64(self.n_rows)).astype(np.int64)
        row = in_order[(start[:, None] + np.arange(tries)) % self.n_rows].ravel()
        feature = np.repeat(np.arange(n_features), tries)
        return self._silent(feature, row, n)

    def near_misses(self, tokens: np.ndarray, nearest: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(feature, row) pairs, at most `n` a feature, where f = 0 although one would expect it to fire.

        The token is one of its top tokens ([n_features, 3], −1 for none), or its nearest feature fires.
        """
        n_features, tries = self.f.shape[1], 4 * n
        if self.n_rows == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        by_token = np.lexsort((self.hash, self.token_id))
        ids = self.token_id[by_token]
        first = np.searchsorted(ids, tokens)
        place = first[:, :, None] + np.arange(tries)
        there = (place < self.n_rows) & (tokens >= 0)[:, :, None]
        row = by_token[np.minimum(place, max(0, self.n_rows - 1))]
        there &= self.token_id[row] == tokens[:, :, None]
        feature = np.broadcast_to(np.arange(n_features)[:, None, None], row.shape)
        column = np.repeat(np.arange(n_features, dtype=np.int64), np.diff(self.f.indptr))
        chosen = lowest_hashes(column, self.hash[self.f.indices], tries)
        fires_near = _group_rows(column[chosen], self.f.indices[chosen], n_features, tries)[nearest]
        features = np.concatenate([feature[there], np.repeat(np.arange(n_features), tries)])
        rows = np.concatenate([row[there], fires_near.ravel()])
        real = rows >= 0
        features, rows = features[real], rows[real]
        order = np.lexsort((self.hash[rows], features))
        return self._silent(features[order], rows[order], n)

    def _silent(self, feature: np.ndarray, row: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n` pairs of each feature with f = 0, no row and no context twice."""
        silent = self.value(feature, row) == 0
        feature, row = feature[silent], row[silent]
        _, first = np.unique(np.stack([feature.astype(np.uint64), self.context[row]]), axis=1, return_index=True)
        first.sort()
        feature, row = feature[first], row[first]
        order = np.argsort(feature, kind="stable")
        feature, row = feature[order], row[order]
        starts = np.searchsorted(feature, feature)
        keep = np.arange(feature.size) - starts < n
        return feature[keep], row[keep]

    def together(self, n: int, block: int = 512) -> tuple[Pairs, Pairs]:
        """Co-activation (Jaccard of the firing sets) and Pearson correlation of f over tokens: each feature's `n` best.

        Exact on the sample, in blocks of features: memory is block · n_features.
        """
        n_rows, n_features = self.f.shape
        f = self.f.astype(np.float64)
        fires = f.copy()
        fires.data = np.ones_like(fires.data)
        count = np.diff(f.indptr)
        mean = np.asarray(f.sum(axis=0)).ravel() / max(1, n_rows)
        square = np.asarray(f.multiply(f).sum(axis=0)).ravel() / max(1, n_rows)
        deviation = np.sqrt(np.maximum(square - mean**2, 1e-30))
        f_rows, fires_rows = f.tocsr(), fires.tocsr()
        jaccard: list[tuple[np.ndarray, np.ndarray]] = []
        correlation: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, n_features, block):
            stop = min(start + block, n_features)
            both = (fires[:, start:stop].T @ fires_rows).toarray()
            union = count[start:stop, None] + count[None, :] - both
            product = (f[:, start:stop].T @ f_rows).toarray() / max(1, n_rows)
            r = (product - mean[start:stop, None] * mean) / (deviation[start:stop, None] * deviation)
            jaccard.append(_best(both / np.maximum(union, 1), start, n))
            correlation.append(_best(np.where(both > 0, r, 0), start, n))
        return _joined(jaccard), _joined(correlation)


def _group_rows(group: np.ndarray, row: np.ndarray, n_groups: int, width: int) -> np.ndarray:
    """Sorted groups as a rectangle, −1 where a group is shorter than `width`."""
    table = np.full((n_groups, width), -1, dtype=np.int64)
    rank = np.arange(group.size) - np.searchsorted(group, group)
    table[group, rank] = row
    return table


def _best(score: np.ndarray, start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `n` largest scores > 0 of each row, itself left out."""
    index = np.arange(score.shape[0])
    score[index, start + index] = 0
    n = min(n, score.shape[1])
    other = np.argpartition(-score, n - 1, axis=1)[:, :n]
    values = np.take_along_axis(score, other, axis=1)
    order = np.lexsort((other, -values), axis=1)
    other, values = np.take_along_axis(other, order, axis=1), np.take_along_axis(values, order, axis=1)
    return np.where(values > 0, other, -1), values


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> Pairs:
    return Pairs(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
