"""What several steps need: the language model (kept between steps), token shards, activation shards, an SAE."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from flows.artifact import Artifact
from flows.errors import ArtifactError, RecipeError
from saelib.activations import COLUMNS, ActivationShard
from saelib.base import Ends, Site
from saelib.errors import ActivationError, SiteNotFound
from saelib.evaluation import sites_of
from saelib.lm import LanguageModel, LMConfig, load_lm, site_width
from saelib.sae import SAE
from saelib.shard_files import ROWS
from saelib.text import TokenShard

__all__ = [
    "contiguous",
    "each_token_shard",
    "held_out_shards",
    "language_model",
    "load_activations",
    "load_sae",
    "load_tokens",
    "places_of",
    "rows_file",
    "shard_name",
    "sink_limits",
    "site_file",
    "site_widths",
    "token_shards",
    "use_threads",
]


@lru_cache(maxsize=1)
def language_model(config: LMConfig) -> LanguageModel:
    """Loaded once a process."""
    return load_lm(config)


def site_widths(lm: LanguageModel, sites: Sequence[Site]) -> list[int]:
    """d_model of every site. Raises RecipeError for a site that the model does not have, with the nearest names."""
    try:
        return [site_width(lm, site) for site in sites]
    except SiteNotFound as error:
        raise RecipeError(f"harvest.sites, or a recipe, names an unknown site: {error}") from error


def use_threads(n: int) -> None:
    """As many as the plan says: on purpose, since more threads than cores are many times slower."""
    if torch.get_num_threads() != n:
        torch.set_num_threads(n)


def shard_name(index: int) -> str:
    """File of a token shard."""
    return f"shard-{index:05d}.safetensors"


def rows_file(index: int) -> str:
    """File of what stands beside the rows of a harvested shard: tokens, documents, sequences, positions."""
    return f"shard-{index:05d}.rows.safetensors"


def site_file(index: int, place: int) -> str:
    """File of the activations of a harvested shard at one site, by its place among those harvested."""
    return f"shard-{index:05d}.site-{place}.safetensors"


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


def held_out_shards(tokens: Artifact, activations: Artifact) -> list[TokenShard]:
    """Held-out shards without the sequences of documents that the harvest could not use: one would spoil every mean.

    Raises ActivationError where nothing is left.
    """
    refused = [each["document_id"] for each in activations.facts["quarantined"]]
    kept = [_without(shard, refused) if refused else shard for shard in token_shards(tokens, held_out=True)]
    if not any(shard.n_sequences for shard in kept):
        raise ActivationError(
            f"the model gives NaN or Inf for all held-out documents ({len(refused)} are in quarantine), so nothing can "
            "be evaluated; set lm.dtype to 'float32', or hold out other documents"
        )
    return [shard for shard in kept if shard.n_sequences]


def _without(shard: TokenShard, documents: Sequence[int]) -> TokenShard:
    sequence = np.repeat(np.arange(shard.n_sequences), shard.lengths)
    spoiled = np.unique(sequence[np.isin(shard.token_document, documents)])
    return shard.take(np.setdiff1d(np.arange(shard.n_sequences), spoiled))


def each_token_shard(tokens: Artifact) -> Iterator[TokenShard]:
    """All shards in order, one held at a time."""
    return map(load_tokens, tokens.files("shard-"))


def load_activations(activations: Artifact, shard: int, places: Sequence[int]) -> ActivationShard:
    """A harvested shard at some of its sites, in that order. Raises ArtifactError that names a damaged file."""
    path = activations.file(rows_file(shard))
    try:
        with safe_open(path, framework="np") as file:
            columns = {name: file.get_tensor(name) for name in COLUMNS}
            n_masked = json.loads(file.metadata()["count"])["n_masked"]
        sites = []
        for place in places:
            path = activations.file(site_file(shard, place))
            with safe_open(path, framework="pt") as file:
                sites.append(file.get_tensor(ROWS))
    except (SafetensorError, OSError, KeyError) as error:
        raise ArtifactError(_damaged(path, error)) from error
    return ActivationShard(sites, **columns, n_masked=n_masked)


def places_of(ends: Ends, activations: Artifact) -> tuple[list[int], list[int]]:
    """The sites that are read, and those written, by their places among those harvested."""
    sites = activations.facts["sites"]
    read, write = ([sites.index(str(site)) for site in end] for end in (ends.read, ends.write))
    return read, write


def sink_limits(sae: SAE, activations: Artifact) -> dict[Site, float | None]:
    """The norm of an attention sink at each site of an SAE, as the harvest found it."""
    norms = dict(zip(activations.facts["sites"], activations.facts["sink_norms"], strict=True))
    return {site: norms[str(site)] for site in sites_of(sae.ends)}


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
