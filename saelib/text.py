"""Text → documents → tokens → token shards.

A document lies in exactly one shard, chosen by a hash of its content. A sequence is at most one context long, starts
with BOS where the model was trained so, and holds a piece of one document, or (packed) of several with separators.
"""

from collections.abc import Callable, Sequence
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
    corpus_fingerprint,
    read_documents,
)
from saelib.errors import CorpusError
from saelib.lm import LanguageModel
from saelib.readers import Bad
from saelib.rng import mix, uniform
from saelib.sequences import Layout, LazyShards, SpilledTokens, TokenShard
from saelib.sources import Source

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


class Tokenized(NamedTuple):
    """A whole corpus in tokens: shards to learn from, then held-out shards, each made when it is asked for."""

    shards: Sequence[TokenShard]
    held_out: list[bool]
    documents: list[DocumentRecord]
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


class _Collected:
    """Documents and their tokens, before it is known how many shards they make."""

    def __init__(self, lm: LanguageModel, config: CorpusConfig) -> None:
        self.lm, self.config = lm, config
        self.layout = Layout.of(lm, config)
        self.intake = Intake(config)
        self.tokens = SpilledTokens()
        self.documents: list[DocumentRecord] = []
        self.special = np.array(lm.special_ids, dtype=np.int32)
        self.has_offsets = bool(lm.tokenizer.is_fast)
        self.n_known = int(lm.model.get_input_embeddings().get_parameter("weight").shape[0])
        self.n_text = 0

    def add(self, document: Document) -> int:
        """Tokenize a document; returns how many tokens are kept of it."""
        try:
            ids, chars = self._encoded(document)
        except CorpusError:
            raise
        except Exception as error:  # a chat template or a tokenizer may raise anything: recorded with its reason
            return self._refused(document, "not_tokenized", f"cannot be tokenized: {type(error).__name__}: {error}")
        if ids.size and int(ids.max()) >= self.n_known:
            wrong = f"holds token {int(ids.max())}, and the model knows {self.n_known}"
            return self._refused(document, "unknown_token", wrong)
        if ids.size > self.layout.room:
            is_cut = self.config.long_documents == "cut"
            self.intake.count(**{"n_cut" if is_cut else "n_split": 1})
            ids, chars = (ids[: self.layout.room], chars[: self.layout.room]) if is_cut else (ids, chars)
        if ids.size == 0:
            self.intake.count(n_empty=1)
            return 0
        _, uri, sha256, held_out, *_ = document
        self.documents.append(DocumentRecord(len(self.documents), uri, sha256, ids.size, held_out))
        self.tokens.add(ids, chars, int.from_bytes(bytes.fromhex(sha256[:16]), "little"))
        self.n_text += int((~np.isin(ids, self.special)).sum())
        return int(ids.size)

    def _encoded(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and where each starts in the text."""
        tokenizer = self.lm.tokenizer
        text = document_text(tokenizer, document)
        encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=self.has_offsets)
        ids = np.array(encoded["input_ids"], dtype=np.int32)
        chars = np.full(ids.size, -1, dtype=np.int32)
        if self.has_offsets and ids.size:
            chars = np.maximum.accumulate(np.array(encoded["offset_mapping"], dtype=np.int32)[:, 0])
        if document.messages is not None and np.array_equal(ids[:1], self.layout.prefix):
            return ids[1:], chars[1:]  # templates that write BOS themselves: one is enough
        return ids, chars

    def _refused(self, document: Document, reason: str, why: str) -> int:
        place = document.place or document.uri
        self.intake.refuse(Bad(reason, f"{place} {why}; leave it out", document.text), document.uri, place)
        return 0

    def notes(self) -> tuple[str, ...]:
        """What should be said of this corpus."""
        said = {name: n for name, n in self.intake.counts._asdict().items() if n}
        counts = ", ".join(f"{n} {name.removeprefix('n_')}" for name, n in said.items())
        unknown = () if self.has_offsets else ("character offsets are unknown: the tokenizer is not a fast one",)
        return (*self.layout.notes, *unknown, f"{len(self.documents)} documents kept: {counts}")


def tokenize(lm: LanguageModel, config: CorpusConfig, tick: Callable[[int], None] = lambda _: None) -> Tokenized:
    """Tokenize each document by itself and share the documents out to shards by hash(seed, content).

    `max_tokens` bounds the sources, and the named held-out ones for themselves, so that neither crowds out the other.
    `tick(n)` is told of every n tokens done. Raises CorpusError where no token remains that is text, and where more is
    in quarantine than `config` allows.
    """
    collected = _Collected(lm, config)
    for sources, named_held_out in ((config.sources, False), (config.held_out, True)):
        n_tokens = 0
        for document in collected.intake.documents(sources, named_held_out):
            n_new = collected.add(document)
            n_tokens += n_new
            tick(n_new)
            if config.max_tokens is not None and n_tokens >= config.max_tokens:
                break
    collected.intake.check_share()
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
        nearest = int(uniform(config.seed, np.array(collected.tokens.keys, dtype=np.uint64)).argmin())
        documents[nearest] = documents[nearest]._replace(held_out=True)


def _sharded(collected: _Collected) -> Tokenized:
    documents, config = collected.documents, collected.config
    _hold_one_out(collected)
    held_out_document = np.array([document.held_out for document in documents])
    keys = np.array(collected.tokens.keys, dtype=np.uint64)
    parts: list[np.ndarray] = []
    flags: list[bool] = []
    for held_out in (False, True):
        mine = held_out_document == held_out
        n_tokens = sum(document.n_tokens for document in documents if document.held_out == held_out)
        n_shards = max(1, round(n_tokens / config.shard_tokens))
        shard_of = np.where(mine, mix(config.seed + 1, keys) % np.uint64(n_shards), n_shards).astype(np.int64)
        order = np.argsort(shard_of, kind="stable")
        for part in np.split(order, np.searchsorted(shard_of[order], np.arange(1, n_shards + 1)))[:-1]:
            if part.size:
                parts.append(part)
                flags.append(held_out)
    shards = LazyShards(collected.layout, collected.tokens, parts)
    intake = collected.intake
    return Tokenized(shards, flags, documents, tuple(intake.quarantined), intake.counts, collected.notes())
