"""Train and score `saelib/demo_lm`, the small language model that the repository carries.

corpus (standard library + permissively licensed packages, deduplicated) -> byte-level BPE -> windows of
BOS + 255 tokens -> Llama trained with Muon and AdamW -> float16 safetensors -> bits per byte on whole held-out
files, beside `xz -9` -> model card with the measured figures.

    python scripts/train_demo_lm.py --minutes 61 --threads 1 --seed 0 --out saelib/demo_lm
    python scripts/train_demo_lm.py --score-only
"""

import argparse
import hashlib
import importlib.metadata
import json
import lzma
import math
import os
import platform
import random
import re
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT_TOKENS, VOCAB_TOKENS, SCORE_STRIDE_TOKENS = 256, 4096, 128
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
STDLIB = "python-stdlib"
STDLIB_REPEATS = 4  # passes over the standard library for each pass over the packages: it is the domain of use
PACKAGE_CAP_CHARACTERS, STDLIB_TEST_CAP_CHARACTERS = 1_500_000, 2_500_000
SHINGLE_LINES = 8
WHOLE_BATCHES = 800  # before the first window with a cut-off space
PERMISSIVE = re.compile(r"\b(MIT|0?BSD|Apache|PSF|Python Software|ISC|HPND)\b", re.I)
RESTRICTIVE = re.compile(r"GPL|MPL|Mozilla|General Public|Artistic|EUPL|CDDL|EPL", re.I)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "testing"})
VENDORED_FOLDERS = frozenset({"_vendor", "vendored", "vendor", "extern"})
SKIPPED_FOLDERS = VENDORED_FOLDERS | {"__pycache__", "site-packages", "dist-packages"}
# Letters may carry one leading sign (" self", ".join", "_name"); a newline keeps the indentation that follows it.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
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


class Document(NamedTuple):
    """One text of the corpus."""

    source: str  # distribution name, or STDLIB
    path: str  # posix, relative to the source's folder
    text: str


# ---------------------------------------------------------------------------------------------------- corpus


def read_text(path: Path) -> str:
    """Text of a UTF-8 file with newlines as stored; empty if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""


def is_held_out(relative_path: str) -> bool:
    return int(hashlib.sha1(relative_path.encode()).hexdigest(), 16) % 20 == 0


def is_test(relative_path: str) -> bool:
    return bool(TEST_FOLDERS & set(Path(relative_path).parts[:-1]))


def looks_written(text: str) -> bool:
    """False for generated, minified or table-like text."""
    lines = text.splitlines() or [""]
    letters = sum(map(str.isalpha, text)) / max(1, len(text))
    digits = sum(map(str.isdigit, text)) / max(1, len(text))
    return 200 <= len(text) <= 400_000 and max(map(len, lines)) < 1_000 and letters > 0.4 and digits < 0.15


def stdlib_files() -> dict[str, Path]:
    """Every .py file of the running interpreter's standard library by its path relative to the Lib folder."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
    return {name: path for name, path in paths.items() if not SKIPPED_FOLDERS & set(Path(name).parts)}


def held_out_files() -> dict[str, bytes]:
    """Held-out modules: sha1(relative path) mod 20 = 0, test folders aside (those are not trained on either)."""
    return {name: path.read_bytes() for name, path in stdlib_files().items() if is_held_out(name) and not is_test(name)}


def stdlib_documents() -> Iterator[Document]:
    """Standard-library modules and the language reference behind `help()`; never a path with sha1 mod 20 = 0."""
    from pydoc_data.topics import topics

    for name, path in stdlib_files().items():
        if not is_held_out(name) and name != "pydoc_data/topics.py":
            yield Document(STDLIB, name, read_text(path))
    for name, text in sorted(topics.items()):
        yield Document(STDLIB, f"pydoc_data/topics/{name}", text)


def licence(distribution: importlib.metadata.Distribution) -> str:
    """Licence as the distribution's metadata states it; empty unless it is permissive."""
    meta = distribution.metadata
    classifiers = [line.split("::")[-1].strip() for line in meta.get_all("Classifier") or [] if "License ::" in line]
    stated = meta.get("License-Expression") or ", ".join(classifiers) or (meta.get("License") or "").strip()[:60]
    stated = " ".join(stated.split())
    return stated if PERMISSIVE.search(stated) and not RESTRICTIVE.search(stated) else ""


