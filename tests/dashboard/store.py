"""A small store with a truth of its own, full of text that must not do anything but be read.

Made without torch, in a second: 30 features over a dozen sequences. Feature 0 is dead, 1 dense, 2 rare.
"""

from pathlib import Path
from typing import Any

import numpy as np

from catalog import Labels, Publication, Store, append, labelling, publish
from catalog.labelling import Of

FAMILY = "tiny/L1.resid_post/batchtopk"
SAE_ID = f"{FAMILY}@1"
HOSTILE_FAMILY = "<script>window.owned</script>/![](http://evil.example/sae)"
HOSTILE_SAE_ID = f"{HOSTILE_FAMILY}@1"
DATASET = "tiny-text"
N_FEATURES = 30
N_SEQUENCES = 12
SEQUENCE_TOKENS = 40
TRAIN = "aa" * 32
HOSTILE_TRAIN = "bb" * 32

#: Each would, somewhere, run a script, fetch something, break out of an element, or hide.
HOSTILE = (
    "<script>window.owned=1</script>",
    "<img src=http://evil.example/a onerror=window.owned=1>",
    "<svg onload=window.owned=1>",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    "![beacon](http://evil.example/b.png)",
    "[click](javascript:window.owned=1)",
    '"><b onmouseover=window.owned=1>x</b>',
    "<style>*{display:none!important}</style>",
    "</textarea><script>window.owned=1</script>",
    "javascript:window.owned=1",
    "{{constructor.constructor('window.owned=1')()}}",
    "\u202egnp.exe\u202c",
    "\x1b[31mred\x00",
    ":red[markdown] $x^2$ `code` # head",
)
WORDS = ("import", " os", "\n", "\t", "def", " é", " the", "ing", *HOSTILE)


def make_store(folder: Path) -> Store:
    """Two families, the second with a hostile name; two labels and a tag by `eve`, all hostile."""
    store = Store.create(folder)
    publish(store, publication(FAMILY, TRAIN))
    publish(store, publication(HOSTILE_FAMILY, HOSTILE_TRAIN, n_features=8))
    append(store, "train_progress", training(TRAIN), fingerprint=TRAIN)
    append(store, "train_progress", training(HOSTILE_TRAIN, "other", HOSTILE[0]), fingerprint=HOSTILE_TRAIN)
    append(store, "run", runs(), fingerprint="cc" * 32)
    with Labels(store) as labels:
        for feature, text in enumerate(HOSTILE[:11], start=10):
            labelling.add(labels, "eve <b>", Of(SAE_ID, feature), text, tags=[HOSTILE[1]], note=HOSTILE[4], safety=1)
    return store


def publication(family: str, fingerprint: str, n_features: int = N_FEATURES) -> Publication:
    """An SAE with everything that a page shows."""
    tables = {
        "sae": {"n_features": [n_features], "model_id": ["tiny"], "architecture": ["batchtopk"], "d_in": [8]},
        "feature": features(n_features),
        "histogram": histograms(n_features),
        "feature_token": tokens(n_features),
        "feature_logit": logits(n_features),
        "neighbor": neighbors(n_features),
        "example": examples(n_features),
    }
    metrics = {"fvu": 0.12, "l0": 16.0, "loss_recovered_mean": 0.97, "dead_share": 1 / n_features}
    metric_rows = {"dataset_id": [DATASET] * 4, "metric": list(metrics), "value": list(metrics.values())}
    return Publication(family, fingerprint, tables, corpus(), {"sae_metric": metric_rows})


def corpus() -> dict[str, Any]:
    own = ["dd" * 32]
    windows = [[WORDS[(i * 7 + j) % len(WORDS)] for j in range(SEQUENCE_TOKENS)] for i in range(N_SEQUENCES)]
    return {
        "model": {"model_id": ["tiny"], "fingerprint": own, "n_layers": [2]},
        "dataset": {"dataset_id": [DATASET], "fingerprint": own, "role": ["general"]},
        "document": {"dataset_id": [DATASET], "document_id": [0], "fingerprint": own, "uri": [f"{HOSTILE[0]}.py"]},
        "sequence": {
            "dataset_id": [DATASET] * N_SEQUENCES,
            "sequence_id": range(N_SEQUENCES),
            "fingerprint": own * N_SEQUENCES,
            "document_id": [0] * N_SEQUENCES,
            "n_tokens": [SEQUENCE_TOKENS] * N_SEQUENCES,
            "tokens": windows,
        },
    }


