"""Text → documents → tokens → token shards.

A document lies in exactly one shard, chosen by a hash of its content. A sequence is at most one context long, starts
with BOS where the model was trained so, and holds a piece of one document, or (packed) of several with separators.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from saelib.documents import (
    CorpusConfig,
    Counts,
    Document,
    DocumentRecord,
    Intake,
    Quarantined,
    Reading,
    corpus_fingerprint,
    read_documents,
)
from saelib.errors import CorpusError, SAELibError
from saelib.lm import LanguageModel
from saelib.readers import Bad
from saelib.rng import mix, uniform
from saelib.sequences import Layout, LazyShards, TokenShard
from saelib.sources import Source
from saelib.spilled import SpilledDocuments

__all__ = [
    "CorpusConfig",
    "Counts",
    "Document",
    "DocumentRecord",
    "Quarantined",
    "Source",
    "TokenShard",
    "Tokenized",
    "corpus_fingerprint",
    "document_text",
    "read_documents",
    "tokenize",
]

_BATCH_CHARS, _BATCH_DOCUMENTS = 1 << 18, 1024
"""A batch ends with the document that reaches one of these: enough work for several threads, little memory."""


class Tokenized(NamedTuple):
    """A whole corpus in tokens: shards to learn from, then held-out shards, each made when it is asked for."""

    shards: LazyShards
    held_out: list[bool]
    documents: Collection[DocumentRecord]
    quarantined: tuple[Quarantined, ...] = ()
    counts: Counts = Counts()
    notes: tuple[str, ...] = ()
    """What should be said in a log: how sequences begin, what was dropped."""


def document_text(tokenizer: PreTrainedTokenizerBase, document: Document) -> str:
    """The text that tokens and their character offsets are counted in: a conversation's is what the template makes."""
    if document.messages is None:
        return document.text
    if not tokenizer.chat_template:
        raise CorpusError(
            f"{document.place} is a conversation, but the tokenizer has no chat template; use a chat model's, or set "
            "`field` to one that holds text"
        )
    return str(tokenizer.apply_chat_template(list(document.messages), tokenize=False))


class _Encoded(NamedTuple):
    """Token ids of a document, and where each starts in its text; last, where the last one ends. −1: unknown."""

    ids: np.ndarray
    edges: np.ndarray


class _Encoder:
    """Documents to tokens, some at a time, since a tokenizer works on several at once."""

    def __init__(self, lm: LanguageModel, prefix: np.ndarray) -> None:
        self.tokenizer, self.prefix = lm.tokenizer, prefix
        self.has_offsets = bool(lm.tokenizer.is_fast)

    def __call__(self, documents: Sequence[Document]) -> list[_Encoded | Exception]:
        """What each document gives, or why it gives nothing: one that is refused leaves the others alone."""
        try:
            return list(self._encoded(documents))
        except Exception as error:  # a chat template or a tokenizer may raise anything
            return [error] if len(documents) == 1 else [each for one in documents for each in self([one])]

    def _encoded(self, documents: Sequence[Document]) -> Iterator[_Encoded]:
        texts = [document_text(self.tokenizer, document) for document in documents]
        wanted = {"add_special_tokens": False, "verbose": False, "return_attention_mask": False}
        encoded = self.tokenizer(texts, **wanted)
        for number, row in enumerate(encoded["input_ids"]):
            ids = np.array(row, dtype=np.int32)
            edges = np.full(ids.size + 1, -1, dtype=np.int32)
            if self.has_offsets and ids.size:
                offsets = encoded.encodings[number].offsets
                starts = np.fromiter((start for start, _ in offsets), np.int32, ids.size)
                edges = np.maximum.accumulate(np.append(starts, offsets[-1][1]))
            is_doubled = documents[number].messages is not None and np.array_equal(ids[:1], self.prefix)
            first = int(is_doubled)  # templates that write BOS themselves: one is enough
            yield _Encoded(ids[first:], edges[first:])


def _batches(readings: Iterator[Reading]) -> Iterator[list[Reading]]:
    """Readings, many at a time. What stops them comes after those before it: these may be all that is wanted."""
    batch: list[Reading] = []
    n_chars = 0
    try:
        for reading in readings:
            batch.append(reading)
            n_chars += len(reading.document.text) if reading.document else 0
            if n_chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, n_chars = [], 0
    except SAELibError:
        yield batch
        raise
    yield batch


