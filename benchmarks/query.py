"""How fast is the catalog, and how does it grow: `benchmarks/query.py [--features 16384 131072 1048576]`.

A synthetic catalog of each width is made through the real publish path (about 50 s and 0.8 GB for 131,072 features on
one core); nothing but Parquet is read. Warm: each question was asked once before it is timed. Milliseconds.

feature page   card, all examples with their tokens, histogram, neighbours with names, logits, tokens: six queries
aggregates     one question over every row of `feature`
open           `catalog.connect`: everything a process needs before its first query
search         by text, token, logit, decoder direction, and a condition in SQL
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_catalog import make, vocabulary  # noqa: E402

from catalog import Store, connect, current, query, search  # noqa: E402

PAGE = ("card", "examples", "histogram", "neighbors_of", "logits_of", "tokens_of")
BARS = {"feature page": 60.0, "aggregates": 100.0, "open": 150.0, "search": 150.0}
BAR_WIDTH = 131_072  # the width that the bars are set for
TIMES = {"feature page": 60, "point look-up": 60}
AGGREGATES = """
select status, count(*) as n, avg(density) as density, median(act_max) as act_max, max(delta_ce_linear) as effect
from feature where sae_id = $sae_id group by all
"""
Question = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[16_384, 131_072, 1_048_576])
    widths = parser.parse_args().features
    figures: dict[str, dict[int, list[float]]] = {}
    sizes: dict[str, dict[int, float]] = {}
    for width in widths:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            store, sae_id = make(Path(folder), width)
            print(f"{width:,} features published in {time.monotonic() - start:.0f} s", flush=True)
            for part in current(store).parts:
                of_table = sizes.setdefault(part.table, {})
                of_table[width] = of_table.get(width, 0.0) + part.bytes / width
            for name, question in questions(store, sae_id, width).items():
                figures.setdefault(name, {})[width] = timed(question, TIMES.get(name, 20))
    print_figures(figures, widths)
    print_sizes(sizes, widths)


def questions(store: Store, sae_id: str, width: int) -> dict[str, Question]:
    """Name -> what is asked; the argument counts the askings, so that no two of them ask the same."""
    connection = connect(store)
    words = [word.strip() for word in vocabulary()[20:60]]

    def feature(number: int) -> int:
        return (number * 7919 + 13) % width

    def page(number: int) -> None:
        for name in PAGE:
            query(connection, name, sae_id=sae_id, feature=feature(number))

    asked: dict[str, Question] = {
        "open": lambda _: connect(store).close(),
        "feature page": page,
        "point look-up": lambda i: query(connection, "statistics_of_features", sae_id=sae_id, features=str(feature(i))),
        "aggregates": lambda _: connection.sql(AGGREGATES, params={"sae_id": sae_id}).to_arrow_table(),
        "search text": lambda i: search.by_text(connection, f"{words[i]} {words[i + 1]}"),
        "search text, misspelt": lambda i: search.by_text(connection, words[i][:-1] + "x" + words[i][-1]),
        "search token": lambda i: search.by_token(connection, words[i]),
        "search logit": lambda i: search.by_logit(connection, words[i]),
        "search direction": lambda i: search.by_direction(connection, store, sae_id, feature(i)),
        "search condition": lambda i: search.by_condition(connection, f"density > 0.0{i + 10} and act_max > 12"),
    }
    for name in PAGE:
        asked[f"  {name}"] = lambda i, name=name: query(connection, name, sae_id=sae_id, feature=feature(i))  # type: ignore[misc]
    return asked


def timed(question: Question, times: int) -> list[float]:
    question(0)
    found = []
    for number in range(1, times + 1):
        start = time.perf_counter()
        question(number)
        found.append(1000 * (time.perf_counter() - start))
    return found


def print_figures(figures: dict[str, dict[int, list[float]]], widths: list[int]) -> None:
    print(f"\n{'ms, p50 / p95':26}" + "".join(f"{width:>20,}" for width in widths) + f"   bar at {BAR_WIDTH:,}")
    for name, by_width in figures.items():
        row = f"{name:26}"
        for width in widths:
            row += f"{statistics.median(by_width[width]):>11.1f} / {p95(by_width[width]):>6.1f}"
        bar = next((bar for start, bar in BARS.items() if name.startswith(start)), None)
        met = p95(by_width[BAR_WIDTH]) if BAR_WIDTH in by_width else None
        verdict = "" if bar is None or met is None else f"   p95 ≤ {bar:g}: {'met' if met <= bar else 'MISSED'}"
        print(row + verdict)


def print_sizes(sizes: dict[str, dict[int, float]], widths: list[int]) -> None:
    print(f"\n{'bytes a feature':26}" + "".join(f"{width:>20,}" for width in widths))
    for table, by_width in sorted(sizes.items(), key=lambda item: -max(item[1].values())):
        if max(by_width.values()) >= 1:
            print(f"{table:26}" + "".join(f"{by_width.get(width, 0):>20,.0f}" for width in widths))
    totals = [sum(by.get(width, 0) for table, by in sizes.items() if table != "activation") for width in widths]
    print(f"{'all but activation':26}" + "".join(f"{total:>20,.0f}" for total in totals) + "   ≤ 10,000")


def p95(values: list[float]) -> float:
    return sorted(values)[round(0.95 * (len(values) - 1))]


if __name__ == "__main__":
    main()
