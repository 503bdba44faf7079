"""pre = x W + b, made a piece at a time: the matrix [n_tokens, n_features] is never written down whole.

On a CPU each piece stays in the cache between the product and the kernel that looks for firings, and as many pieces
are under way as torch has threads. With `product=torch.bfloat16` features are chosen by a bfloat16 product and the
values of the chosen ones computed again in the precision of the weights.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelib.kernels import compiled_for, count_above, largest_in_rows, write_above
from saelib.sparse import Firings, dot_pairs, nonzero

__all__ = ["Preactivations", "fast_product"]

PIECE_TOKENS = 512
"""Rows of a piece on a CPU: at 16,384 features 16 MB in bfloat16 (128 rows: 1.6 times slower, 1,024: no faster)."""

PIECE_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Upper limit of a piece."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fast_product(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class _Found(NamedTuple):
    """Firings of one piece: how many each row has, where, and the pre-activation there."""

    counts: Tensor
    feature: Tensor
    value: Tensor


class Preactivations:
    """x [n_tokens, d_in], weight [d_in, n_features] (a transposed view of rows is best), bias [n_features]."""

    def __init__(
        self,
        x: Float[Tensor, "n_tokens d_in"],
        weight: Float[Tensor, "d_in n_features"],
        bias: Float[Tensor, " n_features"],
        product: torch.dtype = torch.float32,
    ) -> None:
        self.x, self.weight, self.bias = x.detach(), weight.detach(), bias.detach()
        self.product = product if product.itemsize < self.weight.dtype.itemsize else self.weight.dtype
        self._factors = [tensor.to(self.product) for tensor in (self.bias, self.x, self.weight)]

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return int(self.x.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.weight.shape[1])

    def dense(self) -> Float[Tensor, "n_tokens n_features"]:
        """The whole matrix, for what is small."""
        return torch.addmm(self.bias, self.x.to(self.weight.dtype), self.weight)

    def largest(self, k: int) -> Firings:
        """The k largest of each token, where they are positive."""
        k = min(k, self.n_features)
        return self._positive(self._gathered(lambda pre: _largest(pre, k)))

    def largest_of_groups(self, k: int) -> Firings:
        """The largest of each of k contiguous groups of features of a token, where it is positive."""
        return self._positive(self._gathered(lambda pre: _largest_of_groups(pre, k)))

    def above(self, bound: Float[Tensor, " n_features"]) -> Firings:
        """Every entry that exceeds the bound of its feature; no bound is negative."""
        if self.product == self.weight.dtype:
            return self._gathered(lambda pre: _above(pre, bound))
        lowered = (bound * (1 - 2**-7) - self._rounding()).clamp_min_(0)  # the exact values decide
        return _kept(found := self._gathered(lambda pre: _above(pre, lowered)), found.value > bound[found.feature])

    def largest_among(self, features: Int[Tensor, " n"], k: int) -> Firings:
        """The k largest positive of each token among some features, in increasing order; named as of all features."""
        part = Preactivations(self.x, self.weight.t()[features].t(), self.bias[features], self.product)
        found = part.largest(k)
        return found._replace(feature=features[found.feature].to(torch.int32), n_features=self.n_features)

    def _rounding(self) -> Tensor:
        """Five times the usual error of a bfloat16 product, whose terms are each off by up to 2^-8 of themselves."""
        terms = torch.linalg.vector_norm(self.x) * torch.linalg.vector_norm(self.weight)
        rounding: Tensor = 2**-6 * terms / (self.x.numel() * self.n_features) ** 0.5
        return rounding

    def _positive(self, found: Firings) -> Firings:
        """In full precision the kernel has seen to it; a value computed again may turn out to be negative."""
        return found if self.product == self.weight.dtype else _kept(found, found.value > 0)

    def _gathered(self, look: Callable[[Tensor], _Found]) -> Firings:
        """What `look` finds in each piece, put together, with values in the precision of the weights."""
        bias, x, weight = self._factors

        def piece(rows: slice) -> _Found:
            with torch.no_grad():
                return look(_product(bias, x[rows], weight))

        parts = list(_each(piece, list(self._pieces()), compiled_for(self.x)))
        counts = torch.cat([part.counts for part in parts])
        starts = torch.zeros(self.n_tokens + 1, dtype=torch.int32, device=counts.device)
        torch.cumsum(counts, 0, out=starts[1:])
        feature = torch.cat([part.feature for part in parts]).to(torch.int32)
        if self.product == self.weight.dtype:
            return Firings(starts, feature, torch.cat([part.value for part in parts]), self.n_features)
        chosen = Firings(starts, feature, self.bias[feature], self.n_features)
        return chosen._replace(value=dot_pairs(chosen, self.x, self.weight.t()).add_(chosen.value))

    def _pieces(self) -> Iterator[slice]:
        on_cpu = compiled_for(self.x)
        most = PIECE_BYTES["cpu" if on_cpu else "cuda"] // (self.product.itemsize * self.n_features)
        size = max(1, min(most, PIECE_TOKENS) if on_cpu else most)
        for start in range(0, max(1, self.n_tokens), size):
            yield slice(start, start + size)


_scratch = threading.local()


def _product(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """One piece, in memory that each thread keeps: a fresh one would be faulted in anew for every piece."""
    if not compiled_for(x):
        return torch.addmm(bias, x, weight)
    wanted = x.shape[0] * weight.shape[1]
    kept = getattr(_scratch, "kept", None)
    if kept is None or kept.dtype != x.dtype or kept.numel() < wanted or kept.numel() > 8 * wanted:
        kept = _scratch.kept = torch.empty(wanted, dtype=x.dtype)
    return torch.addmm(bias, x, weight, out=kept[:wanted].view(x.shape[0], weight.shape[1]))


@lru_cache(maxsize=1)
def _workers(n: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads of their own, each of which multiplies alone: torch's would wait, spinning, while a kernel runs.

    A forked process has none of its parent's threads, so `process` is part of the key.
    """
    return ThreadPoolExecutor(n, "pieces", initializer=torch.set_num_threads, initargs=(1,))


