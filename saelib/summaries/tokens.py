"""Which tokens a feature fires on, after and before: exact counts, as sparse [n_features, n_vocab] matrices."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from saelib.summaries.kernels import count_tokens
from saelib.summaries.rows import ShardFirings

__all__ = ["ROLES", "TokenCounts", "TopTokens"]

ROLES = ("at", "previous", "next")


class TopTokens(NamedTuple):
    """The most frequent tokens of every feature in one role; one entry a (feature, rank)."""

    feature: np.ndarray
    rank: np.ndarray
    token_id: np.ndarray
    n_fires: np.ndarray
    act_sum: np.ndarray


class TokenCounts(NamedTuple):
    """By role: firings and summed activation, [n_features, n_vocab]; and how often each token stands there at all."""

    counts: dict[str, scipy.sparse.csr_matrix]
    acts: dict[str, scipy.sparse.csr_matrix]
    totals: dict[str, np.ndarray]

    @classmethod
    def of(cls, firings: ShardFirings, n_vocab: int) -> "TokenCounts":
        """One shard's."""
        rows, n = firings.rows, firings.value.size
        ids, times, sums = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.float64)
        by_role = {"at": rows.token_id, "previous": rows.previous_id, "next": rows.next_id}
        counts, acts, totals = {}, {}, {}
        for role, token in by_role.items():
            starts = np.zeros(firings.n_features + 1, dtype=np.int64)
            used = count_tokens(firings.starts, firings.value, token[firings.row], n_vocab, starts, ids, times, sums)
            where, shape = (ids[:used].copy(), starts), (firings.n_features, n_vocab)
            counts[role] = scipy.sparse.csr_matrix((times[:used].copy(), *where), shape)
            acts[role] = scipy.sparse.csr_matrix((sums[:used].copy(), *where), shape)
            totals[role] = np.bincount(token[token >= 0], minlength=n_vocab)
        return cls(counts, acts, totals)

    def merge(self, other: "TokenCounts") -> "TokenCounts":
        """Sums."""
        return TokenCounts(
            {role: self.counts[role] + other.counts[role] for role in ROLES},
            {role: self.acts[role] + other.acts[role] for role in ROLES},
            {role: self.totals[role] + other.totals[role] for role in ROLES},
        )

    def top(self, role: str, n: int) -> TopTokens:
        """The `n` most frequent tokens of each feature; ties go to the smaller id."""
        counts = self.counts[role].sorted_indices()
        acts = self.acts[role].sorted_indices()
        feature = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        order = np.lexsort((counts.indices, -counts.data, feature))
        rank = np.arange(order.size) - counts.indptr[feature[order]]
        order, rank = order[rank < n], rank[rank < n]
        return TopTokens(feature[order], rank, counts.indices[order], counts.data[order], acts.data[order])

    def entropy(self) -> np.ndarray:
        """Entropy in nats of the tokens that each feature fires on: 0 where it is always the same token."""
        counts = self.counts["at"]
        total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        share = counts.data / np.repeat(total, np.diff(counts.indptr))
        feature = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        return np.bincount(feature, weights=-share * np.log(share), minlength=counts.shape[0])

    def n_distinct(self) -> np.ndarray:
        """How many different tokens each feature fires on."""
        return np.diff(self.counts["at"].indptr)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a file."""
        named = {}
        for role in ROLES:
            named[f"{role}.total"] = self.totals[role]
            counts, acts = self.counts[role].sorted_indices(), self.acts[role].sorted_indices()
            named |= {f"{role}.{part}": getattr(counts, part) for part in ("indices", "indptr")}
            named |= {f"{role}.count": counts.data, f"{role}.act": acts.data}
        return named

    @classmethod
    def from_arrays(cls, named: dict[str, np.ndarray]) -> "TokenCounts":
        """From a file."""

        def matrix(role: str, kind: str) -> scipy.sparse.csr_matrix:
            parts = tuple(named[f"{role}.{part}"] for part in (kind, "indices", "indptr"))
            return scipy.sparse.csr_matrix(parts, shape=(parts[2].size - 1, named[f"{role}.total"].size))

        return cls(
            {role: matrix(role, "count") for role in ROLES},
            {role: matrix(role, "act") for role in ROLES},
            {role: named[f"{role}.total"] for role in ROLES},
        )
