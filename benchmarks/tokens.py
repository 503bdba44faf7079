"""How fast is text made into tokens, and how much memory does that take: `benchmarks/tokens.py`.

The same documents go through the tokenizer alone, as plain lists and nothing kept (`tokenizer(batch)`); through
`saelib.text.tokenize`, which reads them from a file, hashes them, finds duplicates, keeps offsets and lays out shards;
and through the whole step, which also writes the shards and the tables `document` and `sequence`. Each is a process of
its own. The step is run on a corpus and on one ten times as long: its peak of resident memory must be the same to 5 %.

Documents are pieces of the standard library, some 1,500 characters each, every one different.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))

PIECE = 1_500
"""Characters of a document."""
ALLOWED = 1.05
"""The peak of ten times the corpus, as a multiple of that of one."""


def main() -> None:
    given = _arguments()
    if given.work:
        print(json.dumps(WORKS[given.work](given.corpus, given.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = (_write(Path(folder), n) for n in (given.documents, 10 * given.documents))
        runs = [("plain", small), ("tokenize", small), ("step", small), ("step", large)]
        found = [_measured(work, corpus, given.threads) for work, corpus in runs]
    print(f"{given.threads} threads, {os.cpu_count()} cores\n")
    print("| what | documents | tokens | tokens/s | peak MB |\n|---|--:|--:|--:|--:|")
    for (work, _), row in zip(runs, found, strict=True):
        rate = row["n_tokens"] / row["seconds"]
        print(f"| {work} | {row['n_documents']:,} | {row['n_tokens']:,} | {rate:,.0f} | {row['peak'] / 1e6:,.1f} |")
    once, tenfold = found[2], found[3]
    ratio = tenfold["peak"] / once["peak"]
    print(f"\n10 times the corpus: {ratio:.3f} of the peak")
    if ratio > ALLOWED:
        sys.exit(f"the peak grows with the corpus: {ratio:.3f} is more than {ALLOWED}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--documents", type=int, default=5_000, help="documents of the smaller corpus (default %(default)s)")
    add("--threads", type=int, default=2, help="threads of the tokenizer (default %(default)s)")
    add("--work", choices=sorted(WORKS), help="what a process of its own does with --corpus")
    add("--corpus", type=Path)
    return parser.parse_args()


def _write(folder: Path, n_documents: int) -> Path:
    path = folder / f"{n_documents}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(islice(_pieces(), n_documents)):
            file.write(json.dumps({"text": f"# piece {number}\n{text}"}) + "\n")
    return path


def _pieces() -> Iterator[str]:
    while True:
        for module in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            text = module.read_text(encoding="utf-8", errors="replace")
            yield from (text[first : first + PIECE] for first in range(0, len(text), PIECE))


def _measured(work: str, corpus: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", work, "--corpus", str(corpus), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(n_documents: int, n_tokens: int, started: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "n_documents": n_documents,
        "n_tokens": n_tokens,
        "seconds": time.perf_counter() - started,
        "peak": peak,
    }


def _plain(corpus: Path, threads: int) -> dict[str, float]:
    from flows.steps.tokenize import tokenizer_threads
    from saelib.lm import LMConfig, load_lm

    tokenizer = load_lm(LMConfig()).tokenizer
    texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    started, n_tokens = time.perf_counter(), 0
    with tokenizer_threads(threads):
        for first in range(0, len(texts), 256):
            batch = tokenizer(texts[first : first + 256], add_special_tokens=False, verbose=False)
            n_tokens += sum(map(len, batch["input_ids"]))
    return _row(len(texts), n_tokens, started)


def _tokenize(corpus: Path, threads: int) -> dict[str, float]:
    from flows.steps.tokenize import tokenizer_threads
    from saelib.lm import LMConfig, load_lm
    from saelib.text import CorpusConfig, Source, tokenize

    lm, config = load_lm(LMConfig()), CorpusConfig(sources=(Source(path=str(corpus)),))
    started = time.perf_counter()
    with tokenizer_threads(threads):
        made = tokenize(lm, config)
    return _row(len(made.documents), sum(record.n_tokens for record in made.documents), started)


def _step(corpus: Path, threads: int) -> dict[str, float]:
    from catalog import Store
    from flows import steps
    from flows.config import RunConfig
    from flows.place import Place, Quiet
    from flows.steps.loading import language_model

    table = {"corpus": {"sources": [{"path": str(corpus)}]}, "harvest": {"sites": [{"path": "model.layers.1"}]}}
    recipes = [{"architecture": "topk", "n_features": 64, "k": 8}]
    config = RunConfig.model_validate({"threads": threads, "recipes": recipes, **table})
    language_model(config.lm)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = steps.tokenize(config, Place(Store.create(Path(folder) / "store"), Quiet()))
        return _row(made.facts["n_documents"], made.facts["n_tokens"], started)


WORKS: dict[str, Callable[[Path, int], dict[str, float]]] = {"plain": _plain, "tokenize": _tokenize, "step": _step}


if __name__ == "__main__":
    main()
