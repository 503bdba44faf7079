"""Nonlinearities while they learn: where a gradient can flow, what f is there, and what they are published as."""

from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from saelib.base import Frozen
from saelib.errors import ConfigError
from saelib.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK, check_k
from saelib.preactivations import Preactivations
from saelib.sparse import Firings

__all__ = [
    "BatchTopK",
    "LearnedGate",
    "LearnedReLU",
    "LearnedThreshold",
    "LearnedTopK",
    "Trainable",
    "check_trainable",
]

Learned = dict[str, Tensor]
"""Vectors [n_features] that are learned beside the matrices, by name; b_enc is always among them."""


@runtime_checkable
class Trainable(Protocol):
    """A nonlinearity that is being trained. `learned` holds its own vectors, in scaled space."""

    @property
    def start_l0(self) -> float | None:
        """Firings a token that the biases are set to before the first step; None where k fixes them."""

    @property
    def needs_weakest(self) -> bool:
        """Whether it asks for the smallest firings of the batches before, as `floor` and as `threshold`."""

    def check(self, n_features: int) -> None:
        """Raises ConfigError where it cannot serve an SAE of that width."""

    def start(self, quantile: Float[Tensor, " n_features"]) -> tuple[Tensor, Learned]:
        """b_enc and the learned vectors, so that a feature starts by firing where its pre exceeds its quantile."""

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:
        """Where f or its gradient is not zero, with pre as the value. `floor` is a guess from the step before."""

    def activate(self, found: Firings, pre: Float[Tensor, " n_firings"], learned: Learned) -> Tensor:
        """f at the candidates, with its gradient."""

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:
        """The per-token form, for an f that is `unit` times as large; `threshold` is the smallest firing learned."""

    def widened(self, multiple: float) -> "Trainable":
        """With `multiple` times as many firings, for k that comes down during the sparsity warm-up."""


_Form = TypeVar("_Form", bound="_Plain")


class _Plain(Frozen):
    """f = pre at the candidates, and nothing else is learned."""

    start_l0: float | None = None
    needs_weakest: ClassVar[bool] = False

    def check(self, n_features: int) -> None:
        """Any width will do."""

    def start(self, quantile: Float[Tensor, " n_features"]) -> tuple[Tensor, Learned]:
        """b_enc = −quantile, or 0 where k decides what fires."""
        return (torch.zeros_like(quantile) if self.start_l0 is None else -quantile), {}

    def activate(self, found: Firings, pre: Float[Tensor, " n_firings"], learned: Learned) -> Tensor:  # noqa: ARG002
        """Itself."""
        return pre

    def widened(self: _Form, multiple: float) -> _Form:  # noqa: ARG002
        """No k to widen."""
        return self


class LearnedReLU(_Plain):
    """ReLU with a bias that starts sparse: with zero biases half of all features would fire on every token."""

    start_l0: PositiveFloat = 64.0

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:  # noqa: ARG002
        """Every positive pre-activation."""
        return pre.above(torch.zeros_like(pre.bias))

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:  # noqa: ARG002
        """ReLU."""
        return ReLU()


_FormWithK = TypeVar("_FormWithK", bound="_WithK")


class _WithK(_Plain):
    k: int

    def check(self, n_features: int) -> None:
        """Raises ConfigError where k features cannot be chosen."""
        check_k(self.k, n_features, type(self).__name__.removeprefix("Learned"))

    def widened(self: _FormWithK, multiple: float) -> _FormWithK:
        """k times the multiple."""
        return self if multiple == 1 else self.model_copy(update={"k": round(self.k * multiple)})


class LearnedTopK(_WithK):
    """The k largest of each token (Gao et al. 2024, arXiv:2406.04093)."""

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:  # noqa: ARG002
        """k a token."""
        return pre.largest(self.k)

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:  # noqa: ARG002
        """TopK."""
        return TopK(k=self.k)


class BatchTopK(_WithK):
    """The n_tokens · k largest of the batch (Bussmann et al. 2024, arXiv:2412.06410).

    Published it is a JumpReLU with the learned threshold, so that a token's features do not depend on its neighbours.
    """

    needs_weakest: ClassVar[bool] = True

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:  # noqa: ARG002
        """Exact for any `floor`; one just under the true threshold leaves few entries to sort."""
        wanted = self.k * pre.n_tokens
        bound = floor if floor > 0 else self._guess(pre)
        found = pre.above(torch.full_like(pre.bias, bound))
        while found.feature.numel() < wanted and bound > 0:
            bound = bound / 2 if bound > 1e-3 else 0.0
            found = pre.above(torch.full_like(pre.bias, bound))
        return found.where(_largest(found.value, wanted))

    def _guess(self, pre: Preactivations) -> float:
        few = Preactivations(pre.x[:256], pre.weight, pre.bias).dense()
        return max(0.0, 0.9 * few.flatten().topk(self.k * few.shape[0], sorted=False).values.min().item())

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:
        """A fixed threshold in place of the batch's own."""
        return JumpReLU(threshold=torch.full_like(learned["b_enc"], max(threshold, 0.0) * unit))


