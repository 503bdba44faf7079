"""Train and score `saelib/demo_lm`, the small language model that the repository carries.

corpus (standard library + permissively licensed packages, deduplicated) -> byte-level BPE -> windows of
BOS + 255 tokens -> Llama trained with Muon and AdamW -> float16 safetensors -> bits per byte on whole held-out
files, beside `xz -9` -> model card with the measured figures.

    python scripts/train_demo_lm.py --minutes 61 --threads 1 --seed 0 --out saelib/demo_lm
    python scripts/train_demo_lm.py --score-only
"""

import argparse
import json
import lzma
import math
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
from demo_lm_card import SCORE_STRIDE_TOKENS, WHOLE_BATCHES, command, save, write_card
from demo_lm_corpus import STDLIB, STDLIB_REPEATS, Document, held_out_files, is_test, read_corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT_TOKENS, VOCAB_TOKENS = 256, 4096
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
# Letters may carry one leading sign (" self", ".join", "_name"); a newline keeps the indentation that follows it.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


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
