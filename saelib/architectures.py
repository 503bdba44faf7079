"""Recipes: an architecture is a choice on three axes (ends, nonlinearity, objective), a few lines each."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from saelib.errors import ConfigError
from saelib.objective import L0, L1, AuxK, GateReconstruction, Objective, Reconstruction, SilentPre, TanhL0
from saelib.trainable import (
    BatchTopK,
    LearnedGate,
    LearnedReLU,
    LearnedThreshold,
    LearnedTopK,
    Trainable,
    check_trainable,
)

__all__ = ["ARCHITECTURES", "Recipe", "recipe"]


class Recipe(NamedTuple):
    """A model choice, ready to be trained at a site."""

    architecture: str
    n_features: int
    nonlinearity: Trainable
    objective: Objective
    prefixes: tuple[float, ...] = (1.0,)
    """Shares of the features that must reconstruct by themselves, increasing to 1."""
    skip: bool = False
    """Whether a linear map of what is read is added to what is written."""

    def edges(self) -> tuple[int, ...]:
        """Prefixes as numbers of features."""
        return (*(max(1, round(share * self.n_features)) for share in self.prefixes[:-1]), self.n_features)


def standard(n_features: int, l1_weight: float = 5.0, auxk_weight: float = 1 / 32, start_l0: float = 64.0) -> Recipe:
    """ReLU and an L1 penalty on an encoder that reads x − b_dec (Bricken et al. 2023; Anthropic, April 2024)."""
    objective = (Reconstruction(), L1(weight=l1_weight), AuxK(weight=auxk_weight))
    return Recipe("standard", n_features, LearnedReLU(start_l0=start_l0), objective)


def gated(n_features: int, l1_weight: float = 5.0, auxk_weight: float = 1 / 32, start_l0: float = 64.0) -> Recipe:
    """A gate under an L1 penalty and a magnitude that escapes it (Rajamanoharan et al. 2024a, arXiv:2404.16014)."""
    objective = (Reconstruction(), L1(weight=l1_weight), GateReconstruction(), AuxK(weight=auxk_weight))
    return Recipe("gated", n_features, LearnedGate(start_l0=start_l0), objective)


def topk(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """Exactly k features a token, dead ones revived by AuxK (Gao et al. 2024, arXiv:2406.04093)."""
    return Recipe("topk", n_features, LearnedTopK(k=k), (Reconstruction(), AuxK(weight=auxk_weight)))


def batchtopk(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """k features a token on average over a batch; at inference a learned threshold (Bussmann et al. 2024)."""
    return Recipe("batchtopk", n_features, BatchTopK(k=k), (Reconstruction(), AuxK(weight=auxk_weight)))


def jumprelu(  # noqa: PLR0913
    n_features: int,
    k: int = 32,
    loss: Literal["target", "step", "tanh"] = "target",
    l0_weight: float | None = None,
    bandwidth: float = 2.0,
    auxk_weight: float = 1 / 32,
) -> Recipe:
    """A learned threshold a feature, straight-through (Rajamanoharan et al. 2024b, arXiv:2407.14435).

    `loss`: "target" drives L0 to k, "step" weighs L0, "tanh" weighs Σ tanh(f) and lifts dead features (Anthropic,
    January 2025); with the last two `k` is only where L0 starts from (twice k).
    """
    weight = {} if l0_weight is None else {"weight": l0_weight}
    losses: dict[str, Objective] = {
        "target": (L0(target=k, **weight),),
        "step": (L0(**({"weight": 1e-3} | weight)),),
        "tanh": (TanhL0(**weight), SilentPre()),
    }
    if loss not in losses:
        raise ConfigError(_unknown("loss of jumprelu", loss, losses))
    nonlinearity = LearnedThreshold(start_l0=2.0 * k, bandwidth=bandwidth)
    return Recipe("jumprelu", n_features, nonlinearity, (Reconstruction(), *losses[loss], AuxK(weight=auxk_weight)))


def matryoshka(
    n_features: int,
    k: int = 32,
    prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0),
    auxk_weight: float = 1 / 32,
) -> Recipe:
    """BatchTopK whose first features must reconstruct alone: nested SAEs in one (Bussmann et al. 2025,
    arXiv:2503.17547)."""
    shares = tuple(float(share) for share in prefixes)
    if not shares or shares[-1] != 1 or list(shares) != sorted(set(shares)) or shares[0] <= 0:
        raise ConfigError(f"prefixes {list(prefixes)} are no increasing shares that end at 1, as [0.25, 0.5, 1.0] is")
    objective = (Reconstruction(weights=shares), AuxK(weight=auxk_weight))
    return Recipe("matryoshka", n_features, BatchTopK(k=k), objective, prefixes=shares)


def transcoder(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """Reads one site and writes another, a sparse stand-in for what lies between (Dunefsky et al. 2024,
    arXiv:2406.11944), with TopK."""
    return topk(n_features, k, auxk_weight)._replace(architecture="transcoder")


def skip_transcoder(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """A transcoder beside a linear map from what is read to what is written (Paulo et al. 2025, arXiv:2501.18823)."""
    return topk(n_features, k, auxk_weight)._replace(architecture="skip_transcoder", skip=True)


def crosscoder(n_features: int, k: int = 32, auxk_weight: float = 1 / 32) -> Recipe:
    """One set of features for several sites at once (Lindsey et al. 2024, "Sparse crosscoders"), with BatchTopK."""
    return batchtopk(n_features, k, auxk_weight)._replace(architecture="crosscoder")


ARCHITECTURES: dict[str, Callable[..., Recipe]] = {
    make.__name__: make
    for make in (batchtopk, crosscoder, gated, jumprelu, matryoshka, skip_transcoder, standard, topk, transcoder)
}


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
    check_trainable(made.nonlinearity, made.n_features)
    return made


def _unknown(what: str, got: str, known: Any) -> str:
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.0)
    return f"unknown {what} {got!r}; known are {', '.join(known)}. Did you mean {near[0]!r}?"
