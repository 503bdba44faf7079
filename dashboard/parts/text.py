"""Text of strangers (tokens, labels, names, file names), made safe to show."""

import re

__all__ = ["md_escape", "number", "share", "visible"]

# C0 and C1 control characters, those that turn the direction of writing round, those that show as nothing, surrogates
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb]"
)
GLYPHS = {"\n": "↵", "\t": "⇥"}
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&@/])")


def visible(text: str) -> str:
    """The text with every character that would not be seen, or would change how others are seen, as a glyph."""
    return UNSEEN.sub(lambda found: GLYPHS.get(found.group(), f"\\u{ord(found.group()):04x}"), text)


def md_escape(text: object) -> str:
    """The text for an element that reads Markdown: no link, image, emphasis, emoji, colour or formula in it."""
    return MARKDOWN.sub(r"\\\1", visible(str(text)))


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that matter, whole numbers in full, – for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int) or (abs(value) >= 10**digits and abs(value) < 1e9):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A share as per cent, or per million where it is small."""
    if value is None or value != value:
        return "–"
    if value == 0 or abs(value) >= 1e-5:
        return f"{value * 100:.3g} %"
    return f"{value * 1e6:.2g} ppm"
