"""A catalog of any width, made through the real publish path: as many rows a feature as the demo has, of made-up text.

Tokens follow Zipf's law over 8,192 made-up words; every feature fires on a few of its own, so that a search by token
finds what it would find in a real catalog.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog import Publication, Store, append, arrow_schema, publish

BLOCK = 8_192  # features written at once
D_MODEL = 256
DATASET = "made-up"
BUCKETS = {"top": 20, "q1": 5, "q2": 5, "q3": 5, "q4": 5, "q5": 5, "random": 5, "near_miss": 5, "negative": 5}
PER_ROLE, PER_SIGN, PER_KIND, BINS, ACTIVATIONS = 20, 20, 20, 50, 8
WINDOW, N_SEQUENCES, SEQUENCE_TOKENS, N_WORDS = 25, 8_192, 128, 8_192
FINGERPRINT = "5" * 64
Columns = dict[str, object]


class Block(NamedTuple):
    """Some features of an SAE, and what their rows are drawn with."""

    features: np.ndarray
    n_features: int
    words: np.ndarray
    rng: np.random.Generator


def make(folder: Path, n_features: int) -> tuple[Store, str]:
    """A store with one SAE of that many features, each with a machine's name, and the sae_id."""
    store, aside = Store.create(folder / "store"), folder / "aside"
    aside.mkdir()
    words = vocabulary()
    tables: dict[str, object] = {name: _written(aside, name, n_features, words) for name in ROWS}
    weights = _weights(store, n_features)
    tables["sae"] = {"n_features": [n_features], "d_out": [D_MODEL], "weights_uri": [str(weights)], "model_id": ["lm"]}
    published = publish(store, Publication("lm/synthetic", FINGERPRINT, tables, _corpus(words)))
    append(store, "explanation", _names(published.sae_id, n_features, words), FINGERPRINT)
    for path in aside.iterdir():
        path.unlink()
    return store, published.sae_id


