"""One training loop for every recipe. It yields progress, saves its whole state, and resumes exactly.

A batch is a function of the step alone, and so is the learning rate: killed at any step and resumed from a checkpoint,
the run continues as if it had never stopped, bit for bit on the same kind of CPU with the same number of threads.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from saelib.architectures import Recipe
from saelib.base import Ends, Frozen
from saelib.errors import CheckpointError, ConfigError
from saelib.sae import SAE
from saelib.sparse import Firings
from saelib.trainee import Pass, Trainee, decode_firings, encode_firings

__all__ = ["THRESHOLD_MARGIN", "Batches", "Progress", "Training", "TrainingConfig", "TrainingPlan"]


THRESHOLD_MARGIN = 0.04
"""The learned threshold drops this share of a batch's firings (Bussmann et al. 2024 take the very smallest). Text that
was not trained on fires a few per cent more often; with the margin a published SAE keeps at most k features there."""

_ADAM = ("step", "exp_avg", "exp_avg_sq")
_SCALARS = ("step", "floor", "threshold", "scale", "variance")
"""What a checkpoint holds of the optimiser, for each parameter, and of the run."""


class TrainingConfig(Frozen):
    """How to train. What is None is derived (`TrainingPlan`) and stored with the run."""

    n_tokens: PositiveInt = 1_000_000
    batch_tokens: PositiveInt = 4096
    learning_rate: PositiveFloat | None = None
    warmup_share: NonNegativeFloat = 0.05
    decay_share: NonNegativeFloat = 0.2
    sparsity_warmup_share: NonNegativeFloat = 0.05
    dead_after_tokens: PositiveInt = 10_000_000
    gradient_norm: PositiveFloat = 1.0
    checkpoint_every_steps: PositiveInt = 200
    seed: int = 0


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

    @classmethod
    def resolve(cls, config: TrainingConfig, n_features: int) -> "TrainingPlan":
        """Learning rate 2e-4 / sqrt(n_features / 2^14) (Gao et al. 2024); dead window at most a tenth of the run."""
        n_steps = config.n_tokens // config.batch_tokens
        if n_steps < 1:
            raise ConfigError(
                f"training on {config.n_tokens} tokens in batches of {config.batch_tokens} is no step at all; "
                "raise n_tokens or lower batch_tokens"
            )
        return cls(
            n_steps=n_steps,
            learning_rate=config.learning_rate or 2e-4 / math.sqrt(n_features / 2**14),
            warmup_steps=min(1000, round(config.warmup_share * n_steps)),
            decay_steps=round(config.decay_share * n_steps),
            sparsity_warmup_steps=round(config.sparsity_warmup_share * n_steps),
            dead_after_tokens=min(config.dead_after_tokens, config.n_tokens // 10),
            threshold_from_step=n_steps // 5,
            threshold_keep=min(0.999, max(0.9, 1 - 10 / n_steps)),
        )

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, flat, linear decay to zero."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        down = min(1.0, (self.n_steps - step) / (self.decay_steps + 1))
        return self.learning_rate * up * down

    def ramp(self, step: int) -> float:
        """Sparsity warm-up, 0 → 1."""
        return min(1.0, (step + 1) / (self.sparsity_warmup_steps + 1))


@runtime_checkable
class Batches(Protocol):
    """Raw activations: batch `step`, the same whenever it is asked for, and a sample that fixes scale and mean."""

    def batch(self, step: int) -> Float[Tensor, "batch d"]: ...

    def sample(self) -> Float[Tensor, "sample d"]: ...


class Progress(NamedTuple):
    """What one step of training looked like."""

    step: int
    n_tokens: int
    loss: float
    loss_terms: dict[str, float]
    l0: float
    fvu: float
    dead_share: float
    learning_rate: float


class Training:
    """A run: the trainee, its optimiser, and the counters that an exact resume needs.

    Dead counters live here, in tokens. `floor` is what the step before taught: where to look for firings.
    """

    def __init__(self, recipe: Recipe, config: TrainingConfig, batches: Batches) -> None:
        self.recipe, self.config, self.batches = recipe, config, batches
        self.plan = TrainingPlan.resolve(config, recipe.n_features)
        sample = batches.sample().float()
        mean_square = sample.square().sum(dim=1).mean().item()
        if not math.isfinite(mean_square) or mean_square <= 0:
            raise ConfigError(f"activations have a mean square norm of {mean_square}; a positive finite one is wanted")
        self.scale = math.sqrt(sample.shape[1] / mean_square)
        scaled = sample * self.scale
        mean = scaled.mean(dim=0)
        self.variance = (scaled - mean).square().sum(dim=1).mean().item()
        self.trainee = Trainee(recipe.n_features, mean, recipe.nonlinearity, config.seed).to(sample.device)
        self.optimizer = torch.optim.Adam(self.trainee.parameters(), lr=self.plan.learning_rate, fused=True)
        self.step = 0
        self.tokens_since_fired = torch.zeros(recipe.n_features, dtype=torch.int64, device=sample.device)
        self.floor = 0.0
        self.threshold = 0.0
        self._pre = torch.empty(config.batch_tokens, recipe.n_features, device=sample.device)

    @property
    def n_tokens(self) -> int:
        """Tokens seen so far."""
        return self.step * self.config.batch_tokens

    def run(self) -> Iterator[Progress]:
        """Train to the end from wherever the state is."""
        while self.step < self.plan.n_steps:
            yield self.advance()

    def advance(self) -> Progress:
        """One step."""
        x = self.batches.batch(self.step).float() * self.scale
        trainee, plan = self.trainee, self.plan
        pre = trainee.pre(x, out=self._pre)
        firings = trainee.nonlinearity.fire(pre, self.floor)
        value, by = encode_firings(trainee, x, firings)
        y_hat = decode_firings(trainee, value, firings, by) + trainee.b_dec
        dead = (self.tokens_since_fired > plan.dead_after_tokens).nonzero().squeeze(1)
        done = Pass(trainee, x, x, y_hat, pre, value, firings, dead, self.variance)
        terms = {term.name: term(done, plan.ramp(self.step)) for term in self.recipe.objective}
        loss = torch.stack(list(terms.values())).sum()
        rate = plan.rate(self.step)
        self._descend(loss, rate)
        self._count(firings)
        error = (x - y_hat.detach()).square().sum(dim=1).mean().item()
        progress = Progress(
            step=self.step,
            n_tokens=self.n_tokens + x.shape[0],
            loss=loss.item(),
            loss_terms={name: term.item() for name, term in terms.items()},
            l0=firings.l0(),
            fvu=error / self.variance,
            dead_share=dead.numel() / self.recipe.n_features,
            learning_rate=rate,
        )
        self.step += 1
        return progress

    def _descend(self, loss: Tensor, rate: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.trainee.remove_parallel_gradient()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), self.config.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.trainee.keep_unit_rows()

    def _count(self, firings: Firings) -> None:
        self.tokens_since_fired += firings.n_tokens
        self.tokens_since_fired[firings.feature] = 0
        if firings.value.numel() == 0:
            return
        self.floor = 0.9 * firings.value.min().item()
        if self.step >= self.plan.threshold_from_step:
            rank = max(1, round(THRESHOLD_MARGIN * firings.value.numel()))
            weakest = firings.value.kthvalue(rank).values.item()
            keep = self.plan.threshold_keep if self.threshold > 0 else 0.0
            self.threshold = keep * self.threshold + (1 - keep) * weakest

    def published(self, ends: Ends) -> SAE:
        """The SAE as it stands, on raw activations."""
        return self.trainee.published(self.scale, self.threshold, ends, self.recipe.architecture)

    def save(self) -> bytes:
        """The whole state as one safetensors file."""
        tensors = {f"weight.{name}": tensor.detach() for name, tensor in self.trainee.named_parameters()}
        for name, parameter in self.trainee.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = tensor
        tensors["tokens_since_fired"] = self.tokens_since_fired
        scalars = {name: getattr(self, name) for name in _SCALARS}
        packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return save(packed, metadata={"state": json.dumps(scalars)})

    def restore(self, path: Path) -> None:
        """Continue from what `save` returned. Raises CheckpointError where the file is damaged or of another run."""
        try:
            with safe_open(path, framework="pt") as file:
                scalars = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises several kinds, all meaning the same to us
            raise CheckpointError(
                f"cannot read the checkpoint {path}: {error}; delete it to train from the start"
            ) from error
        self._check_fits(path, tensors, scalars)
        for name, parameter in self.trainee.named_parameters():
            parameter.data.copy_(tensors[f"weight.{name}"])
            if scalars["step"] > 0:
                adam = {key: tensors[f"adam.{name}.{key}"].to(parameter.device, copy=True) for key in _ADAM}
                self.optimizer.state[parameter] = adam
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        for name in _SCALARS:
            setattr(self, name, scalars[name])

    def _check_fits(self, path: Path, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        wanted = {"tokens_since_fired": tuple(self.tokens_since_fired.shape)}
        for name, parameter in self.trainee.named_parameters():
            wanted[f"weight.{name}"] = tuple(parameter.shape)
            if scalars.get("step", 0) > 0:
                wanted |= {f"adam.{name}.{key}": () if key == "step" else tuple(parameter.shape) for key in _ADAM}
        for name, shape in wanted.items():
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != shape:
                raise CheckpointError(f"{path} holds {name} of shape {got}, {shape} is wanted; delete it to start anew")
        if missing := [name for name in _SCALARS if name not in scalars]:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}; delete it to train from the start")
