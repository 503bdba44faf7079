"""Terms of a training loss. Each is a value with a weight; an objective is their sum.

Errors are divided by E‖y − ȳ‖² of the initial sample, one constant, so that weights and learning rate carry over
between sites.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from saelib.base import Frozen
from saelib.sparse import ByFeature
from saelib.trainable import LearnedThreshold
from saelib.trainee import Pass, decode_firings, encode_firings

__all__ = ["L0", "L1", "AuxK", "GateReconstruction", "Objective", "Reconstruction", "SilentPre", "TanhL0", "Term"]


@runtime_checkable
class Term(Protocol):
    """One summand. `ramp` goes from 0 to 1 over the sparsity warm-up."""

    @property
    def name(self) -> str: ...

    def __call__(self, step: Pass, ramp: float) -> Tensor: ...


Objective = tuple[Term, ...]


class Reconstruction(Frozen):
    """E‖y − ŷ‖² / E‖y − ȳ‖², the training batch's estimate of FVU; of nested prefixes a mean with these weights."""

    weights: tuple[PositiveFloat, ...] = (1.0,)
    name: str = "reconstruction"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Mean over tokens."""
        error = step.errors.mean(dim=1)
        weights = error.new_tensor(self.weights)
        return (weights @ error) / (weights.sum() * step.variance)


class L1(Frozen):
    """weight · sqrt(d / 4096) · E Σ max(pre, 0), on the scale of ‖y − ŷ‖²; with unit decoder rows the norm-weighted L1.

    Source: Anthropic, "Update on how we train SAEs", April 2024 (E‖x‖² = d, weight about 5, warm-up over 5 %), there
    for models some thousands wide. The error grows with d and f with its root, so the weight must follow: 5 as it
    stands leaves an SAE of 64 dimensions an L0 of 2. With a gate the penalty lies on what opens it (Rajamanoharan et
    al. 2024a, arXiv:2404.16014).
    """

    weight: NonNegativeFloat = 5.0
    name: str = "l1"

    def __call__(self, step: Pass, ramp: float) -> Tensor:
        """Mean over tokens."""
        weight = self.weight * math.sqrt(step.y.shape[1] / 4096)
        return ramp * weight * step.pre.sum() / (step.y.shape[0] * step.variance)


class GateReconstruction(Frozen):
    """E‖y − ŷ(max(pre, 0))‖² / E‖y − ȳ‖² through a frozen decoder: the gate must reconstruct as well.

    Source: Rajamanoharan et al. 2024a (arXiv:2404.16014), whose decoder is detached in this term.
    """

    name: str = "gate_reconstruction"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Mean over tokens."""
        y_hat = decode_firings(step.trainee, step.pre, step.found, step.by, learns=False)
        return _mean_square(step.y - y_hat - step.trainee.b_dec.detach()) / step.variance


class L0(Frozen):
    """weight · E L0, or with a target weight · (E L0 / target − 1)²; its gradient reaches the thresholds alone.

    Sources: Rajamanoharan et al. 2024b (arXiv:2407.14435) for the plain form; the target form is that of the
    dictionary_learning and Gemma Scope 2 trainers, and needs no weight to be tuned.
    """

    weight: NonNegativeFloat = 1.0
    target: PositiveFloat | None = None
    name: str = "l0"

    def __call__(self, step: Pass, ramp: float) -> Tensor:
        """Mean over tokens."""
        l0 = _thresholded(step).counted(step.found, step.pre, step.trainee.vectors).sum() / step.y.shape[0]
        return ramp * self.weight * (l0 if self.target is None else (l0 / self.target - 1).square())


class TanhL0(Frozen):
    """weight · E Σ tanh(scale · f): an L0 that also pulls small activations down (Anthropic, January 2025)."""

    weight: NonNegativeFloat = 1e-3
    scale: PositiveFloat = 4.0
    name: str = "l0"

    def __call__(self, step: Pass, ramp: float) -> Tensor:
        """Mean over tokens; decoder rows are unit, so that their norm drops out of the formula."""
        return ramp * self.weight * torch.tanh(self.scale * step.value).sum() / step.y.shape[0]


class SilentPre(Frozen):
    """weight · E Σ max(threshold − pre, 0) over dead features: lifts them until they fire (Anthropic, January 2025,
    there over all features; a feature that fires needs no lift)."""

    weight: NonNegativeFloat = 3e-4
    name: str = "silent_pre"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Mean over tokens. A dead feature is silent on nearly all of them, so its mean pre says it all."""
        if step.dead.numel() == 0:
            return step.y.new_zeros(())
        trainee, mean = step.trainee, step.x.mean(dim=0) - step.trainee.center
        pre = trainee.encoder_rows[step.dead] @ mean + trainee.b_enc[step.dead]
        missing: Tensor = (trainee.vectors["threshold"][step.dead] - pre).relu().sum()
        return self.weight * missing


class AuxK(Frozen):
    """weight · E‖e − ê‖² / E‖y − ȳ‖²: the strongest k_aux dead features reconstruct the error e = y − ŷ.

    ê has no bias (a residual has no mean to explain), the target is detached, the gradient reaches the encoder.
    k_aux is half the width of the site. Source: Gao et al. 2024 (arXiv:2406.04093) sec. A.2.
    """

    weight: NonNegativeFloat = 1 / 32
    name: str = "auxk"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Zero while no feature is dead."""
        if step.dead.numel() == 0 or self.weight == 0:
            return step.y.new_zeros(())
        found = step.everything.largest_among(step.dead, step.y.shape[1] // 2)
        if found.feature.numel() == 0:
            return step.y.new_zeros(())
        by = ByFeature.of(found)
        value = encode_firings(step.trainee, step.x, found, by)
        missing = (step.y - step.y_hat).detach() - decode_firings(step.trainee, value, found, by)
        return self.weight * _mean_square(missing) / step.variance


def _mean_square(error: Tensor) -> Tensor:
    """Mean over tokens of the squared norm."""
    return error.square().sum(dim=-1).mean()


def _thresholded(step: Pass) -> LearnedThreshold:
    nonlinearity = step.trainee.nonlinearity
    assert isinstance(nonlinearity, LearnedThreshold), "an L0 term counts what exceeds learned thresholds"
    return nonlinearity
