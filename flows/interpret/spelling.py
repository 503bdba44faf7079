"""Patterns that depend on how a token is spelt, all counted at once: bare words, endings and beginnings."""

import numpy as np

from flows.interpret.patterns import Affix, Pattern, Word, bare

__all__ = ["Spelling", "affixes", "bare_words"]

AFFIX_LETTERS = (2, 3, 4)
AFFIX_WORDS = 6
"""An ending is one when so many different words have it."""


class Spelling:
    """Patterns that depend on how a token is spelt: `table` [n_words + 1, n] says which of them each token has."""

    def __init__(self, patterns: list[Pattern], table: np.ndarray) -> None:
        self.patterns, self._table = patterns, table
        self.total = np.zeros(len(patterns))
        """Tokens of the sample that have each of them."""

    def sums(self, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """[n_patterns] the counts of the words that have each pattern."""
        weights = np.repeat(counts, self._table.shape[1])
        found: np.ndarray = np.bincount(self._table[words].ravel(), weights=weights, minlength=len(self.patterns) + 1)
        return found[:-1]


def bare_words(words: list[str]) -> Spelling:
    """Every bare word."""
    bares = [bare(word) for word in words]
    place = {name: number for number, name in enumerate(sorted(set(bares)))}
    table = np.array([*(place[name] for name in bares), len(place)])[:, None]
    return Spelling([Word(name) for name in place], table)


def affixes(words: list[str]) -> Spelling:
    """Endings and beginnings that many words share."""
    wide = [_affixes_of(bare(word)) for word in words]
    having: dict[Affix, set[str]] = {}
    for word, own in zip(words, wide, strict=True):
        for affix in own:
            having.setdefault(affix, set()).add(bare(word))
    common = [affix for affix, bares in having.items() if len(bares) >= AFFIX_WORDS]
    place = {affix: number for number, affix in enumerate(common)}
    table = np.full((len(words) + 1, 2 * len(AFFIX_LETTERS)), len(place))
    for row, own in enumerate(wide):
        known = [place[affix] for affix in own if affix in place]
        table[row, : len(known)] = known
    return Spelling([*place], table)


def _affixes_of(word: str) -> list[Affix]:
    longer = [n for n in AFFIX_LETTERS if n < len(word)] if word.isalpha() else []
    return [Affix(word[-n:], at_end=True) for n in longer] + [Affix(word[:n], at_end=False) for n in longer]