def package_documents() -> Iterator[Document]:
    """Python source and documentation of the installed packages whose licence is permissive."""
    root = Path(sysconfig.get_paths()["purelib"])
    distributions = {found.name.lower(): found for found in importlib.metadata.distributions(path=[str(root)])}
    for name, distribution in sorted(distributions.items()):
        if not licence(distribution):
            continue
        for file in sorted(distribution.files or [], key=str):
            folders = set(file.parts[:-1])
            kept = file.suffix in {".py", ".md", ".rst", ".txt"} and not folders & (SKIPPED_FOLDERS | TEST_FOLDERS)
            if kept and not file.parts[0].endswith(".dist-info") and file.locate().is_file():
                yield Document(name, str(file), read_text(Path(file.locate())))


def shingles(text: str) -> set[int]:
    """Hashes of every run of SHINGLE_LINES non-blank lines, indentation and spacing aside."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    runs = (lines[i : i + SHINGLE_LINES] for i in range(len(lines) - SHINGLE_LINES + 1))
    return {int.from_bytes(hashlib.blake2b("\n".join(run).encode(), digest_size=8).digest()) for run in runs}


def copies_held_out(own: set[int], held_out: list[set[int]]) -> bool:
    """True if a text shares 3 or more shingles, and 5 % of either side's, with one held-out file."""
    shared = ((len(own & other), len(other)) for other in held_out)
    return any(n >= 3 and n >= 0.05 * min(len(own), n_other) for n, n_other in shared)


def read_corpus(seed: int) -> list[Document]:
    """Documents to train on: written text, no copy of a held-out file or of each other, capped per package."""
    held_out = [shingles(read_text(path)) for name, path in stdlib_files().items() if is_held_out(name)]
    held_out_any: set[int] = set().union(*held_out)
    packages = list(package_documents())
    random.Random(seed).shuffle(packages)
    seen: set[int] = set()
    taken: Counter[str] = Counter()
    kept: list[Document] = []
    for document in [*stdlib_documents(), *packages]:
        pot, cap = allowance(document)
        if not looks_written(document.text) or taken[pot] + len(document.text) > cap:
            continue
        own = shingles(document.text)
        if len(own & seen) > 0.3 * len(own) or (own & held_out_any and copies_held_out(own, held_out)):
            continue
        seen |= own
        taken[pot] += len(document.text)
        kept.append(document)
    return kept


def allowance(document: Document) -> tuple[str, float]:
    """The pot that a text counts towards and the characters that the pot may hold."""
    if document.source != STDLIB:
        return document.source, PACKAGE_CAP_CHARACTERS
    return (STDLIB, math.inf) if not is_test(document.path) else ("stdlib tests", STDLIB_TEST_CAP_CHARACTERS)


# ------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts BOS before every text and gives every text back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_TOKENS,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    clean = {"clean_up_tokenization_spaces": False, "model_max_length": CONTEXT_TOKENS, "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **clean)


class Tokens(NamedTuple):
    """Training texts as token ids, one after the other."""

    ids: np.ndarray  # uint16, each text closed by EOS
    ends: np.ndarray  # one past each text's last token
    repeats: np.ndarray  # passes over each text per epoch


def tokenize(tokenizer: PreTrainedTokenizerFast, corpus: list[Document]) -> Tokens:
    backend = tokenizer.backend_tokenizer
    encoded = [[*backend.encode(doc.text, add_special_tokens=False).ids, tokenizer.eos_token_id] for doc in corpus]
    repeats = [STDLIB_REPEATS if doc.source == STDLIB and not is_test(doc.path) else 1 for doc in corpus]
    ids = np.concatenate([np.array(row, dtype=np.uint16) for row in encoded])
    return Tokens(ids, np.cumsum([len(row) for row in encoded]), np.array(repeats))


# -------------------------------------------------------------------------------------------------- training


def window_starts(tokens: Tokens, rng: np.random.Generator) -> np.ndarray:
    """First token of every window of one epoch, shuffled: even over each text, then moved by up to half a window."""
    width, starts = CONTEXT_TOKENS - 1, []
    for first, last, repeats in zip([0, *tokens.ends[:-1]], tokens.ends, tokens.repeats, strict=True):
        spare = max(0, last - first - width)
        for _ in range(repeats):
            even = np.linspace(0, spare, math.ceil((last - first) / width))
            moved = np.clip(even + rng.uniform(-width / 2, width / 2, len(even)), 0, spare)
            starts.append(first + moved.astype(np.int64))
    return rng.permutation(np.concatenate(starts))


