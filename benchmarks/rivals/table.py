"""From rows to a table: medians over rounds, ratios paired by round with a bootstrap interval, and the bars."""

import random
import statistics
from collections import defaultdict
from typing import Any

Row = dict[str, Any]

MEMORY_BAR_MB = 800
RESAMPLES = 2000
BARS: dict[tuple[str, str, str], tuple[float, str]] = {
    ("topk", "plain", "saelens"): (10, "wall"),
    ("topk", "plain", "sparsify"): (3, "wall"),
    ("topk", "kept", "saelens"): (5, "wall"),
    ("topk", "kept", "dictionary_learning"): (5, "wall"),
    ("topk", "kept", "sparsify"): (1.5, "cpu"),
    ("topk", "knobs", "saelens"): (3.5, "wall"),
    ("topk", "knobs", "dictionary_learning"): (3.5, "wall"),
    ("topk", "knobs", "sparsify"): (1.2, "cpu"),
    **{("jumprelu", setting, "saelens"): (2, "wall") for setting in ("plain", "kept", "knobs")},
    **{("standard", setting, "saelens"): (2, "wall") for setting in ("plain", "kept", "knobs")},
    **{("batchtopk", setting, "ours"): (0.8, "cpu") for setting in ("plain", "kept", "knobs")},
}
"""How many times as fast ours has to be, and by which clock. Ratios near 1 are told by CPU time. The rival of batchtopk
"ours" is our own topk."""

COLUMNS = "{:30} {:>9} {:>9} {:>8} {:>9} {:>9} {:>5} {:>6} {:>22} {:>10} {:>4}"
HEADS = (
    "implementation",
    "tokens/s",
    "per CPU-s",
    "peak MB",
    "faults",
    "ms/step",
    "L0",
    "FVU",
    "ours is x as fast",
    "bar",
    "met",
)


def interval(samples: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]


def tell(rows: list[Row]) -> str:
    """The table of every race among the rows."""
    races: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] in ("time", "quality", "failed"):
            races[row["race"], row["setting"], row["dead_share"]].append(row)
    return "\n\n".join(_tell_race(*key, rows) for key, rows in races.items())


def _tell_race(race: str, setting: str, dead_share: float, rows: list[Row]) -> str:
    timed: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "time":
            timed[row["name"]].append(row)
    quality = {row["name"]: row for row in rows if row["kind"] == "quality"}
    lines = [f"{race}, {setting}" + (f", {dead_share:.0%} of the features dead (AuxK)" if dead_share else "")]
    lines.append(COLUMNS.format(*HEADS))
    for name, its in timed.items():
        lines.append(_line(name, its, quality.get(name, {}), _ratio(race, setting, name, timed)))
    disturbed = sum(row["disturbed"] for its in timed.values() for row in its)
    n_turns = sum(map(len, timed.values()))
    lines.append(
        f"{disturbed} of {n_turns} turns were disturbed by other programs" + (": measure again" * (disturbed > 0))
    )
    lines += [f"{row['name']:30} did not run: {row['why']}" for row in rows if row["kind"] == "failed"]
    return "\n".join(lines)


def _line(name: str, its: list[Row], quality: Row, ratio: tuple[str, str, str]) -> str:
    """One implementation."""
    n_steps = its[0]["tokens"] / its[0]["batch"]
    peak = max(row["rss_peak_mb"] for row in its)
    if name == "ours":
        ratio = (f"memory {peak:.0f} MB", f"<= {MEMORY_BAR_MB} MB", "yes" if peak <= MEMORY_BAR_MB else "no")
    return COLUMNS.format(
        name,
        f"{statistics.median(row['tokens'] / row['wall_s'] for row in its):,.0f}",
        f"{statistics.median(row['tokens'] / row['cpu_s'] for row in its):,.0f}",
        f"{peak:,.0f}",
        f"{statistics.median(row['minor_faults'] for row in its) / n_steps:,.0f}",
        f"{1000 * statistics.median(row['wall_s'] for row in its) / n_steps:,.0f}",
        f"{quality['l0']:.0f}" if quality else "",
        f"{quality['fvu']:.3f}" if quality else "",
        *ratio,
    )


def _ratio(race: str, setting: str, name: str, timed: dict[str, list[Row]]) -> tuple[str, str, str]:
    """How many times as fast ours is, with its interval; the bar is met where the lower bound is."""
    if name == "ours" or "ours" not in timed:
        return "", "", ""
    least, clock = BARS.get((race, setting, name.split()[0]), (0.0, "wall"))
    ours = {row["round"]: row[f"{clock}_s"] for row in timed["ours"]}
    ratios = [row[f"{clock}_s"] / ours[row["round"]] for row in timed[name] if row["round"] in ours]
    low, high = interval(ratios)
    told = f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]{' CPU' if clock == 'cpu' else ''}"
    return told, f">= {least:g}" if least else "", ("yes" if low >= least else "no") if least else ""
