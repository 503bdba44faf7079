"""The L0–FVU frontier as an SVG, written by hand: logarithmic axes, a line an architecture, references as crosses."""

import math
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

from quality.variants import VARIANTS

Row = dict[str, Any]
Point = tuple[float, float]

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 48, 56
COLOURS = dict(
    zip(VARIANTS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a2be2", "#777777", "#b8860b", "#56b4e9"), strict=True)
)
"""Told apart by the colour-blind as well, and each line is named at its end."""
L0_TICKS = (4, 8, 16, 32, 64, 128)
FVU_TICKS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
INK, FAINT = "#333333", "#dddddd"
HALO = 'paint-order="stroke" stroke="white" stroke-width="4"'
LABEL_HEIGHT = 15
BAR = 0.060


class _Axes:
    """Where a point lies, for the range that the points need."""

    def __init__(self, points: list[Point]) -> None:
        self.x_range = _range([x for x, _ in points])
        self.y_range = _range([y for _, y in points])

    def x(self, l0: float) -> float:
        """Pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * _share(l0, self.x_range)

    def y(self, fvu: float) -> float:
        """Pixels from the top."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(fvu, self.y_range)


def draw(rows: list[Row], path: Path) -> None:
    """Write the picture of frontier rows and reference rows."""
    lines: dict[str, list[Point]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["l0"]):
        if row["kind"] == "frontier":
            lines[row["name"]].append((row["l0"], row["fvu"]))
    references = {row["name"]: (row["l0"], row["fvu"]) for row in rows if row["kind"] == "reference"}
    axes = _Axes([point for line in lines.values() for point in line] + list(references.values()))
    parts = [_frame(axes), _bar(axes), *(_line(axes, name, line) for name, line in lines.items())]
    parts += [_labels(axes, lines), *(_reference(axes, name, point) for name, point in references.items())]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">'
    )
    title = "<title>FVU against L0 on held-out stories, by architecture; sae-lens as crosses</title>"
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, title, background, *parts, "</svg>"]) + "\n")


def _frame(axes: _Axes) -> str:
    """Grid, ticks and names of the axes."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in _within(L0_TICKS, axes.x_range):
        x = axes.x(tick)
        parts += [_stroke(x, TOP, x, bottom, FAINT), _text(x, bottom + 18, f"{tick:g}", "middle")]
    for tick in _within(FVU_TICKS, axes.y_range):
        y = axes.y(tick)
        parts += [_stroke(LEFT, y, right, y, FAINT), _text(LEFT - 8, y + 4, f"{tick:g}", "end")]
    parts += [_stroke(LEFT, bottom, right, bottom, INK), _stroke(LEFT, TOP, LEFT, bottom, INK)]
    middle = (TOP + bottom) / 2
    parts.append(_text((LEFT + right) / 2, HEIGHT - 16, "L0: features that fire on a token", "middle"))
    turned = f'transform="rotate(-90 20 {middle})"'
    parts.append(f'<text x="20" y="{middle}" text-anchor="middle" {turned}>FVU, held-out stories</text>')
    parts.append(_text(LEFT, 26, "stories260K, layer 2, 1,024 features, 1 M samples", "start", 'font-size="15"'))
    return "\n".join(parts)


def _bar(axes: _Axes) -> str:
    """The bar of topk and batchtopk: from L0 16.2 to the left, under FVU 0.060."""
    x, y = axes.x(16.2), axes.y(BAR)
    dashed = 'stroke-dasharray="4 3"'
    down = _stroke(x, y, x, HEIGHT - BOTTOM, INK, dashed)
    note = _text(x - 6, HEIGHT - BOTTOM - 8, "bar: FVU 0.060 at L0 16", "end", 'font-style="italic"')
    return "\n".join([_stroke(LEFT, y, x, y, INK, dashed), down, note])


def _line(axes: _Axes, name: str, points: list[Point]) -> str:
    places = [(axes.x(l0), axes.y(fvu)) for l0, fvu in points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}"/>' for x, y in places)
    return f'<polyline points="{joined}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>{dots}'


def _labels(axes: _Axes, lines: dict[str, list[Point]]) -> str:
    """Names at the right, by the height of each line's end, moved apart where they would overlap."""
    ends = sorted((axes.y(points[-1][1]), name) for name, points in lines.items())
    parts, y = [], 0.0
    for wanted, name in ends:
        y = max(wanted, y + LABEL_HEIGHT)
        x_end, x = axes.x(lines[name][-1][0]), WIDTH - RIGHT + 12
        parts.append(_stroke(x_end + 5, wanted, x - 3, y, COLOURS[name], 'stroke-width="0.7"'))
        parts.append(_text(x, y + 4, name, "start", f'fill="{COLOURS[name]}" font-weight="600"'))
    return "\n".join(parts)


def _reference(axes: _Axes, name: str, point: Point) -> str:
    x, y, r = axes.x(point[0]), axes.y(point[1]), 5
    cross = _stroke(x - r, y - r, x + r, y + r, INK, 'stroke-width="2"')
    cross += _stroke(x - r, y + r, x + r, y - r, INK, 'stroke-width="2"')
    above = -12 if name == "topk" else 2  # topk and batchtopk lie together
    return cross + _text(x + 10, y + above, f"sae-lens {name}", "start", f'font-size="11" {HALO}')


def _range(values: list[float]) -> tuple[float, float]:
    """All values, with some air."""
    return min(values) / 1.1, max(values) * 1.1


def _share(value: float, ends: tuple[float, float]) -> float:
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def _within(ticks: tuple[float, ...], ends: tuple[float, float]) -> list[float]:
    return [tick for tick in ticks if ends[0] <= tick <= ends[1]]


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
