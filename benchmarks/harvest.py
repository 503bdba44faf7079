"""How fast does harvest run, beside the bare forward pass and the libraries that people use: `benchmarks/harvest.py`.

Two models with random weights, GPT-2-shaped (4 layers, width 256, site after the third) and MiniLM-sized (6 layers,
width 384, after the fifth), read WikiText-2 in sequences of 128 tokens, the same ones. Each racer is its own process;
one runs at a time, in rounds; ratios are paired by round, and a bar is met where the lower end of the 95 % interval is.
A turn that other programs disturbed is run again.

bare                 the forward pass with one hook that ends it; activations stay in memory
ours                 the step `harvest` of a build: masks, sinks, positions, documents, shuffle, checksums, on disk
ours_three           three sites in one pass; ours_write writes what the two more take
saelens              CacheActivationsRunner, on disk, unshuffled
dictionary_learning  ActivationBuffer.refresh, in memory, given token ids

Then peak memory on a corpus and on one of ten times its length, and the loading of rows for training from page cache.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rivals.environments import make_missing
from rivals.harvest import HarvestTask
from rivals.race import Entry, Process, RacerFailed, turned, undisturbed
from rivals.table import interval
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from catalog import Store
from flows import steps
from flows.config import load_run
from flows.place import Place, Quiet
from flows.steps.loading import each_token_shard, site_file
from saelib.shuffled import ShuffledRows

REPOSITORY = Path(__file__).parent.parent
CONTEXT = 128
MODELS = {"gpt2": ("transformer.h.2", 256, 1.3), "minilm": ("bert.encoder.layer.4", 384, 1.05)}
"""Site, width, and how many times as fast as the best rival ours has to be."""
RACERS = ("bare", "ours", "ours_three", "ours_write", "saelens", "dictionary_learning")
RIVALS = ("saelens", "dictionary_learning")
OF_BARE, THREE_SITES, SAME_PEAK, LOADING_GB_S = 0.9, 1.2, 1.05, 1.0


@dataclass(frozen=True)
class Racer(Entry):
    """One row."""

    @property
    def module(self) -> str:
        """All are built by one module, each with its own library."""
        return "rivals.harvest"


def main() -> None:
    given = _arguments()
    if given.peak_of:
        print(json.dumps(_peak(given.peak_of)))
        return
    make_missing([name for name in RIVALS if name in given.racers], given.rivals, given.torch_index)
    told = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for model in given.models:
            tasks = _tasks(given, model, Path(folder) / model)
            told.append(_told(model, _raced(given, model, tasks)))
        told += [_memory(given, Path(folder) / "memory"), _loading(given, Path(folder) / "loading")]
    print("\n" + "\n\n".join(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the test data")
    add("--tokens", type=int, default=262_144, help="tokens of a turn (default %(default)s)")
    add("--rounds", type=int, default=7, help="rounds; a bar wants 7 or more (default %(default)s)")
    add("--threads", type=int, default=2, help="threads of each racer; never more than cores (default %(default)s)")
    add("--models", type=lambda text: text.split(","), default=list(MODELS), help="some of gpt2,minilm")
    add("--racers", type=lambda text: text.split(","), default=list(RACERS), help="some of " + ",".join(RACERS))
    add("--rivals", type=Path, default=REPOSITORY / ".venv-rivals", help="folder of their environments")
    add("--torch-index", help="package index to take torch from")
    add("--folder", type=Path, help="where to write (default: the folder of temporary files)")
    add("--peak-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _tasks(given: argparse.Namespace, model: str, folder: Path) -> dict[Racer, HarvestTask]:
    """The model, the tokens as our store and as one array, and what each racer is told."""
    site, d, _ = MODELS[model]
    run = _prepared(given, model, folder, given.tokens)
    config, place = load_run(run), Place(Store.create(folder / "store"), Quiet())
    shards = list(each_token_shard(steps.tokenize(config, place)))
    rows = [shard.token_ids[shard.sequence_starts[i] :][:CONTEXT] for shard in shards for i in range(shard.n_sequences)]
    np.save(folder / "tokens.npy", np.stack([row for row in rows if row.size == CONTEXT]))
    common = {"model": str(folder / "model"), "site": site, "d": d, "threads": given.threads, "batch_sequences": 32}
    paths = {"tokens": str(folder / "tokens.npy"), "run": str(run), "store": str(folder / "store")}
    return {Racer(name, model): HarvestTask(racer=name, **common, **paths) for name in given.racers}


def _prepared(given: argparse.Namespace, model: str, folder: Path, n_tokens: int) -> Path:
    """A model with random weights and the tokenizer that comes along, and a run file that reads the text with it."""
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "saelib/demo_lm")
    tokenizer.save_pretrained(folder / "model")
    settings = json.loads((folder / "model/tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # older versions of transformers do not know a newer name
    (folder / "model/tokenizer_config.json").write_text(json.dumps(settings))
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if model == "gpt2":
        GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=8, n_positions=CONTEXT, **ids)).save_pretrained(
            folder / "model"
        )
    else:
        shape = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
        BertForMaskedLM(BertConfig(**shape, **ids)).save_pretrained(folder / "model")
    text = (given.data / "corpora/wikitext2_valid.txt").read_text(encoding="utf-8")
    copies = 1 + n_tokens * 2 // len(text)  # a token is two characters at least
    with (folder / "text.jsonl").open("w") as file:
        for copy in range(copies):
            for start in range(0, len(text), 4000):
                file.write(json.dumps({"text": f"{copy} {text[start : start + 4000]}"}) + "\n")
    run = folder / "run.toml"
    run.write_text(
        f"[lm]\nmodel = '{folder / 'model'}'\ndevice = 'cpu'\n"
        f"[corpus]\nname = 'wikitext'\nsources = [{{ path = '{folder / 'text.jsonl'}' }}]\npacking = 'separator'\n"
        f"bos = 'never'\ncontext_tokens = {CONTEXT}\nmax_tokens = {n_tokens}\nshard_tokens = 32_768\n"
        f"held_out_share = 0.1\n[harvest]\nsites = ['{MODELS[model][0]}']\n"
    )
    return run


def _raced(given: argparse.Namespace, model: str, tasks: dict[Racer, HarvestTask]) -> dict[str, list[dict[str, Any]]]:
    """The turns of every racer, in the order of the rounds."""
    running: dict[Racer, Process] = {}
    for racer, task in tasks.items():
        try:
            running[racer] = Process(racer, task, "plain", given.rivals)
            print(f"{model} {racer.racer}: {running[racer].versions}", flush=True)
        except RacerFailed as failure:
            print(f"{model} {racer.racer} did not run: {failure}", flush=True)
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(given.rounds):
        for racer in turned(list(running), number):
            row = undisturbed(running[racer], 1)
            turns[racer.racer].append(row)
            rate = row["tokens"] / row["wall_s"]
            print(
                f"{model}, round {number}: {racer.racer:20} {rate:>8,.0f} tokens/s{' (disturbed)' * row['disturbed']}"
            )
    for process in running.values():
        process.close()
    return turns


def _told(model: str, turns: dict[str, list[dict[str, Any]]]) -> str:
    """The table of one model, and its bars."""
    lines = [f"{model}\n{'':22}{'tokens/s':>10}{'per CPU-s':>11}{'peak MB':>9}"]
    for name, rows in turns.items():
        wall, cpu = (statistics.median(row["tokens"] / row[f"{clock}_s"] for row in rows) for clock in ("wall", "cpu"))
        lines.append(f"{name:22}{wall:>10,.0f}{cpu:>11,.0f}{max(row['rss_peak_mb'] for row in rows):>9,.0f}")
    seconds = {name: [row["wall_s"] / row["tokens"] for row in rows] for name, rows in turns.items()}
    ours, rivals = seconds.get("ours"), [name for name in RIVALS if name in seconds]
    if ours and "bare" in seconds:
        lines.append(_bar("ours / bare forward", seconds["bare"], ours, OF_BARE))
    if ours and rivals:
        best = min(rivals, key=lambda name: statistics.median(seconds[name]))
        lines.append(_bar(f"ours / {best}, the best rival", seconds[best], ours, MODELS[model][2]))
    if ours and "ours_three" in seconds and "ours_write" in seconds:
        three = [a - b for a, b in zip(seconds["ours_three"], seconds["ours_write"], strict=True)]
        lines.append(_bar("one site / three, writing taken off", ours, three, 1 / THREE_SITES))
    n_disturbed = sum(row["disturbed"] for rows in turns.values() for row in rows)
    return "\n".join([*lines, f"{n_disturbed} turns were disturbed" + ": measure again" * bool(n_disturbed)])


def _bar(what: str, seconds: list[float], ours: list[float], least: float) -> str:
    ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
    low, high = interval(ratios)
    met = "met" if low >= least else "MISSED"
    return f"{what}: {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}], wanted {least:.2f} or more: {met}"


def _memory(given: argparse.Namespace, folder: Path) -> str:
    """Peak memory of harvest alone, each corpus in a process of its own."""
    folder.mkdir()
    peaks = []
    for number, n_tokens in enumerate((65_536, 655_360)):
        run = _prepared(given, "gpt2", folder / str(number), n_tokens)
        steps.tokenize(load_run(run), Place(Store.create(run.parent / "store"), Quiet()))
        command = [sys.executable, __file__, "--peak-of", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    ratio = peaks[1]["peak_mb"] / peaks[0]["peak_mb"]
    told = ", ".join(f"{peak['n_rows']:,} rows {peak['peak_mb']:,.0f} MB" for peak in peaks)
    met = "met" if ratio <= SAME_PEAK else "MISSED"
    return f"peak memory: {told}; ratio {ratio:.3f}, wanted {SAME_PEAK} or less: {met}"


def _peak(run: Path) -> dict[str, float]:
    config, place = load_run(run), Place(Store(run.parent / "store"), Quiet())
    made = steps.harvest(config, steps.tokenize(config, place), place)
    return {"n_rows": sum(made.facts["n_rows"]), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _loading(given: argparse.Namespace, folder: Path) -> str:
    """Batches of 4,096 rows as training takes them, from page cache."""
    folder.mkdir()
    run = _prepared(given, "gpt2", folder / "run", given.tokens)
    config, place = load_run(run), Place(Store.create(run.parent / "store"), Quiet())
    made = steps.harvest(config, steps.tokenize(config, place), place)
    rows = ShuffledRows([[made.file(site_file(shard, 0))] for shard in made.facts["shards"]], 4096, 0)
    rates = []
    for epoch in range(5):
        begun, n_bytes = time.perf_counter(), 0
        for step in range(epoch * 32, (epoch + 1) * 32):
            n_bytes += rows.batch(step)[0].nbytes
        rates.append(n_bytes / 1e9 / (time.perf_counter() - begun))
    rate = statistics.median(rates)
    met = "met" if rate >= LOADING_GB_S else "MISSED"
    ms = 1000 * 4096 * 1024 / rate / 1e9
    return f"loading: {rate:.1f} GB/s, {ms:.1f} ms a batch of 4,096, wanted {LOADING_GB_S} or more: {met}"


if __name__ == "__main__":
    main()
