"""Terms of a training loss. Each is a value with a weight; an objective is their sum.

Errors are divided by E‖y − ȳ‖² of the initial sample, one constant, so that weights and learning rate carry over
between sites.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from saelib.base import Frozen
from saelib.sparse import firings_at
from saelib.trainee import Pass, decode_firings, encode_firings

__all__ = ["L1", "AuxK", "Objective", "Reconstruction", "Term"]


@runtime_checkable
class Term(Protocol):
    """One summand. `ramp` goes from 0 to 1 over the sparsity warm-up."""

    @property
    def name(self) -> str: ...

    def __call__(self, step: Pass, ramp: float) -> Tensor: ...


Objective = tuple[Term, ...]


class Reconstruction(Frozen):
    """E‖y − ŷ‖² / E‖y − ȳ‖²: the training batch's estimate of FVU."""

    name: str = "reconstruction"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Mean over tokens."""
        return (step.y - step.y_hat).square().sum(dim=1).mean() / step.variance


class L1(Frozen):
    """weight · E Σ f, on the scale of ‖y − ŷ‖²; with unit decoder rows this is the norm-weighted L1.

    Source: Anthropic, "Update on how we train SAEs", April 2024 (E‖x‖² = d, weight about 5, warm-up over 5 %).
    """

    weight: float = 5.0
    name: str = "l1"

    def __call__(self, step: Pass, ramp: float) -> Tensor:
        """Mean over tokens."""
        return ramp * self.weight * step.value.sum() / (step.y.shape[0] * step.variance)


class AuxK(Frozen):
    """weight · E‖e − ê‖² / E‖y − ȳ‖²: the strongest k_aux dead features reconstruct the error e = y − ŷ.

    ê has no bias (a residual has no mean to explain), the target is detached, the gradient reaches the encoder.
    k_aux is half the width of the site. Source: Gao et al. 2024 (arXiv:2406.04093) sec. A.2.
    """

    weight: float = 1 / 32
    name: str = "auxk"

    def __call__(self, step: Pass, ramp: float) -> Tensor:  # noqa: ARG002
        """Zero while no feature is dead."""
        if step.dead.numel() == 0:
            return step.y.new_zeros(())
        error = (step.y - step.y_hat).detach()
        k_aux = min(step.y.shape[1] // 2, step.dead.numel())
        chosen = step.pre[:, step.dead].topk(k_aux, dim=1, sorted=False).indices
        feature = step.dead[chosen].sort(dim=1).values
        offsets = torch.arange(feature.shape[0], device=feature.device).unsqueeze(1) * step.pre.shape[1]
        flat = (feature + offsets).flatten()
        firings = firings_at(flat[step.pre.view(-1)[flat] > 0], step.pre)
        if firings.feature.numel() == 0:
            return step.y.new_zeros(())
        value, by = encode_firings(step.trainee, step.x, firings)
        missing = error - decode_firings(step.trainee, value, firings, by)
        return self.weight * missing.square().sum(dim=1).mean() / step.variance
