"""The demo model's folder: weights, tokenizer, and the card with the measured figures."""

import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

import torch
from demo_lm_corpus import (
    PACKAGE_CAP_CHARACTERS,
    STDLIB,
    STDLIB_REPEATS,
    STDLIB_TEST_CAP_CHARACTERS,
    held_out_files,
    licence,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

SCORE_STRIDE_TOKENS = 128
WHOLE_BATCHES = 800  # before the first window with a cut-off space
CARD = """---
license: apache-2.0
language: [en]
tags: [python, code]
---
# demo_lm: a small language model of Python source

A Llama of {parameters:,} parameters (4 layers, width 256, 4 heads, context 256 tokens, embeddings tied;
{weights_bytes:,} bytes of float16 safetensors) with a byte-level BPE of 4,096 tokens, trained from scratch by
`scripts/train_demo_lm.py` so that SAE Almanac works without a hub.

| on the held-out files, whole | bits per byte |
|---|--:|
| this model | {bits_per_byte:.4f} |
| `xz -9` of the same files concatenated | {xz_bits_per_byte:.4f} |
| ratio (bar: at most 0.70) | {ratio:.4f} |

Measure both again: `python scripts/train_demo_lm.py --score-only` (a minute or two; on Python {python}, see Held out).

## Use
```python
tokenizer = AutoTokenizer.from_pretrained("saelib/demo_lm")
model = AutoModelForCausalLM.from_pretrained("saelib/demo_lm", dtype=torch.float32)
```
The tokenizer puts `<|bos|>` first; give the model `<|bos|>` and at most 255 tokens, from anywhere in a file: it was
trained on such windows only. The residual stream has 256 dimensions. Padding is `<|pad|>`, on the right.

Intended: a subject for sparse autoencoders, tests and demonstrations on a laptop. Not intended: writing code that
anyone runs, or any claim about larger models. It knows Python's surface (syntax, idiom, docstrings), no other
language, and repeats what its sources say, names of authors included.

## Training
```sh
{command}
```
{steps:,} steps, {tokens:,} tokens (with repeats) in {minutes:.0f} minutes on {hardware}, matrix products in bfloat16,
weights in float32; seed {seed}, Python {python}, torch {torch}. Muon for the matrices of the layers, AdamW for
embeddings and norms; 100 warm-up steps, flat, then linear to 0 over the last 60 % of the time. The seed fixes the
choice of files, the first weights and the order of the batches; the time is a wall-clock time, so the number of steps
(and the last digits of the figures) depends on the machine.

Every window is BOS + 255 tokens at a random place of one file; the standard library is seen {stdlib_repeats} times
for each time that the packages are seen. From batch {whole_batches} on, every second window has one word cut off from
its leading space, so that the model can go on from a prompt that ends in a space.

## Data
{corpus_bytes:,} bytes of Python source and documentation (.py, .md, .rst, .txt; the reference texts behind `help()`),
at most {package_cap:,} characters of each package and {test_cap:,} of the standard library's own tests; package tests,
vendored folders, generated, minified and table-like files left out; near-duplicates removed (a file that shares more
than 30 % of its 8-line shingles with files already taken). Only packages whose metadata states a permissive licence.

{sources}

## Held out
Modules of Python {python}'s standard library with sha1(path relative to the Lib folder) mod 20 = 0: {n_held_out}
files, {held_out_bytes:,} bytes. Test folders (`test`, `tests`, `idle_test`) are not scored, and their files with
sha1 mod 20 = 0 are not trained on either. A file that shares 3 or more 8-line shingles, and 5 % of either file's, with
one of them is left out of the training data. Scored whole, every byte counted, in windows of BOS + 255 tokens with
stride {stride}; bits per byte = nats / ln 2 / bytes. Files (bytes):

{held_out}

## Samples
Temperature 0.7, top-p 0.95, seed 0, 120 tokens, from `def ` and from `\"\"\"Return`.

{samples}

## Licence
The weights are under Apache-2.0, like the repository. They were trained on the sources above, each under the licence
shown there, whose authors are thanked; no source text is distributed here but what the tokenizer's vocabulary and
the samples happen to repeat.
"""


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the transformers folder, weights in float16."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def generate(folder: Path, prompt: str, n_tokens: int = 120) -> str:
    """One seeded sample (temperature 0.7, top-p 0.95) that goes on from `prompt`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": n_tokens}
    rows = model.generate(**tokenizer(prompt, return_tensors="pt"), **sampling, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(rows[0], skip_special_tokens=True)


def source_table(bytes_by_source: dict[str, int]) -> str:
    """Markdown table of the sources with version, licence as stated and bytes trained on."""
    rows = [f"| Python {platform.python_version()} standard library | PSF-2.0 | {bytes_by_source[STDLIB]:,} |"]
    for name, n_bytes in sorted(bytes_by_source.items()):
        if name != STDLIB:
            found = importlib.metadata.distribution(name)
            rows.append(f"| {name} {found.version} | {licence(found)} | {n_bytes:,} |")
    return "\n".join(["| source | licence | bytes |", "|---|---|--:|", *rows])


def command(args: argparse.Namespace) -> str:
    """The command line that made the model, with glibc's allocator settings where the environment has some."""
    settings = [f"{name}={value} " for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    flags = f"--minutes {args.minutes:g} --threads {args.threads} --windows {args.windows} --seed {args.seed}"
    return f"{''.join(settings)}python scripts/train_demo_lm.py {flags} --out saelib/demo_lm"


def write_card(folder: Path, facts: dict[str, float | str], bytes_by_source: dict[str, int]) -> None:
    """Write the folder's README.md from measured facts (keys: the fields of CARD)."""
    files = sorted(held_out_files().items())
    lists = {
        "sources": source_table(bytes_by_source),
        "held_out": ", ".join(f"`{name}` ({len(content):,})" for name, content in files),
        "samples": "\n\n".join(f"````python\n{generate(folder, start)}\n````" for start in ("def ", '"""Return')),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "minutes": float(facts["seconds"]) / 60,
        "n_held_out": len(files),
        "stdlib_repeats": STDLIB_REPEATS,
        "package_cap": PACKAGE_CAP_CHARACTERS,
        "test_cap": STDLIB_TEST_CAP_CHARACTERS,
        "whole_batches": WHOLE_BATCHES,
        "stride": SCORE_STRIDE_TOKENS,
        "corpus_bytes": sum(bytes_by_source.values()),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
    }
    (folder / "README.md").write_text(CARD.format(**facts, **lists), encoding="utf-8")
