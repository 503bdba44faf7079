"""From candidates and the sample to the examples of every feature, by bucket.

top 20, 5 quantile buckets of 5, 5 random firings, 5 near-misses, 5 negatives; no context twice among the firings.
"""

from typing import NamedTuple

import numpy as np

from saelib.summaries.candidates import Candidates, rank_in_group
from saelib.summaries.moments import Core, quantiles
from saelib.summaries.sample import Sample

__all__ = ["BUCKETS", "Examples", "choose_examples"]

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


def choose_examples(
    candidates: Candidates, core: Core, sample: Sample, tokens: np.ndarray, nearest: np.ndarray
) -> Examples:
    """All buckets. `tokens` are the three top tokens of each feature, `nearest` its nearest feature."""
    edges = quantiles(core, np.linspace(0, 1, 6))
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
    parts.append(_silent(sample, sample.near_misses(tokens, nearest, N_SHOWN["near_miss"]), 7))
    parts.append(_silent(sample, sample.negatives(N_SHOWN["negative"], seed=11), 8))
    return _ranked(parts)


def _without(candidates: Candidates, used: Candidates) -> Candidates:
    """Sampled firings by hash, of each context one, and none whose context is in `used`."""
    ordered = candidates.take(np.lexsort((candidates.hash, candidates.feature)))
    feature = np.concatenate([used.feature, ordered.feature]).astype(np.uint64)
    context = np.concatenate([used.context, ordered.context])
    _, first = np.unique(np.stack([feature, context]), axis=1, return_index=True)
    fresh = np.sort(first[first >= used.feature.size] - used.feature.size)
    return ordered.take(fresh)


def _part(some: Candidates, bucket: np.ndarray, low: np.ndarray, high: np.ndarray) -> Examples:
    rank = np.zeros(some.feature.size, dtype=np.int64)
    where = (some.sequence_id, some.document_id, some.position)
    return Examples(some.feature, bucket, low, high, rank, *where, some.value, some.window)


def _silent(sample: Sample, pairs: tuple[np.ndarray, np.ndarray], bucket: int) -> Examples:
    feature, row = pairs
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
