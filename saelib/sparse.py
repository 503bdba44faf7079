"""Firings: the few features that are active on each token, in compressed rows. Nothing dense is kept between steps."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.kernels import compiled_for, sort_by_column

__all__ = [
    "ByFeature",
    "Firings",
    "decode_rows",
    "dot_pairs",
    "firings_where",
    "nonzero",
    "sum_by_feature",
]

# torch says so once a process; the few products that are used here are checked against dense ones in the tests
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class Firings(NamedTuple):
    """Which features fire on which token, and how strongly: compressed sparse rows, one row a token."""

    row_starts: Int[Tensor, " n_tokens_plus_1"]
    """Firings of token t lie in row_starts[t] : row_starts[t + 1]. Both indices are int32, as sparse products want."""
    feature: Int[Tensor, " n_firings"]
    """Index of the feature."""
    value: Float[Tensor, " n_firings"]
    """Feature activation f > 0."""
    n_features: int
    """Width of the dense matrix that this stands for."""

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return self.row_starts.numel() - 1

    def rows(self) -> Int[Tensor, " n_firings"]:
        """The token of each firing."""
        counts = self.row_starts.diff()
        return torch.repeat_interleave(torch.arange(self.n_tokens, device=counts.device), counts)

    def dense(self) -> Float[Tensor, "n_tokens n_features"]:
        """The matrix f, mostly zero."""
        f = self.value.new_zeros(self.n_tokens, self.n_features)
        f[self.rows(), self.feature] = self.value
        return f

    def columns(self, features: Int[Tensor, " n"]) -> Float[Tensor, "n_tokens n"]:
        """f of a few features only, in the order asked for; a feature may be asked for twice."""
        chosen, place = torch.unique(features.to(self.feature.device), return_inverse=True)
        column = torch.full((self.n_features,), -1, dtype=torch.int64, device=self.feature.device)
        column[chosen] = torch.arange(chosen.numel(), device=self.feature.device)
        mine = column[self.feature] >= 0
        f = self.value.new_zeros(self.n_tokens, chosen.numel())
        f[self.rows()[mine], column[self.feature[mine]]] = self.value[mine]
        return f[:, place]

    def where(self, keep: Bool[Tensor, " n_firings"]) -> "Firings":
        """Some of the firings."""
        before = torch.zeros(keep.numel() + 1, dtype=torch.int32, device=keep.device)
        torch.cumsum(keep, 0, out=before[1:])
        return Firings(before[self.row_starts], self.feature[keep], self.value[keep], self.n_features)

    def padded(self) -> tuple[Float[Tensor, "n_tokens most"], Int[Tensor, "n_tokens most"]]:
        """Values and features in rows as long as the longest; what is missing has value 0 and feature 0."""
        counts = self.row_starts.diff()
        there = torch.arange(int(counts.max()) if counts.numel() else 0, device=counts.device) < counts.unsqueeze(1)
        value, feature = self.value.new_zeros(there.shape), self.feature.new_zeros(there.shape)
        value[there], feature[there] = self.value, self.feature
        return value, feature

    def l0(self) -> float:
        """Mean number of firings a token."""
        return self.feature.numel() / max(1, self.n_tokens)


def nonzero(mask: Bool[Tensor, "n_tokens n_features"]) -> Int[Tensor, " n"]:
    """Flat positions of True. On a CPU numpy finds them five times faster than torch (4,096²: 10 against 50 ms)."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


def firings_where(mask: Bool[Tensor, "n_tokens n_features"], pre: Float[Tensor, "n_tokens n_features"]) -> Firings:
    """The firings at the True entries of `mask`, with `pre` there as their value."""
    n_tokens, n_features = pre.shape
    flat = nonzero(mask)
    starts = torch.zeros(n_tokens + 1, dtype=torch.int32, device=pre.device)
    torch.cumsum(mask.sum(dim=1), 0, out=starts[1:])
    return Firings(starts, (flat % n_features).to(torch.int32), pre.reshape(-1)[flat], n_features)


def decode_rows(
    firings: Firings, value: Float[Tensor, " n_firings"], directions: Float[Tensor, "n_features d"]
) -> Float[Tensor, "n_tokens d"]:
    """Σ over a token's firings of value · direction: 2 d operations a firing instead of 2 d n_features a token."""
    if firings.feature.numel() == 0:
        return directions.new_zeros(firings.n_tokens, directions.shape[1])
    summed: Tensor = torch.nn.functional.embedding_bag(
        firings.feature, directions, firings.row_starts, mode="sum", per_sample_weights=value, include_last_offset=True
    )
    return summed


def dot_pairs(
    firings: Firings, left: Float[Tensor, "n_tokens d"], directions: Float[Tensor, "n_features d"]
) -> Float[Tensor, " n_firings"]:
    """left[token] · directions[feature] for every firing, without gathering either."""
    if firings.feature.numel() == 0:
        return left.new_zeros(0)
    pattern = torch.sparse_csr_tensor(
        firings.row_starts,
        firings.feature,
        torch.zeros_like(firings.value),
        size=(firings.n_tokens, firings.n_features),
        check_invariants=False,
    )
    dots: Tensor = torch.sparse.sampled_addmm(pattern, left, directions.t(), beta=0.0).values()
    return dots


class ByFeature(NamedTuple):
    """Firings sorted by feature: the same compressed rows, transposed."""

    feature_starts: Int[Tensor, " n_features_plus_1"]
    token: Int[Tensor, " n_firings"]
    order: Int[Tensor, " n_firings"]
    n_tokens: int

    @classmethod
    def of(cls, firings: Firings) -> "ByFeature":
        """One stable sort serves every weight gradient."""
        device, n = firings.feature.device, firings.feature.numel()
        starts = torch.zeros(firings.n_features + 1, dtype=torch.int32, device=device)
        if compiled_for(firings.feature):
            token, order = torch.empty(n, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
            sort_by_column(*(part.numpy() for part in (firings.row_starts, firings.feature, starts, token, order)))
            return cls(starts, token, order, firings.n_tokens)
        feature, order = torch.sort(firings.feature, stable=True)
        torch.cumsum(torch.bincount(feature, minlength=firings.n_features), 0, out=starts[1:])
        return cls(starts, firings.rows()[order].to(torch.int32), order, firings.n_tokens)


def sum_by_feature(
    by_feature: ByFeature,
    value: Float[Tensor, " n_firings"],
    right: Float[Tensor, "n_tokens d"],
    out: Float[Tensor, "n_features d"] | None = None,
) -> Float[Tensor, "n_features d"]:
    """Σ over a feature's firings of value · right[token]: fᵀ right as one sparse product, added to `out` if given."""
    n_features = by_feature.feature_starts.numel() - 1
    if out is None:
        out = right.new_zeros(n_features, right.shape[1])
    if value.numel() == 0:
        return out
    matrix = torch.sparse_csr_tensor(
        by_feature.feature_starts,
        by_feature.token,
        value[by_feature.order],
        size=(n_features, by_feature.n_tokens),
        check_invariants=False,
    )
    return torch.addmm(out, matrix, right, out=out)
