"""Firings that may become examples: the strongest of each feature, and a fair sample from every range of strength.

Both choices are by value and hash alone, so any partition of the documents leads to the same candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saelib.summaries.kernels import smallest_hashes, strongest, windows
from saelib.summaries.moments import BINS_PER_OCTAVE, bin_of
from saelib.summaries.rows import WINDOW, ShardFirings

__all__ = [
    "N_PER_RANGE",
    "N_SAMPLED",
    "N_TOP",
    "OFFSETS",
    "RANGE_BINS",
    "Candidates",
    "first_of_each",
    "lowest_hashes",
    "rank_in_group",
]

N_TOP = 32
"""Strongest firings kept of each feature, one a sequence and one a context: more than are shown, since some repeat."""

RANGE_BINS = BINS_PER_OCTAVE // 6
"""Histogram bins in one range of strength: a sixth of an octave, less than most quantile buckets span."""

N_PER_RANGE = 8
"""Firings kept of each range, those with the smallest hash: five to show, and what other buckets show already."""

N_SAMPLED = 96
"""Firings kept of all ranges of a feature together, those with the smallest hash: about 19 a quantile bucket."""

OFFSETS = np.arange(-WINDOW, WINDOW + 1)


class Candidates(NamedTuple):
    """Firings with the feature's activations in the window around them. One entry a candidate, by feature.

    Of each feature first those among the strongest, strongest first, then the sample, by hash.
    """

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
        rows, starts = firings.rows, firings.starts
        key = rows.hash[firings.row]
        top = np.empty((firings.n_features, N_TOP), dtype=np.int64)
        group = rows.sequence[firings.row]
        n_top = strongest(starts, firings.value, key, rows.context[firings.row], group, top)
        sampled = np.empty((firings.n_features, N_SAMPLED), dtype=np.int64)
        n_sampled = smallest_hashes(starts, key, _range_of(firings.value), N_PER_RANGE, sampled)
        feature, is_top, chosen = _side_by_side((top, n_top), (sampled, n_sampled))
        window = np.zeros((chosen.size, OFFSETS.size), dtype=np.float32)
        stretch = _numbered(rows.sequence, rows.document_id)
        windows(starts, firings.value, firings.row, stretch, rows.position, feature, chosen, window)
        row = firings.row[chosen]
        return cls(
            feature=feature,
            value=firings.value[chosen],
            hash=key[chosen],
            context=rows.context[row],
            sequence_id=rows.sequence_id[row],
            document_id=rows.document_id[row],
            position=rows.position[row],
            is_top=is_top,
            window=window,
        )

    @classmethod
    def merged(cls, parts: Sequence["Candidates"], features: range) -> "Candidates":
        """All together, cut down again. All are of `features`."""
        every = cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        order = np.argsort(every.feature, kind="stable")
        tops, others = order[every.is_top[order]], order[~every.is_top[order]]
        of_top, of_others = every.take(tops), every.take(others)
        top, sampled = (np.empty((len(features), n), dtype=np.int64) for n in (N_TOP, N_SAMPLED))
        starts, group = _starts(of_top.feature, features), np.arange(tops.size)
        n_top = strongest(starts, of_top.value, of_top.hash, of_top.context, group, top)
        starts, band = _starts(of_others.feature, features), _range_of(of_others.value)
        n_sampled = smallest_hashes(starts, of_others.hash, band, N_PER_RANGE, sampled)
        _, is_top, chosen = _side_by_side((top, n_top), (sampled, n_sampled))
        chosen[is_top], chosen[~is_top] = tops[chosen[is_top]], others[chosen[~is_top]]
        return every.take(chosen)

    def merge(self, other: "Candidates") -> "Candidates":
        """Both together."""
        n_features = 1 + int(max(self.feature.max(initial=0), other.feature.max(initial=0)))
        return Candidates.merged([self, other], range(n_features))

    def take(self, index: np.ndarray) -> "Candidates":
        """Some of them."""
        return Candidates(*(column[index] for column in self))


def _range_of(value: np.ndarray) -> np.ndarray:
    return (bin_of(value) // RANGE_BINS).astype(np.int16)


def _starts(feature: np.ndarray, features: range) -> np.ndarray:
    """Where the entries of each of `features` start, and the end; `feature` increases."""
    starts: np.ndarray = np.searchsorted(feature, np.arange(features.start, features.stop + 1))
    return starts


def _numbered(*columns: np.ndarray) -> np.ndarray:
    """A number for each run of rows that are equal in all columns."""
    new = np.zeros(columns[0].size, dtype=np.int32)
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    number: np.ndarray = np.cumsum(new, dtype=np.int32)
    return number


def _side_by_side(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two rectangles [n_features, n] with a length of each row → (feature, of the left one, entry), by feature."""
    there = np.concatenate([np.arange(part.shape[1]) < count[:, None] for part, count in (left, right)], axis=1)
    feature, place = np.nonzero(there)
    entry = np.concatenate([left[0], right[0]], axis=1)[there]
    return feature.astype(np.int32), place < left[0].shape[1], entry


def first_of_each(feature: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Indices of the first entry with each pair, increasing."""
    order = np.lexsort((context, feature))
    new = np.ones(order.size, dtype=bool)
    new[1:] = (feature[order[1:]] != feature[order[:-1]]) | (context[order[1:]] != context[order[:-1]])
    first: np.ndarray = np.sort(order[new])
    return first


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
