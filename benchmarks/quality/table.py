"""From rows to tables: means over seeds, the reference, the bar and whether it is met."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from quality.variants import VARIANTS

Row = dict[str, Any]
L0_BAR, STANDARD_L0_BAR = 16.2, 16.0
PRODUCT_BAR = 0.01
"""bfloat16 is the default where FVU stays within this share of float32's."""


class Mean(NamedTuple):
    """A variant's figures, over seeds."""

    name: str
    n: int
    l0: float
    fvu: float
    fvu_sd: float
    recovered: float
    dead_share: float
    cpu_s: float


Means = dict[str, Mean]


class Bar(NamedTuple):
    """What is asked of a variant, in words, and whether its means and the others' meet it; None: cannot be told."""

    words: str
    met: Callable[[Mean, Means], bool | None]


def _reference_bar(mean: Mean, _: Means) -> bool:
    return mean.l0 <= L0_BAR and mean.fvu <= 0.060 and mean.recovered >= 0.970 and mean.dead_share <= 0.03


def _beside(other: str, factor: float) -> Callable[[Mean, Means], bool | None]:
    def met(mean: Mean, means: Means) -> bool | None:
        return mean.l0 <= L0_BAR and mean.fvu <= factor * means[other].fvu if other in means else None

    return met


BARS = {
    **dict.fromkeys(
        ("topk", "batchtopk"), Bar("L0 16.2, FVU .060 (aim .055), recovered .970, dead 3 %", _reference_bar)
    ),
    "matryoshka": Bar("L0 16.2, FVU within 15 % of batchtopk's", _beside("batchtopk", 1.15)),
    "jumprelu": Bar("L0 16.2, FVU no worse than topk's", _beside("topk", 1.0)),
    "standard": Bar("L0 16, FVU .14", lambda mean, _: mean.l0 <= STANDARD_L0_BAR and mean.fvu <= 0.14),
}


def tell(rows: list[Row]) -> str:
    """Every table that the rows give."""
    kinds = {row["kind"] for row in rows}
    parts = [tell_quality(rows)] if "quality" in kinds else []
    parts += [tell_products(rows)] if "product" in kinds else []
    parts += [tell_frontier(rows)] if "frontier" in kinds else []
    return "\n\n".join(parts)


def tell_quality(rows: list[Row]) -> str:
    """The means beside the bars, and the reference SAEs under them."""
    means = means_of(row for row in rows if row["kind"] == "quality")
    lines = [["architecture", "L0", "FVU (± sd)", "recovered", "dead", "CPU s", "reference FVU", "bar", "met"]]
    references = {row["name"]: row for row in rows if row["kind"] == "reference"}
    for name in [name for name in VARIANTS if name in means]:
        mean, bar = means[name], BARS.get(name)
        reference = references.get(VARIANTS[name].reference or "")
        verdict = bar.met(mean, means) if bar else None
        lines.append([
            name, f"{mean.l0:.2f}", f"{mean.fvu:.4f} ± {mean.fvu_sd:.4f}", f"{mean.recovered:.4f}",
            f"{mean.dead_share:.1%}", f"{mean.cpu_s:.0f}", f"{reference['fvu']:.4f}" if reference else "–",
            bar.words if bar else "–", {True: "yes", False: "NO", None: "–"}[verdict],
        ])  # fmt: skip
    for name, row in references.items():
        lines.append([
            f"sae-lens {name}", f"{row['l0']:.2f}", f"{row['fvu']:.4f}", f"{row['recovered']:.4f}",
            f"{row['dead_share']:.1%}", "", "", "its own account, one seed", "",
        ])  # fmt: skip
    n = max((mean.n for mean in means.values()), default=0)
    return f"Mean of {n} seeds, held-out real stories, as published\n\n{_aligned(lines)}"


def tell_products(rows: list[Row]) -> str:
    """FVU with features chosen in bfloat16 beside float32, seed by seed."""
    pairs: dict[str, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in (row for row in rows if row["kind"] == "product"):
        pairs[row["name"]][row["seed"]][row["product"]] = row
    lines = [["architecture", "FVU float32", "FVU bfloat16", "ratio, seed by seed", "mean ratio", "CPU s", "met"]]
    for name, seeds in pairs.items():
        both = [pair for pair in seeds.values() if len(pair) == 2]
        if both:
            exact, rough = ([pair[product] for pair in both] for product in ("float32", "bfloat16"))
            ratios = [b["fvu"] / a["fvu"] for a, b in zip(exact, rough, strict=True)]
            fvus = [statistics.mean(row["fvu"] for row in side) for side in (exact, rough)]
            cpu = " / ".join(f"{statistics.mean(row['cpu_s'] for row in side):.0f}" for side in (exact, rough))
            met = fvus[1] <= fvus[0] * (1 + PRODUCT_BAR)
            lines.append([
                name, f"{fvus[0]:.4f}", f"{fvus[1]:.4f}", " ".join(f"{ratio:.4f}" for ratio in ratios),
                f"{fvus[1] / fvus[0]:.4f}", cpu, "yes" if met else "NO",
            ])  # fmt: skip
    return f"Features chosen in bfloat16; bar: FVU within {PRODUCT_BAR:.0%} of float32\n\n{_aligned(lines)}"


def tell_frontier(rows: list[Row]) -> str:
    """Every point."""
    lines = [["architecture", "settings", "L0", "FVU", "recovered", "dead"]]
    for row in (row for row in rows if row["kind"] == "frontier"):
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        shown = [f"{row['l0']:.2f}", f"{row['fvu']:.4f}", f"{row['recovered']:.4f}", f"{row['dead_share']:.1%}"]
        lines.append([row["name"], settings, *shown])
    return f"Frontier, seed 0\n\n{_aligned(lines)}"


def means_of(rows: Iterable[Row]) -> Means:
    """Over seeds, by variant."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row["name"]].append(row)
    return {name: _mean(name, each) for name, each in by_name.items()}


def _mean(name: str, rows: list[Row]) -> Mean:
    def over(key: str) -> float:
        return statistics.mean(row[key] for row in rows)

    spread = statistics.stdev(row["fvu"] for row in rows) if len(rows) > 1 else 0.0
    return Mean(name, len(rows), over("l0"), over("fvu"), spread, over("recovered"), over("dead_share"), over("cpu_s"))


def _aligned(lines: list[list[str]]) -> str:
    """As a Markdown table that also reads well in a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    rows = [lines[0], rule, *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
