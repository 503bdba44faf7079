"""Items to documents: identified by a hash of their content, counted when they are dropped, quarantined when unusable.

Text is kept as it is: no normalisation, no change of line ends. Only a byte order mark at a file's start is no text.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from saelib.base import Frozen
from saelib.errors import CorpusError
from saelib.readers import Bad, Item
from saelib.rng import uniform
from saelib.sources import Source, read_items, source_bytes

__all__ = [
    "CorpusConfig",
    "Counts",
    "Document",
    "DocumentRecord",
    "Intake",
    "Quarantined",
    "corpus_fingerprint",
    "read_documents",
]

_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates that stand for no byte: a JSON text can spell them."""
_EARLY = 1000
"""Quarantined documents after which the share is held to the limit without waiting for the end."""


class CorpusConfig(Frozen):
    """A corpus: sources to learn from, and held-out documents, named or drawn by hash.

    `packing` "none" gives every document its own sequences, "separator" lays documents one after another with the
    tokenizer's EOS between them. `bos` "auto" is as the tokenizer does it by itself. `on_bad` says what becomes of a
    line or row that cannot be used, `invalid_utf8` of text that is no UTF-8; more than `max_quarantined_share` of the
    documents in quarantine stop the run (a single one does not, unless the share is 0).
    """

    name: str = "corpus"
    sources: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()
    held_out_share: NonNegativeFloat = 0.05
    context_tokens: PositiveInt | None = None
    long_documents: Literal["split", "cut"] = "split"
    packing: Literal["none", "separator"] = "none"
    bos: Literal["auto", "always", "never"] = "auto"
    drop_duplicates: bool = False
    invalid_utf8: Literal["replace", "drop", "fail"] = "replace"
    on_bad: Literal["fail", "quarantine"] = "fail"
    max_quarantined_share: NonNegativeFloat = 0.01
    max_tokens: PositiveInt | None = None
    shard_tokens: PositiveInt = 131_072
    seed: int = 0
    role: str = "general"
    licence: str | None = None


class Document(NamedTuple):
    """One document and where it came from. Of a conversation, `text` is its messages as JSON."""

    text: str
    uri: str
    sha256: str
    held_out: bool
    messages: tuple[dict[str, Any], ...] | None = None
    place: str = ""


class DocumentRecord(NamedTuple):
    """What is kept of a document beside its tokens."""

    document_id: int
    uri: str
    sha256: str
    n_tokens: int
    held_out: bool


class Quarantined(NamedTuple):
    """A document that could not be used. `sha256` is that of what was found; `place` is its file and line or row."""

    reason: str
    uri: str
    place: str
    sha256: str
    detail: str


class Counts(NamedTuple):
    """What became of the documents that were read."""

    n_read: int = 0
    n_empty: int = 0
    n_duplicates: int = 0
    """Documents whose text came before; dropped if `drop_duplicates`."""
    n_replaced: int = 0
    """Documents in which U+FFFD stands for what was no UTF-8."""
    n_quarantined: int = 0
    n_split: int = 0
    """Documents longer than one context, in several sequences."""
    n_cut: int = 0
    """Documents longer than one context, of which only the first was kept."""


class Intake:
    """Reads documents, counts what it drops, and keeps what could not be used with its reason."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.counts = Counts()
        self.quarantined: list[Quarantined] = []
        self._seen: set[bytes] = set()

    def documents(self, sources: Sequence[Source], named_held_out: bool) -> Iterator[Document]:
        """Usable documents in the order of the sources. Raises CorpusError as the policies say."""
        for source in sources:
            for item in read_items(source):
                self.count(n_read=1)
                document = self._document(item, named_held_out)
                if document is not None:
                    yield document

    def count(self, **more: int) -> None:
        """Add to the counts."""
        self.counts = self.counts._replace(**{name: getattr(self.counts, name) + n for name, n in more.items()})

    def refuse(self, bad: Bad, uri: str, place: str, fail: bool | None = None) -> None:
        """Put a document into quarantine, or raise CorpusError where the policy (or `fail`) is to fail."""
        if self.config.on_bad == "fail" if fail is None else fail:
            raise CorpusError(bad.detail)
        sha256 = hashlib.sha256(_NO_BYTE.sub("\ufffd", bad.raw).encode("utf-8", "surrogateescape")).hexdigest()
        self.quarantined.append(Quarantined(bad.reason, uri, place, sha256, bad.detail))
        self.count(n_quarantined=1)
        if len(self.quarantined) >= _EARLY:
            self.check_share()

    def check_share(self) -> None:
        """Raises CorpusError, which names the first few, where more is in quarantine than the configuration allows."""
        n, share = len(self.quarantined), self.config.max_quarantined_share
        if n > (max(1.0, share * self.counts.n_read) if share else 0):
            first = "; ".join(f"[{each.reason}] {each.detail}" for each in self.quarantined[:3])
            raise CorpusError(
                f"{n} of {self.counts.n_read} documents cannot be used, more than max_quarantined_share = {share}: "
                f"{first}{' …' if n > 3 else ''}; mend the source or raise corpus.max_quarantined_share"
            )

    def _document(self, item: Item, named_held_out: bool) -> Document | None:
        if isinstance(item.body, Bad):
            self.refuse(item.body, item.uri, item.place)
            return None
        is_chat = not isinstance(item.body, str)
        text = json.dumps(item.body, ensure_ascii=False, sort_keys=True, default=str) if is_chat else str(item.body)
        if not text.strip():
            self.count(n_empty=1)
            return None
        if _SURROGATE.search(text):
            text = self._replaced(text, item)
            if not text:
                return None
        digest = hashlib.sha256(text.encode()).digest()
        key = int.from_bytes(digest[:8], "little")
        if digest[:16] in self._seen:
            self.count(n_duplicates=1)
            if self.config.drop_duplicates:
                return None
        self._seen.add(digest[:16])
        drawn = not self.config.held_out and self._is_drawn(key)
        messages = tuple(json.loads(text)) if is_chat else None
        return Document(text, item.uri, digest.hex(), named_held_out or drawn, messages, item.place)

    def _is_drawn(self, key: int) -> bool:
        return float(uniform(self.config.seed, np.array([key], dtype=np.uint64))[0]) < self.config.held_out_share

    def _replaced(self, text: str, item: Item) -> str:
        """Text with U+FFFD as Python's own decoder puts it; empty where the document is dropped."""
        policy = self.config.invalid_utf8
        if policy != "replace":
            found = _SURROGATE.search(text)
            detail = (
                f"{item.place} is no valid UTF-8 at character {found.start() if found else 0}; save it as UTF-8, or "
                "set corpus.invalid_utf8 to 'replace' or 'drop'"
            )
            self.refuse(Bad("not_utf8", detail, text), item.uri, item.place, fail=policy == "fail")
            return ""
        self.count(n_replaced=1)
        return _NO_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Documents in a fixed order, one at a time: the sources', then the named held-out ones. Empty ones are dropped."""
    intake = Intake(config)
    yield from intake.documents(config.sources, False)
    yield from intake.documents(config.held_out, True)
    intake.check_share()


def corpus_fingerprint(config: CorpusConfig) -> str:
    """sha256 over the sources' names and content. Of a data set by name only the name is known before it is read."""
    digest = hashlib.sha256()
    for source in (*config.sources, *config.held_out):
        for piece in source_bytes(source):
            digest.update(piece)
    return digest.hexdigest()
