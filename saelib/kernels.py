"""Compiled loops over pre-activations on a CPU: the k largest of each row, and everything above a bound.

A positive float orders like the integer with the same bits, in every width (bfloat16, float32, float64), so that one
kernel serves them all, and 32 bfloat16 are compared at once. Only positive entries are ever returned. The kernels hold
no lock and start no threads of their own: several chunks may run at the same time.
"""

from typing import Any

import numba
import numpy as np
from torch import Tensor

__all__ = ["compiled_for", "count_above", "largest_in_rows", "sort_by_column", "write_above"]

_GROUPS = 256
"""A row is folded to so many maxima; the k-th largest maximum bounds the k-th largest entry from below."""


def compiled_for(tensor: Tensor) -> bool:
    """Whether these kernels can read the tensor; where they cannot, torch's own operations do the same."""
    return tensor.device.type == "cpu"


@numba.njit(cache=True, nogil=True)
def _kth_largest(values: np.ndarray, n: Any, k: Any) -> Any:
    """The k-th largest of the first n, or 0 where it is negative, bit by bit: no branch that depends on a value."""
    kth, bit = values.dtype.type(0), values.dtype.type(1) << (8 * values.itemsize - 2)
    while bit > 0:
        bound, above = kth | bit, 0
        for i in range(n):
            above += values[i] >= bound
        if above >= k:
            kth = bound
        bit >>= 1
    return kth


@numba.njit(cache=True, nogil=True)
def _fold_to_maxima(row: np.ndarray, maxima: np.ndarray) -> None:
    """maxima[j] = the largest of row[j], row[j + groups], …: a loop that compiles to vector instructions."""
    groups = maxima.size
    maxima[:] = row[:groups]
    whole = row.size // groups * groups
    for start in range(groups, whole, groups):
        part = row[start : start + groups]
        for j in range(groups):
            value, best = part[j], maxima[j]
            maxima[j] = value if value > best else best
    for i in range(whole, row.size):
        maxima[i - whole] = max(maxima[i - whole], row[i])


@numba.njit(cache=True, nogil=True)
def largest_in_rows(bits: np.ndarray, k: Any, index: np.ndarray, count: np.ndarray) -> None:
    """For each row of bits [n, width] the places of its k largest positive entries, increasing, in index [n, k].

    count [n] says how many there are. Exact; of equal entries at the border the first ones are taken.
    """
    n, width = bits.shape
    one = bits.dtype.type(1)
    groups = min(max(_GROUPS, 2 * k), width)
    maxima = np.empty(groups, bits.dtype)
    value, place = np.empty(width, bits.dtype), np.empty(width, np.int32)
    for r in range(n):
        row, kept = bits[r], index[r]
        _fold_to_maxima(row, maxima)
        bound = max(_kth_largest(maxima, groups, min(k, groups)), one)
        m = 0
        for j in range(groups):
            if maxima[j] >= bound:
                for i in range(j, width, groups):
                    if row[i] >= bound:
                        value[m], place[m] = row[i], i
                        m += 1
        if m > k:
            kth = _kth_largest(value, m, k)
            above = 0
            for i in range(m):
                above += value[i] > kth
            m = _keep_largest(value, place, m, kth, k - above, kept)
        else:
            kept[:m] = place[:m]
        kept[:m].sort()
        count[r] = m


@numba.njit(cache=True, nogil=True)
def _keep_largest(value: np.ndarray, place: np.ndarray, m: Any, kth: Any, ties: Any, keep: np.ndarray) -> Any:
    """Places of the values above the k-th, and of the first `ties` by place that equal it."""
    kept = 0
    equal = np.empty(m, np.int32)
    n_equal = 0
    for i in range(m):
        if value[i] > kth:
            keep[kept] = place[i]
            kept += 1
        elif value[i] == kth:
            equal[n_equal] = place[i]
            n_equal += 1
    first = np.sort(equal[:n_equal])
    for i in range(ties):
        keep[kept] = first[i]
        kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def count_above(bits: np.ndarray, bound: np.ndarray, count: np.ndarray) -> None:
    """count [n]: entries of each row of bits [n, width] that exceed bound [width], whose entries are not negative."""
    for r in range(bits.shape[0]):
        row = bits[r]
        found = 0
        for j in range(row.size):
            found += row[j] > bound[j]
        count[r] = found


@numba.njit(cache=True, nogil=True)
def write_above(bits: np.ndarray, bound: np.ndarray, index: np.ndarray) -> None:
    """The places in their rows of all entries that exceed bound, row by row, increasing."""
    m, width = 0, bits.shape[1]
    words = np.zeros((width + 7) // 8, np.uint64)
    exceeds = words.view(np.uint8)
    for r in range(bits.shape[0]):
        row = bits[r]
        for j in range(width):
            exceeds[j] = row[j] > bound[j]
        for w in range(words.size):  # few entries exceed: eight are passed over at a time
            if words[w]:
                for j in range(8 * w, min(8 * w + 8, width)):
                    if exceeds[j]:
                        index[m] = j
                        m += 1


@numba.njit(cache=True, nogil=True)
def sort_by_column(
    row_starts: np.ndarray, column: np.ndarray, column_starts: np.ndarray, row: np.ndarray, order: np.ndarray
) -> None:
    """Compressed rows to compressed columns: where each column starts, the rows of its entries, and where they stood.

    A counting sort, stable: within a column rows increase. column_starts [width + 1] must be zero.
    """
    for i in range(column.size):
        column_starts[column[i] + 1] += 1
    for c in range(column_starts.size - 1):
        column_starts[c + 1] += column_starts[c]
    place = column_starts[:-1].copy()
    for r in range(row_starts.size - 1):
        for i in range(row_starts[r], row_starts[r + 1]):
            c = column[i]
            row[place[c]], order[place[c]] = r, i
            place[c] += 1
