"""How to train: what is configured, and everything that is derived from it before the first step."""

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from saelib.base import Frozen
from saelib.errors import ConfigError
from saelib.preactivations import fast_product

__all__ = ["TrainingConfig", "TrainingPlan"]


N_TOKENS = 1_000_000


def usual_batch(chosen: dict[str, Any]) -> int:
    """A power of two, 512 … 4,096, for about 2,000 steps: in short runs their number decides (docs/quality.md)."""
    n_tokens: int = chosen.get("n_tokens", N_TOKENS)  # absent where it was refused
    return 1 << min(12, max(9, (n_tokens // 2000 + 1).bit_length() - 1))


class TrainingConfig(Frozen):
    """How to train. What is None is derived (`TrainingPlan`) and stored with the run."""

    n_tokens: PositiveInt = N_TOKENS
    batch_tokens: PositiveInt = Field(default_factory=usual_batch)
    """512 for a run of a million tokens, 4,096 from 8.2 million on, unless it is set."""
    learning_rate: PositiveFloat | None = None
    warmup_share: NonNegativeFloat = 0.05
    decay_share: NonNegativeFloat = 0.2
    sparsity_warmup_share: NonNegativeFloat = 0.05
    start_k_multiple: PositiveFloat = 1.0
    """k starts so many times as large and comes down over the sparsity warm-up."""
    dead_after_tokens: PositiveInt = 10_000_000
    resample_every_steps: PositiveInt | None = None
    """Dead features start again along the worst errors (Bricken et al. 2023); None leaves them to AuxK."""
    gradient_norm: PositiveFloat = 1.0
    center: Literal["mean", "geometric_median"] = "mean"
    """What b_dec starts from, over the initial sample."""
    product: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the product that chooses features; weights and values are float32 in any case."""
    stream: bool = False
    """Train straight from the language model, holding one shard at a time, with nothing on disk."""
    checkpoint_every_steps: PositiveInt = 200
    seed: int = 0

    def resolved_product(self, device: str) -> str:
        """`auto` is bfloat16 where the device multiplies it in hardware, else float32."""
        return str(fast_product(device)).removeprefix("torch.") if self.product == "auto" else self.product


class TrainingPlan(NamedTuple):
    """Everything derived from the configuration before the first step."""

    n_steps: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    sparsity_warmup_steps: int
    dead_after_tokens: int
    threshold_from_step: int
    threshold_keep: float
    product: str

    @classmethod
    def resolve(cls, config: TrainingConfig, n_features: int, device: str = "cpu") -> "TrainingPlan":
        """Learning rate by width and length (`usual_rate`); dead window at most a tenth of the run."""
        n_steps = config.n_tokens // config.batch_tokens
        if n_steps < 1:
            raise ConfigError(
                f"training on {config.n_tokens} tokens in batches of {config.batch_tokens} is no step at all; "
                "raise n_tokens or lower batch_tokens"
            )
        return cls(
            n_steps=n_steps,
            learning_rate=config.learning_rate or usual_rate(n_features, n_steps),
            warmup_steps=min(1000, round(config.warmup_share * n_steps)),
            decay_steps=round(config.decay_share * n_steps),
            sparsity_warmup_steps=round(config.sparsity_warmup_share * n_steps),
            dead_after_tokens=min(config.dead_after_tokens, config.n_tokens // 10),
            threshold_from_step=n_steps // 5,
            threshold_keep=min(0.999, max(0.9, 1 - 10 / n_steps)),
            product=config.resolved_product(device),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the product that chooses features."""
        chosen: torch.dtype = getattr(torch, self.product)
        return chosen

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, flat, linear decay to zero."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        down = min(1.0, (self.n_steps - step) / (self.decay_steps + 1))
        return self.learning_rate * up * down

    def ramp(self, step: int) -> float:
        """Sparsity warm-up, 0 → 1."""
        return min(1.0, (step + 1) / (self.sparsity_warmup_steps + 1))


def usual_rate(n_features: int, n_steps: int) -> float:
    """2e-4 / sqrt(n_features / 2^14) for long runs (Gao et al. 2024); up to 12 times that for short ones.

    The factor is measured: runs of 250 to 2,000 steps end best at about ten times the rule.
    """
    return 2e-4 / math.sqrt(n_features / 2**14) * min(12.0, max(1.0, 12.0 * math.sqrt(2000 / n_steps)))
