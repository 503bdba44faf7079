"""What several steps need: the language model (kept between steps), token shards, activation shards, an SAE."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from flows.artifact import Artifact
from flows.errors import ArtifactError
from saelib.activations import ActivationShard
from saelib.lm import LanguageModel, LMConfig, load_lm
from saelib.sae import SAE
from saelib.summaries.rows import tensors_of
from saelib.text import TokenShard

__all__ = ["language_model", "load_activations", "load_sae", "load_tokens", "token_shards", "use_threads"]


@lru_cache(maxsize=1)
def language_model(config: LMConfig) -> LanguageModel:
    """Loaded once a process."""
    return load_lm(config)


def use_threads(n: int) -> None:
    """As many as the plan says: on purpose, since more threads than cores are many times slower."""
    if torch.get_num_threads() != n:
        torch.set_num_threads(n)


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"shard-{index:05d}.safetensors"


def load_tokens(path: Path) -> TokenShard:
    """A token shard. Raises ArtifactError that names a damaged file."""
    try:
        return TokenShard(**{name: array for name, array in load_file(path).items() if name in TokenShard._fields})
    except (SafetensorError, OSError, TypeError) as error:
        raise ArtifactError(_damaged(path, error)) from error


def token_shards(tokens: Artifact, held_out: bool | None = None) -> list[TokenShard]:
    """All shards in order, or only those to learn from, or only the held-out ones."""
    return [
        load_tokens(path)
        for path, flag in zip(tokens.files("shard-"), tokens.facts["held_out"], strict=True)
        if held_out is None or flag == held_out
    ]


def load_activations(path: Path, n_sites: int) -> ActivationShard:
    """An activation shard, whole. Raises ArtifactError that names a damaged file."""
    try:
        return tensors_of(load_tensors(path), n_sites)
    except (SafetensorError, OSError, KeyError) as error:
        raise ArtifactError(_damaged(path, error)) from error


def load_sae(artifact: Artifact, device: str) -> SAE:
    """The SAE of a train artifact, both of its files checked."""
    weights, _ = artifact.file("sae.safetensors"), artifact.file("sae.json")
    sae: SAE = SAE.load(weights.parent).to(device)
    return sae


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged ({error}); delete {path.parent} and build again, and see `almanac verify` for more"


def contiguous(shard: TokenShard) -> dict[str, np.ndarray]:
    """A token shard's arrays, as safetensors wants them."""
    return {name: np.ascontiguousarray(array) for name, array in shard._asdict().items()}
