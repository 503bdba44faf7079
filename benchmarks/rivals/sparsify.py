"""sparsify: `SparseCoder`, with the body of `Trainer.fit`, which itself cannot read cached activations."""

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from rivals.worker import LONG_AGO, Task, serve


class Sparsify:
    """Top-k by its eager kernels. Adam as everybody (its own default is Signum); AuxK only where features are dead.

    Its loop asks torch for "high" matmul precision; it clips nothing.
    """

    library = "eai-sparsify"

    def __init__(self, task: Task) -> None:
        torch.set_float32_matmul_precision("high")
        self.task, self.n_steps = task, 0
        config = SparseCoderConfig(num_latents=task.n_features, k=task.k)
        self.coder = SparseCoder(task.d, config, dtype=torch.float32)
        if task.start:
            with torch.no_grad():
                self.coder.W_dec.copy_(task.start_of("W_dec"))
                self.coder.encoder.weight.copy_(task.start_of("W_dec"))
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=task.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, task.rate)
        self.tokens_since_fired = torch.zeros(task.n_features, dtype=torch.long)
        self.fired = torch.zeros(task.n_features, dtype=torch.bool)
        self.auxk_weight = 1 / 32

    def step(self, x: Tensor) -> None:
        """The body of `fit`, in its order."""
        if self.n_steps == 0:
            self.coder.b_dec.data = x.mean(0)
        self.coder.set_decoder_norm_to_unit_norm()
        dead = self.tokens_since_fired > self.task.dead_after_tokens
        variance = (x - x.mean(0)).pow(2).sum()
        with self.task.autocast():
            out = self.coder(x=x, y=x, dead_mask=dead, total_variance=variance)
        self.fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach()), float(out.auxk_loss.detach())
        (out.fvu + self.auxk_weight * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.tokens_since_fired += x.shape[0]
        self.tokens_since_fired[self.fired] = 0
        self.fired.zero_()
        self.n_steps += 1

    def mark_dead(self, features: Tensor) -> None:
        """It counts tokens."""
        self.tokens_since_fired[features] = LONG_AGO

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """As its users would."""
        values, indices, _ = self.coder.encode(x)
        return self.coder.decode(values, indices), float((values > 0).sum())


if __name__ == "__main__":
    serve(Sparsify)