def _largest(value: Tensor, wanted: int) -> Tensor:
    """True at the `wanted` largest; of equal ones at the border the first are taken."""
    surplus = value.numel() - wanted
    if surplus <= 0:
        return torch.ones_like(value, dtype=torch.bool)
    border = value.kthvalue(surplus).values
    keep = value > border
    missing = wanted - int(keep.sum())
    if missing > 0:
        keep[(value == border).nonzero().squeeze(1)[:missing]] = True
    return keep


class LearnedThreshold(_Plain):
    """JumpReLU, thresholds learned through a rectangle of width `bandwidth` (Rajamanoharan et al. 2024b,
    arXiv:2407.14435), parametrised directly: under Adam the logarithm of a threshold hardly moves."""

    start_l0: PositiveFloat = 64.0
    bandwidth: PositiveFloat = 2.0

    def start(self, quantile: Float[Tensor, " n_features"]) -> tuple[Tensor, Learned]:
        """No bias; the thresholds are the quantiles."""
        return torch.zeros_like(quantile), {"threshold": quantile.clamp_min(self.bandwidth)}

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:  # noqa: ARG002
        """Down to half a bandwidth under the threshold."""
        return pre.above((learned["threshold"].detach() - self.bandwidth / 2).clamp_min(0))

    def activate(self, found: Firings, pre: Float[Tensor, " n_firings"], learned: Learned) -> Tensor:
        """∂f/∂pre = 1 where it fires; ∂f/∂threshold = −threshold/bandwidth inside the rectangle."""
        threshold = learned["threshold"][found.feature]
        away = pre.detach() - threshold.detach()
        slope = torch.where(away.abs() < self.bandwidth / 2, -threshold.detach() / self.bandwidth, 0.0)
        return pre * (away > 0) + slope * (threshold - threshold.detach())

    def counted(self, found: Firings, pre: Float[Tensor, " n_firings"], learned: Learned) -> Tensor:
        """The step function itself, Σ of which is L0: ∂/∂threshold = −1/bandwidth inside the rectangle."""
        threshold = learned["threshold"][found.feature]
        away = pre.detach() - threshold.detach()
        slope = torch.where(away.abs() < self.bandwidth / 2, torch.full_like(away, -1 / self.bandwidth), 0.0)
        return (away > 0) + slope * (threshold - threshold.detach())

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:  # noqa: ARG002
        """JumpReLU with what was learned."""
        return JumpReLU(threshold=learned["threshold"].detach().clamp_min(0) * unit)


class LearnedGate(_Plain):
    """A gate that decides what fires and a magnitude of its own (Rajamanoharan et al. 2024a, arXiv:2404.16014)."""

    start_l0: PositiveFloat = 64.0

    def start(self, quantile: Float[Tensor, " n_features"]) -> tuple[Tensor, Learned]:
        """The gate is biased to be sparse; the magnitude starts without a bias."""
        return -quantile, {"r_mag": torch.zeros_like(quantile), "b_mag": torch.zeros_like(quantile)}

    def candidates(self, pre: Preactivations, learned: Learned, floor: float) -> Firings:  # noqa: ARG002
        """Where the gate is open."""
        return pre.above(torch.zeros_like(pre.bias))

    def activate(self, found: Firings, pre: Float[Tensor, " n_firings"], learned: Learned) -> Tensor:
        """The gate passes no gradient, nor does its bias: they learn from the objective's terms on pre."""
        r_mag, b_mag, b_enc = (learned[name][found.feature] for name in ("r_mag", "b_mag", "b_enc"))
        return ((pre - b_enc) * r_mag.exp() + b_mag).relu()

    def published(self, learned: Learned, threshold: float, unit: float) -> Nonlinearity:  # noqa: ARG002
        """Gated, whose magnitude reads a pre that has the gate's bias in it."""
        r_mag, b_mag, b_enc = (learned[name].detach() for name in ("r_mag", "b_mag", "b_enc"))
        return Gated(r_mag=r_mag.clone(), b_mag=(b_mag - b_enc * r_mag.exp()) * unit)


def check_trainable(nonlinearity: Trainable, n_features: int) -> None:
    """Raises ConfigError where the width cannot serve."""
    nonlinearity.check(n_features)
    if nonlinearity.start_l0 is not None and nonlinearity.start_l0 >= n_features:
        raise ConfigError(
            f"start_l0={nonlinearity.start_l0} firings a token of {n_features} features; fewer are wanted: lower it"
        )