def vocabulary() -> np.ndarray:
    """Words of two to four syllables; every second one begins with a space."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or")])
    words: dict[str, None] = {}
    while len(words) < N_WORDS:
        word = "".join(rng.choice(syllables, rng.integers(2, 5)))
        words[word if len(words) % 2 else f" {word}"] = None
    return np.array(list(words), dtype=object)


def _written(aside: Path, table: str, n_features: int, words: np.ndarray) -> Path:
    path, schema = aside / f"{table}.parquet", arrow_schema(table)
    schema = pa.schema([field for field in schema if field.name not in ("sae_id", "fingerprint", "other_sae_id")])
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        for start in range(0, n_features, BLOCK):
            features = np.arange(start, min(start + BLOCK, n_features), dtype=np.int32)
            columns = ROWS[table](Block(features, n_features, words, np.random.default_rng((start, len(table)))))
            n_rows = len(columns["feature"])  # type: ignore[arg-type]
            arrays = [
                pa.array(columns[f.name], type=f.type) if f.name in columns else pa.nulls(n_rows, f.type)
                for f in schema
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return path


def _zipf(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.minimum(rng.zipf(1.3, n) - 1, N_WORDS - 1).astype(np.int32)


def _lists(values: np.ndarray, width: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, values.size + 1, width, dtype=np.int32)), pa.array(values))


def _feature(of: Block) -> Columns:
    n = of.features.size
    density = 10 ** of.rng.uniform(-6, -1.2, n)
    measured = ("act_mean", "act_std", "act_skew", "act_kurtosis", "token_entropy", "position_mean", "reconstructive",
                "delta_ce_linear", "logit_skew", "logit_kurtosis", "encoder_norm", "run_length_mean")  # fmt: skip
    quantiles = np.sort(of.rng.gamma(2, 3, (n, 11)).astype(np.float32), axis=1)
    tokens = of.words[_zipf(of.rng, n * 10)]
    return {
        "feature": of.features, "dataset_id": [DATASET] * n, "status": np.where(density < 1e-5, "rare", "alive"),
        "n_tokens": np.full(n, 10**7), "n_fires": (density * 1e7).astype(np.int64), "density": density,
        "n_sequences": np.full(n, 10**5), "sequence_density": np.minimum(density * 40, 1),
        "act_max": quantiles[:, -1], "act_quantiles": _lists(quantiles.ravel(), 11),
        "top_token": of.words[_zipf(of.rng, n)],
        "top_tokens": _lists(tokens, 10), "top_logits": _lists(of.rng.random(n * 10, dtype=np.float32), 10),
        "bottom_tokens": _lists(tokens, 10), "bottom_logits": _lists(-of.rng.random(n * 10, dtype=np.float32), 10),
        "decoder_norm": np.ones(n, dtype=np.float32), "nearest_feature": of.rng.integers(0, of.n_features, n),
        "nearest_cosine": of.rng.random(n, dtype=np.float32),
        **{m: of.rng.random(n, dtype=np.float32) for m in measured},
    }  # fmt: skip


def _histogram(of: Block) -> Columns:
    n = of.features.size * 3
    edges = np.cumsum(of.rng.random((n, BINS + 1), dtype=np.float32), axis=1)
    counts = of.rng.geometric(0.05, n * BINS).astype(np.int64)
    return {
        "feature": np.repeat(of.features, 3), "kind": ["act", "log_act", "logit"] * of.features.size,
        "dataset_id": [DATASET] * n, "edges": _lists(edges.ravel(), BINS + 1), "counts": _lists(counts, BINS),
    }  # fmt: skip


def _feature_token(of: Block) -> Columns:
    n = of.features.size * 3 * PER_ROLE
    token = _zipf(of.rng, n)
    return {
        "feature": np.repeat(of.features, 3 * PER_ROLE), "rank": np.tile(np.arange(PER_ROLE), 3 * of.features.size),
        "role": np.tile(np.repeat(["at", "next", "previous"], PER_ROLE), of.features.size),
        "token_id": token, "token": of.words[token],
        "n_fires": of.rng.integers(1, 500, n), "n_token": of.rng.integers(500, 9999, n),
        **{c: of.rng.random(n, dtype=np.float32)
           for c in ("p_token_given_fire", "p_fire_given_token", "lift", "act_mean")},
    }  # fmt: skip


def _feature_logit(of: Block) -> Columns:
    n = of.features.size * 2 * PER_SIGN
    token, sign = _zipf(of.rng, n), np.tile(np.repeat([-1, 1], PER_SIGN), of.features.size)
    return {
        "feature": np.repeat(of.features, 2 * PER_SIGN), "rank": np.tile(np.arange(PER_SIGN), 2 * of.features.size),
        "sign": sign, "token_id": token, "token": of.words[token], "logit": sign * of.rng.random(n, dtype=np.float32),
    }  # fmt: skip


def _example(of: Block) -> Columns:
    per_feature, n = sum(BUCKETS.values()), of.features.size * sum(BUCKETS.values())
    order = sorted(BUCKETS)
    position = of.rng.integers(12, SEQUENCE_TOKENS - 13, n).astype(np.int32)
    text = np.array(["".join(of.words[_zipf(of.rng, 12)]) for _ in range(512)], dtype=object)
    return {
        "feature": np.repeat(of.features, per_feature), "dataset_id": [DATASET] * n,
        "example_id": np.arange(n) + int(of.features[0]) * per_feature,
        "bucket": np.tile(np.repeat(order, [BUCKETS[b] for b in order]), of.features.size),
        "rank": np.tile(np.concatenate([np.arange(BUCKETS[b]) for b in order]), of.features.size),
        "sequence_id": of.rng.integers(0, N_SEQUENCES, n), "position": position,
        "act": of.rng.random(n, dtype=np.float32),
        "bucket_low": np.zeros(n, np.float32), "bucket_high": np.ones(n, np.float32),
        "window_start": position - 12, "window_end": position + 13, "held_out": of.rng.random(n) < 0.5,
        "fire_positions": _lists((position[:, None] + np.arange(-1, 2)).astype(np.int32).ravel(), 3),
        "fire_acts": _lists(of.rng.random(3 * n, dtype=np.float32), 3), "token": of.words[_zipf(of.rng, n)],
        "left_text": text[of.rng.integers(0, 512, n)], "right_text": text[of.rng.integers(0, 512, n)],
    }  # fmt: skip


def _neighbor(of: Block) -> Columns:
    n = of.features.size * 3 * PER_KIND
    return {
        "feature": np.repeat(of.features, 3 * PER_KIND), "rank": np.tile(np.arange(PER_KIND), 3 * of.features.size),
        "kind": np.tile(np.repeat(["coactivation", "correlation", "decoder_cosine"], PER_KIND), of.features.size),
        "other_feature": of.rng.integers(0, of.n_features, n), "score": of.rng.random(n, dtype=np.float32),
    }  # fmt: skip


def _activation(of: Block) -> Columns:
    n = of.features.size * ACTIVATIONS
    return {
        "feature": np.repeat(of.features, ACTIVATIONS), "dataset_id": [DATASET] * n,
        "act": of.rng.random(n, dtype=np.float32), "sequence_id": np.tile(np.arange(ACTIVATIONS), of.features.size),
        "position": of.rng.integers(0, SEQUENCE_TOKENS, n),
    }  # fmt: skip


ROWS: dict[str, Callable[[Block], Columns]] = {
    "feature": _feature, "histogram": _histogram, "feature_token": _feature_token, "feature_logit": _feature_logit,
    "example": _example, "neighbor": _neighbor, "activation": _activation,
}  # fmt: skip


def _names(sae_id: str, n_features: int, words: np.ndarray) -> Columns:
    rng = np.random.default_rng(1)
    chosen = words[_zipf(rng, 2 * n_features)].reshape(-1, 2)
    return {
        "explanation_id": [f"h{feature}" for feature in range(n_features)],
        "sae_id": [sae_id] * n_features, "feature": np.arange(n_features, dtype=np.int32),
        "text": [f'token "{first}" after "{second}"' for first, second in chosen],
        "source": ["heuristic"] * n_features,
    }  # fmt: skip


def _corpus(words: np.ndarray) -> dict[str, Columns]:
    rng = np.random.default_rng(2)
    token_ids = _zipf(rng, N_SEQUENCES * SEQUENCE_TOKENS)
    own = [FINGERPRINT] * N_SEQUENCES
    return {
        "model": {"model_id": ["lm"], "fingerprint": own[:1]},
        "dataset": {"dataset_id": [DATASET], "fingerprint": own[:1]},
        "document": {"dataset_id": [DATASET], "document_id": [0], "fingerprint": own[:1], "uri": ["made up"]},
        "sequence": {
            "dataset_id": [DATASET] * N_SEQUENCES, "sequence_id": np.arange(N_SEQUENCES), "fingerprint": own,
            "document_id": np.zeros(N_SEQUENCES, dtype=np.int64), "n_tokens": np.full(N_SEQUENCES, SEQUENCE_TOKENS),
            "token_ids": _lists(token_ids, SEQUENCE_TOKENS), "tokens": _lists(words[token_ids], SEQUENCE_TOKENS),
        },
    }  # fmt: skip


def _weights(store: Store, n_features: int) -> Path:
    """Decoder directions of unit length, as a safetensors file that is written block by block."""
    path = Path("artifacts/sae/synthetic/sae.safetensors")
    (store.root / path).parent.mkdir(parents=True)
    size = n_features * D_MODEL * 4
    head = json.dumps({"W_dec": {"dtype": "F32", "shape": [n_features, D_MODEL], "data_offsets": [0, size]}}).encode()
    with open(store.root / path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for block in _directions(n_features):
            file.write(block.tobytes())
    return path


def _directions(n_features: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(3)
    for start in range(0, n_features, BLOCK):
        block = rng.standard_normal((min(BLOCK, n_features - start), D_MODEL), dtype=np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)
