"""Activations whose features are known: 512 directions in 64 dimensions, some common, most rare."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

N_SITES = 3


class Planted:
    """Batches x = Σ f · direction + noise. Feature i fires with probability ∝ (i + 10)^-0.7, `l0` of them a token.

    The same f is written along other directions at three sites; a fourth is the second plus a linear map of the first.
    """

    def __init__(self, n_features: int = 512, d: int = 64, l0: float = 5.0, n_tokens: int = 65_536) -> None:
        generator = torch.Generator().manual_seed(0)
        directions = [normalize(torch.randn(n_features, d, generator=generator), dim=1) for _ in range(N_SITES)]
        weight = (torch.arange(n_features) + 10.0) ** -0.7
        fires = torch.rand(n_tokens, n_features, generator=generator) < weight * l0 / weight.sum()
        f = torch.where(fires, 1.0 + torch.rand(fires.shape, generator=generator), 0.0)
        noise = [0.01 * torch.randn(n_tokens, d, generator=generator) for _ in range(N_SITES)]
        self.sites = [(i + 3.0) * (f @ directions[i] + noise[i]) for i in range(N_SITES)]
        self.sites.append(self.sites[1] + self.sites[0] @ torch.linalg.qr(torch.randn(d, d, generator=generator)).Q)
        self.directions = [*directions, directions[1]]
        self.n_fires = fires.sum(dim=0)
        self.batch_tokens = 512

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Batch `step`: epoch after epoch in the same order, since the rows are independent of each other."""
        first = step * self.batch_tokens % self.n_tokens
        return tuple(site[first : first + self.batch_tokens] for site in self.sites)

    def sample(self) -> tuple[Tensor, ...]:
        """For scale and mean."""
        return tuple(site[:8192] for site in self.sites)

    def position(self) -> dict[str, int]:
        """Nothing to remember."""
        return {}

    def seek(self, position: dict[str, int]) -> None:
        """Nothing to do."""

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch."""
        return int(self.sites[0].shape[0])

    def best_cosine_per_direction(
        self, W_dec: Tensor, n_epochs: float, sites: tuple[int, ...] = (0,), min_fires: int = 1_000
    ) -> Tensor:
        """For each planted direction that fired often enough, the cosine of the decoder row nearest to it."""
        planted = normalize(torch.cat([self.directions[i] for i in sites], dim=1), dim=1)
        return (planted[self.n_fires * n_epochs >= min_fires] @ normalize(W_dec, dim=1).t()).max(dim=1).values
