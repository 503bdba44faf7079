"""SAELens: `SAETrainer.step`, as `fit` calls it."""

from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from rivals.worker import FIRING_AT_START, LONG_AGO, Task, serve


class SAELens:
    """Its defaults, but for what the task fixes. It clips gradients, counts firings and leaves decoder norms free."""

    library = "sae-lens"

    def __init__(self, task: Task) -> None:
        made, settings = get_sae_training_class(task.architecture)
        common = {"d_in": task.d, "d_sae": task.n_features, "device": "cpu", "dtype": "float32"}
        self.sae = made(settings(**common, **_sparsity(task)))
        if task.start:
            self._load(task)
        config = SAETrainerConfig(
            total_training_samples=task.n_steps * task.batch,
            train_batch_size_samples=task.batch,
            lr=task.learning_rate,
            lr_end=task.learning_rate / 10,
            lr_warm_up_steps=task.warmup_steps,
            lr_decay_steps=task.decay_steps,
            autocast=task.precision == "autocast",
            dead_feature_window=max(1, task.dead_after_tokens // task.batch),
        )
        self.trainer = SAETrainer(config, self.sae, iter(()))

    def _load(self, task: Task) -> None:
        with torch.no_grad():
            self.sae.W_dec.copy_(task.start_of("W_dec"))
            self.sae.W_enc.copy_(task.start_of("W_dec").t())
            self.sae.b_dec.copy_(task.start_of("b_dec"))
            if task.architecture == "standard":
                self.sae.b_enc.copy_(-task.start_of("cut"))
            if task.architecture == "jumprelu":
                self.sae.threshold.copy_(task.start_of("cut"))

    def step(self, x: Tensor) -> None:
        """One step; `fit` counts the steps itself."""
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def mark_dead(self, features: Tensor) -> None:
        """It counts forward passes."""
        self.trainer.n_forward_passes_since_fired[features] = LONG_AGO

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """In the training form: batchtopk chooses within the chunk."""
        f = self.sae.encode(x)
        return self.sae.decode(f), float((f > 0).sum())


def _sparsity(task: Task) -> dict[str, Any]:
    """What says how many features fire: for jumprelu the loss that ours has too."""
    if task.architecture == "standard":
        return {"l1_coefficient": 5.0}
    if task.architecture == "jumprelu":
        return {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": FIRING_AT_START, "jumprelu_bandwidth": 0.1}
    return {"k": task.k}


if __name__ == "__main__":
    serve(SAELens)
