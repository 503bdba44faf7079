"""Sequences: how documents' tokens are cut or packed, and the shards that hold them.

A shard is made when it is asked for, so that a corpus need not fit into memory.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np

from saelib.documents import CorpusConfig
from saelib.errors import ConfigError
from saelib.lm import LanguageModel
from saelib.spilled import SpilledDocuments

__all__ = ["Layout", "LazyShards", "TokenShard"]

_NONE, _NO_STEPS = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
_STRETCH_TOKENS = 131_072
"""Tokens that are laid out together where sequences are asked for in their order."""


class TokenShard(NamedTuple):
    """Sequences of some documents. Tokens of sequence s are token_ids[sequence_starts[s] : sequence_starts[s + 1]].

    A *piece* is a run of tokens of one document in one sequence; what lies in none is BOS or a separator. Where a token
    stands in its document's text is kept as the step from the token before, one byte in all but odd text.
    """

    token_ids: np.ndarray
    sequence_starts: np.ndarray
    sequence_id: np.ndarray
    document_id: np.ndarray
    """Document of each sequence; of a packed one, its first."""
    start_token: np.ndarray
    piece_start: np.ndarray = _NONE
    """Index among `token_ids`, ascending."""
    piece_tokens: np.ndarray = _NONE
    piece_document: np.ndarray = _NONE
    piece_char: np.ndarray = _NONE
    """Character offset of the piece's first token."""
    char_step: np.ndarray = _NO_STEPS
    """Characters from the start of the token before, for each token; empty where the tokenizer does not tell."""
    piece_end: np.ndarray = _NONE
    """Character at which the piece ends: where the document's next token starts, or its last one ends."""

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return self.sequence_id.size

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, BOS included."""
        return np.diff(self.sequence_starts)

    @property
    def token_document(self) -> np.ndarray:
        """Document of each token. BOS is of its sequence's first, a separator of the one that it ends."""
        if not self.piece_start.size:
            return np.repeat(self.document_id, self.lengths)
        piece = np.searchsorted(self.piece_start, np.arange(self.token_ids.size), side="right") - 1
        found = self.piece_document[np.maximum(piece, 0)]
        found[self.sequence_starts[:-1]] = self.document_id
        return found

    @property
    def char_start(self) -> np.ndarray:
        """Where each token starts in its document's text, in characters; −1 for BOS, separators, and if unknown."""
        found = np.full(self.token_ids.size, -1, dtype=np.int32)
        if self.char_step.size:
            before = np.cumsum(self.piece_tokens) - self.piece_tokens
            at = np.repeat(self.piece_start - before, self.piece_tokens) + np.arange(self.piece_tokens.sum())
            steps = np.cumsum(self.char_step, dtype=np.int64)
            found[at] = steps[at] + np.repeat(self.piece_char - steps[self.piece_start], self.piece_tokens)
        return found

    @property
    def token_chars(self) -> np.ndarray:
        """Characters from each token's start to the next one's in its document, or to the last one's end; 0 for BOS
        and separators, whole array empty if unknown. So a run of tokens is a run of the document's text."""
        chars = np.zeros(self.char_step.size, dtype=np.int32)
        if chars.size:
            start = self.char_start
            at, last = np.flatnonzero(start >= 0), self.piece_start + self.piece_tokens - 1
            chars[at[:-1]] = np.diff(start[at])
            chars[last] = self.piece_end - start[last]
        return chars

    def take(self, sequences: np.ndarray) -> "TokenShard":
        """Some of the sequences, by their index in the shard."""
        starts = np.concatenate([[0], np.cumsum(self.lengths[sequences])]).astype(np.int64)
        bounds = [(self.sequence_starts[s], self.sequence_starts[s + 1]) for s in sequences]
        tokens, steps = (
            np.concatenate([column[:0], *(column[first:last] for first, last in bounds)])
            for column in (self.token_ids, self.char_step)
        )
        runs = [np.arange(*np.searchsorted(self.piece_start, bound)) for bound in bounds]
        moved = [self.piece_start[run] - bound[0] + to for run, bound, to in zip(runs, bounds, starts, strict=False)]
        piece = np.concatenate([_NONE, *runs])
        return TokenShard(
            tokens,
            starts,
            *(self.sequence_id[sequences], self.document_id[sequences], self.start_token[sequences]),
            np.concatenate([_NONE, *moved]),
            *(self.piece_tokens[piece], self.piece_document[piece], self.piece_char[piece]),
            *(steps, self.piece_end[piece]),
        )


