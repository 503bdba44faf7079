"""Counts, central moments and histograms of each feature's activations. Merging is exact but for float64 rounding."""

from typing import NamedTuple

import numpy as np

from saelib.summaries.kernels import count_places, moments
from saelib.summaries.rows import ShardFirings

__all__ = ["BINS", "BINS_PER_OCTAVE", "Core", "bin_centre", "bin_edge", "bin_of", "quantiles"]

BINS_PER_OCTAVE = 18
_LOW_OCTAVE, _HIGH_OCTAVE = -20, 20
BINS = BINS_PER_OCTAVE * (_HIGH_OCTAVE - _LOW_OCTAVE)
"""Log-spaced bins of ratio 2^(1/18) = 1.039 from 2^-20 to 2^20: a bin's centre is within 2 % of what lies in it."""


_PIECE = 1 << 16
"""Values at a time: temporaries stay in the cache."""

_FEATURES = 8192
"""Features at a time, where a step needs several times the histogram."""


def bin_of(value: np.ndarray) -> np.ndarray:
    """Bin of each activation > 0, as int16; what is out of range goes to the end bins."""
    found = np.empty(value.size, dtype=np.int16)
    for start in range(0, value.size, _PIECE):
        position = np.log2(value[start : start + _PIECE].astype(np.float64))
        position = np.floor((position - _LOW_OCTAVE) * BINS_PER_OCTAVE)
        found[start : start + _PIECE] = np.clip(position, 0, BINS - 1)
    return found


def bin_edge(index: np.ndarray) -> np.ndarray:
    """Lower edge of a bin."""
    edge: np.ndarray = 2.0 ** (_LOW_OCTAVE + np.asarray(index) / BINS_PER_OCTAVE)
    return edge


def bin_centre(index: np.ndarray) -> np.ndarray:
    """Geometric middle of a bin."""
    return bin_edge(np.asarray(index) + 0.5)


class Core(NamedTuple):
    """Numbers of every feature [n_features], and of the corpus they were counted on."""

    n_tokens: np.ndarray
    """[1] unmasked tokens."""
    n_sequences: np.ndarray
    """[1] sequences with at least one of them."""
    n_fires: np.ndarray
    n_sequences_fired: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    """Σ (f − mean)² over firings; m3, m4 likewise."""
    m3: np.ndarray
    m4: np.ndarray
    maximum: np.ndarray
    position_sum: np.ndarray
    n_first_position: np.ndarray
    """Firings on the first unmasked token of a sequence."""
    n_runs: np.ndarray
    """Bursts: maximal runs of neighbouring tokens on which the feature fires."""
    gain_sum: np.ndarray
    """Σ (‖e + f d‖² − ‖e‖²)."""
    y_sum: np.ndarray
    """[d] Σ y, and [1] Σ ‖y‖² below: together Σ ‖y − ȳ‖²."""
    y_square_sum: np.ndarray
    histogram: np.ndarray
    """[n_features, BINS] firings by strength."""

    @classmethod
    def of(cls, firings: ShardFirings) -> "Core":
        """One shard's."""
        rows, starts, n_features = firings.rows, firings.starts, firings.n_features
        central, histogram = np.zeros((n_features, 5)), np.zeros((n_features, BINS), dtype=np.int32)
        moments(starts, firings.value, bin_of(firings.value), central, histogram)
        places = np.zeros((n_features, 4), dtype=np.int64)
        count_places(starts, firings.row, rows.sequence, rows.position, places)
        mean, m2, m3, m4, maximum = central.T.copy()
        n_sequences_fired, position_sum, n_first_position, n_runs = places.T.copy()
        return cls(
            n_tokens=np.array([rows.n]),
            n_sequences=np.array([np.unique(rows.sequence).size]),
            n_fires=np.diff(starts),
            n_sequences_fired=n_sequences_fired,
            mean=mean,
            m2=m2,
            m3=m3,
            m4=m4,
            maximum=maximum,
            position_sum=position_sum,
            n_first_position=n_first_position,
            n_runs=n_runs,
            gain_sum=np.bincount(firings.feature(), weights=firings.gain, minlength=n_features),
            y_sum=firings.y_sum,
            y_square_sum=np.array([firings.y_square_sum]),
            histogram=histogram,
        )

    def merge(self, other: "Core") -> "Core":
        """Both together. Central moments as in Pébay 2008 (Sandia SAND2008-6212), pairwise."""
        na, nb = self.n_fires.astype(np.float64), other.n_fires.astype(np.float64)
        n = np.maximum(na + nb, 1)
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2 + delta**2 * na * nb / n
        m3 = self.m3 + other.m3 + delta**3 * na * nb * (na - nb) / n**2
        m3 += 3 * delta * (na * other.m2 - nb * self.m2) / n
        m4 = self.m4 + other.m4 + delta**4 * na * nb * (na**2 - na * nb + nb**2) / n**3
        m4 += (
            6 * delta**2 * (na**2 * other.m2 + nb**2 * self.m2) / n**2 + 4 * delta * (na * other.m3 - nb * self.m3) / n
        )
        merged = {name: getattr(self, name) + getattr(other, name) for name in self._fields}
        merged |= {"mean": self.mean + delta * nb / n, "m2": m2, "m3": m3, "m4": m4}
        merged["maximum"] = np.maximum(self.maximum, other.maximum)
        return Core(**merged)

    @property
    def total_variance(self) -> float:
        """Σ ‖y − ȳ‖² over all tokens."""
        n = max(1, int(self.n_tokens[0]))
        return float(self.y_square_sum[0] - np.square(self.y_sum).sum() / n)


def quantiles(core: Core, shares: np.ndarray, features: range | None = None) -> np.ndarray:
    """[n_features, n_shares] quantiles of the non-zero activations, within 2 %; the last is the exact maximum.

    Of all features, or of some that follow one another.
    """
    features = features or range(core.n_fires.size)
    found = np.zeros((len(features), shares.size), dtype=np.float64)
    for start in range(0, len(features), _FEATURES):
        some = slice(features.start + start, min(features.start + start + _FEATURES, features.stop))
        found[start : start + _FEATURES] = _quantiles(
            core.histogram[some], core.n_fires[some], core.maximum[some], shares
        )
    return found


def _quantiles(histogram: np.ndarray, n_fires: np.ndarray, maximum: np.ndarray, shares: np.ndarray) -> np.ndarray:
    cumulative = histogram.cumsum(axis=1)
    found = np.zeros((n_fires.size, shares.size), dtype=np.float64)
    for column, share in enumerate(shares):
        wanted = np.maximum(1, np.ceil(share * n_fires))
        index = (cumulative < wanted[:, None]).sum(axis=1)
        found[:, column] = np.minimum(bin_centre(np.minimum(index, BINS - 1)), maximum)
    found[:, shares >= 1] = maximum[:, None]
    found[n_fires == 0] = 0
    return found
