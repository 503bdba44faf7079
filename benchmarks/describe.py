"""What describing costs beside running the model: the same tokens, the same SAE, one process a row.

    python benchmarks/describe.py                      # every row: 16,384 tokens, F = 16,384, d = 256
    python benchmarks/describe.py --tokens 262144      # where what is done once a feature weighs little
    python benchmarks/describe.py --row memory         # peak memory of all examples of 131,072 features

A GPT-2-shaped model with random weights (4 blocks, d 256) and a random top-k SAE (k 32): costs are those of a trained
one but for how features share out their firings. Rows: `floor` is forward and encode alone; `ours` the same forward,
both passes and every table in Parquet, ΔCE terms apart; `ours_from_shards` leaves the forward out, as a build does,
whose harvest has been there already; `plain` is a vectorised pass that emits statistics, a 64-bin histogram and 20
windows a feature. SAEDashboard and Delphi are not run here: their rows are figures of other runs, marked so.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flows.config import DescribeConfig
from flows.rows import features as feature_rows
from flows.rows import related as related_rows
from flows.rows.described import Described
from flows.rows.examples import Text
from flows.rows.examples import examples as example_rows
from saelib.activations import ActivationShard
from saelib.base import Ends, Site
from saelib.effects import LossEffects
from saelib.geometry import decoder_neighbors, logit_effects
from saelib.lm import LanguageModel, read_sites
from saelib.nonlinearity import TopK
from saelib.sae import SAE
from saelib.summaries.candidates import rank_in_group
from saelib.summaries.examples import Silences, choose_examples
from saelib.summaries.rows import shard_firings
from saelib.summaries.sample import Sample
from saelib.summaries.summary import Summary, merged_candidates, merged_statistics
from saelib.text import TokenShard

SITE, CONTEXT, VOCABULARY, K = Site(path="transformer.h.2"), 128, 4096, 32
PUBLISHED = [
    {"row": "SAEDashboard 0.8.0 (another run, 2 quiet cores)", "seconds": 1800.0, "note": "110 s per 1,000 features"},
    {"row": "Delphi 0.1.3 (another run, 2 quiet cores)", "seconds": 68.0, "note": "6.2 s cache, 62 s examples"},
]


def language_model(d: int) -> LanguageModel:
    """Random weights; no text is read, so the tokenizer is the demo's and only gives tokens names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from saelib.lm import LMConfig, load_lm

    torch.manual_seed(0)
    config = GPT2Config(n_embd=d, n_layer=4, n_head=4, n_positions=CONTEXT, vocab_size=VOCABULARY)
    return LanguageModel(GPT2LMHeadModel(config).train(False), load_lm(LMConfig()).tokenizer, "random-gpt2", "")


def sparse_autoencoder(d: int, n_features: int) -> SAE:
    """Random unit directions; the 32 largest fire."""
    W = torch.nn.functional.normalize(torch.randn(n_features, d, generator=torch.Generator().manual_seed(1)), dim=1)
    weights = {"W_enc": W.t().contiguous(), "b_enc": torch.zeros(n_features), "W_dec": W, "b_dec": torch.zeros(d)}
    return SAE(weights, TopK(k=K), Ends.at(SITE), "topk")


def token_shard(n_tokens: int, first: int = 0) -> TokenShard:
    """Documents of one sequence each; common tokens are common (Zipf)."""
    n = n_tokens // CONTEXT
    ids = np.random.default_rng(first).zipf(1.2, n * CONTEXT) % VOCABULARY
    where = np.arange(first, first + n, dtype=np.int64)
    starts = np.arange(0, n * CONTEXT + 1, CONTEXT, dtype=np.int64)
    return TokenShard(ids.astype(np.int32), starts, where, where, np.zeros(n, dtype=np.int64))


def forward(lm: LanguageModel, tokens: TokenShard) -> ActivationShard:
    """Activations of every token, stopping at the site."""
    rows, ids = [], torch.from_numpy(tokens.token_ids.astype(np.int64)).reshape(-1, CONTEXT)
    for batch in torch.split(ids, 32):
        rows.append(read_sites(lm, batch, torch.ones_like(batch), [SITE])[SITE].flatten(0, 1))
    return activation_shard(tokens, torch.cat(rows))


