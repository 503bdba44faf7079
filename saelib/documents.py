"""Items to documents: identified by a hash of their content, counted when they are dropped, quarantined when unusable.

Text is kept as it is: no normalisation, no change of line ends. Only a byte order mark at a file's start is no text.
"""

import hashlib
import json
import re
from array import array
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
    "Reading",
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


class Reading(NamedTuple):
    """What came of one item: a document, or why there is none."""

    item: Item
    document: Document | None = None
    counted: tuple[str, ...] = ()
    """Names of the counts that it adds one to."""
    bad: Bad | None = None
    stops: bool = False
    """Where it is bad: whether the policy is to fail."""


class _Seen:
    """64-bit keys that came before: 12 to 24 bytes of memory each, where a Python set takes a hundred.

    Two different texts share a key with a chance of 3e-8 among a million of them.
    """

    def __init__(self) -> None:
        self._slots, self._n = array("Q", bytes(8 << 10)), 0

    def _slot(self, key: int) -> int:
        """Where the key is, or would be put. An empty slot is 0."""
        slots = self._slots
        at = key % len(slots)
        while slots[at] not in (0, key):
            at = (at + 1) % len(slots)
        return at

    def __contains__(self, key: int) -> bool:
        return bool(self._slots[self._slot(key or 1)])

    def add(self, key: int) -> None:
        at = self._slot(key or 1)
        self._n += not self._slots[at]
        self._slots[at] = key or 1
        if 3 * self._n > 2 * len(self._slots):
            before, self._slots = self._slots, array("Q", bytes(2 * 8 * len(self._slots)))
            for old in filter(None, before):
                self._slots[self._slot(old)] = old


class Intake:
    """Reads documents, counts what it drops, and keeps what could not be used with its reason.

    Reading (`read`) may run ahead of what is taken (`take`), and then turn back: only what is taken counts.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.counts = Counts()
        self.quarantined: list[Quarantined] = []
        self._seen, self._ahead = _Seen(), set[int]()

    def read(self, sources: Sequence[Source], named_held_out: bool) -> Iterator[Reading]:
        """Every item of the sources, in their order."""
        for source in sources:
            for item in read_items(source):
                yield self._read(item, named_held_out)

    def take(self, reading: Reading) -> Document | None:
        """The next of what was read, if it is usable. Raises CorpusError as the policies say."""
        item, document, counted, bad, stops = reading
        self.count(**dict.fromkeys(("n_read", *counted), 1))
        if bad is not None:
            self.refuse(bad, item.uri, item.place, stops)
        if document is not None:
            key = _key(document.sha256)
            self._ahead.discard(key)
            self._seen.add(key)
        return document

    def turn_back(self) -> None:
        """Forget what was read and not taken."""
        self._ahead.clear()

    def count(self, **more: int) -> None:
        """Add to the counts."""
        self.counts = self.counts._replace(**{name: getattr(self.counts, name) + n for name, n in more.items()})

    def refuse(self, bad: Bad, uri: str, place: str, stops: bool) -> None:
        """Put a document into quarantine, or raise CorpusError where it stops the run."""
        if stops:
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

    def _read(self, item: Item, named_held_out: bool) -> Reading:
        if isinstance(item.body, Bad):
            return Reading(item, bad=item.body, stops=self.config.on_bad == "fail")
        is_chat, counted = not isinstance(item.body, str), []
        text = json.dumps(item.body, ensure_ascii=False, sort_keys=True, default=str) if is_chat else str(item.body)
        if not text.strip():
            return Reading(item, counted=("n_empty",))
        if _SURROGATE.search(text):
            if self.config.invalid_utf8 != "replace":
                return Reading(item, bad=_no_utf8(text, item), stops=self.config.invalid_utf8 == "fail")
            text = _replaced(text)
            counted.append("n_replaced")
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        key = _key(sha256)
        if key in self._ahead or key in self._seen:
            counted.append("n_duplicates")
            if self.config.drop_duplicates:
                return Reading(item, counted=tuple(counted))
        self._ahead.add(key)
        drawn = not self.config.held_out and self._is_drawn(key)
        messages = tuple(json.loads(text)) if is_chat else None
        document = Document(text, item.uri, sha256, named_held_out or drawn, messages, item.place)
        return Reading(item, document, tuple(counted))

    def _is_drawn(self, key: int) -> bool:
        return float(uniform(self.config.seed, np.array([key], dtype=np.uint64))[0]) < self.config.held_out_share


def _key(sha256: str) -> int:
    """64 bits of a document's content."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "little")


def _no_utf8(text: str, item: Item) -> Bad:
    found = _SURROGATE.search(text)
    detail = (
        f"{item.place} is no valid UTF-8 at character {found.start() if found else 0}; save it as UTF-8, or "
        "set corpus.invalid_utf8 to 'replace' or 'drop'"
    )
    return Bad("not_utf8", detail, text)


def _replaced(text: str) -> str:
    """Text with U+FFFD as Python's own decoder puts it."""
    return _NO_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Documents in a fixed order, one at a time: the sources', then the named held-out ones. Empty ones are dropped."""
    intake = Intake(config)
    for sources, named_held_out in ((config.sources, False), (config.held_out, True)):
        yield from filter(None, map(intake.take, intake.read(sources, named_held_out)))
    intake.check_share()


def corpus_fingerprint(config: CorpusConfig) -> str:
    """sha256 over the sources' names and content. Of a data set by name only the name is known before it is read."""
    digest = hashlib.sha256()
    for source in (*config.sources, *config.held_out):
        for piece in source_bytes(source):
            digest.update(piece)
    return digest.hexdigest()