def _each(piece: Callable[[slice], _Found], pieces: list[slice], in_threads: bool) -> Iterator[_Found]:
    n = torch.get_num_threads()
    if not in_threads or n == 1 or len(pieces) == 1:
        return map(piece, pieces)
    return _workers(n, os.getpid()).map(piece, pieces)


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(_BITS[tensor.dtype.itemsize]).numpy()


def _largest(pre: Tensor, k: int) -> _Found:
    n = pre.shape[0]
    if not compiled_for(pre):
        value, feature = pre.topk(k, dim=1)
        feature, order = feature.sort(dim=1)
        value = value.gather(1, order)
        return _Found((value > 0).sum(dim=1), feature[value > 0], value[value > 0])
    index, counts = np.empty((n, k), dtype=np.int32), np.empty(n, dtype=np.int32)
    largest_in_rows(_bits(pre), k, index, counts)
    places = torch.from_numpy(index)
    if counts.min(initial=k) == k:
        return _Found(torch.from_numpy(counts), places.flatten(), pre.gather(1, places.long()).flatten())
    there = torch.arange(k) < torch.from_numpy(counts).unsqueeze(1)
    places = torch.where(there, places, 0)
    return _Found(torch.from_numpy(counts), places[there], pre.gather(1, places.long())[there])


def _largest_of_groups(pre: Tensor, k: int) -> _Found:
    size = pre.shape[1] // k
    value, feature = pre.view(-1, k, size).max(dim=2)
    feature = feature + torch.arange(0, k * size, size, device=pre.device)
    return _Found((value > 0).sum(dim=1), feature[value > 0], value[value > 0])


def _above(pre: Tensor, bound: Tensor) -> _Found:
    limit = bound.to(pre.dtype)
    if not compiled_for(pre):
        mask = pre > limit
        return _Found(mask.sum(dim=1), nonzero(mask) % pre.shape[1], pre[mask])
    counts = np.empty(pre.shape[0], dtype=np.int32)
    count_above(_bits(pre), _bits(limit), counts)
    index = np.empty(counts.sum(), dtype=np.int32)
    write_above(_bits(pre), _bits(limit), index)
    feature, tokens = torch.from_numpy(index), torch.from_numpy(counts)
    offsets = torch.repeat_interleave(torch.arange(pre.shape[0]) * pre.shape[1], tokens)
    return _Found(tokens, feature, pre.view(-1)[feature + offsets])


def _kept(found: Firings, keep: Tensor) -> Firings:
    return found if bool(keep.all()) else found.where(keep)
