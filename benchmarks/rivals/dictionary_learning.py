"""dictionary_learning: `TopKTrainer.update` and `BatchTopKTrainer.update`, as `trainSAE` calls them."""

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from rivals.worker import LONG_AGO, Task, serve

TRAINERS = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}


class DictionaryLearning:
    """Its defaults, but for what the task fixes. Autocast wraps the whole update, as `trainSAE` does on a GPU."""

    library = "dictionary-learning"

    def __init__(self, task: Task) -> None:
        self.task, self.n_steps = task, 0
        self.trainer = TRAINERS[task.architecture](
            steps=task.n_steps,
            activation_dim=task.d,
            dict_size=task.n_features,
            k=task.k,
            layer=0,
            lm_name="none",
            lr=task.learning_rate,
            warmup_steps=task.warmup_steps,
            decay_start=task.n_steps - task.decay_steps if task.decay_steps else None,
            seed=task.seed,
            device="cpu",
        )
        self.trainer.dead_feature_threshold = task.dead_after_tokens
        if task.start:
            with torch.no_grad():
                self.trainer.ae.decoder.weight.copy_(task.start_of("W_dec").t())
                self.trainer.ae.encoder.weight.copy_(task.start_of("W_dec"))

    def step(self, x: Tensor) -> None:
        """One update."""
        with self.task.autocast():
            self.trainer.update(self.n_steps, x)
        self.n_steps += 1

    def mark_dead(self, features: Tensor) -> None:
        """It counts tokens."""
        self.trainer.num_tokens_since_fired[features] = LONG_AGO

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """In the training form: batchtopk chooses within the chunk."""
        f = self.trainer.ae.encode(x, use_threshold=False)
        return self.trainer.ae.decode(f), float((f > 0).sum())


if __name__ == "__main__":
    serve(DictionaryLearning)
