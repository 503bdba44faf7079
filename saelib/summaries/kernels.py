"""Compiled loops over firings sorted by feature: entries of feature i lie in starts[i] : starts[i + 1], in text order.

All run on the host, hold no lock and start no threads; equal input gives equal bytes.
"""

from typing import Any

import numba
import numpy as np

__all__ = [
    "context_hashes",
    "count_places",
    "count_tokens",
    "largest_together",
    "moments",
    "smallest_hashes",
    "strongest",
    "values_at",
    "windows",
]

compiled = numba.njit(cache=True, nogil=True)


@compiled
def context_hashes(ids: np.ndarray, place: np.ndarray, first: np.ndarray, stop: np.ndarray, radius: Any) -> np.ndarray:
    """64 bits from the tokens within `radius` of each place, and where its stretch [first, stop) cuts them off."""
    found = np.empty(place.size, np.uint64)
    for i in range(place.size):
        low, high = max(place[i] - radius, first[i]), min(place[i] + radius + 1, stop[i])
        state = np.uint64(place[i] - low) * np.uint64(0x9E3779B97F4A7C15)
        for at in range(low, high):
            state = (state ^ np.uint64(ids[at] + 1)) * np.uint64(0xBF58476D1CE4E5B9)
            state ^= state >> np.uint64(29)
        state = (state ^ np.uint64(high - low)) * np.uint64(0x94D049BB133111EB)
        found[i] = state ^ (state >> np.uint64(32))
    return found


@compiled
def moments(
    starts: np.ndarray, value: np.ndarray, bins: np.ndarray, central: np.ndarray, histogram: np.ndarray
) -> None:
    """central [n_features, 5]: mean, Σ (f − mean)^2, ^3, ^4, maximum. histogram [n_features, BINS]: firings by bin."""
    for feature in range(starts.size - 1):
        total, largest = 0.0, 0.0
        first, stop = starts[feature], starts[feature + 1]
        for i in range(first, stop):
            f = np.float64(value[i])
            total += f
            largest = max(largest, f)
            histogram[feature, bins[i]] += 1
        mean = total / max(stop - first, 1)
        m2, m3, m4 = 0.0, 0.0, 0.0
        for i in range(first, stop):
            away = np.float64(value[i]) - mean
            square = away * away
            m2 += square
            m3 += square * away
            m4 += square * square
        central[feature, 0], central[feature, 1], central[feature, 2] = mean, m2, m3
        central[feature, 3], central[feature, 4] = m4, largest


@compiled
def count_places(
    starts: np.ndarray, row: np.ndarray, sequence: np.ndarray, position: np.ndarray, found: np.ndarray
) -> None:
    """found [n_features, 4]: sequences, Σ position, firings on a sequence's first row, runs of neighbouring tokens.

    `sequence` and `position` are of each row, rows in text order.
    """
    for feature in range(starts.size - 1):
        before = np.int64(-1)
        for i in range(starts[feature], starts[feature + 1]):
            r = np.int64(row[i])
            is_new = before < 0 or sequence[r] != sequence[before]
            found[feature, 0] += is_new
            found[feature, 1] += position[r]
            found[feature, 2] += r == 0 or sequence[r] != sequence[r - 1]
            found[feature, 3] += is_new or position[r] != position[before] + 1
            before = r


@compiled
def strongest(
    starts: np.ndarray, value: np.ndarray, key: np.ndarray, context: np.ndarray, group: np.ndarray, best: np.ndarray
) -> np.ndarray:
    """The largest values of each feature, one of each run of equal `group` and one of each context; ties by `key`.

    Their indices go to best [n_features, n], largest first; returned is how many each feature has. What falls off the
    end is below everything that stays, so one pass is exact.
    """
    n = best.shape[1]
    count = np.zeros(starts.size - 1, np.int32)
    for feature in range(starts.size - 1):
        kept, i, stop = best[feature], starts[feature], starts[feature + 1]
        m = 0
        while i < stop:
            top = i
            i += 1
            while i < stop and group[i] == group[top]:
                if value[i] > value[top]:
                    top = i
                i += 1
            if m == n and not _before(top, kept[m - 1], value, key):
                continue
            at = 0
            while at < m and context[kept[at]] != context[top]:
                at += 1
            if at < m and not _before(top, kept[at], value, key):
                continue
            if at == m:
                m = min(m + 1, n)
                at = m - 1
            while at > 0 and _before(top, kept[at - 1], value, key):
                kept[at] = kept[at - 1]
                at -= 1
            kept[at] = top
        count[feature] = m
    return count


@compiled
def _before(i: Any, j: Any, value: np.ndarray, key: np.ndarray) -> Any:
    return value[i] > value[j] or (value[i] == value[j] and key[i] < key[j])


@compiled
def smallest_hashes(
    starts: np.ndarray, key: np.ndarray, band: np.ndarray, per_band: Any, chosen: np.ndarray
) -> np.ndarray:
    """Of each feature the entries with the smallest keys, `per_band` at most of each band: by increasing key.

    Their indices go to chosen [n_features, n]; returned is how many each feature has.
    """
    n_bands = np.int64(band.max()) + 1 if band.size else 1
    slot, used = np.empty((n_bands, per_band), np.int64), np.zeros(n_bands, np.int64)
    count = np.zeros(starts.size - 1, np.int32)
    for feature in range(starts.size - 1):
        used[:] = 0
        for i in range(starts[feature], starts[feature + 1]):
            b = band[i]
            row, m = slot[b], used[b]
            if m == per_band and key[i] >= key[row[m - 1]]:
                continue
            at = min(m, per_band - 1)
            while at > 0 and key[i] < key[row[at - 1]]:
                row[at] = row[at - 1]
                at -= 1
            row[at] = i
            used[b] = min(m + 1, per_band)
        every = np.empty(used.sum(), np.int64)
        m = 0
        for b in range(n_bands):
            every[m : m + used[b]] = slot[b, : used[b]]
            m += used[b]
        m = min(m, chosen.shape[1])
        chosen[feature, :m] = every[np.argsort(key[every])[:m]]
        count[feature] = m
    return count


