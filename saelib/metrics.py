"""What an SAE is measured by, each defined once. Sums are float64 and can be added up over any pieces of a corpus."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from saelib.errors import ShapeError

__all__ = ["Interval", "fvu", "l0", "loss_recovered", "mean_interval", "ratio_interval"]


class Interval(NamedTuple):
    """A value with a bootstrap interval, and how many tokens (or features) it rests on."""

    value: float
    lower: float
    upper: float
    n: int


def fvu(
    y: Float[Tensor, "n_tokens d"], y_hat: Float[Tensor, "n_tokens d"], mean: Float[Tensor, " d"] | None = None
) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is as good as predicting the mean.

    FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², sums over tokens and dimensions in float64; ȳ is `mean`, or that of `y`.

    Dimensionless; may exceed 1. Raises ShapeError where the variance of `y` is zero.
    Source: Gao et al. 2024 (arXiv:2406.04093) sec. 2; differs from 1 − Var(r)/Var(y), which hides a mean error.
    """
    y64, error = y.double(), (y.double() - y_hat.double()).square().sum()
    total = (y64 - (y64.mean(dim=0) if mean is None else mean.double())).square().sum()
    if total <= 0:
        raise ShapeError("FVU of vectors without variance has no meaning; give at least two different rows")
    return (error / total).item()


def l0(f: Float[Tensor, "n_tokens n_features"]) -> float:
    """Mean number of features with activation > 0 per token."""
    return (f > 0).sum(dim=1).double().mean().item()


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """(CE_ablated − CE_spliced) / (CE_ablated − CE_clean): 1 is as good as the model itself, 0 as the ablation.

    NaN where the ablation costs nothing, so that there is nothing to recover.
    """
    return (ablated - spliced) / (ablated - clean) if ablated != clean else math.nan


def ratio_interval(
    numerator: Float64[np.ndarray, " n_documents"],
    denominator: Float64[np.ndarray, " n_documents"],
    n: int,
    seed: int = 0,
) -> Interval:
    """Σ numerator / Σ denominator with the 95 % bootstrap interval over documents (1,000 resamples)."""
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.multinomial(numerator.size, np.full(numerator.size, 1 / numerator.size), size=1000)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.float64(numerator.sum()) / denominator.sum()
        ratios = (weights @ numerator) / (weights @ denominator)
    ratios = ratios[np.isfinite(ratios)]  # a resample of documents without any token says nothing
    lower, upper = np.quantile(ratios, [0.025, 0.975]) if ratios.size else (np.nan, np.nan)
    return Interval(float(value), float(lower), float(upper), n)


def mean_interval(sums: Float64[np.ndarray, " n_documents"], counts: Float64[np.ndarray, " n_documents"]) -> Interval:
    """A mean per token with its interval over documents."""
    return ratio_interval(sums, counts, int(counts.sum()))
