"""How fast does saelib train an SAE on a CPU, beside the libraries that people use: `benchmarks/train.py`.

Every implementation is a process of its own, with its own library's versions, and does its library's own training
step on the same batches in the same order. All are loaded, one runs at a time, in rounds; ratios are paired by round,
and a bar is met where the lower end of the 95 % interval is. A turn during which other programs used the machine is
run again. Settings:

plain   as installed
kept    glibc keeps freed memory (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), for everybody
fp32    kept, and ours chooses its features by a float32 product too: float32 against float32
knobs   kept, and oneDNN's kernel for fp32 products (torch.backends.mkldnn.matmul.fp32_precision = "bf16") set for the
        rivals; each of them also under bf16 autocast. Ours does what it always does

The first run installs the rivals (2 GB each). It takes 12 GB of memory at the default size, and an hour or more in
full; a look: `--rounds 2 --steps 2 --architectures topk --settings kept --dead-shares 0`.
`--quality` trains every topk implementation from the same seed for the same tokens and tells the held-out FVU.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from rivals import quality, table
from rivals.activations import Files, make_files
from rivals.environments import make_missing
from rivals.race import Entry, race
from rivals.worker import Task

REPOSITORY = Path(__file__).parent.parent
RACERS = {
    "topk": ("ours", "saelens", "dictionary_learning", "sparsify", "dense"),
    "batchtopk": ("ours", "saelens", "dictionary_learning"),
    "jumprelu": ("ours", "saelens"),
    "standard": ("ours", "saelens"),
}
SETTINGS = ("plain", "kept", "fp32", "knobs")
LONG_RUN_STEPS = 100_000
"""A race is a stretch from the middle of such a run: no schedule moves, and no feature dies by itself."""


def main() -> None:
    given = _arguments()
    if given.table:
        rows = [json.loads(line) for line in given.table.read_text().splitlines()]
        print(quality.tell(rows) if given.quality else table.tell(rows))
        return
    racers = [name for name in RACERS["topk"] if name in given.racers]
    make_missing(racers, given.rivals, given.torch_index)
    n_tokens = given.batch * (given.quality_steps if given.quality else given.batches)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), given.activations, given.d, given.n_features, n_tokens)
        print(_conditions(given, files), flush=True)
        rows = _compare_quality(given, files, racers) if given.quality else _race_all(given, files, racers)
    print()
    print(quality.tell(rows) if given.quality else table.tell(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--d", type=int, default=256, help="width of an activation (default %(default)s)")
    add("--n-features", type=int, default=16384, help="width of the SAE (default %(default)s)")
    add("--k", type=int, default=32, help="features a token, topk and batchtopk (default %(default)s)")
    add("--batch", type=int, default=4096, help="tokens a step (default %(default)s)")
    add("--rounds", type=int, default=7, help="rounds; a bar wants 7 or more (default %(default)s)")
    add("--steps", type=int, default=4, help="timed steps of each racer in a round (default %(default)s)")
    add("--threads", type=int, default=2, help="threads of each racer; never more than cores (default %(default)s)")
    add("--architectures", type=_list_of(RACERS), default=list(RACERS), help=f"some of {','.join(RACERS)}")
    add("--settings", type=_list_of(SETTINGS), default=list(SETTINGS), help="some of plain,kept,fp32,knobs (see above)")
    add(
        "--racers",
        type=_list_of(RACERS["topk"]),
        default=list(RACERS["topk"]),
        help="some of " + ",".join(RACERS["topk"]),
    )
    add("--dead-shares", type=_numbers, default=[0.0, 0.1], help="topk and batchtopk are timed with these shares of the"
        " features marked dead before every step, so that AuxK works (default 0,0.1)")  # fmt: skip
    add("--activations", type=Path, help=".npy or .safetensors file [tokens, d] to use in place of planted activations")
    add("--batches", type=int, default=32, help="different batches, used in turn (default %(default)s)")
    add("--rivals", type=Path, default=REPOSITORY / ".venv-rivals", help="folder of their environments")
    add("--torch-index", help="package index to take torch from, e.g. https://download.pytorch.org/whl/cpu: a plain"
        " install on Linux may bring gigabytes of CUDA")  # fmt: skip
    add("--out", type=Path, help="write every row to this JSON lines file as it comes")
    add("--table", type=Path, help="only print the table of such a file, with --quality where it was made by that")
    add("--quality", action="store_true", help="compare held-out FVU instead of time")
    add("--quality-steps", type=int, default=300, help="steps of --quality (default %(default)s)")
    add(
        "--rates",
        type=_numbers,
        default=[3e-4, 1e-3, 3e-3],
        help="learning rates of --quality (default 3e-4,1e-3,3e-3)",
    )
    add("--seed", type=int, default=0)
    return parser.parse_args()


def _list_of(known: Any) -> Any:
    """A parser of comma-separated names."""

    def names(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown; known are {', '.join(known)}")
        return text.split(",")

    return names


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _race_all(given: argparse.Namespace, files: Files, racers: list[str]) -> list[dict[str, Any]]:
    """Every architecture in every setting, one race each."""
    rows = []
    for architecture in given.architectures:
        for setting in given.settings:
            for dead_share in given.dead_shares if architecture in ("topk", "batchtopk") else [0.0]:
                entries = _entries(architecture, setting, racers)
                tasks = {entry: _race_task(given, files, entry, setting, dead_share) for entry in entries}
                about = {"race": architecture, "setting": setting, "dead_share": dead_share, "batch": given.batch}
                for row in race(tasks, setting, given.rivals, given.rounds, given.steps):
                    rows.append(_note(row | about, given.out))
    return rows


def _entries(architecture: str, setting: str, racers: list[str]) -> list[Entry]:
    """Who races. batchtopk has our own topk as a rival; with all knobs turned, each rival also runs in autocast."""
    entries = [Entry(racer, architecture) for racer in RACERS[architecture] if racer in racers]
    if architecture == "batchtopk" and "ours" in racers:
        entries.insert(1, Entry("ours", "topk"))
    rivals = [entry for entry in entries if entry.racer not in ("ours", "dense")]
    return entries + [Entry(e.racer, e.architecture, "autocast") for e in rivals if setting == "knobs"]


def _race_task(given: argparse.Namespace, files: Files, entry: Entry, setting: str, dead_share: float) -> Task:
    """A few steps from the middle of a long run, from the common start."""
    return Task(
        architecture=entry.architecture,
        precision=entry.precision,
        n_steps=LONG_RUN_STEPS,
        warmup_steps=0,
        decay_steps=0,
        learning_rate=2e-4 / (given.n_features / 2**14) ** 0.5,
        start=str(files.folder),
        dead_share=dead_share,
        dead_after_tokens=10_000_000,
        oneDNN_bf16=setting == "knobs" and entry.racer != "ours",
        product="float32" if setting == "fp32" else "auto",
        untimed_steps=3,
        **_common(given, files),
    )


def _quality_task(given: argparse.Namespace, files: Files, entry: Entry, rate: float) -> Task:
    """A whole short run from the library's own start, with our schedule and dead window."""
    n_steps = given.quality_steps
    return Task(
        architecture=entry.architecture,
        precision=entry.precision,
        n_steps=n_steps,
        warmup_steps=round(0.05 * n_steps),
        decay_steps=round(0.2 * n_steps),
        learning_rate=rate,
        start=None,
        dead_share=0.0,
        dead_after_tokens=n_steps * given.batch // 10,
        oneDNN_bf16=False,
        product="auto",
        untimed_steps=0,
        **_common(given, files),
    )


