"""Random numbers that depend on *what* is drawn, never on *when*: a document gives the same draw in any order."""

import hashlib

import numpy as np
from jaxtyping import UInt64

__all__ = ["mix", "random_order", "stable_hash", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stable_hash(*parts: object) -> int:
    """A 64-bit number from the text of `parts`; the same in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def mix(seed: int, *columns: np.ndarray) -> UInt64[np.ndarray, " n"]:
    """One 64-bit hash per row of integer `columns` (splitmix64, Steele et al. 2014, applied column by column)."""
    state = np.full(columns[0].shape, np.uint64(seed & 0xFFFFFFFFFFFFFFFF), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            state = (state ^ column.astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(seed: int, *columns: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row of `columns`, from the same hash."""
    return (mix(seed, *columns) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def random_order(n: int, *seed: object) -> np.ndarray:
    """A permutation of range(n) that depends on `seed` alone."""
    return np.random.Generator(np.random.Philox(stable_hash(*seed))).permutation(n)
