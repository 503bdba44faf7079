"""What a piece of Python source is part of: a docstring, an import line, brackets … by Python's own tokenizer."""

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["BRACKETS", "KINDS", "LINES", "SPECIAL", "WHOLES", "looks_like_python", "structure_of", "token_structure"]

LINES = {
    "import": "an import line", "from": "an import line", "def": "a def line", "class": "a class line",
    "@": "a decorator", "return": "a return statement", "raise": "a raise statement", "if": "a condition",
    "elif": "a condition", "while": "a condition", "for": "a for line", "except": "an except line",
    "with": "a with line", "assert": "an assert statement",
}  # fmt: skip
"""First word of a logical line -> what the line is."""

BRACKETS = {"(": "round brackets", "[": "square brackets", "{": "curly brackets"}

WHOLES = ("a docstring", "a string literal", "a comment")

KINDS = (
    *WHOLES, "a number", "a keyword", "a constant", "a name", "an operator",
    "indentation", "the end of a line", "the start of a line", "a name being defined", "a parameter",
    "a keyword argument", "an attribute", "a called name", "an assigned name", *BRACKETS.values(),
    "nested brackets", *dict.fromkeys(LINES.values()),
)  # fmt: skip
"""Every kind of place; the n-th is bit n of a mask."""

BIT = {kind: 1 << number for number, kind in enumerate(KINDS)}
SPECIAL = re.compile(r"<\|?[A-Za-z_]+\|?>|\[[A-Z]+\]")
"""What a model sets before a sequence is no source."""

CLOSING = (")", "]", "}")
CONSTANTS = ("True", "False", "None")
SKIPPED = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def looks_like_python(text: str) -> bool:
    """Whether a document is Python source: it parses, and says something that prose would not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def token_structure(tokens: Sequence[str], around: tuple[str, str] = ("", "")) -> np.ndarray:
    """[len(tokens)] a mask of KINDS for each token of a text, with what stands before and after it in its document.

    A token is where its first visible character is; one of white space alone, where its last one is.
    """
    words = ["", *tokens[1:]] if tokens and SPECIAL.fullmatch(tokens[0]) else list(tokens)
    lead, tail = around
    mask = structure_of(lead + "".join(words) + tail)
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    visible = [len(word) - len(word.lstrip()) if word.strip() else max(0, len(word) - 1) for word in words]
    starts = len(lead) + np.cumsum(lengths) - lengths + np.array(visible, dtype=np.int64)
    places: np.ndarray = np.append(mask, np.uint64(0))[np.minimum(starts, mask.size)]
    return places


@lru_cache(maxsize=16)
def structure_of(text: str) -> np.ndarray:
    """[len(text)] a mask of KINDS for each character. Source that breaks off or is wrong is read line by line on."""
    mask = np.zeros(len(text), dtype=np.uint64)
    starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    for line in _logical_lines(text):
        _mark_line(line, mask, starts)
    mask.flags.writeable = False
    return mask


def _logical_lines(text: str) -> Iterator[list[tokenize.TokenInfo]]:
    """The tokens of each logical line; after an error, from the next line that can be read."""
    lines = text.splitlines(keepends=True)
    first = 0
    while first < len(lines):
        line: list[tokenize.TokenInfo] = []
        last = first
        reader = io.StringIO("".join(lines[first:])).readline
        try:
            for token in tokenize.generate_tokens(reader):
                moved = _moved(token, first)
                last = moved.end[0]
                line.append(moved)
                if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
                    yield line
                    line = []
            return
        except (tokenize.TokenError, SyntaxError):
            yield line
            first = max(last, first + 1)


def _moved(token: tokenize.TokenInfo, n_lines: int) -> tokenize.TokenInfo:
    if not n_lines:
        return token
    (top, left), (bottom, right) = token.start, token.end
    return token._replace(start=(top + n_lines, left), end=(bottom + n_lines, right))


def _mark_line(line: Sequence[tokenize.TokenInfo], mask: np.ndarray, starts: np.ndarray) -> None:
    """Set the bits of one logical line's characters."""
    spoken = [number for number, token in enumerate(line) if token.type not in (*SKIPPED, tokenize.COMMENT)]
    first = spoken[0] if spoken else -1
    head = next((line[number].string for number in spoken if line[number].string != "async"), "")
    whole = BIT[LINES[head]] if head in LINES else 0
    is_docstring = len(spoken) == 1 and line[first].type == tokenize.STRING
    brackets: list[str] = []
    for number, token in enumerate(line):
        start, stop = _span(token, starts)
        if token.type == tokenize.OP and token.string in CLOSING and brackets:
            brackets.pop()
        bits = whole | (BIT[BRACKETS[brackets[-1]]] if brackets else 0)
        bits |= BIT["nested brackets"] if len(brackets) > 1 else 0
        if number == first:
            mask[start : start + 1] |= np.uint64(BIT["the start of a line"])
            mask[starts[token.start[0] - 1] : start] |= np.uint64(BIT["indentation"])
        bits |= BIT["a docstring"] if is_docstring and number == first else _kinds(line, number, head, bool(brackets))
        mask[start:stop] |= np.uint64(bits)
        if token.type == tokenize.OP and token.string in BRACKETS:
            brackets.append(token.string)


def _span(token: tokenize.TokenInfo, starts: np.ndarray) -> tuple[int, int]:
    """Characters of a token, as places in the text."""
    last = len(starts) - 1
    (top, left), (bottom, right) = token.start, token.end
    return int(starts[min(top - 1, last)]) + left, int(starts[min(bottom - 1, last)]) + right


_TYPES = {
    tokenize.STRING: "a string literal", tokenize.COMMENT: "a comment", tokenize.NUMBER: "a number",
    tokenize.OP: "an operator", tokenize.NEWLINE: "the end of a line", tokenize.NL: "the end of a line",
    tokenize.INDENT: "indentation",
}  # fmt: skip
_TYPES |= {  # since Python 3.12 an f-string comes in pieces
    getattr(tokenize, name): "a string literal"
    for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if hasattr(tokenize, name)
}


def _kinds(line: Sequence[tokenize.TokenInfo], number: int, head: str, in_brackets: bool) -> int:
    """What a token is by itself and by its neighbours in the line."""
    token = line[number]
    if token.type != tokenize.NAME:
        return BIT[_TYPES[token.type]] if token.type in _TYPES else 0
    if keyword.iskeyword(token.string):
        return BIT["a constant" if token.string in CONSTANTS else "a keyword"]
    before = line[number - 1].string if number else ""
    after = line[number + 1].string if number + 1 < len(line) else ""
    bits = BIT["a name"]
    if before in ("def", "class"):
        return bits | BIT["a name being defined"]
    bits |= BIT["an attribute"] if before == "." else 0
    bits |= BIT["a called name"] if after == "(" else 0
    if in_brackets and head == "def":
        return bits | (BIT["a parameter"] if before in ("(", ",", "*", "**") else 0)
    if after == "=":
        bits |= BIT["a keyword argument" if in_brackets else "an assigned name"]
    return bits