def activation_shard(tokens: TokenShard, x: torch.Tensor) -> ActivationShard:
    """Rows in the order of the text."""
    place = np.arange(tokens.token_ids.size, dtype=np.int32)
    sequence, position = place // CONTEXT, place % CONTEXT
    return ActivationShard([x], tokens.token_ids, tokens.document_id[sequence], sequence, position, {})


def encode(sae: SAE, shard: ActivationShard) -> int:
    """Firings of every row."""
    return sum(int(sae.fire(x).value.numel()) for x in torch.split(shard.sites[0], 8192))


def describe(lm: LanguageModel, sae: SAE, shards: list[tuple[TokenShard, ActivationShard]], folder: Path) -> int:
    """Both passes and every table, as the step does it; the bytes written."""
    paths: dict[str, list[Path]] = {"summary": [], "sample": []}
    for index, (tokens, shard) in enumerate(shards):
        firings = shard_firings(sae, tokens, shard, 0, seed=0)
        for kind, made in (("summary", Summary.of(firings, VOCABULARY)), ("sample", Sample.of(firings, 1.0, 0))):
            paths[kind].append(folder / f"{kind}-{index}")
            paths[kind][-1].write_bytes(made.save())
        del firings, made
    (core, token_counts), sample = merged_statistics(paths["summary"]), Sample.merged(paths["sample"])
    nearest, top = decoder_neighbors(sae, 20), token_counts.top("at", 3)
    top_tokens = np.full((sae.n_features, 3), -1, dtype=np.int64)
    top_tokens[top.feature, top.rank] = top.token_id
    coactivation, correlation = sample.together(20)
    none = np.full(sae.n_features, np.nan)
    found = Described(
        sae, core, token_counts, sample, Silences.of(sample, top_tokens, nearest.other[:, 0]), nearest,
        logit_effects(lm, sae, 20), coactivation, correlation, LossEffects(none, 0, none, 0, None),
        np.array([f"t{index}" for index in range(VOCABULARY)], dtype=object), "benchmark", "fingerprint",
    )  # fmt: skip
    return write_tables(found, [tokens for tokens, _ in shards], paths["summary"], folder)