class SpaceCut:
    """Puts into every second window one word cut off from its leading space.

    A prompt that ends in a space, `def `, ends in a token that ordinary text has only before another space: without
    such windows the model would not know how to go on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.bos = tokenizer.bos_token_id
        texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
        encode = partial(tokenizer.backend_tokenizer.encode, add_special_tokens=False)
        self.with_space = {token: encode(f"{text} ").ids for token, text in texts.items() if "\ufffd" not in text}
        words = {token: text for token, text in texts.items() if text[:1] == " " and text[1:2].strip()}
        self.without_space = {token: encode(text[1:]).ids for token, text in words.items()}

    def __call__(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cut_rows = rows.copy()
        for row, cut_row in zip(rows[::2].tolist(), cut_rows[::2], strict=True):
            pairs = enumerate(pairwise(row), 1)
            places = [at for at, (left, word) in pairs if left in self.with_space and word in self.without_space]
            if places:
                place = places[rng.integers(len(places))]
                middle = self.with_space[row[place - 1]] + self.without_space[row[place]]
                cut_row[:] = [*row[: place - 1], *middle, *row[place + 1 :]][: len(row)]
        return cut_rows


def batches(tokens: Tokens, cut: SpaceCut, n_windows: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of `n_windows` rows: BOS, then 255 tokens from anywhere in a text; -100 past the text's end."""
    rng, cut_rng, columns = np.random.default_rng(seed), np.random.default_rng([seed, 1]), np.arange(CONTEXT_TOKENS - 1)
    n_made = 0
    while True:
        starts = window_starts(tokens, rng)
        for rows in np.split(starts[: len(starts) // n_windows * n_windows], len(starts) // n_windows):
            index = rows[:, None] + columns
            end = tokens.ends[np.searchsorted(tokens.ends, rows, side="right")][:, None]
            ids = np.where(index < end, tokens.ids[np.minimum(index, end - 1)].astype(np.int64), -100)
            ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=cut.bos)
            yield torch.from_numpy(ids if n_made < WHOLE_BATCHES else cut(ids, cut_rng))
            n_made += 1


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Llama of 4 layers of width 256, embeddings tied, its depth-wise output matrices zero at the start."""
    torch.manual_seed(seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    length = {"vocab_size": VOCAB_TOKENS, "max_position_embeddings": CONTEXT_TOKENS}
    config = LlamaConfig(**shape, **length, **special, tie_word_embeddings=True, attn_implementation="eager")
    model = LlamaForCausalLM(config)  # eager: the compiled softmax is faster in bfloat16 than the fused CPU kernel
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for the embeddings and the norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    outside = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    muon = torch.optim.Muon(inside, lr=5e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outside, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats per token, matrices in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows.clamp(min=0), use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def learning_rate(step: int, done: float) -> float:
    """Share of the peak rate: 100 warm-up steps, flat, then linear to 0 over the last 60 % of the time (`done` = 1)."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, 1.0 - done) / 0.6)


def train(model: LlamaForCausalLM, stream: Iterator[torch.Tensor], minutes: float, state: Path) -> dict[str, float]:
    """Train in place until `minutes` have passed, those of a stopped run saved at `state` included.

    Saves there every 5 minutes. Returns steps, seconds and tokens.
    """
    both = optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in both]
    step, before = resume(model, both, state)
    for _ in range(step):
        next(stream)
    loss_of, started, saved_at, mean_nats = torch.compile(next_token_loss), time.monotonic(), before, None
    while (seconds := before + time.monotonic() - started) < 60 * minutes:
        rows, nats = next(stream), 0.0
        for part in rows.split(8):  # small enough for the processor's cache
            loss = loss_of(model, part) * len(part) / len(rows)
            loss.backward()
            nats += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(both, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate(step, seconds / (60 * minutes))
            optimizer.step()
            optimizer.zero_grad()
        step, mean_nats = step + 1, nats if mean_nats is None else 0.98 * mean_nats + 0.02 * nats
        if step % 50 == 0:
            rate = step * rows.numel() / seconds
            print(f"{seconds / 60:6.1f} min  step {step}  {mean_nats:.4f} nats/token  {rate:.0f} tokens/s", flush=True)
        if seconds - saved_at > 300:
            saved_at = seconds
            save_state(model, both, {"step": step, "seconds": seconds}, state)
    return {"steps": step, "seconds": seconds, "tokens": step * rows.numel()}


def save_state(
    model: LlamaForCausalLM, both: list[torch.optim.Optimizer], clock: dict[str, float], state: Path
) -> None:
    part = state.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in both], **clock}, part)
    part.replace(state)


