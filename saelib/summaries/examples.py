"""From candidates and the sample to the examples of every feature, by bucket.

top 20, 5 quantile buckets of 5, 5 random firings, 5 near-misses, 5 negatives; no context twice among the firings.
"""

from typing import NamedTuple

import numpy as np

from saelib.summaries.candidates import Candidates, first_of_each, rank_in_group
from saelib.summaries.moments import Core, quantiles
from saelib.summaries.sample import Sample

__all__ = ["BUCKETS", "Examples", "Silences", "choose_examples"]

BUCKETS = ("top", "q1", "q2", "q3", "q4", "q5", "random", "near_miss", "negative")
N_SHOWN = {"top": 20} | dict.fromkeys(BUCKETS[1:], 5)


class Examples(NamedTuple):
    """One entry an example, by feature, bucket and rank. `window` is the feature's activation around the token."""

    feature: np.ndarray
    bucket: np.ndarray
    """Index into BUCKETS."""
    bucket_low: np.ndarray
    bucket_high: np.ndarray
    rank: np.ndarray
    sequence_id: np.ndarray
    document_id: np.ndarray
    position: np.ndarray
    act: np.ndarray
    window: np.ndarray


class Silences(NamedTuple):
    """Where each feature is silent: (feature, row of the sample) pairs, by feature."""

    near_misses: tuple[np.ndarray, np.ndarray]
    negatives: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, sample: Sample, tokens: np.ndarray, nearest: np.ndarray) -> "Silences":
        """`tokens` are the three top tokens of each feature, `nearest` its nearest feature."""
        near_misses = sample.near_misses(tokens, nearest, N_SHOWN["near_miss"])
        return cls(near_misses, sample.negatives(N_SHOWN["negative"], seed=11))


def choose_examples(
    candidates: Candidates, core: Core, sample: Sample, silences: Silences, features: range
) -> Examples:
    """All buckets of some features that follow one another; `candidates` are theirs."""
    edges = np.zeros((features.stop, 6))
    edges[features.start :] = quantiles(core, np.linspace(0, 1, 6), features)
    edges[:, 0] = 0
    top = candidates.take(candidates.is_top)
    top = top.take(np.lexsort((top.hash, -top.value, top.feature)))
    top = top.take(rank_in_group(top.feature) < N_SHOWN["top"])
    rest = _without(candidates.take(~candidates.is_top), top)
    random_rank = rank_in_group(rest.feature)
    random, rest = rest.take(random_rank < N_SHOWN["random"]), rest.take(random_rank >= N_SHOWN["random"])
    index = (rest.value[:, None] > edges[rest.feature, 1:5]).sum(axis=1)
    order = np.lexsort((rest.hash, index, rest.feature))
    rest, index = rest.take(order), index[order]
    keep = rank_in_group(rest.feature.astype(np.int64) * 5 + index) < 5
    parts = [
        _part(top, np.zeros(top.feature.size, dtype=np.int8), edges[top.feature, 4], edges[top.feature, 5]),
        _part(
            random, np.full(random.feature.size, 6, dtype=np.int8), edges[random.feature, 0], edges[random.feature, 5]
        ),
    ]
    rest, index = rest.take(keep), index[keep]
    low, high = edges[rest.feature, index], edges[rest.feature, index + 1]
    parts.append(_part(rest, (index + 1).astype(np.int8), low, high))
    parts += [_silent(sample, pairs, features, bucket) for pairs, bucket in zip(silences, (7, 8), strict=True)]
    return _ranked(parts)


def _without(candidates: Candidates, used: Candidates) -> Candidates:
    """Sampled firings by hash, of each context one, and none whose context is in `used`."""
    ordered = candidates.take(np.lexsort((candidates.hash, candidates.feature)))
    feature = np.concatenate([used.feature, ordered.feature])
    first = first_of_each(feature, np.concatenate([used.context, ordered.context]))
    return ordered.take(first[first >= used.feature.size] - used.feature.size)


def _part(some: Candidates, bucket: np.ndarray, low: np.ndarray, high: np.ndarray) -> Examples:
    rank = np.zeros(some.feature.size, dtype=np.int64)
    where = (some.sequence_id, some.document_id, some.position)
    return Examples(some.feature, bucket, low, high, rank, *where, some.value, some.window)


def _silent(sample: Sample, pairs: tuple[np.ndarray, np.ndarray], features: range, bucket: int) -> Examples:
    mine = slice(*np.searchsorted(pairs[0], (features.start, features.stop)))
    feature, row = pairs[0][mine], pairs[1][mine]
    zero = np.zeros(feature.size)
    where = (sample.sequence_id[row], sample.document_id[row], sample.position[row])
    window = sample.windows(feature, row)
    kind = np.full(feature.size, bucket, dtype=np.int8)
    return Examples(feature, kind, zero, zero, zero.astype(np.int64), *where, zero.astype(np.float32), window)


def _ranked(parts: list[Examples]) -> Examples:
    """All parts by feature and bucket, strongest first; equal ones in the order of the text."""
    every = Examples(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.lexsort((every.position, every.sequence_id, -every.act, every.bucket, every.feature))
    every = Examples(*(column[order] for column in every))
    rank = rank_in_group(every.feature.astype(np.int64) * len(BUCKETS) + every.bucket)
    return every._replace(rank=rank)