@compiled
def windows(  # noqa: PLR0913  columns of one table
    starts: np.ndarray,
    value: np.ndarray,
    row: np.ndarray,
    stretch: np.ndarray,
    position: np.ndarray,
    feature: np.ndarray,
    chosen: np.ndarray,
    found: np.ndarray,
) -> None:
    """The feature's activations around each chosen entry, in found [n, 2 · radius + 1], which must be zero.

    Only those of the same stretch of text (`stretch`, `position`: of each row) and no further away than the radius.
    """
    radius = found.shape[1] // 2
    for n in range(chosen.size):
        i, first, stop = chosen[n], starts[feature[n]], starts[feature[n] + 1]
        here, at = stretch[row[i]], position[row[i]]
        j = i
        while j >= first and stretch[row[j]] == here and at - position[row[j]] <= radius:
            found[n, radius + position[row[j]] - at] = value[j]
            j -= 1
        j = i + 1
        while j < stop and stretch[row[j]] == here and position[row[j]] - at <= radius:
            found[n, radius + position[row[j]] - at] = value[j]
            j += 1


@compiled
def count_tokens(  # noqa: PLR0913  columns of one table
    starts: np.ndarray,
    value: np.ndarray,
    token: np.ndarray,
    n_vocab: Any,
    token_starts: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
    acts: np.ndarray,
) -> Any:
    """Firings and summed value of every (feature, token ≥ 0), tokens increasing: compressed rows, token_starts [n + 1].

    ids, counts and acts have room for every entry; returned is how much of them is used.
    """
    times, sums = np.zeros(n_vocab, np.int64), np.zeros(n_vocab, np.float64)
    n = 0
    for feature in range(starts.size - 1):
        before = n
        for i in range(starts[feature], starts[feature + 1]):
            t = token[i]
            if t >= 0:
                if times[t] == 0:
                    ids[n] = t
                    n += 1
                times[t] += 1
                sums[t] += value[i]
        ids[before:n].sort()
        for k in range(before, n):
            t = ids[k]
            counts[k], acts[k] = times[t], sums[t]
            times[t], sums[t] = 0, 0.0
        token_starts[feature + 1] = n
    return n


@compiled
def values_at(
    starts: np.ndarray, row: np.ndarray, value: np.ndarray, feature: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """The value of each (feature, row) pair; 0 where there is no entry."""
    found = np.zeros(feature.size, value.dtype)
    for i in range(feature.size):
        first, stop = starts[feature[i]], starts[feature[i] + 1]
        at = first + np.searchsorted(row[first:stop], where[i])
        if at < stop and row[at] == where[i]:
            found[i] = value[at]
    return found


@compiled
def largest_together(  # noqa: PLR0913  two forms of one sparse matrix, and where the answer goes
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    mean: np.ndarray,
    deviation: np.ndarray,
    others: np.ndarray,
    scores: np.ndarray,
) -> None:
    """For every feature those with the largest Jaccard index of firings (0) and Pearson correlation (1) > 0.

    columns and rows are (starts, index, value) of f [n_rows, n_features]; others and scores [2, n_features, n] must
    be −1 and 0. Ties go to the smaller feature. Only features that fire together are ever looked at.
    """
    n_features, n_rows = columns[0].size - 1, rows[0].size - 1
    both, product = np.zeros(n_features, np.int64), np.zeros(n_features, np.float64)
    touched = np.empty(n_features, np.int32)
    for feature in range(n_features):
        n_touched = 0
        count = columns[0][feature + 1] - columns[0][feature]
        for i in range(columns[0][feature], columns[0][feature + 1]):
            row, f = columns[1][i], np.float64(columns[2][i])
            for j in range(rows[0][row], rows[0][row + 1]):
                other = rows[1][j]
                if both[other] == 0:
                    touched[n_touched] = other
                    n_touched += 1
                both[other] += 1
                product[other] += f * rows[2][j]
        for t in range(n_touched):
            other = touched[t]
            if other != feature:
                union = count + columns[0][other + 1] - columns[0][other] - both[other]
                _insert(others[0, feature], scores[0, feature], other, both[other] / union)
                covariance = product[other] / n_rows - mean[feature] * mean[other]
                r = covariance / (deviation[feature] * deviation[other])
                _insert(others[1, feature], scores[1, feature], other, r)
            both[other], product[other] = 0, 0.0


@compiled
def _insert(others: np.ndarray, scores: np.ndarray, other: Any, score: Any) -> None:
    """Into a list by falling score, if it belongs there."""
    at = others.size
    while at > 0 and (score > scores[at - 1] or (score == scores[at - 1] and score > 0 and other < others[at - 1])):
        at -= 1
    if at < others.size and score > 0:
        for i in range(others.size - 1, at, -1):
            others[i], scores[i] = others[i - 1], scores[i - 1]
        others[at], scores[at] = other, score
