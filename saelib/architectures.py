"""Recipes: an architecture is a choice on three axes (ends, nonlinearity, objective), a few lines each."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from saelib.errors import ConfigError
from saelib.nonlinearity import BatchTopK, Nonlinearity, ReLU, TopK
from saelib.objective import L1, AuxK, Objective, Reconstruction

__all__ = ["ARCHITECTURES", "Recipe", "recipe"]


class Recipe(NamedTuple):
    """A model choice, ready to be trained at a site."""

    architecture: str
    n_features: int
    nonlinearity: Nonlinearity
    objective: Objective


def standard(n_features: int, l1_weight: float = 5.0) -> Recipe:
    """ReLU and an L1 penalty on an encoder that reads x − b_dec (Bricken et al. 2023; Anthropic, April 2024)."""
    return Recipe("standard", n_features, ReLU(), (Reconstruction(), L1(weight=l1_weight)))


def topk(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """Exactly k features a token, dead ones revived by AuxK (Gao et al. 2024, arXiv:2406.04093)."""
    return Recipe("topk", n_features, TopK(k=k), (Reconstruction(), AuxK(weight=auxk_weight)))


def batchtopk(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """k features a token on average over a batch; at inference a learned threshold (Bussmann et al. 2024)."""
    return Recipe("batchtopk", n_features, BatchTopK(k=k), (Reconstruction(), AuxK(weight=auxk_weight)))


ARCHITECTURES: dict[str, Callable[..., Recipe]] = {"batchtopk": batchtopk, "standard": standard, "topk": topk}


def recipe(architecture: str, **settings: Any) -> Recipe:
    """The recipe of that name. Raises ConfigError that names the nearest known architecture or setting."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(_unknown("architecture", architecture, ARCHITECTURES))
    known = inspect.signature(ARCHITECTURES[architecture]).parameters
    for key in settings:
        if key not in known:
            raise ConfigError(_unknown(f"setting of {architecture}", key, known))
    if "n_features" not in settings:
        raise ConfigError(
            f"a recipe needs n_features, the number of directions to learn; {architecture} got {settings}"
        )
    made = ARCHITECTURES[architecture](**settings)
    made.nonlinearity.check(made.n_features)
    return made


def _unknown(what: str, got: str, known: Any) -> str:
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.0)
    return f"unknown {what} {got!r}; known are {', '.join(known)}. Did you mean {near[0]!r}?"