def write_tables(found: Described, tokens: list[TokenShard], summaries: list[Path], folder: Path) -> int:
    """Every table of features; the bytes of each are printed by the row that wants them."""
    tables = {
        "feature": feature_rows.features(found, DescribeConfig()),
        "feature_stat": feature_rows.feature_stats(found),
        "histogram": feature_rows.histograms(found),
        "feature_token": related_rows.feature_tokens(found, 20),
        "feature_logit": related_rows.feature_logits(found),
        "neighbor": related_rows.neighbors(found),
        "activation": related_rows.activations(found),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    del tables
    text, keys, n_rows = Text(tokens), np.arange(10**6, dtype=np.uint64), 0
    for first in range(0, found.n_features, 4096):
        features = range(first, min(first + 4096, found.n_features))
        chosen = choose_examples(
            merged_candidates(summaries, features), found.core, found.sample, found.silences, features
        )
        rows = example_rows(found, chosen, text, keys, 0.3, n_rows)
        pq.write_table(rows, folder / f"example-{first}.parquet", compression="zstd")
        n_rows += rows.num_rows
    return sum(file.stat().st_size for file in folder.glob("*.parquet"))


def plain(sae: SAE, tokens: TokenShard, shard: ActivationShard, folder: Path) -> int:
    """One lexsort by (feature, −activation), segments for the rest: what a careful notebook does."""
    parts = [sae.fire(x) for x in torch.split(shard.sites[0], 8192)]
    row = np.concatenate([part.rows().numpy() + 8192 * index for index, part in enumerate(parts)])
    feature, value = (np.concatenate([getattr(part, name).numpy() for part in parts]) for name in ("feature", "value"))
    order = np.lexsort((-value, feature))
    row, feature, value = row[order], feature[order], value[order].astype(np.float64)
    n = np.bincount(feature, minlength=sae.n_features)
    mean = np.bincount(feature, value, sae.n_features) / np.maximum(n, 1)
    columns: dict[str, Any] = {"n_fires": n, "mean": mean}
    for power in (2, 3, 4):
        columns[f"m{power}"] = np.bincount(feature, (value - mean[feature]) ** power, sae.n_features)
    bins = np.minimum((value / value.max() * 64).astype(int), 63)
    counts = np.bincount(feature.astype(np.int64) * 64 + bins, minlength=64 * sae.n_features)
    columns["histogram"] = pa.FixedSizeListArray.from_arrays(pa.array(counts), 64)
    pq.write_table(pa.table(columns), folder / "feature.parquet", compression="zstd")
    best = rank_in_group(feature) < 20
    at = np.clip(row[best][:, None] + np.arange(-12, 13), 0, tokens.token_ids.size - 1)
    windows = pa.FixedSizeListArray.from_arrays(pa.array(tokens.token_ids[at].ravel()), 25)
    table = pa.table({"feature": feature[best], "act": value[best], "row": row[best], "tokens": windows})
    pq.write_table(table, folder / "example.parquet", compression="zstd")
    return sum(file.stat().st_size for file in folder.iterdir())


def measured(row: str, n_tokens: int, n_features: int, d: int) -> dict[str, Any]:
    """One row, after a warm-up on few tokens."""
    lm, sae = language_model(d), sparse_autoencoder(d, n_features)
    n_shards = max(1, n_tokens // 262_144)
    tokens = [token_shard(n_tokens // n_shards, index * 10**5) for index in range(n_shards)]
    few = token_shard(1024, 7)
    ready = [forward(lm, each) for each in tokens] if row != "ours" else []
    with tempfile.TemporaryDirectory() as warm:
        describe(lm, sparse_autoencoder(d, 64), [(few, forward(lm, few))], Path(warm))
    with tempfile.TemporaryDirectory() as name:
        folder, start, cpu, n_bytes = Path(name), time.perf_counter(), time.process_time(), 0
        if row == "floor":
            sum(encode(sae, forward(lm, each)) for each in tokens)
        elif row == "plain":
            n_bytes = plain(sae, tokens[0], ready[0], folder)
        else:
            shards = list(zip(tokens, ready or (forward(lm, each) for each in tokens), strict=True))
            n_bytes = describe(lm, sae, shards, folder)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"row": row, "seconds": seconds, "cpu_seconds": cpu, "bytes_per_feature": n_bytes / n_features}


def memory(n_tokens: int, n_features: int, d: int) -> dict[str, Any]:
    """All tables of very many features from shards that are made as they are asked for."""

    class Made(list[Any]):
        def __iter__(self) -> Any:
            for index in range(max(1, n_tokens // 131_072)):
                tokens = token_shard(min(n_tokens, 131_072), index * 10**5)
                words = torch.randn(VOCABULARY, d, generator=torch.Generator().manual_seed(3))
                noise = torch.randn(tokens.token_ids.size, d, generator=torch.Generator().manual_seed(index))
                yield tokens, activation_shard(tokens, words[torch.from_numpy(tokens.token_ids).long()] + noise)

    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        n_bytes = describe(language_model(d), sparse_autoencoder(d, n_features), Made(), Path(name))
    return {"row": "memory", "seconds": time.perf_counter() - start, "bytes_per_feature": n_bytes / n_features}


def main() -> None:
    """Every row in a process of its own, rounds interleaved; or the one that was asked for, in this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=["floor", "ours", "ours_from_shards", "plain", "memory"])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--features", type=int)
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    if given.row:
        n_features = given.features or (131_072 if given.row == "memory" else 16_384)
        made = (memory if given.row == "memory" else lambda *sizes: measured(given.row, *sizes))(
            given.tokens, n_features, given.d
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        settings = {
            "tokens": given.tokens,
            "features": n_features,
            "threads": given.threads,
            "load": os.getloadavg()[0],
        }
        print(json.dumps(made | settings | {"peak_memory_gb": peak}))
        return
    for number in range(given.rounds):
        for row in ("floor", "ours", "ours_from_shards", "plain"):
            again = [sys.executable, __file__, "--row", row]
            again += [f"--{name}={getattr(given, name)}" for name in ("tokens", "d", "threads")]
            print(json.dumps({"round": number} | json.loads(subprocess.check_output([*again, *(
                [f"--features={given.features}"] if given.features else [])]))), flush=True)  # fmt: skip
    for published in PUBLISHED:
        print(json.dumps(published))


if __name__ == "__main__":
    main()