def resume(model: LlamaForCausalLM, both: list[torch.optim.Optimizer], state: Path) -> tuple[int, float]:
    """Steps and seconds of the run saved at `state`, its weights loaded in place; (0, 0.0) where there is none."""
    if not state.exists():
        return 0, 0.0
    saved = torch.load(state)
    model.load_state_dict(saved["model"])
    for optimizer, values in zip(both, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return saved["step"], saved["seconds"]


# --------------------------------------------------------------------------------------------------- scoring


def text_nats(model: LlamaForCausalLM, ids: list[int], bos: int) -> float:
    """Negative log-likelihood in nats of all of `ids`, each token once, in windows of BOS + 255 tokens.

    Windows start every SCORE_STRIDE_TOKENS; a token is scored in the first window that holds it.
    """
    width, scored, total = CONTEXT_TOKENS - 1, 0, 0.0
    starts = range(0, max(1, len(ids) - width + SCORE_STRIDE_TOKENS), SCORE_STRIDE_TOKENS)
    for first in starts:
        row = torch.tensor([[bos, *ids[first : first + width]]])
        with torch.no_grad():
            nats = cross_entropy(model(input_ids=row).logits[0, :-1].float(), row[0, 1:], reduction="none")
        total += nats[scored - first :].sum().item()
        scored = min(len(ids), first + width)
    return total


def score(folder: Path) -> dict[str, float]:
    """Bits per byte of the model in `folder` and of `xz -9`, on the held-out files whole."""
    files = held_out_files()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    n_bytes, nats = sum(map(len, files.values())), 0.0
    for number, (name, content) in enumerate(sorted(files.items()), 1):
        ids = tokenizer(content.decode("utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
        nats += text_nats(model, ids, tokenizer.bos_token_id)
        print(f"scored {number}/{len(files)} {name}", flush=True)
    packed = len(lzma.compress(b"".join(content for _, content in sorted(files.items())), preset=9))
    bits, xz_bits = nats / math.log(2) / n_bytes, 8 * packed / n_bytes
    return {"held_out_bytes": n_bytes, "bits_per_byte": bits, "xz_bits_per_byte": xz_bits, "ratio": bits / xz_bits}


# ------------------------------------------------------------------------------------------- files and card


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


def prepare(work: Path, seed: int) -> tuple[PreTrainedTokenizerFast, Tokens, dict[str, int]]:
    """Tokenizer, training tokens and bytes per source; made once per `work` folder, then read from it."""
    manifest = work / "sources.json"  # written last: its existence means that the rest is complete
    if not manifest.exists():
        work.mkdir(parents=True, exist_ok=True)
        corpus = read_corpus(seed)
        tokenizer = train_tokenizer([document.text for document in corpus])
        tokenizer.save_pretrained(work)
        np.savez(work / "tokens.npz", **tokenize(tokenizer, corpus)._asdict())
        bytes_by_source: Counter[str] = Counter()
        for document in corpus:
            bytes_by_source[document.source] += len(document.text.encode())
        manifest.write_text(json.dumps(bytes_by_source, indent=1))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    return tokenizer, Tokens(**np.load(work / "tokens.npz")), json.loads(manifest.read_text())


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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("saelib/demo_lm"), help="folder of the model")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time by the wall clock")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--windows", type=int, default=32, help="windows of 256 tokens per step")
    parser.add_argument("--seed", type=int, default=0, help="of the file choice, the first weights and the batches")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "demo_lm", help="cache, checkpoint")
    parser.add_argument("--score-only", action="store_true", help="measure the model in --out beside `xz -9` and stop")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.score_only:
        print(json.dumps(score(args.out), indent=1))
        return
    tokenizer, tokens, bytes_by_source = prepare(args.work, args.seed)
    print(f"{len(tokens.ids):,} tokens of {sum(bytes_by_source.values()):,} bytes", flush=True)
    model = new_model(tokenizer, args.seed)
    stream = batches(tokens, SpaceCut(tokenizer), args.windows, args.seed)
    measured = train(model, stream, args.minutes, args.work / "state.pt")
    save(model, tokenizer, args.out)
    (args.work / "state.pt").unlink(missing_ok=True)
    facts = {**measured, **score(args.out), "parameters": model.num_parameters()}
    print(json.dumps(facts, indent=1))
    hardware = "one CPU core" if args.threads == 1 else f"{args.threads} CPU cores"
    write_card(args.out, {**facts, "command": command(args), "hardware": hardware, "seed": args.seed}, bytes_by_source)


if __name__ == "__main__":
    main()
