"""Documents and their tokens on their way to shards: in temporary files, with a few bytes of each in memory."""

import os
import struct
import tempfile
import weakref
from array import array
from collections.abc import Collection, Iterator

import numpy as np

from saelib.documents import Document, DocumentRecord

__all__ = ["SpilledDocuments"]

_NAME = struct.Struct("<32sI")
"""What stands before a document's uri: the hash of its text, and the bytes of the uri."""


class SpilledDocuments(Collection[DocumentRecord]):
    """Documents with their tokens, one after another, in files that nobody else sees.

    Of each, 13 bytes stay in memory: how many tokens it has, 64 bits of its content, and whether it is held out. The
    arrays may be asked for when the last document was added.
    """

    def __init__(self) -> None:
        self._tokens = tempfile.TemporaryFile(prefix="almanac-tokens-")  # noqa: SIM115  lives as long as this object
        self._names = tempfile.TemporaryFile(prefix="almanac-names-")  # noqa: SIM115  the same
        for file in (self._tokens, self._names):
            weakref.finalize(self, file.close)
        self._sizes, self._keys, self._held_out = array("i"), array("Q"), bytearray()

    def add(self, document: Document, ids: np.ndarray, edges: np.ndarray) -> None:
        """The next document. `edges` are one more than `ids`: where each token starts, and where the last one ends."""
        digest, uri = bytes.fromhex(document.sha256), document.uri.encode("utf-8", "surrogateescape")
        self._names.write(_NAME.pack(digest, len(uri)) + uri)
        self._tokens.write(np.concatenate([ids, edges]).astype(np.int32).tobytes())
        self._sizes.append(ids.size)
        self._keys.append(int.from_bytes(digest[:8], "little"))
        self._held_out.append(document.held_out)

    def hold_out(self, document: int) -> None:
        """Hold a document out after all."""
        self._held_out[document] = True

    def tokens(self, document: int, n_before: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and edges of a document that stands after `n_before` tokens of others. Call `flush` before."""
        size = self._sizes[document]
        raw = os.pread(self._tokens.fileno(), 4 * (2 * size + 1), 4 * (2 * n_before + document))
        found = np.frombuffer(raw, dtype=np.int32)
        return found[:size], found[size:]

    def flush(self) -> None:
        """Make what was added readable."""
        self._tokens.flush()
        self._names.flush()

    @property
    def n_tokens(self) -> int:
        """Of all documents together."""
        return sum(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document."""
        return np.frombuffer(self._sizes, dtype=np.int32)

    @property
    def keys(self) -> np.ndarray:
        """64 bits of each document's content."""
        return np.frombuffer(self._keys, dtype=np.uint64)

    @property
    def held_out(self) -> np.ndarray:
        """Whether each document is held out."""
        return np.frombuffer(self._held_out, dtype=bool)

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, record: object) -> bool:
        return any(record == each for each in self)

    def __iter__(self) -> Iterator[DocumentRecord]:
        self.flush()
        file, at = self._names.fileno(), 0
        for number, (size, held_out) in enumerate(zip(self._sizes, self._held_out, strict=True)):
            digest, n_bytes = _NAME.unpack(os.pread(file, _NAME.size, at))
            uri = os.pread(file, n_bytes, at + _NAME.size).decode("utf-8", "replace")
            at += _NAME.size + n_bytes
            yield DocumentRecord(number, uri, digest.hex(), size, bool(held_out))