def _common(given: argparse.Namespace, files: Files) -> dict[str, Any]:
    sizes = {"d": files.d, "n_features": given.n_features, "k": given.k, "batch": given.batch}
    return sizes | {
        "threads": given.threads,
        "seed": given.seed,
        "activations": files.activations,
        "held_out": files.held_out,
    }


def _compare_quality(given: argparse.Namespace, files: Files, racers: list[str]) -> list[dict[str, Any]]:
    entries = [Entry(racer, "topk") for racer in racers]
    trained = quality.train_all(
        entries, lambda e, rate: _quality_task(given, files, e, rate), given.rates, given.rivals
    )
    return [_note(row, given.out) for row in trained]


def _note(row: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Name a row, show it and keep it."""
    if row["kind"] in ("time", "quality", "failed") and "race" in row:
        row["name"] = Entry(row["racer"], row["architecture"], row["precision"]).name(row["race"])
    if row["kind"] == "time":
        rate = f"{row['tokens'] / row['wall_s']:>8,.0f} tokens/s{' (disturbed)' if row['disturbed'] else ''}"
        race = f"{row['race']} {row['setting']}" + (f" {row['dead_share']:.0%} dead" if row["dead_share"] else "")
        print(f"{race}, round {row['round']}: {row['name']:30} {rate}", flush=True)
    elif row["kind"] == "versions":
        print(
            f"{row['racer']}: {', '.join(f'{name} {number}' for name, number in row['versions'].items())}", flush=True
        )
    elif row["kind"] == "trained":
        print(f"{row['name']:30} rate {row['rate']:.1e}: FVU {row['fvu']:.4f}", flush=True)
    if out:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


def _conditions(given: argparse.Namespace, files: Files) -> str:
    """Where and how this is measured: without it a figure says nothing."""
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu.get("flags", "").split()]
    load = ", ".join(f"{number:.2f}" for number in os.getloadavg())
    sizes = (
        f"d={files.d}, {given.n_features} features, k={given.k}, {given.batch} tokens a step, {given.threads} threads"
    )
    return (
        f"{cpu.get('model name', platform.machine())}, {os.cpu_count()} cores, {' '.join(flags)}; load {load}\n"
        f"Python {platform.python_version()}, {platform.release()}; activations: {files.source}\n"
        f"{sizes}; n = {given.rounds} rounds of {given.steps} steps"
    )


if __name__ == "__main__":
    main()
