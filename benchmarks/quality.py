"""How good are the SAEs that saelib trains: `benchmarks/quality.py`.

The setting is that of the reference SAEs in the test data (flows/runs/stories260k.toml): a real language model of 260k
parameters, 1.5 M tokens of stories, 1,000,000 samples, 1,024 features. Every architecture is trained with the defaults,
512 tokens a step and what brings it to L0 16, and evaluated as it is published: one token at a time, on real stories
that it was not trained on. The table gives the mean over seeds beside what sae-lens reached on the same tokens, and the
bar (docs/quality.md).

All of it takes some 12 minutes of one core; a look: `--architectures topk --seeds 1`. Also
`--products` trains with features chosen in float32 and in bfloat16, and compares them seed by seed
`--frontier docs/pictures/frontier.svg` trains at several sparsities and draws L0 against FVU
`--table ROWS` tells the tables of an earlier `--out ROWS` and trains nothing (with `--frontier`, draws it again)
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quality import picture, table
from quality.variants import FRONTIER, VARIANTS
from quality.work import Bench, harvest

REPOSITORY = Path(__file__).parent.parent
PRODUCTS = ("float32", "bfloat16")
COMPARED = ("topk", "batchtopk", "jumprelu")
Row = dict[str, Any]


def main() -> None:
    given = _arguments()
    if given.table:
        rows = [json.loads(line) for line in given.table.read_text().splitlines()]
    else:
        torch.set_num_threads(given.threads)
        print(_conditions(given), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            bench = harvest(given.data, Path(folder))
            rows = [_noted(row, given.out) for row in _measured(bench, given)]
    if given.frontier:
        picture.draw([row for row in rows if row["kind"] in ("frontier", "reference")], given.frontier)
    print("\n" + table.tell(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    data = Path(os.environ.get("ALMANAC_DATA", REPOSITORY.parent / "shared/data"))
    add("--data", type=Path, default=data, help="the test data: models/, corpora/, reference/ (default %(default)s)")
    add("--architectures", type=_names, default=list(VARIANTS), help=f"some of {','.join(VARIANTS)} (default all)")
    add("--seeds", type=int, default=3, help="seeds 0, 1, … of each (default %(default)s)")
    add("--threads", type=int, default=1, help="threads of torch; figures differ a little by it (default %(default)s)")
    add("--samples", type=int, default=1_000_000, help="training samples; bars hold at %(default)s")
    add("--products", action="store_true", help=f"compare {' and '.join(PRODUCTS)} for {', '.join(COMPARED)} only")
    add("--frontier", type=Path, metavar="SVG", help="train at several sparsities, seed 0, and draw this picture only")
    add("--out", type=Path, metavar="JSONL", help="append every run as a line of JSON")
    add("--table", type=Path, metavar="JSONL", help="tell the tables of these rows; trains nothing")
    given = parser.parse_args()
    if not given.table and not (given.data / "reference/results.json").exists():
        parser.error(f"there is no test data at {given.data}: give --data, or set ALMANAC_DATA")
    return given


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known are {', '.join(VARIANTS)}")
    return names


def _measured(bench: Bench, given: argparse.Namespace) -> Iterator[Row]:
    """One row a trained SAE, and one for each reference SAE."""
    yield from bench.references()
    if given.products:
        for name in [name for name in COMPARED if name in given.architectures]:
            for seed in range(given.seeds):
                for product in PRODUCTS:
                    yield {"kind": "product"} | bench.train(name, {}, seed, product, given.samples)
    elif given.frontier:
        for name in [name for name in FRONTIER if name in given.architectures]:
            for settings in FRONTIER[name]:
                yield {"kind": "frontier"} | bench.train(name, settings, 0, "auto", given.samples)
    else:
        for seed in range(given.seeds):
            for name in given.architectures:
                yield {"kind": "quality"} | bench.train(name, {}, seed, "auto", given.samples)


def _noted(row: Row, out: Path | None) -> Row:
    """Show a row and keep it."""
    if row["kind"] != "reference":
        about = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        print(
            f"{row['name']:14} seed {row['seed']} {row['product']:8} L0 {row['l0']:5.2f}  FVU {row['fvu']:.4f}  "
            f"recovered {row['recovered']:.4f}  dead {row['dead_share']:5.2%}  {row['cpu_s']:3.0f} s  ({about})",
            flush=True,
        )
    if out:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


def _conditions(given: argparse.Namespace) -> str:
    """Where this is measured."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    return (
        f"{cpu}, {given.threads} threads of torch {torch.__version__}; {given.samples:,} samples, {given.seeds} seeds"
    )


if __name__ == "__main__":
    main()
