"""Sequences of a token shard as batches that the language model takes, and how large a batch may be."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelib.devices import device_bytes
from saelib.lm import LanguageModel
from saelib.model_files import ModelShape
from saelib.text import TokenShard

__all__ = ["Batch", "auto_batch_tokens", "batches_of", "pad_id"]

CPU_BYTES = 64 << 20
"""What a batch may take on a CPU: more is slower, since it leaves the caches, and the same on every machine."""

MOST_TOKENS = 65_536
"""Of a batch: a GPU is busy with far fewer."""


class Batch(NamedTuple):
    """Sequences of one shard, padded at the right."""

    sequences: np.ndarray
    input_ids: Int[Tensor, "batch position"]
    attention_mask: Int[Tensor, "batch position"]

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences, and tokens of the longest."""
        n_sequences, n_tokens = self.input_ids.shape
        return n_sequences, n_tokens


def batches_of(shard: TokenShard, batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Longest first, as many as fit into `batch_tokens` with their padding, one at least.

    Sequences of nearly one length stand together, so that little is computed for nothing; a batch never crosses a
    shard.
    """
    order = np.argsort(-shard.lengths, kind="stable")
    start = 0
    while start < order.size:
        width = int(shard.lengths[order[start]])
        chosen = order[start : start + max(1, batch_tokens // width)]
        start += chosen.size
        inside = np.arange(width) < shard.lengths[chosen, None]
        ids = np.full(inside.shape, pad_id, dtype=np.int64)
        ids[inside] = np.concatenate(
            [shard.token_ids[shard.sequence_starts[s] : shard.sequence_starts[s + 1]] for s in chosen]
        )
        yield Batch(chosen, torch.from_numpy(ids), torch.from_numpy(inside.astype(np.int64)))


def auto_batch_tokens(shape: ModelShape, context_tokens: int, device: torch.device) -> int:
    """Tokens of a batch, padding counted: a power of two that the device has room for, and a whole sequence at least.

    A token takes about itemsize · (10 d_model + 3 d_ff) bytes, and 2 · heads · context for its row of attention. A GPU
    gives a quarter of what the weights leave; a CPU always the same, so that the plan is the same on every machine.
    """
    n_bytes = device_bytes(device)
    room = CPU_BYTES if n_bytes is None else (n_bytes - shape.weight_bytes) // 4
    of_token = shape.itemsize * (10 * shape.d_model + 3 * shape.d_ff + 2 * shape.n_heads * context_tokens)
    fitting = max(1, min(room // of_token, MOST_TOKENS))
    return max(1 << (int(fitting).bit_length() - 1), context_tokens)


def pad_id(lm: LanguageModel) -> int:
    """Any id does, since padding is masked; a tokenizer may have none of its own."""
    return int(lm.tokenizer.pad_token_id or 0)
