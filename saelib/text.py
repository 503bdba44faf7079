"""Text → documents → tokens → token shards.

A document lies in exactly one shard, chosen by a hash of its content; a sequence is a piece of one document, at most
one context long, starting with BOS where the model was trained so.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from saelib.base import Frozen
from saelib.errors import ConfigError, CorpusError
from saelib.lm import LanguageModel
from saelib.rng import mix, uniform
from saelib.sources import Source, read_texts, source_bytes

__all__ = [
    "CorpusConfig",
    "Document",
    "DocumentRecord",
    "Source",
    "TokenShard",
    "Tokenized",
    "corpus_fingerprint",
    "read_documents",
    "tokenize",
]


class CorpusConfig(Frozen):
    """A corpus: sources to learn from, and held-out documents, named or drawn by hash."""

    name: str = "corpus"
    sources: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()
    held_out_share: NonNegativeFloat = 0.05
    context_tokens: PositiveInt | None = None
    long_documents: Literal["split", "cut"] = "split"
    max_tokens: PositiveInt | None = None
    shard_tokens: PositiveInt = 131_072
    seed: int = 0
    role: str = "general"
    licence: str | None = None


class Document(NamedTuple):
    """One document and where it came from."""

    text: str
    uri: str
    sha256: str
    held_out: bool


class DocumentRecord(NamedTuple):
    """What is kept of a document beside its tokens."""

    document_id: int
    uri: str
    sha256: str
    n_tokens: int
    held_out: bool


class TokenShard(NamedTuple):
    """Sequences of some documents. Tokens of sequence s are token_ids[sequence_starts[s] : sequence_starts[s + 1]]."""

    token_ids: np.ndarray
    sequence_starts: np.ndarray
    sequence_id: np.ndarray
    document_id: np.ndarray
    start_token: np.ndarray

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return self.sequence_id.size

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, BOS included."""
        return np.diff(self.sequence_starts)

    def take(self, sequences: np.ndarray) -> "TokenShard":
        """Some of the sequences, by their index in the shard."""
        pieces = [self.token_ids[self.sequence_starts[s] : self.sequence_starts[s + 1]] for s in sequences]
        starts = np.concatenate([[0], np.cumsum(self.lengths[sequences])]).astype(np.int64)
        tokens = np.concatenate(pieces) if pieces else self.token_ids[:0]
        aligned = (self.sequence_id[sequences], self.document_id[sequences], self.start_token[sequences])
        return TokenShard(tokens, starts, *aligned)


class Tokenized(NamedTuple):
    """A whole corpus in tokens: shards to learn from, then held-out shards."""

    shards: list[TokenShard]
    held_out: list[bool]
    documents: list[DocumentRecord]


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Documents in a fixed order: the sources', then the named held-out ones. Empty ones are dropped."""
    return chain(_documents(config, config.sources, False), _documents(config, config.held_out, True))


def _documents(config: CorpusConfig, sources: Sequence[Source], named_held_out: bool) -> Iterator[Document]:
    for source in sources:
        for uri, text in read_texts(source):
            if not text.strip():
                continue
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            key = np.array([int.from_bytes(digest[:8], "little")], dtype=np.uint64)
            drawn = not config.held_out and float(uniform(config.seed, key)[0]) < config.held_out_share
            yield Document(text, uri, digest.hex(), named_held_out or drawn)


def corpus_fingerprint(config: CorpusConfig) -> str:
    """sha256 over the sources' names and content. Of a data set by name only the name is known before it is read."""
    digest = hashlib.sha256()
    for source in (*config.sources, *config.held_out):
        for piece in source_bytes(source):
            digest.update(piece)
    return digest.hexdigest()


