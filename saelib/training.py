"""One training loop for every recipe. It yields progress, saves its whole state, and resumes exactly.

A batch is a function of the step alone, and so is the learning rate: killed at any step and resumed from a checkpoint,
the run continues as if it had never stopped, bit for bit on the same kind of CPU with the same number of threads.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from saelib.architectures import Recipe
from saelib.base import Ends
from saelib.errors import CheckpointError, ConfigError
from saelib.sae import SAE
from saelib.schedule import TrainingConfig, TrainingPlan
from saelib.sparse import ByFeature
from saelib.trainee import Pass, Scales, Start, Trainee, decode_prefixes, encode_firings, squared_errors

__all__ = ["THRESHOLD_MARGIN", "Batches", "Progress", "Training"]


THRESHOLD_MARGIN = 0.04
"""The learned threshold drops this share of a batch's firings (Bussmann et al. 2024 take the very smallest). Text that
was not trained on fires a few per cent more often; with the margin a published SAE keeps at most k features there."""

_ADAM = ("step", "exp_avg", "exp_avg_sq")
_SCALARS = ("step", "floor", "threshold", "variance")
"""What a checkpoint holds of the optimiser, for each parameter, and of the run."""


@runtime_checkable
class Batches(Protocol):
    """Raw activations, one tensor a site: batch `step`, the same whenever it is asked for, and a sample that fixes
    scale and mean."""

    def batch(self, step: int) -> Sequence[Float[Tensor, "batch _"]]: ...

    def sample(self) -> Sequence[Float[Tensor, "sample _"]]: ...

    def position(self) -> dict[str, int]:
        """What a checkpoint must know of the stream, if anything."""

    def seek(self, position: dict[str, int]) -> None:
        """Told what `position` said when the checkpoint was made."""


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

    `read` and `write` are the places of its sites among those of `batches`. Dead counters live here, in tokens. `floor`
    is what the step before taught: where to look for firings.
    """

    def __init__(  # noqa: PLR0913
        self,
        recipe: Recipe,
        config: TrainingConfig,
        batches: Batches,
        read: Sequence[int] = (0,),
        write: Sequence[int] | None = None,
    ) -> None:
        recipe.nonlinearity.widened(config.start_k_multiple).check(recipe.n_features)
        self.recipe, self.config, self.batches = recipe, config, batches
        self.read, self.write = tuple(read), tuple(read if write is None else write)
        sample = [site.float() for site in batches.sample()]
        self.device = sample[0].device
        self.plan = TrainingPlan.resolve(config, recipe.n_features, self.device.type)
        self.site_scales, self.widths = [_scale(site) for site in sample], [site.shape[1] for site in sample]
        start = self._start(sample)
        self.variance = (start.y - start.y.mean(dim=0)).square().sum(dim=1).mean().item()
        self.trainee = Trainee(recipe.n_features, recipe.nonlinearity, start, config.seed)
        self.optimizer = torch.optim.Adam(self.trainee.parameters(), lr=self.plan.learning_rate, fused=True)
        self.step = 0
        self.tokens_since_fired = torch.zeros(recipe.n_features, dtype=torch.int64, device=self.device)
        self.floor = 0.0
        self.threshold = 0.0

    def _start(self, sample: Sequence[Tensor]) -> Start:
        x, y = self._scaled(sample)
        tied = self.read == self.write
        x_center = _center(x, self.config.center)
        return Start(x, y, x_center, x_center if tied else _center(y, self.config.center), tied, self.recipe.skip)

    def _scaled(self, sites: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What is read and what is written, E‖x‖² = d a site; one tensor where they are the same."""
        x = torch.cat([sites[i].float() * self.site_scales[i] for i in self.read], dim=1)
        if self.read == self.write:
            return x, x
        return x, torch.cat([sites[i].float() * self.site_scales[i] for i in self.write], dim=1)

    @property
    def scales(self) -> Scales:
        """The scale of each site, repeated over its width."""
        wide = [
            torch.full((width,), scale, device=self.device)
            for width, scale in zip(self.widths, self.site_scales, strict=True)
        ]
        return Scales(torch.cat([wide[i] for i in self.read]), torch.cat([wide[i] for i in self.write]))

    @property
    def n_tokens(self) -> int:
        """Tokens seen so far."""
        return self.step * self.config.batch_tokens

    @property
    def done(self) -> bool:
        """Whether the last step has been made."""
        return self.step >= self.plan.n_steps

    def run(self) -> Iterator[Progress]:
        """Train to the end from wherever the state is."""
        while not self.done:
            yield self.advance()

    def advance(self) -> Progress:
        """One step."""
        x, y = self._scaled(self.batches.batch(self.step))
        ramp = self.plan.ramp(self.step)
        made = self._forward(x, y, ramp)
        terms = {term.name: term(made, ramp) for term in self.recipe.objective}
        loss = torch.stack(list(terms.values())).sum()
        rate = self.plan.rate(self.step)
        self._descend(loss, rate)
        l0 = self._count(made)
        error = made.errors[-1].detach()
        self._resample(made, error)
        progress = Progress(
            step=self.step,
            n_tokens=self.n_tokens + x.shape[0],
            loss=loss.item(),
            loss_terms={name: term.item() for name, term in terms.items()},
            l0=l0,
            fvu=error.mean().item() / self.variance,
            dead_share=made.dead.numel() / self.recipe.n_features,
            learning_rate=rate,
        )
        self.step += 1
        return progress

    def _forward(self, x: Tensor, y: Tensor, ramp: float) -> Pass:
        trainee = self.trainee
        multiple = 1 + (self.config.start_k_multiple - 1) * (1 - ramp)
        everything = trainee.pre(x, self.plan.dtype)
        found = trainee.nonlinearity.widened(multiple).candidates(everything, trainee.vectors, self.floor)
        by = ByFeature.of(found)
        pre = encode_firings(trainee, x, found, by)
        value = trainee.nonlinearity.activate(found, pre, trainee.vectors)
        y_hats = decode_prefixes(trainee, value, found, by, self.recipe.edges()) + trainee.b_dec
        if trainee.W_skip is not None:
            y_hats = y_hats + (x - trainee.center) @ trainee.W_skip
        dead = (self.tokens_since_fired > self.plan.dead_after_tokens).nonzero().squeeze(1)
        errors = squared_errors(y_hats, y)
        return Pass(trainee, x, y, y_hats, errors, found, by, pre, value, everything, dead, self.variance)

    def _descend(self, loss: Tensor, rate: float) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        self.trainee.remove_parallel_gradient()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), self.config.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.trainee.keep_unit_rows()

    def _count(self, made: Pass) -> float:
        """Dead counters, and the smallest firing of a batch for those who need it. Returns L0."""
        value, feature = made.value.detach(), made.found.feature
        fires = value > 0
        n_fires = int(fires.sum())
        if n_fires < value.numel():
            value, feature = value[fires], feature[fires]
        self.tokens_since_fired += made.found.n_tokens
        self.tokens_since_fired[feature] = 0
        if n_fires and self.trainee.nonlinearity.needs_weakest:
            self.floor = 0.9 * value.min().item()
            if self.step >= self.plan.threshold_from_step:
                rank = max(1, round(THRESHOLD_MARGIN * n_fires))
                keep = self.plan.threshold_keep if self.threshold > 0 else 0.0
                self.threshold = keep * self.threshold + (1 - keep) * value.kthvalue(rank).values.item()
        return n_fires / max(1, made.found.n_tokens)

    @torch.no_grad()
    def _resample(self, made: Pass, error: Tensor) -> None:
        """Dead features start again, pointing at tokens drawn by their squared error."""
        every, dead = self.config.resample_every_steps, made.dead
        if every is None or (self.step + 1) % every or self.step > 0.8 * self.plan.n_steps or not dead.numel():
            return
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        token = torch.multinomial(error.cpu().double(), dead.numel(), replacement=True, generator=generator)
        token = token.to(dead.device)
        trainee, alive = self.trainee, self.tokens_since_fired <= self.plan.dead_after_tokens
        missing = torch.nn.functional.normalize((made.y - made.y_hat)[token], dim=1)
        read = missing if trainee.tied else torch.nn.functional.normalize(made.x[token] - trainee.center, dim=1)
        size = 0.2 * torch.linalg.vector_norm(trainee.encoder_rows, dim=1)[alive].mean()
        trainee.W_dec[dead] = missing
        trainee.encoder_rows[dead] = read * (size if bool(alive.any()) else 1.0)
        trainee.b_enc[dead] = 0
        for parameter in (trainee.W_dec, trainee.encoder_rows, trainee.b_enc):
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name][dead] = 0
        self.tokens_since_fired[dead] = 0

    def published(self, ends: Ends) -> SAE:
        """The SAE as it stands, on raw activations."""
        return self.trainee.published(self.scales, self.threshold, ends, self.recipe.architecture)

    def save(self) -> bytes:
        """The whole state as one safetensors file."""
        tensors = {f"weight.{name}": tensor.detach() for name, tensor in self.trainee.state_dict().items()}
        for name, parameter in self.trainee.named_parameters():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = tensor
        tensors["tokens_since_fired"] = self.tokens_since_fired
        scalars: dict[str, Any] = {name: getattr(self, name) for name in _SCALARS}
        scalars |= {"site_scales": self.site_scales, "position": self.batches.position()}
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
        for name, tensor in self.trainee.state_dict().items():
            tensor.copy_(tensors[f"weight.{name}"])
        for name, parameter in self.trainee.named_parameters():
            if scalars["step"] > 0:
                adam = {key: tensors[f"adam.{name}.{key}"].to(parameter.device, copy=True) for key in _ADAM}
                self.optimizer.state[parameter] = adam
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        for name in (*_SCALARS, "site_scales"):
            setattr(self, name, scalars[name])
        self.batches.seek(scalars["position"])

    def _check_fits(self, path: Path, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        wanted = {"tokens_since_fired": tuple(self.tokens_since_fired.shape)}
        wanted |= {f"weight.{name}": tuple(tensor.shape) for name, tensor in self.trainee.state_dict().items()}
        if scalars.get("step", 0) > 0:
            for name, parameter in self.trainee.named_parameters():
                wanted |= {f"adam.{name}.{key}": () if key == "step" else tuple(parameter.shape) for key in _ADAM}
        for name, shape in wanted.items():
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != shape:
                raise CheckpointError(f"{path} holds {name} of shape {got}, {shape} is wanted; delete it to start anew")
        if missing := [name for name in (*_SCALARS, "site_scales", "position") if name not in scalars]:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}; delete it to train from the start")


def _scale(site: Tensor) -> float:
    mean_square = site.square().sum(dim=1).mean().item()
    if not math.isfinite(mean_square) or mean_square <= 0:
        raise ConfigError(f"activations have a mean square norm of {mean_square}; a positive finite one is wanted")
    return math.sqrt(site.shape[1] / mean_square)


def _center(x: Tensor, kind: str) -> Tensor:
    """The mean, or the point with the smallest sum of distances (Weiszfeld's iteration)."""
    center = x.mean(dim=0)
    for _ in range(20 if kind == "geometric_median" else 0):
        weight = 1 / torch.linalg.vector_norm(x - center, dim=1).clamp_min(1e-6)
        center = (x * weight.unsqueeze(1)).sum(dim=0) / weight.sum()
    return center
