"""Sequences of a token shard as batches that the language model takes."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelib.lm import LanguageModel
from saelib.text import TokenShard

__all__ = ["Batch", "batches_of", "pad_id"]


class Batch(NamedTuple):
    """Sequences of one shard, padded at the right."""

    sequences: np.ndarray
    input_ids: Int[Tensor, "batch position"]
    attention_mask: Int[Tensor, "batch position"]


def batches_of(shard: TokenShard, batch_sequences: int, pad_id: int) -> list[Batch]:
    """Longest first, so that padding is small; a batch never crosses a shard."""
    order = np.argsort(-shard.lengths, kind="stable")
    made = []
    for start in range(0, order.size, batch_sequences):
        chosen = order[start : start + batch_sequences]
        width = int(shard.lengths[chosen[0]])
        ids = np.full((chosen.size, width), pad_id, dtype=np.int64)
        mask = np.zeros((chosen.size, width), dtype=np.int64)
        for row, sequence in enumerate(chosen):
            first, last = shard.sequence_starts[sequence], shard.sequence_starts[sequence + 1]
            ids[row, : last - first] = shard.token_ids[first:last]
            mask[row, : last - first] = 1
        made.append(Batch(chosen, torch.from_numpy(ids), torch.from_numpy(mask)))
    return made


def pad_id(lm: LanguageModel) -> int:
    """Any id does, since padding is masked; a tokenizer may have none of its own."""
    return int(lm.tokenizer.pad_token_id or 0)
