"""Firings that may become examples: the strongest of each feature, and a fair sample from every range of strength.

Both choices are by value and hash alone, so any partition of the documents leads to the same candidates.
"""

from typing import NamedTuple

import numpy as np

from saelib.summaries.moments import BINS, BINS_PER_OCTAVE, bin_of
from saelib.summaries.rows import WINDOW, ShardFirings

__all__ = ["N_PER_RANGE", "N_TOP", "OFFSETS", "RANGE_BINS", "Candidates", "lowest_hashes", "rank_in_group"]

N_TOP = 32
"""Strongest firings kept of each feature, one a sequence and one a context: more than are shown, since some repeat."""

RANGE_BINS = BINS_PER_OCTAVE // 6
"""Histogram bins in one range of strength: a sixth of an octave, less than most quantile buckets span."""

N_PER_RANGE = 8
"""Firings kept of each range, those with the smallest hash: five to show, and what other buckets show already."""

OFFSETS = np.arange(-WINDOW, WINDOW + 1)


class Candidates(NamedTuple):
    """Firings with the feature's activations in the window around them. One entry a candidate."""

    feature: np.ndarray
    value: np.ndarray
    hash: np.ndarray
    context: np.ndarray
    sequence_id: np.ndarray
    document_id: np.ndarray
    position: np.ndarray
    is_top: np.ndarray
    """True: among the strongest; False: of the sample by range. A firing may be here as both."""
    window: np.ndarray
    """[n, 2 · WINDOW + 1] the feature's activation at each place of the window; 0 where it does not fire."""

    @classmethod
    def of(cls, firings: ShardFirings) -> "Candidates":
        """One shard's."""
        feature = firings.feature()
        rows = firings.rows
        row_hash = rows.hash[firings.row]
        top = _top(firings, feature)
        sampled = _sampled(feature, firings.value, row_hash)
        chosen = np.concatenate([top, sampled])
        row = firings.row[chosen]
        return cls(
            feature=feature[chosen],
            value=firings.value[chosen],
            hash=row_hash[chosen],
            context=rows.context[row],
            sequence_id=rows.sequence_id[row],
            document_id=rows.document_id[row],
            position=rows.position[row],
            is_top=np.arange(chosen.size) < top.size,
            window=_windows(firings, feature, chosen),
        )

    def merge(self, other: "Candidates") -> "Candidates":
        """Both together, cut down again."""
        both = Candidates(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))
        top, sampled = both.take(both.is_top), both.take(~both.is_top)
        top = top.take(_best(top.feature, top.value, top.hash, top.context))
        sampled = sampled.take(_sampled(sampled.feature, sampled.value, sampled.hash))
        return Candidates(*(np.concatenate(pair) for pair in zip(top, sampled, strict=True)))

    def take(self, index: np.ndarray) -> "Candidates":
        """Some of them."""
        return Candidates(*(column[index] for column in self))


def _top(firings: ShardFirings, feature: np.ndarray) -> np.ndarray:
    """Indices of the strongest firings: the maximum of each sequence, then the best of each feature."""
    sequence = firings.rows.sequence[firings.row]
    if feature.size == 0:
        return np.zeros(0, dtype=np.int64)
    new = np.ones(feature.size, dtype=bool)
    new[1:] = (feature[1:] != feature[:-1]) | (sequence[1:] != sequence[:-1])
    starts = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    is_maximum = firings.value == np.maximum.reduceat(firings.value, starts)[group]
    where = np.flatnonzero(is_maximum)
    first = np.ones(where.size, dtype=bool)
    first[1:] = group[where[1:]] != group[where[:-1]]
    where = where[first]
    strong = _strong_enough(feature[where], firings.value[where])
    best = _best_at(firings, feature, where[strong])
    found = np.bincount(feature[best], minlength=firings.n_features)
    short = (found < N_TOP)[feature[where]] & ~strong
    if not short.any():
        return best
    return _best_at(firings, feature, np.sort(np.concatenate([best, where[short]])))


