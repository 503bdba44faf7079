"""Attention sinks: positions whose activations are so large that they would drown every other token."""

from collections.abc import Iterable, Iterator
from heapq import nsmallest

import numpy as np
import torch
from torch import Tensor

from saelib.activations import HarvestConfig, Harvester
from saelib.lm import LanguageModel
from saelib.rng import mix
from saelib.text import TokenShard

__all__ = ["sink_norms"]


def sink_norms(lm: LanguageModel, shards: Iterable[TokenShard], config: HarvestConfig) -> list[float | None]:
    """Norm above which a position is an attention sink, one a site: a multiple of the median over sampled sequences.

    The sample is chosen by hash, so that it is part of the plan and not of the order of work. One shard is held at a
    time.
    """
    if config.sink_norm_multiple == 0:
        return [None] * len(config.sites)
    sample = _sampled(shards, config)
    harvester = Harvester(lm, config, (None,) * len(config.sites))
    norms: list[list[Tensor]] = [[] for _ in config.sites]
    special = torch.tensor(lm.special_ids)
    for batch, seen in harvester.passes(sample, "the sample for attention sinks"):
        is_text = (batch.attention_mask == 1) & ~torch.isin(batch.input_ids, special)
        for site, found in zip(seen, norms, strict=True):
            found.append(site.norms[is_text & site.norms.isfinite()])  # the harvest deals with those that are not
    return [config.sink_norm_multiple * torch.cat(each).median().item() for each in norms]


def _sampled(shards: Iterable[TokenShard], config: HarvestConfig) -> TokenShard:
    """The sequences with the smallest hashes, as one shard."""
    found = nsmallest(config.sink_sample_sequences, _keyed_sequences(shards, config), key=lambda each: each[0])
    ids = [np.array(each[2]) for each in found]
    starts = np.concatenate([[0], np.cumsum([each.size for each in ids])]).astype(np.int64)
    number = np.array([each[1] for each in found], dtype=np.int64)
    return TokenShard(np.concatenate(ids), starts, number, np.zeros_like(number), np.zeros_like(number))


def _keyed_sequences(
    shards: Iterable[TokenShard], config: HarvestConfig
) -> Iterator[tuple[tuple[int, int], int, np.ndarray]]:
    """(hash and number, number, token ids) of the sequences of every shard that may be in the sample."""
    for shard in shards:
        keys = mix(config.seed, shard.sequence_id)
        for i in np.argsort(keys, kind="stable")[: config.sink_sample_sequences].tolist():
            number = int(shard.sequence_id[i])
            tokens = shard.token_ids[shard.sequence_starts[i] : shard.sequence_starts[i + 1]]
            yield (int(keys[i]), number), number, tokens.copy()
