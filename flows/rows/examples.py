"""Rows of `example`: windows of text around a firing, or around a place where the feature is silent."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.rows.described import Described, same
from saelib.rng import uniform
from saelib.summaries.examples import BUCKETS, Examples
from saelib.summaries.rows import WINDOW, stretches
from saelib.text import TokenShard

__all__ = ["Text", "examples"]


class Text:
    """Tokens of any sequence of the corpus by its id."""

    def __init__(self, shards: Iterable[TokenShard]) -> None:
        shards = list(shards)
        self.token_ids = np.concatenate([shard.token_ids for shard in shards])
        self.documents = np.concatenate([shard.token_document for shard in shards])
        bases = np.cumsum([0, *(shard.token_ids.size for shard in shards)])[:-1]
        ids = np.concatenate([shard.sequence_id for shard in shards])
        starts = np.concatenate([shard.sequence_starts[:-1] + base for shard, base in zip(shards, bases, strict=True)])
        self.edges = np.append(starts, self.token_ids.size)
        order = np.argsort(ids)
        self.ids, self.starts = ids[order], starts[order]

    def place(self, sequence_id: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the sequence starts among `token_ids`; the first and one past the last position of the document."""
        start = self.starts[np.searchsorted(self.ids, sequence_id)]
        first, stop = stretches(self.documents, self.edges, start + position)
        return start, first - start, stop - start


def examples(  # noqa: PLR0913  what the rows are made from, and where they stand in the table
    found: Described,
    chosen: Examples,
    text: Text,
    document_keys: np.ndarray,
    held_out_share: float,
    first_id: int,
) -> pa.Table:
    """`example`. `document_keys` are 64 bits of each document's content, which decide what is held out."""
    start, first, stop = text.place(chosen.sequence_id, chosen.position)
    low = np.maximum(chosen.position - WINDOW, first)
    high = np.minimum(chosen.position + WINDOW + 1, stop)
    row, offset = np.nonzero(chosen.window)
    counts = np.bincount(row, minlength=chosen.feature.size)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    fire_position = (chosen.position[row] + offset - WINDOW).astype(np.int32)
    held_out = uniform(5, document_keys[chosen.document_id]) < held_out_share
    words = found.words
    at = text.token_ids[start + chosen.position]
    columns = found.keys(chosen.feature) | {
        "example_id": first_id + np.arange(chosen.feature.size),
        "dataset_id": same(found.dataset_id, chosen.feature.size),
        "sequence_id": chosen.sequence_id,
        "bucket": pa.array(np.array(BUCKETS, dtype=object)[chosen.bucket], pa.string()),
        "bucket_low": chosen.bucket_low.astype(np.float32),
        "bucket_high": chosen.bucket_high.astype(np.float32),
        "rank": chosen.rank.astype(np.int32),
        "position": chosen.position.astype(np.int32),
        "act": chosen.act.astype(np.float32),
        "window_start": low.astype(np.int32),
        "window_end": high.astype(np.int32),
        "fire_positions": pa.ListArray.from_arrays(offsets, pa.array(fire_position)),
        "fire_acts": pa.ListArray.from_arrays(offsets, pa.array(chosen.window[row, offset])),
        "left_text": _joined(text, words, start + low, chosen.position - low),
        "token": pa.array(words[at], pa.string()),
        "right_text": _joined(text, words, start + chosen.position + 1, high - chosen.position - 1),
        "held_out": held_out,
    }
    order = [("feature", "ascending"), ("bucket", "ascending"), ("rank", "ascending")]
    return pa.table(columns).sort_by(order)


def _joined(text: Text, words: np.ndarray, start: np.ndarray, length: np.ndarray) -> pa.Array:
    """The text of `length` tokens from each start."""
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length)
    ids = text.token_ids[np.repeat(start, length) + within]
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(words).take(pa.array(ids)))
    return pc.binary_join(lists, "").cast(pa.string())
