"""The closed set of patterns: each a value that says of a token of a text whether it holds there.

    Tokens     one of these tokens stands here, or so many places before or after
    Word       the same by the bare word: case and spaces do not count
    Shape      a token of this shape stands there: digits, Capitalised, an opening bracket …
    Affix      the token begins or ends so
    Place      the n-th token of the sequence
    Structure  inside this part of Python source
    Both       all of these at once

`as_json` and `from_json` keep them in the catalog; `words` is the name that a person reads.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from flows.interpret.structure import BRACKETS, KINDS, LINES, WHOLES, token_structure

__all__ = [
    "SHAPES",
    "Affix",
    "Both",
    "Lexical",
    "Pattern",
    "Place",
    "Shape",
    "Structure",
    "Tokens",
    "Word",
    "as_json",
    "bare",
    "from_json",
]

SHAPES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        "digits": r" ?\d+",
        "a token with a digit": r".*\d.*",
        "a Capitalised token": r" ?[A-Z][a-z]+",
        "an ALL_CAPS token": r" ?[A-Z][A-Z_]+",
        "a single capital letter": r" ?[A-Z]",
        "a capital first": r" ?[A-Z].*",
        "a single letter": r" ?[A-Za-z]",
        "a lower-case word after a space": r" [a-z]+",
        "a lower-case piece of a word": r"[a-z]+",
        "letters": r" ?[^\W\d_]+",
        "snake_case": r"\w*_\w*",
        "a dunder name": r" ?__\w*|\w*__",
        "punctuation": r" ?[^\w\s]+",
        "an opening bracket": r".*[(\[{]",
        "a closing bracket": r"[)\]}].*",
        "a quotation mark": r".*['\"`].*",
        "an operator": r" ?[-+*/%=<>&|^!~@]+",
        "a line break": r"[^\S\n]*\n\s*",
        "several line breaks": r"\s*\n[^\S\n]*\n\s*",
        "indentation": r"\s*\n[ \t]+|[ \t]{2,}",
        "white space": r"\s+",
        "a token with a space before": r" \S+",
        "characters beyond ASCII": r".*[^\x00-\x7f].*",
    }.items()
}
"""Name of a shape -> what the whole token must match."""

PLACES = {-2: "two after", -1: "after", 0: "", 1: "before", 2: "two before"}


class Pattern(Protocol):
    """A predicate over the places of a text: a value, equal to another that says the same."""

    def __hash__(self) -> int: ...

    @property
    def size(self) -> int:
        """How much there is to it: the simpler of two that fit alike is preferred."""

    def matches(self, tokens: Sequence[str], position: int, around: tuple[str, str] = ("", "")) -> bool:
        """Whether it holds at `position` of `tokens`, a sequence as the model read it. `around` is the text before
        and after it in its document: only Structure looks at it, which depends on where strings and lines end."""

    def words(self) -> str:
        """For people."""


class Lexical:
    """What depends on one token alone, `offset` places from here."""

    offset: int

    def holds(self, token: str) -> bool:
        """Whether that token fits."""
        raise NotImplementedError

    def matches(self, tokens: Sequence[str], position: int, around: tuple[str, str] = ("", "")) -> bool:  # noqa: ARG002
        """See Pattern."""
        there = position + self.offset
        return 0 <= there < len(tokens) and self.holds(tokens[there])


def _quoted(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)


def _placed(offset: int, what: str) -> str:
    return f"{PLACES[offset]} {what}".strip()


@dataclass(frozen=True)
class Tokens(Lexical):
    """One of these tokens. `promoted`: they are those that the feature makes more likely, standing next."""

    tokens: tuple[str, ...]
    offset: int = 0
    promoted: bool = False
    kind: ClassVar[str] = "tokens"

    @property
    def size(self) -> int:
        return len(self.tokens)

    def holds(self, token: str) -> bool:
        return token in self.tokens

    def words(self) -> str:
        shown = ", ".join(map(_quoted, self.tokens))
        if self.promoted:
            return f"promotes {shown}"
        return _placed(self.offset, shown if self.offset else f"token{'s' * (len(self.tokens) > 1)} {shown}")


@dataclass(frozen=True)
class Word(Lexical):
    """A token that is this word but for case and spaces."""

    word: str
    offset: int = 0
    kind: ClassVar[str] = "word"
    size: ClassVar[int] = 1

    def holds(self, token: str) -> bool:
        return bare(token) == self.word

    def words(self) -> str:
        return _placed(self.offset, f"the word {_quoted(self.word)}")


def bare(token: str) -> str:
    """A token without spaces and case."""
    return token.strip().lower()


@dataclass(frozen=True)
class Shape(Lexical):
    """A token of this shape, a key of SHAPES."""

    shape: str
    offset: int = 0
    kind: ClassVar[str] = "shape"
    size: ClassVar[int] = 1

    def holds(self, token: str) -> bool:
        return SHAPES[self.shape].fullmatch(token) is not None

    def words(self) -> str:
        return _placed(self.offset, self.shape)


@dataclass(frozen=True)
class Affix(Lexical):
    """A longer token that begins or ends with these letters."""

    letters: str
    at_end: bool
    offset: int = 0
    kind: ClassVar[str] = "affix"
    size: ClassVar[int] = 1

    def holds(self, token: str) -> bool:
        word = bare(token)
        return len(word) > len(self.letters) and (
            word.endswith(self.letters) if self.at_end else word.startswith(self.letters)
        )

    def words(self) -> str:
        shown = f'ends in "-{self.letters}"' if self.at_end else f'begins with "{self.letters}-"'
        return shown if not self.offset else _placed(self.offset, f"a token that {shown}")


@dataclass(frozen=True)
class Place:
    """The token at this position of its sequence."""

    position: int
    kind: ClassVar[str] = "place"
    size: ClassVar[int] = 1

    def matches(self, tokens: Sequence[str], position: int, around: tuple[str, str] = ("", "")) -> bool:  # noqa: ARG002
        return position == self.position

    def words(self) -> str:
        return "the first token of the sequence" if self.position <= 1 else f"position {self.position}"


@dataclass(frozen=True)
class Structure:
    """Inside this part of Python source, one of KINDS."""

    part: str
    kind: ClassVar[str] = "structure"
    size: ClassVar[int] = 1

    @property
    def bit(self) -> int:
        """Its place in a mask."""
        return KINDS.index(self.part)

    def matches(self, tokens: Sequence[str], position: int, around: tuple[str, str] = ("", "")) -> bool:
        mask = token_structure(tokens, around)
        return bool(int(mask[position]) >> self.bit & 1)

    def words(self) -> str:
        return f"{_PREPOSITIONS.get(self.part, 'as')} {self.part}"


_PREPOSITIONS = {part: "in" for part in (*WHOLES, *BRACKETS.values(), *LINES.values())} | {
    part: "at" for part in KINDS if part.startswith("the ")
}


@dataclass(frozen=True)
class Both:
    """All of these patterns at once."""

    parts: tuple[Pattern, ...]
    kind: ClassVar[str] = "both"

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def matches(self, tokens: Sequence[str], position: int, around: tuple[str, str] = ("", "")) -> bool:
        return all(part.matches(tokens, position, around) for part in self.parts)

    def words(self) -> str:
        return " ".join(part.words() for part in sorted(self.parts, key=_reading_order))


def _reading_order(part: Pattern) -> tuple[int, int]:
    """What stands here first, then what stands around it, then what it is part of."""
    if isinstance(part, Lexical):
        return (0, 0) if part.offset == 0 else (1, abs(part.offset))
    return (2, 0)


_KINDS: dict[str, Any] = {made.kind: made for made in (Tokens, Word, Shape, Affix, Place, Structure)}


def as_json(pattern: Pattern) -> dict[str, Any]:
    """For the catalog."""
    if isinstance(pattern, Both):
        return {"kind": Both.kind, "parts": [as_json(part) for part in pattern.parts]}
    return {"kind": pattern.kind} | vars(pattern)  # type: ignore[attr-defined]  # every other class has a kind


def from_json(given: dict[str, Any]) -> Pattern:
    """The pattern that `as_json` wrote."""
    fields = {name: value for name, value in given.items() if name != "kind"}
    if given["kind"] == Both.kind:
        return Both(tuple(from_json(part) for part in fields["parts"]))
    if "tokens" in fields:
        fields["tokens"] = tuple(fields["tokens"])
    pattern: Pattern = _KINDS[given["kind"]](**fields)
    return pattern
