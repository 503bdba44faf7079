"""Activations whose features are known: 512 directions in 64 dimensions, some common, most rare."""

import torch
from torch import Tensor

from saelib.sae import SAE


class Planted:
    """Batches x = Σ f · direction + noise. Feature i fires with probability ∝ (i + 10)^-0.7, `l0` of them a token."""

    def __init__(self, n_features: int = 512, d: int = 64, l0: float = 5.0, n_tokens: int = 65_536) -> None:
        generator = torch.Generator().manual_seed(0)
        self.directions = torch.nn.functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
        weight = (torch.arange(n_features) + 10.0) ** -0.7
        fires = torch.rand(n_tokens, n_features, generator=generator) < weight * l0 / weight.sum()
        f = torch.where(fires, 1.0 + torch.rand(fires.shape, generator=generator), 0.0)
        self.x = 3.0 * (f @ self.directions + 0.01 * torch.randn(n_tokens, d, generator=generator))
        self.n_fires = fires.sum(dim=0)
        self.batch_tokens = 512

    def batch(self, step: int) -> Tensor:
        """Batch `step`: epoch after epoch in the same order, since the rows are independent of each other."""
        first = step * self.batch_tokens % self.x.shape[0]
        return self.x[first : first + self.batch_tokens]

    def sample(self) -> Tensor:
        """For scale and mean."""
        return self.x[:8192]

    def best_cosine_per_direction(self, sae: SAE, n_epochs: float, min_fires: int = 1_000) -> Tensor:
        """For each planted direction that fired often enough, the cosine of the decoder row nearest to it."""
        rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
        return (self.directions[self.n_fires * n_epochs >= min_fires] @ rows.t()).max(dim=1).values
