"""What anybody would write first: a top-k SAE in plain torch, with dense matrices and autograd. No duties at all."""

import torch
from torch import Tensor

from rivals.worker import Task, serve


class Dense:
    """Encode, keep k, decode, Adam."""

    library = "numpy"

    def __init__(self, task: Task) -> None:
        self.task = task
        directions = torch.nn.functional.normalize(torch.randn(task.n_features, task.d), dim=1)
        W_dec = task.start_of("W_dec") if task.start else directions
        self.W_enc = W_dec.t().contiguous().requires_grad_()
        self.W_dec = W_dec.clone().requires_grad_()
        self.b_enc = torch.zeros(task.n_features, requires_grad=True)
        self.b_dec = torch.zeros(task.d, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.W_enc, self.W_dec, self.b_enc, self.b_dec], lr=task.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, task.rate)

    def step(self, x: Tensor) -> None:
        """One step."""
        with self.task.autocast():
            loss = (x - self._forward(x)[0]).square().sum(dim=1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    def mark_dead(self, features: Tensor) -> None:
        """It revives nothing."""

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """The forward pass."""
        x_hat, f = self._forward(x)
        return x_hat, float((f > 0).sum())

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        value, index = pre.topk(self.task.k, dim=1, sorted=False)
        f = torch.zeros_like(pre).scatter(1, index, value.relu())
        return f @ self.W_dec + self.b_dec, f


if __name__ == "__main__":
    serve(Dense)
