"""Pass 2: whole sequences chosen by hash, with every firing on them. What needs zeros or pairs of features is here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from safetensors.numpy import load_file, save

from saelib.rng import mix, uniform
from saelib.summaries.candidates import OFFSETS, first_of_each
from saelib.summaries.kernels import largest_together, smallest_hashes, values_at
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
        found: np.ndarray = values_at(self.f.indptr, self.f.indices, self.f.data, feature, row)
        return found

    def windows(self, feature: np.ndarray, row: np.ndarray) -> np.ndarray:
        """[n, 2 · WINDOW + 1] the feature's activations around each row, within its sequence."""
        window = np.zeros((row.size, OFFSETS.size), dtype=np.float32)
        for step in OFFSETS:
            other = np.clip(row + step, 0, self.n_rows - 1)
            distance = self.position[other] - self.position[row]
            near = (self.sequence_id[other] == self.sequence_id[row]) & (np.abs(distance) <= WINDOW)
            near &= (self.document_id[other] == self.document_id[row]) & (other == row + step)
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
        fires_near = self._firing_rows(tries)[nearest]
        features = np.concatenate([feature[there], np.repeat(np.arange(n_features), tries)])
        rows = np.concatenate([row[there], fires_near.ravel()])
        real = rows >= 0
        features, rows = features[real], rows[real]
        order = np.lexsort((self.hash[rows], features))
        return self._silent(features[order], rows[order], n)

    def _firing_rows(self, n: int) -> np.ndarray:
        """[n_features, n] rows with the smallest hashes on which each feature fires; −1 where there are fewer."""
        chosen = np.zeros((self.f.shape[1], n), dtype=np.int64)
        one_band = np.zeros(self.f.nnz, dtype=np.int8)
        count = smallest_hashes(self.f.indptr, self.hash[self.f.indices], one_band, n, chosen)
        there = np.arange(n) < count[:, None]
        rows: np.ndarray = np.full(chosen.shape, -1, dtype=np.int64)
        rows[there] = self.f.indices[chosen[there]]
        return rows

    def _silent(self, feature: np.ndarray, row: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n` pairs of each feature with f = 0, no row and no context twice."""
        silent = self.value(feature, row) == 0
        feature, row = feature[silent], row[silent]
        first = first_of_each(feature, self.context[row])
        feature, row = feature[first], row[first]
        order = np.argsort(feature, kind="stable")
        feature, row = feature[order], row[order]
        starts = np.searchsorted(feature, feature)
        keep = np.arange(feature.size) - starts < n
        return feature[keep], row[keep]

    def together(self, n: int) -> tuple[Pairs, Pairs]:
        """Co-activation (Jaccard of the firing sets) and Pearson correlation of f over tokens: each feature's `n` best.

        Exact on the sample, a feature at a time.
        """
        n_rows, n_features = self.f.shape
        f, rows = self.f, self.f.tocsr()
        total, square = (np.bincount(rows.indices, weights=rows.data.astype(np.float64) ** p, minlength=n_features)
                         for p in (1, 2))  # fmt: skip
        mean = total / max(1, n_rows)
        deviation = np.sqrt(np.maximum(square / max(1, n_rows) - mean**2, 1e-30))
        others = np.full((2, n_features, n), -1, dtype=np.int64)
        scores = np.zeros(others.shape)
        by_column, by_row = ((part.indptr, part.indices, part.data) for part in (f, rows))
        largest_together(by_column, by_row, mean, deviation, others, scores)
        return Pairs(others[0], scores[0]), Pairs(others[1], scores[1])