class _Collected:
    """Documents and their tokens, before it is known how many shards they make."""

    def __init__(self, lm: LanguageModel, config: CorpusConfig) -> None:
        self.config = config
        self.layout = Layout.of(lm, config)
        self.intake = Intake(config)
        self.encoder = _Encoder(lm, self.layout.prefix)
        self.documents = SpilledDocuments()
        self.special = np.array(lm.special_ids, dtype=np.int32)
        self.n_known = int(lm.model.get_input_embeddings().get_parameter("weight").shape[0])
        self.n_text = 0

    def read(self, sources: Sequence[Source], named_held_out: bool) -> Iterator[int]:
        """Take one item after another; yields how many tokens are kept of each."""
        for batch in _batches(self.intake.read(sources, named_held_out)):
            encoded = iter(self.encoder([reading.document for reading in batch if reading.document]))
            for reading in batch:
                document = self.intake.take(reading)
                yield self._add(document, next(encoded)) if document else 0

    def _add(self, document: Document, encoded: _Encoded | Exception) -> int:
        """Keep a document's tokens; returns how many."""
        if isinstance(encoded, CorpusError):
            raise encoded
        if isinstance(encoded, Exception):
            return self._refused(document, "not_tokenized", f"cannot be tokenized: {_told(encoded)}")
        ids, edges = encoded
        if ids.size and int(ids.max()) >= self.n_known:
            wrong = f"holds token {int(ids.max())}, and the model knows {self.n_known}"
            return self._refused(document, "unknown_token", wrong)
        room = self.layout.room
        if ids.size > room:
            is_cut = self.config.long_documents == "cut"
            self.intake.count(**{"n_cut" if is_cut else "n_split": 1})
            ids, edges = (ids[:room], edges[: room + 1]) if is_cut else (ids, edges)
        if ids.size == 0:
            self.intake.count(n_empty=1)
            return 0
        self.documents.add(document, ids, edges)
        self.n_text += int((~np.isin(ids, self.special)).sum())
        return int(ids.size)

    def _refused(self, document: Document, reason: str, why: str) -> int:
        place = document.place or document.uri
        bad = Bad(reason, f"{place} {why}; leave it out", document.text)
        self.intake.refuse(bad, document.uri, place, self.config.on_bad == "fail")
        return 0

    def notes(self) -> tuple[str, ...]:
        """What should be said of this corpus."""
        said = {name: n for name, n in self.intake.counts._asdict().items() if n}
        counts = ", ".join(f"{n} {name.removeprefix('n_')}" for name, n in said.items())
        unknown = "character offsets are unknown: the tokenizer is not a fast one"
        notes = [*self.layout.notes, *([] if self.encoder.has_offsets else [unknown])]
        return (*notes, f"{len(self.documents)} documents kept: {counts}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def tokenize(lm: LanguageModel, config: CorpusConfig, tick: Callable[[int], None] = lambda _: None) -> Tokenized:
    """Tokenize each document by itself and share the documents out to shards by hash(seed, content).

    `max_tokens` bounds the sources, and the named held-out ones for themselves, so that neither crowds out the other.
    `tick(n)` is told of every n tokens done. Raises CorpusError where no token remains that is text, and where more is
    in quarantine than `config` allows.
    """
    collected = _Collected(lm, config)
    for sources, named_held_out in ((config.sources, False), (config.held_out, True)):
        n_tokens = 0
        for n_new in collected.read(sources, named_held_out):
            n_tokens += n_new
            tick(n_new)
            if config.max_tokens is not None and n_tokens >= config.max_tokens:
                break
        collected.intake.turn_back()
    collected.intake.check_share()
    if collected.n_text == 0:
        n_special = collected.documents.n_tokens
        what = f"only special tokens ({n_special} of them)" if n_special else "no text at all"
        raise CorpusError(
            f"the corpus holds {what}; name sources with text: {[s.path or s.kind for s in config.sources]}"
        )
    return _sharded(collected)


def _hold_one_out(config: CorpusConfig, documents: SpilledDocuments) -> None:
    """Few documents may all fall on one side of the draw: then the one nearest to the limit is held out."""
    if config.held_out or config.held_out_share == 0 or len(documents) < 2:
        return
    if not documents.held_out.any():
        documents.hold_out(int(uniform(config.seed, documents.keys).argmin()))


def _sharded(collected: _Collected) -> Tokenized:
    documents, config = collected.documents, collected.config
    _hold_one_out(config, documents)
    parts: list[np.ndarray] = []
    flags: list[bool] = []
    for held_out in (False, True):
        mine = np.flatnonzero(documents.held_out == held_out).astype(np.int32)
        n_shards = max(1, round(int(documents.sizes[mine].sum()) / config.shard_tokens))
        shard_of = (mix(config.seed + 1, documents.keys[mine]) % np.uint64(n_shards)).astype(np.int32)
        ends = np.cumsum(np.bincount(shard_of, minlength=n_shards))[:-1]
        for part in np.split(mine[np.argsort(shard_of, kind="stable")], ends):
            if part.size:
                parts.append(part)
                flags.append(held_out)
    shards, intake = LazyShards(collected.layout, documents, parts), collected.intake
    return Tokenized(shards, flags, documents, tuple(intake.quarantined), intake.counts, collected.notes())
