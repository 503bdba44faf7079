"""Small publications with a truth that tests can compute for themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog import Publication, Store, arrow_schema, publish

FAMILY = "tiny/L1.resid_post/batchtopk"
DATASET = "tiny-text"
N_SEQUENCES = 6
WORDS = ["import", " os", "\n", "def", "[red]", "\x1b[31m", " é", "\u202e", "<script>", " return"]


def fingerprint(seed: int) -> str:
    return f"{seed:064x}"


def corpus(seed: int = 0, dataset_id: str = DATASET) -> dict[str, Any]:
    """The shared tables: one document, a few sequences of ten tokens."""
    tokens = [[WORDS[(i + j) % len(WORDS)] for j in range(10)] for i in range(N_SEQUENCES)]
    own = [fingerprint(seed)]
    return {
        "model": {"model_id": ["tiny"], "fingerprint": own, "n_layers": [2]},
        "dataset": {"dataset_id": [dataset_id], "fingerprint": own, "role": ["general"], "masks": ['{"bos": 6}']},
        "document": {"dataset_id": [dataset_id], "document_id": [0], "fingerprint": own, "uri": ["a.py"]},
        "sequence": {
            "dataset_id": [dataset_id] * N_SEQUENCES,
            "sequence_id": range(N_SEQUENCES),
            "fingerprint": own * N_SEQUENCES,
            "document_id": [0] * N_SEQUENCES,
            "token_ids": [list(range(10))] * N_SEQUENCES,
            "tokens": tokens,
        },
    }


def features(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    density = np.concatenate([[0.0], np.sort(rng.random(n - 1)) / 10])
    return {
        "feature": np.arange(n),
        "dataset_id": [DATASET] * n,
        "status": ["dead"] + ["alive"] * (n - 1),
        "density": density,
        "sequence_density": density,
        "n_tokens": [1000] * n,
        "n_fires": (density * 1000).astype(int),
        "act_max": [None] + [float(i) for i in range(1, n)],
        "act_quantiles": [None] + [[float(i * j) for j in range(11)] for i in range(1, n)],
        "top_token": [WORDS[i % len(WORDS)] for i in range(n)],
    }


def examples(n: int, per_feature: int = 3) -> dict[str, Any]:
    rows = n * per_feature
    rank = np.tile(np.arange(per_feature), n)
    return {
        "feature": np.repeat(np.arange(n), per_feature),
        "example_id": np.arange(rows),
        "dataset_id": [DATASET] * rows,
        "sequence_id": np.arange(rows) % N_SEQUENCES,
        "bucket": ["top"] * rows,
        "bucket_low": [1.0] * rows,
        "bucket_high": [9.0] * rows,
        "rank": rank,
        "position": [4] * rows,
        "act": 5.0 - rank,
        "window_start": [2] * rows,
        "window_end": [8] * rows,
        "fire_positions": [[3, 4]] * rows,
        "fire_acts": [[1.0, 5.0]] * rows,
    }


def lists_of_features(n: int) -> dict[str, Any]:
    """Histogram, tokens, logits and neighbours: a few rows a feature."""
    twice = np.repeat(np.arange(n), 2)
    return {
        "histogram": {"feature": range(n), "dataset_id": [DATASET] * n, "kind": ["act"] * n,
                      "edges": np.tile([0.0, 1.0, 2.0], (n, 1)), "counts": np.tile([5, 3], (n, 1))},
        "feature_token": {"feature": twice, "role": ["at"] * 2 * n, "rank": [0, 1] * n,
                          "token": [WORDS[i % len(WORDS)] for i in range(2 * n)], "p_token_given_fire": [0.6, 0.2] * n,
                          "p_fire_given_token": [0.5] * 2 * n, "lift": [3.0, 2.0] * n},
        "feature_logit": {"feature": twice, "sign": [1, -1] * n, "rank": [0, 0] * n,
                          "token": [WORDS[i % len(WORDS)] for i in range(2 * n)], "logit": [1.5, -1.5] * n},
        "neighbor": {"feature": range(n), "kind": ["decoder_cosine"] * n, "rank": [0] * n,
                     "other_feature": [(i + 1) % n for i in range(n)], "score": [0.9] * n},
    }  # fmt: skip


def publication(n: int = 8, train: int = 1, content: int = 0, family: str = FAMILY) -> Publication:
    """`train` decides the version, `content` the numbers of its features."""
    metrics = {"dataset_id": [DATASET] * 2, "metric": ["fvu", "l0"], "value": [0.1, 16.0]}
    sae = {"n_features": [n], "model_id": ["tiny"], "architecture": ["batchtopk"]}
    tables = {"sae": sae, "feature": features(n, content), "example": examples(n), **lists_of_features(n)}
    return Publication(family, fingerprint(train), tables, corpus(), {"sae_metric": metrics})


def with_table(base: Publication, name: str, rows: Any) -> Publication:
    return Publication(base.family, base.fingerprint, {**base.tables, name: rows}, base.shared, base.appended)


def changed(rows: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {**rows, **columns}


def published_store(folder: Path, n: int = 8) -> Store:
    store = Store.create(folder)
    publish(store, publication(n))
    return store


def explanation_rows(sae_id: str, features_explained: list[int]) -> dict[str, Any]:
    return {
        "explanation_id": [f"x{i}" for i in features_explained],
        "sae_id": [sae_id] * len(features_explained),
        "feature": features_explained,
        "text": [f"explained {i}" for i in features_explained],
        "source": ["heuristic"] * len(features_explained),
    }


def empty(table: str) -> pa.Table:
    return arrow_schema(table).empty_table()