def _best_at(firings: ShardFirings, feature: np.ndarray, where: np.ndarray) -> np.ndarray:
    rows = firings.row[where]
    hashes, context = firings.rows.hash[rows], firings.rows.context[rows]
    best: np.ndarray = where[_best(feature[where], firings.value[where], hashes, context)]
    return best


def _strong_enough(feature: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Leaves out what cannot be among the best, by histogram, so that little is left to sort.

    Contexts that repeat are counted once only later, so several times as many are let through; a feature that is then
    still short of candidates gets back what was left out.
    """
    n_features = int(feature.max()) + 1 if feature.size else 0
    bins = bin_of(value)
    counts = np.bincount(feature.astype(np.int64) * BINS + bins, minlength=n_features * BINS).reshape(n_features, BINS)
    from_top = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    enough = from_top >= 4 * N_TOP
    lowest = np.where(enough.any(axis=1), BINS - 1 - enough[:, ::-1].argmax(axis=1), 0)
    keep: np.ndarray = bins >= lowest[feature]
    return keep


def _best(feature: np.ndarray, value: np.ndarray, hashes: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The N_TOP strongest of each feature; of equal contexts only the first."""
    order = np.lexsort((hashes, -value, context, feature))
    first = np.ones(order.size, dtype=bool)
    first[1:] = (feature[order[1:]] != feature[order[:-1]]) | (context[order[1:]] != context[order[:-1]])
    order = order[first]
    order = order[np.lexsort((hashes[order], -value[order], feature[order]))]
    return order[rank_in_group(feature[order]) < N_TOP]


def _sampled(feature: np.ndarray, value: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """The N_PER_RANGE firings with the smallest hash in each (feature, range of strength)."""
    group = feature.astype(np.int64) * (BINS // RANGE_BINS) + bin_of(value) // RANGE_BINS
    return lowest_hashes(group, hashes, N_PER_RANGE)


def lowest_hashes(group: np.ndarray, hashes: np.ndarray, n: int) -> np.ndarray:
    """Indices of the `n` smallest hashes of each group (an integer ≥ 0), by group, then by hash."""
    counts = np.bincount(group) if group.size else np.zeros(1, dtype=np.int64)
    # a quick cut that keeps about 3 x as many as are wanted; groups it left short are kept whole
    limit = np.minimum(1.0, 3 * n / np.maximum(counts, 1))
    likely = hashes.astype(np.float64) / 2.0**64 <= limit[group]
    kept = np.bincount(group[likely], minlength=counts.size)
    short = kept < np.minimum(counts, n)
    where = np.flatnonzero(likely | short[group])
    order = where[np.lexsort((hashes[where], group[where]))]
    return order[rank_in_group(group[order]) < n]


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal values."""
    if group.size == 0:
        return np.zeros(0, dtype=np.int64)
    new = np.ones(group.size, dtype=bool)
    new[1:] = group[1:] != group[:-1]
    starts = np.flatnonzero(new)
    rank: np.ndarray = np.arange(group.size) - np.repeat(starts, np.diff(np.append(starts, group.size)))
    return rank


def _windows(firings: ShardFirings, feature: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The feature's activations around each chosen firing: its neighbours in the column that are near in the text."""
    rows = firings.rows
    window = np.zeros((chosen.size, OFFSETS.size), dtype=np.float32)
    row = firings.row[chosen]
    for step in OFFSETS:
        other = np.clip(chosen + step, 0, feature.size - 1)
        other_row = firings.row[other]
        distance = rows.position[other_row] - rows.position[row]
        near = (feature[other] == feature[chosen]) & (rows.sequence[other_row] == rows.sequence[row])
        near &= (np.abs(distance) <= WINDOW) & (other == chosen + step)
        which = np.flatnonzero(near)
        window[which, distance[which] + WINDOW] = firings.value[other[which]]
    return window