class _Collected:
    """Documents and their sequences, before it is known how many shards they make."""

    def __init__(self, lm: LanguageModel, config: CorpusConfig) -> None:
        self.lm, self.config = lm, config
        self.prefix = np.array([] if lm.bos_id is None else [lm.bos_id], dtype=np.int32)
        self.special = np.array(lm.special_ids, dtype=np.int32)
        self.room = min(config.context_tokens or lm.context_tokens, lm.context_tokens) - self.prefix.size
        if self.room < 1:
            raise ConfigError(
                f"context_tokens = {config.context_tokens} leaves no room beside BOS; 2 or more are wanted"
            )
        self.documents: list[DocumentRecord] = []
        self.keys: list[int] = []
        self.tokens: list[np.ndarray] = []
        self.document_id: list[int] = []
        self.start_token: list[int] = []
        self.n_text = 0

    def add(self, document: Document) -> int:
        """Tokenize and cut a document; returns how many tokens are kept of it."""
        encoded = self.lm.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = np.array(encoded, dtype=np.int32)
        if self.config.long_documents == "cut":
            ids = ids[: self.room]
        if ids.size == 0:
            return 0
        document_id = len(self.documents)
        self.documents.append(DocumentRecord(document_id, document.uri, document.sha256, ids.size, document.held_out))
        self.keys.append(int.from_bytes(bytes.fromhex(document.sha256[:16]), "little"))
        for start in range(0, ids.size, self.room):
            self.tokens.append(np.concatenate([self.prefix, ids[start : start + self.room]]))
            self.document_id.append(document_id)
            self.start_token.append(start)
        self.n_text += int((~np.isin(ids, self.special)).sum())
        return int(ids.size)

    def shard(self, keep: np.ndarray) -> TokenShard:
        """The sequences at the True places of `keep`."""
        chosen = np.flatnonzero(keep)
        tokens = [self.tokens[index] for index in chosen]
        starts = np.zeros(len(tokens) + 1, dtype=np.int64)
        np.cumsum([piece.size for piece in tokens], out=starts[1:])
        return TokenShard(
            np.concatenate(tokens),
            starts,
            chosen.astype(np.int64),
            np.array(self.document_id, dtype=np.int64)[chosen],
            np.array(self.start_token, dtype=np.int64)[chosen],
        )


def tokenize(lm: LanguageModel, config: CorpusConfig, tick: Callable[[int], None] = lambda _: None) -> Tokenized:
    """Tokenize each document by itself and share the documents out to shards by hash(seed, content).

    `max_tokens` bounds the sources, and the named held-out ones for themselves, so that neither crowds out the other.
    `tick(n)` is told of every n tokens done. Raises CorpusError where no token remains that is text.
    """
    collected = _Collected(lm, config)
    for sources, named_held_out in ((config.sources, False), (config.held_out, True)):
        n_tokens = 0
        for document in _documents(config, sources, named_held_out):
            n_new = collected.add(document)
            n_tokens += n_new
            tick(n_new)
            if config.max_tokens is not None and n_tokens >= config.max_tokens:
                break
    if collected.n_text == 0:
        n_special = sum(document.n_tokens for document in collected.documents)
        what = f"only special tokens ({n_special} of them)" if n_special else "no text at all"
        raise CorpusError(
            f"the corpus holds {what}; name sources with text: {[s.path or s.kind for s in config.sources]}"
        )
    return _sharded(collected)


def _hold_one_out(collected: _Collected) -> None:
    """Few documents may all fall on one side of the draw: then the one nearest to the limit is held out."""
    config, documents = collected.config, collected.documents
    if config.held_out or config.held_out_share == 0 or len(documents) < 2:
        return
    if not any(document.held_out for document in documents):
        nearest = int(uniform(config.seed, np.array(collected.keys, dtype=np.uint64)).argmin())
        documents[nearest] = documents[nearest]._replace(held_out=True)


def _sharded(collected: _Collected) -> Tokenized:
    documents, config = collected.documents, collected.config
    _hold_one_out(collected)
    held_out_document = np.array([document.held_out for document in documents])
    of_sequence, keys = np.array(collected.document_id), np.array(collected.keys, dtype=np.uint64)
    shards: list[TokenShard] = []
    flags: list[bool] = []
    for held_out in (False, True):
        mine = held_out_document == held_out
        n_tokens = sum(document.n_tokens for document in documents if document.held_out == held_out)
        n_shards = max(1, round(n_tokens / config.shard_tokens))
        shard_of = (mix(config.seed + 1, keys) % np.uint64(n_shards)).astype(np.int64)
        for index in range(n_shards):
            keep = (mine & (shard_of == index))[of_sequence]
            if keep.any():
                shards.append(collected.shard(keep))
                flags.append(held_out)
    return Tokenized(shards, flags, documents)
