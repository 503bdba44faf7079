"""What every racer reads: batches of activations, held-out tokens, and a common start, as .npy files in one folder."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rivals.worker import FIRING_AT_START

HELD_OUT_TOKENS = 8192
FIRED_A_TOKEN = 24
"""Planted directions in a token."""
NOISE_SHARE = 0.05
"""Of the variance of a token."""


@dataclass(frozen=True)
class Files:
    """Where the data of one race lies."""

    folder: Path
    d: int
    source: str

    @property
    def activations(self) -> str:
        """Training batches, in order."""
        return str(self.folder / "activations.npy")

    @property
    def held_out(self) -> str:
        """Tokens that nobody trains on."""
        return str(self.folder / "held_out.npy")


def make_files(folder: Path, given: Path | None, d: int, n_features: int, n_tokens: int) -> Files:
    """Write the files, scaled so that the mean square norm of a token is its width: no racer has to scale anything."""
    generator = torch.Generator().manual_seed(0)
    wanted = n_tokens + HELD_OUT_TOKENS
    if given is None:
        directions = functional.normalize(torch.randn(2 * n_features, d, generator=generator), dim=1)
        tokens, start = _planted(directions, wanted, generator), directions[:n_features]
    else:
        tokens = _read(given, wanted)
        start = functional.normalize(torch.randn(n_features, tokens.shape[1], generator=generator), dim=1)
    tokens *= math.sqrt(tokens.shape[1] / tokens[:HELD_OUT_TOKENS].square().sum(dim=1).mean().item())
    np.save(folder / "held_out.npy", tokens[:HELD_OUT_TOKENS].numpy())
    np.save(folder / "activations.npy", tokens[HELD_OUT_TOKENS:].numpy())
    _save_start(folder, start, tokens[:HELD_OUT_TOKENS])
    source = f"planted: 2 F directions, Zipf, {FIRED_A_TOKEN} a token, {NOISE_SHARE:.0%} noise"
    return Files(folder, tokens.shape[1], str(given) if given else source)


def _planted(directions: Tensor, n_tokens: int, generator: torch.Generator) -> Tensor:
    """Sparse sums of directions whose frequency falls as 1 / rank, about a mean, with noise."""
    rank = torch.arange(1, len(directions) + 1, dtype=torch.float32)
    d = directions.shape[1]
    mean = torch.randn(d, generator=generator) / math.sqrt(d)
    made = torch.empty(n_tokens, d)
    for rows in made.split(8192):
        n = len(rows)
        chosen = torch.multinomial(1 / rank, n * FIRED_A_TOKEN, replacement=True, generator=generator)
        strength = torch.empty(n, FIRED_A_TOKEN).exponential_(1.0, generator=generator) + 0.5
        rows.copy_(functional.embedding_bag(chosen.view(n, -1), directions, per_sample_weights=strength, mode="sum"))
        noise = torch.randn(n, d, generator=generator) * math.sqrt(NOISE_SHARE) * rows.norm(dim=1).mean() / math.sqrt(d)
        rows.add_(noise).add_(mean)
    return made


def _read(path: Path, n_tokens: int) -> Tensor:
    """The first rows of a .npy file [tokens, d], or of the first matrix of a .safetensors file, such as our shards."""
    if path.suffix == ".npy":
        rows = torch.from_numpy(np.array(np.load(path, mmap_mode="r")[:n_tokens], dtype=np.float32))
    else:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            matrices = [name for name in sorted(file.keys()) if len(file.get_slice(name).get_shape()) == 2]
            if not matrices:
                raise SystemExit(f"{path} holds no matrix; a matrix of activations [tokens, d] is wanted")
            rows = file.get_slice(matrices[0])[:n_tokens].float()
    if len(rows) < n_tokens:
        raise SystemExit(f"{path} holds {len(rows)} tokens, {n_tokens} are needed; lower --batches, or harvest more")
    return rows


def _save_start(folder: Path, W_dec: Tensor, sample: Tensor) -> None:
    """Unit rows, the mean, and for each feature the pre-activation above which it fires on its share of the tokens."""
    mean = sample.mean(dim=0)
    rank = max(1, round(FIRING_AT_START / len(W_dec) * len(sample)))
    cut = torch.cat([((sample - mean) @ rows.t()).topk(rank, dim=0).values[-1] for rows in W_dec.split(1024)])
    for name, value in {"W_dec": W_dec, "b_dec": mean, "cut": cut}.items():
        np.save(folder / f"{name}.npy", value.numpy())
