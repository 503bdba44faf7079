"""Which pattern says best where a feature fires: every single one counted, the promising ones combined.

The criterion is one number. A firing counts by the square of its activation, which is its part in what the SAE
writes (mean 1 over the feature's firings; the faint firings, of which there are many, say little), a silent token 1:

    precision = hit / (hit + false alarms)      recall = hit / all firings      F = harmonic mean of the two
    score     = F - (token_cost + 1/firings) · (tokens beyond the first) - (part_cost + 1/firings) · (parts beyond the
                first) - far_cost · (places away), so that a simple pattern wins over one that hardly fits better
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flows.interpret.patterns import SHAPES, Both, Lexical, Pattern, Place, Shape, Structure, Tokens
from flows.interpret.spelling import affixes, bare_words
from flows.interpret.structure import KINDS
from flows.interpret.text import OFFSETS, Text

__all__ = ["Chooser", "Criterion", "Firings", "Found"]

COVERED = 0.9
"""The tokens that a context is joined to are those that cover so much of the firings."""


@dataclass(frozen=True)
class Criterion:
    """What a pattern is worth."""

    token_cost: float = 0.03
    part_cost: float = 0.05
    far_cost: float = 0.02
    clear_f: float = 0.4
    """Below this F there is no clear pattern."""
    most_tokens: int = 5
    most_parts: int = 3
    n_joined: int = 12
    """Patterns that are tried in pairs."""
    joined_recall: float = 0.4
    """A part of a combination holds on at least so much of the firings."""

    def cost(self, pattern: Pattern, n_firings: int) -> float:
        """What its size takes off: more where few firings would bear it out."""
        parts = pattern.parts if isinstance(pattern, Both) else (pattern,)
        tokens = sum(part.size - 1 for part in parts)
        away = sum(abs(part.offset) for part in parts if isinstance(part, Lexical))
        rare = 1 / n_firings
        return (self.token_cost + rare) * tokens + (self.part_cost + rare) * (len(parts) - 1) + self.far_cost * away


@dataclass(frozen=True)
class Firings:
    """Where one feature fires: rows of the text, and what each firing counts, mean 1."""

    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, acts: np.ndarray) -> "Firings":
        """Weighted by the square of the activation."""
        energy = acts.astype(np.float64) ** 2
        return cls(rows, energy / energy.mean() if rows.size else energy)

    @property
    def n(self) -> int:
        """How many there are, which is also their weight in all."""
        return int(self.rows.size)


@dataclass(frozen=True)
class Found:
    """A pattern with what it is worth on the firings: weighted, and as plain counts of tokens."""

    pattern: Pattern
    score: float
    precision: float
    recall: float
    f: float
    n_hit: int
    n_matching: int


@dataclass(frozen=True)
class _Scored:
    pattern: Pattern
    score: float
    hit: float
    n_hit: float
    total: float


class Chooser:
    """What is the same for all features: the tables of single patterns and how often each holds on the sample."""

    def __init__(self, text: Text, criterion: Criterion) -> None:
        self.text, self.criterion = text, criterion
        n_words = len(text.words) + 1
        self._totals = {offset: np.bincount(words, minlength=n_words) for offset, words in text.around.items()}
        self._shapes = np.array([[*(shape.fullmatch(word) is not None for shape in SHAPES.values())]
                                 for word in (*text.words, "")], dtype=np.float32)  # fmt: skip
        self._shape_totals = {offset: total @ self._shapes for offset, total in self._totals.items()}
        self._spellings = [bare_words(text.words), affixes(text.words)]
        for spelling in self._spellings:
            spelling.total = spelling.sums(np.arange(n_words), self._totals[0])
        held = text.mask[text.measured][:, None] >> np.arange(len(KINDS), dtype=np.uint64) & np.uint64(1)
        self._structures = held.sum(axis=0, dtype=np.int64).astype(float)
        first = text.position[text.measured]
        self._first = int(first.min()) if first.size else 0

    def best(self, firings: Firings, promoted: tuple[str, ...]) -> Found | None:
        """The pattern with the highest score; None where a feature never fires here."""
        if firings.rows.size == 0:
            return None
        singles = sorted(self._singles(firings, promoted), key=_order)
        chosen = self._joined(firings, singles)
        false_alarms = max(0.0, chosen.total - chosen.n_hit)
        precision = chosen.hit / max(chosen.hit + false_alarms, 1e-12)
        recall = chosen.hit / firings.n
        f = 2 * precision * recall / max(precision + recall, 1e-12)
        return Found(chosen.pattern, chosen.score, precision, recall, f, int(chosen.n_hit), int(chosen.total))

    def _score(self, firings: Firings, hit: np.ndarray, n_hit: np.ndarray, total: np.ndarray) -> np.ndarray:
        """F of many patterns at once, before their cost."""
        alarms = np.maximum(total - n_hit, 0)
        score: np.ndarray = 2 * hit / (firings.n + hit + alarms)
        return score

    def _singles(self, firings: Firings, promoted: tuple[str, ...]) -> Iterator[_Scored]:
        """The most promising patterns of one part, of each family."""
        outside = ~self.text.is_measured[firings.rows]
        for offset in OFFSETS:
            at = self.text.word_at(firings.rows, offset)
            n_words = len(self.text.words) + 1
            n_hit = np.bincount(at, minlength=n_words)
            hit = np.bincount(at, weights=firings.weights, minlength=n_words)
            total = self._totals[offset] + (np.bincount(at[outside], minlength=n_words) if outside.any() else 0)
            there = np.flatnonzero(n_hit[:-1])
            if offset == 1:  # before the plain sets: of two that say the same, this one says more
                yield from self._promoted(firings, promoted, hit, n_hit, total)
            yield from self._token_sets(firings, offset, there, (hit[there], n_hit[there], total[there]))
            counts = hit[there], n_hit[there], total[there] - self._totals[offset][there]
            if offset != -2:
                yield from self._shaped(firings, offset, there, counts)
            if offset == 0:
                yield from self._spelled(firings, there, counts)
        yield from self._placed(firings, outside)

    def _token_sets(
        self, firings: Firings, offset: int, there: np.ndarray, counts: tuple[np.ndarray, ...]
    ) -> Iterator[_Scored]:
        """The best set at this offset (tokens by the share of them that fires), and the one that covers the firings."""
        hit, n_hit, total = counts
        most = self.criterion.most_tokens
        common = hit >= 0.02 * firings.n
        for key, is_cover in ((-n_hit / total, False), (-hit, True)):
            order = np.argsort(key, kind="stable")
            order = order[common[order]][:most]
            if order.size == 0:
                continue
            sums = np.cumsum(hit[order]), np.cumsum(n_hit[order]), np.cumsum(total[order])
            sizes = np.arange(order.size)
            scores = self._score(firings, *sums) - sizes * (self.criterion.token_cost + 1 / firings.n)
            covered = int(np.searchsorted(sums[0], COVERED * firings.n))
            size = min(covered, order.size - 1) if is_cover else int(scores.argmax())
            strongest = sorted(order[: size + 1], key=lambda place: -hit[place])
            pattern = Tokens(tuple(self.text.words[there[place]] for place in strongest), offset)
            yield self._scored(firings, pattern, *(column[size] for column in sums))

    def _scored(
        self, firings: Firings, pattern: Pattern, hit: np.ndarray, n_hit: np.ndarray, total: np.ndarray
    ) -> _Scored:
        """One pattern with its score, from its counts."""
        f = float(self._score(firings, hit, n_hit, total))
        return _Scored(pattern, f - self.criterion.cost(pattern, firings.n), float(hit), float(n_hit), float(total))

    def _promoted(self, firings: Firings, promoted: tuple[str, ...], *counts: np.ndarray) -> Iterator[_Scored]:
        """The tokens that the feature makes more likely, where they come next."""
        places = [(word, self.text.place[word]) for word in promoted if word in self.text.place]
        for size in range(1, len(places) + 1):
            index = [place for _, place in places[:size]]
            pattern = Tokens(tuple(word for word, _ in places[:size]), 1, promoted=True)
            yield self._scored(firings, pattern, *(column[index].sum() for column in counts))

    def _shaped(
        self, firings: Firings, offset: int, there: np.ndarray, counts: tuple[np.ndarray, ...]
    ) -> Iterator[_Scored]:
        """Shapes of the token at this offset."""
        hit, n_hit, extra = counts
        table = self._shapes[there]
        sums = hit @ table, n_hit @ table, self._shape_totals[offset] + extra @ table
        names = list(SHAPES)
        yield from self._several(firings, sums, lambda index: Shape(names[index], offset))

    def _spelled(self, firings: Firings, there: np.ndarray, counts: tuple[np.ndarray, ...]) -> Iterator[_Scored]:
        """Bare words and affixes of the token itself."""
        for spelling in self._spellings:
            hit, n_hit, extra = (spelling.sums(there, column) for column in counts)
            yield from self._several(firings, (hit, n_hit, spelling.total + extra), spelling.patterns.__getitem__)

    def _placed(self, firings: Firings, outside: np.ndarray) -> Iterator[_Scored]:
        """Structure, and the start of the sequence."""
        if self.text.is_code:
            mask = self.text.mask[firings.rows]
            held = (mask[:, None] >> np.arange(len(KINDS), dtype=np.uint64) & np.uint64(1)).astype(np.float32)
            extra = held[outside].sum(axis=0)
            sums = firings.weights @ held, held.sum(axis=0), self._structures + extra
            yield from self._several(firings, sums, lambda index: Structure(KINDS[index]))
        place = Place(self._first)
        held = self.text.holds(place, firings.rows)
        yield self._measured(firings, (place,), held)

    def _several(
        self, firings: Firings, sums: Iterable[np.ndarray], made: Callable[[int], Pattern]
    ) -> Iterator[_Scored]:
        """The best by score, and those with the highest lift among those that hold on enough of the firings."""
        hit, n_hit, total = sums
        scores = self._score(firings, hit, n_hit, total)
        lift = np.where(hit >= self.criterion.joined_recall * firings.n, hit / np.maximum(total, 1), 0)
        picked = {*np.argsort(-scores, kind="stable")[:2].tolist(), *np.argsort(-lift, kind="stable")[:3].tolist()}
        for index in sorted(picked):
            if hit[index] > 0:
                yield self._scored(firings, made(index), hit[index], n_hit[index], total[index])

    def _measured(self, firings: Firings, parts: tuple[Pattern, ...], held: np.ndarray) -> _Scored:
        """Parts together, counted on the whole sample."""
        outside = held & ~self.text.is_measured[firings.rows]
        total = self.text.count(parts) + int(outside.sum())
        pattern = parts[0] if len(parts) == 1 else Both(parts)
        return self._scored(firings, pattern, firings.weights[held].sum(), held.sum(), np.asarray(total))

    def _joined(self, firings: Firings, singles: list[_Scored]) -> _Scored:
        """The best single pattern, or a combination that is worth its cost."""
        best, n = singles[0], firings.n
        wide = [single for single in singles if single.hit >= self.criterion.joined_recall * n]
        by_lift = sorted(wide, key=lambda single: -single.hit / max(single.total, 1.0))
        pool = list(dict.fromkeys([*wide[: self.criterion.n_joined // 2], *by_lift]))[: self.criterion.n_joined]
        held = {single.pattern: self.text.holds(single.pattern, firings.rows) for single in pool}
        for size in range(2, self.criterion.most_parts + 1):
            core = best.pattern.parts if isinstance(best.pattern, Both) else ()
            if size > 2 and len(core) != size - 1:
                break
            tries = combinations(held, 2) if size == 2 else ((*core, part) for part in held if part not in core)
            for parts in tries:
                together = np.logical_and.reduce([held[part] for part in parts])
                hit = float(firings.weights[together].sum())
                if 2 * hit / (n + hit) - self.criterion.cost(Both(parts), n) > best.score:  # even without false alarms
                    best = min(best, self._measured(firings, parts, together), key=_order)
        return best


def _order(scored: _Scored) -> tuple[float, int]:
    return -round(scored.score, 9), scored.pattern.size
