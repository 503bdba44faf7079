"""saelib: `Training.advance`, as `flows` calls it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rivals.worker import FIRING_AT_START, LONG_AGO, Task, serve
from saelib.architectures import recipe
from saelib.base import Ends, Site
from saelib.schedule import TrainingConfig
from saelib.training import Training


class Feed:
    """Hands the training the batch of this step."""

    def __init__(self, sample: Tensor) -> None:
        self.now = sample

    def batch(self, step: int) -> Sequence[Tensor]:  # noqa: ARG002  (the worker chose the batch)
        """What the worker gave, of the only site."""
        return (self.now,)

    def sample(self) -> Sequence[Tensor]:
        """Fixes the scale and the mean."""
        return self.batch(0)


class Ours:
    """Everything a run does in a step. Racing, it starts in the middle of a long run, where nothing warms up."""

    library = "numpy"

    def __init__(self, task: Task) -> None:
        sample = np.load(task.activations, mmap_mode="r")[: 2 * task.batch]
        self.feed = Feed(torch.from_numpy(np.array(sample)))
        fixed = {"jumprelu": {"k": FIRING_AT_START}, "standard": {}}
        settings = fixed.get(task.architecture, {"k": task.k})
        config = TrainingConfig(
            n_tokens=task.n_steps * task.batch,
            batch_tokens=task.batch,
            learning_rate=task.learning_rate,
            dead_after_tokens=task.dead_after_tokens,
            seed=task.seed,
            product=task.product,
        )
        made = recipe(task.architecture, n_features=task.n_features, **settings)
        self.training = Training(made, config, self.feed)
        if task.start:
            self._load(task)
            self.training.step = task.n_steps // 2

    def _load(self, task: Task) -> None:
        weights = dict(self.training.trainee.named_parameters())
        with torch.no_grad():
            for name in ("W_dec", "encoder_rows"):
                weights[name].copy_(task.start_of("W_dec"))
            weights["b_dec"].copy_(task.start_of("b_dec"))
            if task.architecture == "standard":
                weights["b_enc"].copy_(-task.start_of("cut"))
            if task.architecture == "jumprelu":
                weights["learned.threshold"].copy_(task.start_of("cut"))

    def step(self, x: Tensor) -> None:
        """One step."""
        self.feed.now = x
        self.training.advance()

    def mark_dead(self, features: Tensor) -> None:
        """It counts tokens."""
        self.training.tokens_since_fired[features] = LONG_AGO

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """By the SAE as it is published: batchtopk with its threshold."""
        sae = self.training.published(Ends.at(Site.parse("x")))
        firings = sae.fire(x)
        return sae.decode(firings), float((firings.value > 0).sum())


if __name__ == "__main__":
    serve(Ours)
