"""The process around one racer of `benchmarks/harvest.py`: builds it from a task, then obeys lines on standard input.

go     reads all tokens once and answers {tokens, wall_s, cpu_s, rss_peak_mb, turn_cpu_s}
quit   ends

Every racer has the same model, site and tokens. What each keeps is its own: bare only holds the activations in memory,
as dictionary_learning does; sae-lens and ours write them to disk.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rivals.worker import answer, peak_mb


@dataclass(frozen=True)
class HarvestTask:
    """`tokens` is an .npy file [sequences, context]; `run` our run file, `store` the store that holds its tokens."""

    racer: str
    threads: int
    model: str
    site: str
    d: int
    batch_sequences: int
    tokens: str
    run: str
    store: str


Go = Callable[[], int]
"""Reads everything once; gives the number of tokens."""


def bare(task: HarvestTask) -> Go:
    """The model's own forward pass with one hook, which ends it; the activations stay in memory."""
    from transformers import AutoModelForMaskedLM, GPT2LMHeadModel

    made = GPT2LMHeadModel if task.site.startswith("transformer.") else AutoModelForMaskedLM
    model = made.from_pretrained(task.model).requires_grad_(False).train(False)
    rows = torch.from_numpy(np.load(task.tokens)).long()

    class Stop(Exception):
        """Nothing after the hook is needed."""

    def go() -> int:
        kept: list[torch.Tensor] = []

        def hook(_: Any, __: Any, output: Any) -> None:
            kept.append(output[0] if isinstance(output, tuple) else output)
            raise Stop

        handle = model.get_submodule(task.site).register_forward_hook(hook)
        for batch in rows.split(task.batch_sequences):
            try:
                with torch.no_grad():
                    model(input_ids=batch)
            except Stop:
                pass
        handle.remove()
        return sum(each.shape[0] * each.shape[1] for each in kept)

    return go


def ours(task: HarvestTask, sites: tuple[str, ...] | None = None) -> Go:
    """The step `harvest` of a build: masks, sinks, positions, documents, shuffle, checksums, and all of it on disk."""
    from catalog import Store
    from flows import steps
    from flows.config import load_run
    from flows.place import Place, Quiet
    from saelib.base import Site

    config, place = load_run(task.run), Place(Store(Path(task.store)), Quiet())
    chosen = tuple(map(Site.parse, sites or (task.site,)))
    seeds = iter(range(1_000_000 * len(chosen), 2_000_000 * len(chosen)))

    def go() -> int:
        harvest = config.harvest.model_copy(update={"seed": next(seeds), "sites": chosen})
        wanted = config.model_copy(update={"harvest": harvest, "threads": task.threads})
        made = steps.harvest(wanted, steps.tokenize(wanted, place), place)
        shutil.rmtree(made.directory)
        return sum(made.facts["n_rows"]) + sum(made.facts["n_masked"].values())

    return go


def ours_three(task: HarvestTask) -> Go:
    """Three sites in the same pass: the block, its feed-forward part, and the block before."""
    head, number = task.site.rsplit(".", 1)
    return ours(task, (f"{head}.{int(number) - 2}", f"{head}.{int(number) - 1}", task.site))


def ours_write(task: HarvestTask) -> Go:
    """What writing the two further sites takes: as many bytes, hashed, sealed, synced, and hashed at the end."""
    from catalog.files import sha256_of
    from flows.disk import keep_piece

    n_tokens = int(np.load(task.tokens).size)
    content = np.random.default_rng(0).bytes(n_tokens * task.d * 4)

    def go() -> int:
        with tempfile.TemporaryDirectory(dir=task.store) as folder:
            for number in range(2):
                keep_piece(Path(folder) / str(number), content)
                sha256_of(Path(folder) / str(number))
        return n_tokens

    return go


def saelens(task: HarvestTask) -> Go:
    """`CacheActivationsRunner.run` on the model of transformers, without its shuffle of whole sequences."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    rows = np.load(task.tokens)
    dataset = Dataset.from_dict({"tokens": rows.tolist()})
    n_used = len(rows) // task.batch_sequences * task.batch_sequences
    folder = Path(tempfile.mkdtemp(dir=task.store))

    def go() -> int:
        shutil.rmtree(folder / "out", ignore_errors=True)
        config = CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=task.model,
            model_class_name="AutoModelForCausalLM",
            model_batch_size=task.batch_sequences,
            hook_name=task.site,
            d_in=task.d,
            training_tokens=n_used * rows.shape[1],
            context_size=rows.shape[1],
            new_cached_activations_path=str(folder / "out"),
            shuffle=False,
            device="cpu",
            buffer_size_gb=0.05,
            prepend_bos=False,
            streaming=False,
        )
        runner = CacheActivationsRunner(config, override_dataset=dataset)
        start.mark()
        return len(runner.run()) * rows.shape[1]

    return go


def dictionary_learning(task: HarvestTask) -> Go:
    """`ActivationBuffer.refresh`, which stays in memory; it is given token ids, so that it does not tokenize."""
    from dictionary_learning.buffer import ActivationBuffer
    from nnsight import LanguageModel
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    rows = np.load(task.tokens).tolist()
    if task.site.startswith("transformer."):
        model = LanguageModel(task.model, device_map="cpu", dispatch=True)
    else:
        inner = AutoModelForMaskedLM.from_pretrained(task.model)
        model = LanguageModel(inner, tokenizer=AutoTokenizer.from_pretrained(task.model))
    pad = model.tokenizer.pad  # the buffer hands on settings of tokenizing, which padding does not know
    model.tokenizer.pad = lambda ids, return_tensors, **_: pad(ids, return_tensors=return_tensors)
    block = model
    for name in task.site.split("."):
        block = block[int(name)] if name.isdigit() else getattr(block, name)

    def go() -> int:
        buffer = ActivationBuffer(
            iter(rows),
            model,
            block,
            d_submodule=task.d,
            n_ctxs=len(rows) // task.batch_sequences * task.batch_sequences,
            ctx_len=len(rows[0]),
            refresh_batch_size=task.batch_sequences,
        )
        start.mark()
        buffer.refresh()
        return len(buffer.activations)

    return go


class _Start:
    """When the timed part began: what a racer builds anew each time is outside the clock."""

    def mark(self) -> None:
        """Now."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()


start = _Start()
RACERS: dict[str, Callable[[HarvestTask], Go]] = {
    "bare": bare,
    "ours": ours,
    "ours_three": ours_three,
    "ours_write": ours_write,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}
LIBRARIES = {"saelens": "sae-lens", "dictionary_learning": "dictionary-learning"}


def main() -> None:
    """Run the process: the task comes as JSON in the first argument."""
    task = HarvestTask(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    go = RACERS[task.racer](task)
    go()
    library = LIBRARIES.get(task.racer, "transformers")
    answer({"ready": True, "versions": {name: version(name) for name in ("torch", library)}})
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        turn = time.process_time()
        start.mark()
        n_tokens = go()
        wall, cpu = time.perf_counter() - start.wall, time.process_time() - start.cpu
        figures = {"tokens": n_tokens, "wall_s": wall, "cpu_s": cpu, "rss_peak_mb": peak_mb()}
        answer(figures | {"turn_cpu_s": time.process_time() - turn})


if __name__ == "__main__":
    main()