class Layout(NamedTuple):
    """How sequences are laid out."""

    prefix: np.ndarray
    separator: np.ndarray
    room: int
    """Tokens of a sequence beside its prefix."""
    is_packed: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, lm: LanguageModel, config: CorpusConfig) -> "Layout":
        """Raises ConfigError where the tokenizer lacks what is asked for, and where no room is left for text."""
        tokenizer = lm.tokenizer
        own = next((each for each in (tokenizer.bos_token_id, tokenizer.cls_token_id) if each is not None), None)
        bos = {"auto": lm.bos_id, "always": own, "never": None}[config.bos]
        if config.bos == "always" and bos is None:
            raise ConfigError(f"the tokenizer of {lm.name!r} has no BOS; set corpus.bos to 'auto' or 'never'")
        ends = [each for each in (tokenizer.eos_token_id, tokenizer.bos_token_id) if each is not None]
        is_packed = config.packing == "separator"
        if is_packed and not ends:
            raise ConfigError(
                f"packing needs a separator, but the tokenizer of {lm.name!r} has neither EOS nor BOS; "
                "set corpus.packing to 'none'"
            )
        prefix, separator = (np.array(ids, dtype=np.int32) for ids in ([bos] if bos is not None else [], ends[:1]))
        context = min(config.context_tokens or lm.context_tokens, lm.context_tokens)
        if context - prefix.size < 1:
            raise ConfigError(
                f"context_tokens = {config.context_tokens} leaves no room beside BOS; 2 or more are wanted"
            )
        how = "as the tokenizer does by itself" if config.bos == "auto" else f"corpus.bos = {config.bos!r}"
        start = f"with BOS (id {bos})" if bos is not None else "without BOS"
        notes = [f"sequences of at most {context} tokens start {start}: {how}"]
        if (config.context_tokens or 0) > context:
            notes.append(f"context_tokens = {config.context_tokens} is more than the model's {context}, which is used")
        if is_packed:
            notes.append(f"documents are packed, token {ends[0]} between them")
        return cls(prefix, separator, context - prefix.size, is_packed, tuple(notes))

    def pieces(self, sizes: np.ndarray) -> Iterator[tuple[int, int, int, bool, bool]]:
        """(index, first token, one past the last, opens a sequence, is followed by a separator) of every piece."""
        free = 0
        for index, size in enumerate(sizes.tolist()):
            free, first = free if self.is_packed else 0, 0
            while first < size:
                opens = free == 0
                free = self.room if opens else free
                last = min(first + free, size)
                free -= last - first
                ends = self.is_packed and last == size and free > 0
                free -= int(ends)
                yield index, first, last, opens, ends
                first = last


class LazyShards(Sequence[TokenShard]):
    """Shards of spilled tokens, each a list of documents; one is made whenever it is asked for, the same every time."""

    def __init__(self, layout: Layout, documents: SpilledDocuments, parts: Sequence[np.ndarray]) -> None:
        self.layout, self.documents, self.parts = layout, documents, parts
        documents.flush()
        self.sizes = documents.sizes
        self.starts = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        n_sequences = -(-self.sizes // layout.room)
        self.first_sequence = np.cumsum(n_sequences, dtype=np.int64) - n_sequences
        if layout.is_packed:
            n_opened = [sum(piece[3] for piece in layout.pieces(self.sizes[part])) for part in parts]
            self.first_packed = np.cumsum([0, *n_opened])

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> TokenShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenShard]: ...
    def __getitem__(self, index: int | slice) -> TokenShard | list[TokenShard]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        return self._made(self.parts[number], int(self.first_packed[number]) if self.layout.is_packed else None)

    def in_order(self) -> Iterator[TokenShard]:
        """Every sequence once more, by `sequence_id`, some at a time: for tables, which shards are not cut for."""
        if self.layout.is_packed:
            yield from self
            return
        edges = np.arange(0, int(self.starts[-1]) + 1, _STRETCH_TOKENS)
        bounds = [*np.unique(np.searchsorted(self.starts, edges)).tolist(), len(self.sizes)]
        for first, last in pairwise(bounds):
            yield self._made(np.arange(first, last), None)

    def _made(self, part: np.ndarray, first_packed: int | None) -> TokenShard:
        """The sequences of some documents; packed ones are numbered from `first_packed` on."""
        tokens, layout = _Growing(), self.layout
        current, ids, chars = -1, _NONE, _NONE
        for index, first, last, opens, ends in layout.pieces(self.sizes[part]):
            document = int(part[index])
            if document != current:
                current = document
                ids, chars = self.documents.tokens(document, int(self.starts[document]))
            if opens:
                in_document = int(self.first_sequence[document]) + first // layout.room
                sequence_id = in_document if first_packed is None else first_packed + len(tokens.rows)
                tokens.open(layout.prefix, document, first, sequence_id)
            tokens.add(ids[first:last], chars[first : last + 1], document)
            if ends:
                tokens.append(layout.separator)
        return tokens.shard()


class _Growing:
    """A token shard while its pieces are laid down."""

    def __init__(self) -> None:
        self.n = 0
        self.ids: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]
        self.steps: list[np.ndarray] = [_NONE]
        self.rows: list[tuple[int, int, int, int]] = []
        self.pieces: list[tuple[int, int, int, int, int]] = []

    def open(self, prefix: np.ndarray, document: int, first: int, sequence_id: int) -> None:
        """Begin a sequence."""
        self.rows.append((self.n, sequence_id, document, first))
        self.append(prefix)

    def append(self, ids: np.ndarray) -> None:
        """Tokens that are no document's text."""
        self.ids.append(ids)
        self.steps.append(np.zeros(ids.size, dtype=np.int64))
        self.n += ids.size

    def add(self, ids: np.ndarray, edges: np.ndarray, document: int) -> None:
        """A piece of a document, with one edge more than tokens."""
        self.pieces.append((self.n, ids.size, document, int(edges[0]), int(edges[-1])))
        self.ids.append(ids)
        self.steps.append(np.diff(edges[:-1], prepend=edges[:1]))
        self.n += ids.size

    def shard(self) -> TokenShard:
        """As arrays. Offsets of −1 mean that the tokenizer does not tell any."""
        start, sequence_id, document, first = np.array(self.rows, dtype=np.int64).reshape(-1, 4).T.copy()
        pieces = np.array(self.pieces, dtype=np.int64).reshape(-1, 5).T.copy()
        piece_start, piece_tokens, piece_document, piece_char, piece_end = pieces
        steps, known = np.concatenate(self.steps), bool((piece_char >= 0).all())
        narrow = np.min_scalar_type(int(steps.max(initial=0)))
        return TokenShard(
            np.concatenate(self.ids),
            np.append(start, self.n),
            *(sequence_id, document, first),
            *(piece_start, piece_tokens, piece_document, piece_char),
            *(steps.astype(narrow) if known else _NO_STEPS, piece_end),
        )