def features(n: int) -> dict[str, Any]:
    n_fires = np.array([0, 3_000, 1, *(20 + 10 * np.arange(n - 3))])
    density = n_fires / 10_000
    return {
        "feature": np.arange(n),
        "dataset_id": [DATASET] * n,
        "status": ["dead", "dense", "rare", *["alive"] * (n - 3)],
        "density": density,
        "sequence_density": np.minimum(1.0, density * 5),
        "n_tokens": [10_000] * n,
        "n_fires": n_fires,
        "act_max": [None, *[float(i) for i in range(1, n)]],
        "act_quantiles": [None, *[[float(i * j) / 10 for j in range(11)] for i in range(1, n)]],
        "top_token": [WORDS[i % len(WORDS)] for i in range(n)],
        "top_token_share": [0.5] * n,
        "token_entropy": np.arange(n) / 10,
        "n_distinct_tokens": [5] * n,
        "top_tokens": [[WORDS[(i + j) % len(WORDS)] for j in range(5)] for i in range(n)],
        "reconstructive": np.arange(n) / 1000,
        "delta_ce_linear": np.arange(n) / 10_000,
    }


def histograms(n: int) -> dict[str, Any]:
    return {
        "feature": range(1, n),
        "dataset_id": [DATASET] * (n - 1),
        "kind": ["act"] * (n - 1),
        "edges": [[0.0, i / 2, float(i)] for i in range(1, n)],
        "counts": [[5 * i, i] for i in range(1, n)],
    }


def tokens(n: int) -> dict[str, Any]:
    roles = ["at", "next", "previous"]
    rows = [(f, role, rank) for f in range(1, n) for role in roles for rank in range(4)]
    return {
        "feature": [row[0] for row in rows],
        "role": [row[1] for row in rows],
        "rank": [row[2] for row in rows],
        "token": [WORDS[(row[0] + row[2]) % len(WORDS)] for row in rows],
        "p_token_given_fire": [0.5 / (1 + row[2]) for row in rows],
        "lift": [2.0] * len(rows),
    }


def logits(n: int) -> dict[str, Any]:
    rows = [(f, sign, rank) for f in range(n) for sign in (-1, 1) for rank in range(5)]
    return {
        "feature": [row[0] for row in rows],
        "sign": [row[1] for row in rows],
        "rank": [row[2] for row in rows],
        "token": [WORDS[(row[0] + row[2]) % len(WORDS)] for row in rows],
        "logit": [row[1] * (2.0 - row[2] / 10) for row in rows],
    }


def neighbors(n: int) -> dict[str, Any]:
    rows = [(f, rank) for f in range(n) for rank in range(3)]
    return {
        "feature": [row[0] for row in rows],
        "kind": ["decoder_cosine"] * len(rows),
        "rank": [row[1] for row in rows],
        "other_feature": [(row[0] + 5 + row[1]) % n for row in rows],
        "score": [0.9 - row[1] / 10 for row in rows],
    }


def examples(n: int) -> dict[str, Any]:
    """Every living feature f: 4 top examples in which position 20 fires with f - rank/10, its neighbour with half."""
    plan = {"top": 4, "q5": 2, "q1": 2, "near_miss": 1, "negative": 1}
    rows = [(f, bucket, rank) for f in range(1, n) for bucket, many in sorted(plan.items()) for rank in range(many)]
    acts = [0.0 if bucket in ("near_miss", "negative") else f - rank / 10 for f, bucket, rank in rows]
    return {
        "feature": [row[0] for row in rows],
        "example_id": range(len(rows)),
        "dataset_id": [DATASET] * len(rows),
        "sequence_id": [(row[0] + row[2]) % N_SEQUENCES for row in rows],
        "bucket": [row[1] for row in rows],
        "bucket_low": [0.0] * len(rows),
        "bucket_high": [float(row[0]) for row in rows],
        "rank": [row[2] for row in rows],
        "position": [20] * len(rows),
        "act": acts,
        "window_start": [8] * len(rows),
        "window_end": [33] * len(rows),
        "fire_positions": [[20, 21] if act else [] for act in acts],
        "fire_acts": [[act, act / 2] if act else [] for act in acts],
        "held_out": [False] * len(rows),
    }


def training(fingerprint: str, run_id: str = "run", term: str = "auxk") -> dict[str, Any]:
    n = 40
    return {
        "run_id": [run_id] * n,
        "step": np.arange(n),
        "n_tokens": 1000 * np.arange(1, n + 1),
        "fvu": 1 / np.arange(1, n + 1),
        "l0": [16.0] * n,
        "dead_share": [0.1] * n,
        "loss": 1 / np.arange(1, n + 1),
        "loss_terms": [[("reconstruction", 0.9 / at), (term, 0.1 / at)] for at in range(1, n + 1)],
    }


def runs() -> dict[str, Any]:
    start = np.datetime64("2026-01-01T12:00:00", "us")
    return {
        "run_id": ["one", "two"],
        "step": ["train", "describe"],
        "state": ["finished", "failed"],
        "started_at": [start, start + np.timedelta64(60, "s")],
        "ended_at": [start + np.timedelta64(59, "s"), start + np.timedelta64(61, "s")],
        "device": [HOSTILE[0], "cpu"],
        "error": [None, HOSTILE[4]],
        "n_tokens": [1000, None],
    }
