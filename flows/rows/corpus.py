"""Rows of `document`, `sequence`, `dataset`, `model` and `quarantine`."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.artifact import Artifact
from flows.config import RunConfig
from saelib.documents import DocumentRecord, Quarantined
from saelib.lm import LanguageModel, token_texts
from saelib.text import Tokenized, TokenShard

__all__ = [
    "content_keys",
    "dataset",
    "dataset_id",
    "dataset_name",
    "model",
    "named",
    "quarantine",
    "vocabulary",
    "write",
]

_DOCUMENTS = 4_096
"""Rows of `document` that are held at a time."""


def dataset_id(config: RunConfig, tokens: Artifact) -> str:
    """Name of a corpus as one model reads it: another text is another data set."""
    return dataset_name(config.corpus.name, tokens.fingerprint)


def dataset_name(name: str, fingerprint: str) -> str:
    """The same, of a corpus of this name and tokens of this fingerprint."""
    return f"{name}-{fingerprint[:8]}"


def vocabulary(lm: LanguageModel) -> np.ndarray:
    """Text of every token id."""
    n = max(lm.n_vocab, len(lm.tokenizer))
    known = len(lm.tokenizer)
    return np.array([*token_texts(lm.tokenizer, range(known)), *([""] * (n - known))], dtype=object)


def write(directory: Path, lm: LanguageModel, tokenized: Tokenized, fingerprint: str) -> dict[str, int]:
    """document.parquet, sequence.parquet and quarantine.parquet, without the data set's name, which is not part of the
    fingerprint. Each is written piece by piece. Returns their rows."""
    words = pa.array(vocabulary(lm), pa.string())
    tables = {
        "document": _documents(iter(tokenized.documents)),
        "sequence": (_sequences(shard, words) for shard in tokenized.shards.in_order()),
        "quarantine": iter([_quarantined(tokenized.quarantined)]),
    }
    return {
        name: _write(directory / f"{name}.parquet", (_constant(part, "fingerprint", fingerprint) for part in parts))
        for name, parts in tables.items()
    }


def _write(path: Path, parts: Iterable[pa.Table]) -> int:
    """Tables one after another into one file, a row group each; returns how many rows they have."""
    writer, n_rows = None, 0
    try:
        for part in parts:
            writer = writer or pq.ParquetWriter(path, part.schema, compression="zstd")
            writer.write_table(part)
            n_rows += part.num_rows
    finally:
        if writer is not None:
            writer.close()
    return n_rows


def _constant(table: pa.Table, name: str, value: str) -> pa.Table:
    return table.add_column(0, name, pa.array([value] * table.num_rows, pa.string()))


def named(path: Path, dataset: str, target: Path) -> Path:
    """A copy of a table of the corpus with the data set's name in it, made a row group at a time."""
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(group) for group in range(file.num_row_groups))
        _write(target, (_constant(group, "dataset_id", dataset) for group in groups))
    return target


def _documents(records: Iterator[DocumentRecord]) -> Iterator[pa.Table]:
    while some := list(islice(records, _DOCUMENTS)):
        columns = {
            "document_id": [record.document_id for record in some],
            "uri": [record.uri for record in some],
            "sha256": [record.sha256 for record in some],
            "n_tokens": pa.array([record.n_tokens for record in some], pa.int32()),
            "meta": [json.dumps({"held_out": record.held_out}) for record in some],
        }
        yield pa.table(columns)


def _sequences(shard: TokenShard, words: pa.Array) -> pa.Table:
    starts, piece_of = shard.sequence_starts, np.searchsorted(shard.piece_start, shard.sequence_starts)
    begins = shard.piece_start - np.repeat(starts[:-1], np.diff(piece_of))
    begins[piece_of[:-1]] = 0  # BOS is of the first document

    def lists(offsets: np.ndarray, values: Any, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))

    unknown = pa.nulls(shard.n_sequences, pa.list_(pa.int32()))
    is_known = bool(shard.char_step.size)
    return pa.table(
        {
            "sequence_id": shard.sequence_id,
            "document_id": shard.document_id,
            "start_token": shard.start_token.astype(np.int32),
            "n_tokens": shard.lengths.astype(np.int32),
            "token_ids": lists(starts, shard.token_ids, pa.int32()),
            "tokens": lists(starts, words.take(pa.array(shard.token_ids)), pa.string()),
            "token_chars": lists(starts, shard.token_chars, pa.int32()) if is_known else unknown,
            "document_ids": lists(piece_of, shard.piece_document, pa.int64()),
            "document_starts": lists(piece_of, begins, pa.int32()),
            "document_chars": lists(piece_of, shard.piece_char, pa.int32()) if is_known else unknown,
        }
    )


def _quarantined(refused: Iterable[Quarantined]) -> pa.Table:
    """What was refused before it was a document: numbered −1, −2 …"""
    rows = [(-number, _plain(each.uri), each.sha256, "tokenize", each.reason, _plain(each.detail))
            for number, each in enumerate(refused, 1)]  # fmt: skip
    names = ("document_id", "uri", "sha256", "step", "reason", "detail")
    kinds = (pa.int64(), *[pa.string()] * 5)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], names=names)


def _plain(text: str) -> str:
    """Without the bytes of file names that are no UTF-8, which no table can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def quarantine(tokens: Artifact, activations: Artifact, dataset: str) -> dict[str, pa.Table]:
    """Rows of `quarantine`, by the artifact that refused them: documents that were not tokenized, or not harvested."""
    found = {tokens.fingerprint: pq.read_table(tokens.file("quarantine.parquet"))}
    refused = activations.facts.get("quarantined", [])
    if refused:
        known = pq.read_table(
            tokens.file("document.parquet"),
            columns=["document_id", "uri", "sha256"],
            filters=[("document_id", "in", [each["document_id"] for each in refused])],
        )
        rows = pa.Table.from_pylist(list(refused)).join(known, "document_id")
        found[activations.fingerprint] = _constant(rows, "fingerprint", activations.fingerprint)
    return {fingerprint: _constant(rows, "dataset_id", dataset) for fingerprint, rows in found.items() if rows.num_rows}


def content_keys(path: Path) -> np.ndarray:
    """64 bits of the content of every document of a document.parquet."""
    with pq.ParquetFile(path) as file:
        parts = [batch["sha256"].to_pylist() for batch in file.iter_batches(_DOCUMENTS, columns=["sha256"])]
        return np.concatenate([np.array([int(sha[:16], 16) for sha in part], dtype=np.uint64) for part in parts])


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
