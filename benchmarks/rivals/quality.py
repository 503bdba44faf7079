"""Equal tokens, equal data, equal schedule, the same seed: who reconstructs held-out tokens best?

Everybody starts as his library starts, and is tried at each learning rate; his best counts.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rivals.race import Entry, Process, RacerFailed
from rivals.worker import Task

Row = dict[str, Any]
RESAMPLES = 2000


def train_all(
    entries: list[Entry], task_of: Callable[[Entry, float], Task], rates: list[float], rivals: Path
) -> Iterator[Row]:
    """Yield a row for each implementation and learning rate, one after the other, each with the whole machine."""
    for entry in entries:
        for rate in rates:
            task = task_of(entry, rate)
            row = {"kind": "trained", "name": entry.name(task.architecture), "rate": rate}
            try:
                process = Process(entry, task, "kept", rivals)
            except RacerFailed as failure:
                yield {**row, "kind": "failed", "why": str(failure)}
                continue
            figures = process.ask(f"go {task.n_steps}")
            yield {**row, **figures, **process.ask("eval")}
            process.close()


def tell(rows: list[Row]) -> str:
    """The table: FVU at equal tokens and L0, and how ours compares with each at its best rate."""
    trained = [row for row in rows if row["kind"] == "trained"]
    best: dict[str, Row] = {}
    for row in sorted(trained, key=lambda row: row["fvu"]):
        best.setdefault(row["name"], row)
    form = "{:30} {:>9} {:>10} {:>8} {:>8} {:>10} {:>26} {:>4}"
    heads = ("implementation", "rate", "tokens", "FVU", "L0", "seconds", "ours / its FVU, best rate", "met")
    lines = [form.format(*heads)]
    for row in trained:
        told, met = "", ""
        if best[row["name"]] is row and row["name"] != "ours" and "ours" in best:
            low, middle, high = _ratio(best["ours"], row)
            told, met = f"{middle:.3f} [{low:.3f}, {high:.3f}]", "yes" if low <= 1 else "no"
        cells = (
            f"{row['rate']:.1e}",
            f"{row['tokens']:,.0f}",
            f"{row['fvu']:.4f}",
            f"{row['l0']:.1f}",
            f"{row['wall_s']:.0f}",
        )
        lines.append(form.format(row["name"], *cells, told, met))
    lines += [f"{row['name']:30} did not run: {row['why']}" for row in rows if row["kind"] == "failed"]
    return "\n".join([*lines, "met: equal or better FVU, within the 95 % bootstrap interval over held-out pieces"])


def _ratio(ours: Row, its: Row) -> tuple[float, float, float]:
    """FVU of ours over that of the rival: the 95 % interval over the same held-out pieces, and the point."""
    pairs = list(zip(ours["errors"], its["errors"], strict=True))
    draw = random.Random(0)
    made = sorted(_share(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return made[round(0.025 * RESAMPLES)], _share(pairs), made[round(0.975 * RESAMPLES) - 1]


def _share(pairs: list[tuple[float, float]]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)
