"""The text that patterns are measured on: tokens of the sampled sequences and of the examples, as arrays."""

from functools import lru_cache

import duckdb
import numpy as np
import pyarrow as pa

from catalog.guard import answering
from flows.interpret.patterns import Both, Lexical, Pattern, Place, Structure, Tokens
from flows.interpret.structure import SPECIAL, looks_like_python, token_structure

__all__ = ["OFFSETS", "Text", "load_text"]

OFFSETS = (0, -1, 1, -2)
"""Where a pattern may look, counted from the token."""

KEPT_BITS = 1024

_SEQUENCES = """
with wanted as (
    select dataset_id, sequence_id, true as is_sampled from activation where sae_id = $sae_id
    union
    select dataset_id, sequence_id, false from example where sae_id = $sae_id
),
used as (select dataset_id, sequence_id, bool_or(is_sampled) as is_sampled from wanted group by all),
documents as (select distinct dataset_id, document_id from sequence semi join used using (dataset_id, sequence_id))
select sequence_id, coalesce(is_sampled, false) as is_sampled, tokens,
       coalesce(document_ids, [document_id]) as document_ids, coalesce(document_starts, [0]) as document_starts
from sequence semi join documents using (dataset_id, document_id) left join used using (dataset_id, sequence_id)
order by dataset_id, document_id, start_token, sequence_id
"""
"""A sequence counts with its whole document, so that the structure of source is read from its beginning."""


class Text:
    """One row a token. `words` are the different tokens; `word` [n] is a place in it; `mask` [n] of structure."""

    def __init__(self, sequences: pa.Table) -> None:
        tokens = sequences["tokens"].combine_chunks()
        coded = tokens.flatten().dictionary_encode()
        self.words: list[str] = coded.dictionary.to_pylist()
        self.word = coded.indices.to_numpy().astype(np.int32)
        lengths = np.diff(tokens.offsets.to_numpy())
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.sequence = np.repeat(np.arange(lengths.size), lengths)
        self.position = np.arange(self.word.size) - self.starts[self.sequence]
        self.begins, self.document = _documents(sequences, self.starts[:-1], self.word.size)
        ids = sequences["sequence_id"].to_numpy()
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        is_sampled = sequences["is_sampled"].to_numpy(zero_copy_only=False)
        self.is_measured = np.repeat(is_sampled, lengths) & ~self._is_special()
        self.measured = np.flatnonzero(self.is_measured)
        """Rows of the sample, where every firing is known."""
        self.around = {offset: self.word_at(self.measured, offset) for offset in OFFSETS}
        """Of each of these rows the token there, and around it."""
        self.place = {word: place for place, word in enumerate(self.words)}
        self.mask, self.is_code = self._structure()
        self.bits = lru_cache(KEPT_BITS)(self._bits)
        self._lexical = lru_cache(KEPT_BITS)(self._table)

    def _is_special(self) -> np.ndarray:
        """What the model sets before a text."""
        special = np.array([SPECIAL.fullmatch(word) is not None for word in self.words], dtype=bool)
        return np.asarray(self.begins & special[self.word])

    def _structure(self) -> tuple[np.ndarray, bool]:
        """Of each document as a whole, where most documents are Python source."""
        mask = np.zeros(self.word.size, dtype=np.uint64)
        rows = np.flatnonzero(~self._is_special())
        rows = rows[np.argsort(self.document[rows], kind="stable")]
        inside = np.split(rows, np.flatnonzero(np.diff(self.document[rows])) + 1)
        texts = [tuple(self.words[word] for word in self.word[rows]) for rows in inside]
        if 2 * sum(looks_like_python("".join(tokens)) for tokens in texts) < len(texts):
            return mask, False
        for rows, tokens in zip(inside, texts, strict=True):
            mask[rows] = token_structure(tokens)
        return mask, True

    def rows(self, sequence_id: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Where tokens are, by sequence and position."""
        sequence = self._order[np.searchsorted(self._ids, sequence_id)]
        rows: np.ndarray = self.starts[sequence] + position
        return rows

    def word_at(self, rows: np.ndarray, offset: int) -> np.ndarray:
        """The token `offset` places from each row; len(words) where that is outside the sequence."""
        there = np.clip(rows + offset, 0, self.word.size - 1)
        is_inside = self.sequence[there] == self.sequence[rows]
        is_inside &= there == rows + offset
        return np.where(is_inside, self.word[there], len(self.words)).astype(np.int32)

    def holds(self, pattern: Pattern, rows: np.ndarray) -> np.ndarray:
        """Where a pattern holds: what its `matches` says of each row."""
        if isinstance(pattern, Both):
            held = np.logical_and.reduce([self.holds(part, rows) for part in pattern.parts])
        elif isinstance(pattern, Structure):
            held = (self.mask[rows] >> np.uint64(pattern.bit) & np.uint64(1)).astype(bool)
        elif isinstance(pattern, Place):
            held = self.position[rows] == pattern.position
        else:
            assert isinstance(pattern, Lexical)
            held = self._lexical(pattern)[self.word_at(rows, pattern.offset)]
        return np.asarray(held)

    def _table(self, pattern: Lexical) -> np.ndarray:
        """For which words it holds; nothing holds outside the sequence."""
        if not isinstance(pattern, Tokens):
            return np.array([*(pattern.holds(word) for word in self.words), False])
        table = np.zeros(len(self.words) + 1, dtype=bool)
        table[[self.place[token] for token in pattern.tokens if token in self.place]] = True
        return table

    def _bits(self, pattern: Pattern) -> np.ndarray:
        """Where it holds on the sample, eight rows a byte."""
        if isinstance(pattern, Lexical):
            return np.packbits(self._lexical(pattern)[self.around[pattern.offset]])
        return np.packbits(self.holds(pattern, self.measured))

    def count(self, parts: tuple[Pattern, ...]) -> int:
        """Rows of the sample where all of these hold."""
        return int(np.bitwise_count(np.bitwise_and.reduce([self.bits(part) for part in parts])).sum())


def _documents(sequences: pa.Table, starts: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """[n_rows] whether a token is the first of a document's stretch, and which document it is of."""
    places = sequences["document_starts"].combine_chunks()
    n_documents = np.diff(places.offsets.to_numpy())
    first = places.flatten().to_numpy() + np.repeat(starts, n_documents)
    begins = np.zeros(n_rows, dtype=bool)
    begins[first] = True
    ids = sequences["document_ids"].combine_chunks().flatten().to_numpy()
    return begins, ids[np.cumsum(begins) - 1]


def load_text(connection: duckdb.DuckDBPyConnection, sae_id: str) -> Text:
    """The documents that the sample of an SAE and its examples lie in."""
    with answering(_SEQUENCES):
        return Text(connection.sql(_SEQUENCES, params={"sae_id": sae_id}).to_arrow_table())
