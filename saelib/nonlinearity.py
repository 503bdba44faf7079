"""From pre-activations to firings, a token at a time: what a published SAE does. `trainable` has the forms that learn.

Each kind says how it is written down: its settings go into sae.json, its tensors beside the weights.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from saelib.base import Frozen
from saelib.errors import CheckpointError, ConfigError, ShapeError
from saelib.preactivations import Preactivations
from saelib.sparse import Firings

__all__ = [
    "KINDS",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "Nonlinearity",
    "ReLU",
    "TopK",
    "check_k",
    "nonlinearity_from",
    "settings_of",
    "tensors_of",
]


@runtime_checkable
class Nonlinearity(Protocol):
    """pre [n_tokens, n_features] → firings."""

    def fire(self, pre: Preactivations) -> Firings: ...

    def check(self, n_features: int) -> None:
        """Raises ConfigError or ShapeError where it cannot serve an SAE of that width."""


class ReLU(Frozen):
    """f = max(pre, 0)."""

    def fire(self, pre: Preactivations) -> Firings:
        """Every positive pre-activation fires."""
        return pre.above(torch.zeros_like(pre.bias))

    def check(self, n_features: int) -> None:
        """Any width will do."""


class TopK(Frozen):
    """f keeps a token's k largest pre-activations, where they are positive (Gao et al. 2024, arXiv:2406.04093)."""

    k: int

    def fire(self, pre: Preactivations) -> Firings:
        """The k largest of each token."""
        return pre.largest(self.k)

    def check(self, n_features: int) -> None:
        """Raises ConfigError where k features cannot be chosen."""
        check_k(self.k, n_features, "TopK")


class GroupMax(Frozen):
    """f keeps the largest of each of k contiguous groups of features, where it is positive (sparsify's groupmax)."""

    k: PositiveInt

    def fire(self, pre: Preactivations) -> Firings:
        """One feature of each group."""
        return pre.largest_of_groups(self.k)

    def check(self, n_features: int) -> None:
        """Raises ConfigError where the features do not make k groups of one size."""
        check_k(self.k, n_features, "GroupMax")
        if n_features % self.k:
            raise ConfigError(f"GroupMax makes k={self.k} groups of one size, which {n_features} features do not give")


class _WithTensors(Frozen):
    model_config = {**Frozen.model_config, "arbitrary_types_allowed": True}

    def check(self, n_features: int) -> None:
        """Raises ShapeError where a tensor has not one entry a feature."""
        for name, tensor in tensors_of(self).items():
            if tuple(tensor.shape) != (n_features,):
                raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; ({n_features},) is wanted, one a feature")


class JumpReLU(_WithTensors):
    """f = pre where pre > max(threshold of the feature, 0), else 0 (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

    threshold: Tensor

    def fire(self, pre: Preactivations) -> Firings:
        """Everything above its threshold; f is never negative."""
        return pre.above(self.threshold.clamp_min(0))


class Gated(_WithTensors):
    """f = 1[pre > 0] · max(pre · exp(r_mag) + b_mag, 0), pre with the gate's bias (Rajamanoharan et al. 2024,
    arXiv:2404.16014; the paper's magnitude bias is b_mag + b_enc · exp(r_mag))."""

    r_mag: Tensor
    b_mag: Tensor

    def fire(self, pre: Preactivations) -> Firings:
        """Where the gate is open and the magnitude positive."""
        gate = pre.above(torch.zeros_like(pre.bias))
        value = gate.value * self.r_mag.exp()[gate.feature] + self.b_mag[gate.feature]
        return gate._replace(value=value).where(value > 0)


KINDS: dict[str, type[Frozen]] = {kind.__name__: kind for kind in (ReLU, TopK, GroupMax, JumpReLU, Gated)}


def tensors_of(nonlinearity: Any) -> dict[str, Float[Tensor, " n"]]:
    """Its tensors by name: they move with the weights and are kept beside them."""
    return {name: value for name, value in nonlinearity if isinstance(value, Tensor)}


def settings_of(nonlinearity: Any) -> dict[str, Any]:
    """What a file says of it: its kind and its numbers. Raises ConfigError for a form that is for training only."""
    kind = type(nonlinearity).__name__
    if kind not in KINDS:
        raise ConfigError(f"{kind} is a training form and is not kept; publish it first, as one of {', '.join(KINDS)}")
    numbers = {name: value for name, value in nonlinearity if not isinstance(value, Tensor)}
    return {"kind": kind, **numbers}


def nonlinearity_from(settings: dict[str, Any], tensors: dict[str, Tensor]) -> Nonlinearity:
    """What `settings_of` and `tensors_of` told of. Raises CheckpointError that names what is unknown or missing."""
    kind = settings.get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"unknown nonlinearity {kind!r}; known are {', '.join(KINDS)}")
    numbers = {name: value for name, value in settings.items() if name != "kind"}
    wanted = [name for name, field in KINDS[kind].model_fields.items() if field.annotation is Tensor]
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"a {kind} SAE lacks {', '.join(missing)}; there are {sorted(tensors)}: restore the file")
    made = KINDS[kind].model_validate(numbers | {name: tensors[name] for name in wanted})
    assert isinstance(made, Nonlinearity)
    return made


def check_k(k: int, n_features: int, name: str) -> None:
    """Raises ConfigError where k of n_features cannot be chosen."""
    if not 0 < k < n_features:
        raise ConfigError(
            f"{name} keeps k={k} features a token but the SAE has n_features={n_features}; "
            "0 < k < n_features is wanted: lower k or widen the SAE"
        )
