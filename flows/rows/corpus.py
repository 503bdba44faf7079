"""Rows of `document`, `sequence`, `dataset` and `model`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.artifact import Artifact
from flows.config import RunConfig
from saelib.lm import LanguageModel, token_texts
from saelib.text import Tokenized, TokenShard

__all__ = ["dataset", "dataset_id", "model", "vocabulary", "write"]


def dataset_id(config: RunConfig, tokens: Artifact) -> str:
    """Name of a corpus as one model reads it: another text is another data set."""
    return f"{config.corpus.name}-{tokens.fingerprint[:8]}"


def vocabulary(lm: LanguageModel) -> np.ndarray:
    """Text of every token id."""
    n = max(lm.n_vocab, len(lm.tokenizer))
    known = len(lm.tokenizer)
    return np.array([*token_texts(lm.tokenizer, range(known)), *([""] * (n - known))], dtype=object)


def write(directory: Path, lm: LanguageModel, tokenized: Tokenized, fingerprint: str) -> dict[str, int]:
    """document.parquet and sequence.parquet, without the data set's name, which is not part of the fingerprint."""
    documents = tokenized.documents
    table = pa.table(
        {
            "document_id": [document.document_id for document in documents],
            "fingerprint": [fingerprint] * len(documents),
            "uri": [document.uri for document in documents],
            "sha256": [document.sha256 for document in documents],
            "n_tokens": pa.array([document.n_tokens for document in documents], pa.int32()),
            "meta": [json.dumps({"held_out": document.held_out}) for document in documents],
        }
    )
    pq.write_table(table, directory / "document.parquet", compression="zstd")
    words = vocabulary(lm)
    sequences = _in_order([_sequences(shard, words) for shard in tokenized.shards])
    sequences = sequences.append_column("fingerprint", pa.array([fingerprint] * sequences.num_rows))
    pq.write_table(sequences, directory / "sequence.parquet", compression="zstd", row_group_size=2048)
    return {"document": table.num_rows, "sequence": sequences.num_rows}


def _sequences(shard: TokenShard, words: np.ndarray) -> pa.Table:
    offsets = pa.array(shard.sequence_starts.astype(np.int32))
    return pa.table(
        {
            "sequence_id": shard.sequence_id,
            "document_id": shard.document_id,
            "start_token": shard.start_token.astype(np.int32),
            "n_tokens": shard.lengths.astype(np.int32),
            "token_ids": pa.ListArray.from_arrays(offsets, pa.array(shard.token_ids, pa.int32())),
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(words[shard.token_ids], pa.string())),
        }
    )


def _in_order(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts).sort_by("sequence_id")


def model(config: RunConfig, tokens: Artifact, lm: LanguageModel) -> dict[str, list[Any]]:
    """The one row of `model`."""
    return {
        "model_id": [config.lm.model_id],
        "fingerprint": [tokens.manifest["plan"]["model"]],
        "repo": [config.lm.model],
        "revision": [config.lm.revision],
        "dtype": [str(lm.dtype).removeprefix("torch.")],
        "n_layers": [lm.n_layers],
        "d_model": [lm.d_model],
        "n_vocab": [lm.n_vocab],
        "is_chat": [lm.tokenizer.chat_template is not None],
    }


def dataset(config: RunConfig, tokens: Artifact, activations: Artifact) -> dict[str, list[Any]]:
    """The one row of `dataset`."""
    facts, corpus = tokens.facts, config.corpus
    return {
        "dataset_id": [dataset_id(config, tokens)],
        "fingerprint": [tokens.fingerprint],
        "uri": [", ".join(source.path or source.kind for source in corpus.sources)],
        "content_sha256": [tokens.manifest["plan"]["content"]],
        "role": [corpus.role],
        "n_documents": [facts["n_documents"]],
        "n_sequences": [facts["n_sequences"]],
        "n_tokens": [sum(activations.facts["n_rows"])],
        "context_tokens": [facts["context_tokens"]],
        "masks": [json.dumps(activations.facts["n_masked"], sort_keys=True)],
        "licence": [corpus.licence],
    }
