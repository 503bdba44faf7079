"""From pre-activations to firings.

An architecture chooses one of these to train with; each has a per-token inference form.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base import Frozen
from saelib.errors import ConfigError
from saelib.sparse import Firings, firings_at, firings_where, nonzero

__all__ = ["BatchTopK", "JumpReLU", "Nonlinearity", "ReLU", "TopK"]


@runtime_checkable
class Nonlinearity(Protocol):
    """pre [n_tokens, n_features] → firings. `floor` is a guess of the smallest firing, from the step before."""

    def fire(self, pre: Float[Tensor, "n_tokens n_features"], floor: float = 0.0) -> Firings: ...

    def check(self, n_features: int) -> None:
        """Raises ConfigError where it cannot serve an SAE of that width."""

    def published(self, threshold: Float[Tensor, " n_features"]) -> "Nonlinearity":
        """The per-token inference form; `threshold` is the learned smallest firing, for those that need one."""


class ReLU(Frozen):
    """f = max(pre, 0)."""

    def fire(self, pre: Float[Tensor, "n_tokens n_features"], floor: float = 0.0) -> Firings:  # noqa: ARG002
        """Every positive pre-activation fires."""
        return firings_where(pre > 0, pre)

    def check(self, n_features: int) -> None:
        """Any width will do."""

    def published(self, threshold: Float[Tensor, " n_features"]) -> Nonlinearity:  # noqa: ARG002
        """Itself: it looks at one token at a time."""
        return self


class TopK(Frozen):
    """f keeps a token's k largest pre-activations, where they are positive (Gao et al. 2024, arXiv:2406.04093)."""

    k: int

    def check(self, n_features: int) -> None:
        """Raises ConfigError where k features cannot be chosen."""
        _check_k(self.k, n_features, "TopK")

    def fire(self, pre: Float[Tensor, "n_tokens n_features"], floor: float = 0.0) -> Firings:  # noqa: ARG002
        """The k largest of each token."""
        index = pre.topk(self.k, dim=-1, sorted=False).indices
        offsets = torch.arange(pre.shape[0], device=pre.device).unsqueeze(1) * pre.shape[1]
        flat = (index + offsets).flatten().sort().values
        return firings_at(flat[pre.view(-1)[flat] > 0], pre)

    def published(self, threshold: Float[Tensor, " n_features"]) -> Nonlinearity:  # noqa: ARG002
        """Itself: it looks at one token at a time."""
        return self


class BatchTopK(Frozen):
    """f keeps the n_tokens · k largest pre-activations of the batch (Bussmann et al. 2024, arXiv:2412.06410).

    A training form only: published, it is a JumpReLU with the learned threshold, so that a token's features do not
    depend on its neighbours.
    """

    k: int

    def check(self, n_features: int) -> None:
        """Raises ConfigError where k features cannot be chosen."""
        _check_k(self.k, n_features, "BatchTopK")

    def fire(self, pre: Float[Tensor, "n_tokens n_features"], floor: float = 0.0) -> Firings:
        """Exact for any `floor`; a floor just under the true threshold leaves few candidates to sort."""
        wanted = self.k * pre.shape[0]
        flat = nonzero(pre > max(floor, 0.0))
        if flat.numel() < wanted and floor > 0:
            flat = nonzero(pre > 0)
        if flat.numel() > wanted:
            values = pre.view(-1)[flat]
            flat = flat[values.topk(wanted, sorted=False).indices.sort().values]
        return firings_at(flat, pre)

    def published(self, threshold: Float[Tensor, " n_features"]) -> Nonlinearity:
        """A fixed threshold in place of the batch's own."""
        return JumpReLU(threshold=threshold)


class JumpReLU(Frozen):
    """f = pre where pre > threshold of the feature, else 0 (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

    model_config = {**Frozen.model_config, "arbitrary_types_allowed": True}
    threshold: Tensor

    def fire(self, pre: Float[Tensor, "n_tokens n_features"], floor: float = 0.0) -> Firings:  # noqa: ARG002
        """Thresholds are at least 0, so that f is never negative."""
        return firings_where(pre > self.threshold, pre)

    def check(self, n_features: int) -> None:
        """Any width will do."""

    def published(self, threshold: Float[Tensor, " n_features"]) -> Nonlinearity:  # noqa: ARG002
        """Itself: it looks at one token at a time."""
        return self


def _check_k(k: int, n_features: int, name: str) -> None:
    if not 0 < k < n_features:
        raise ConfigError(
            f"{name} keeps k={k} features a token but the SAE has n_features={n_features}; "
            "0 < k < n_features is wanted: lower k or widen the SAE"
        )
