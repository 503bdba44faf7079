"""The one row of `sae`."""

import json
from typing import Any

from flows.artifact import Artifact
from saelib.sae import SAE

__all__ = ["sae_row"]


def sae_row(model_id: str, sae: SAE, artifact: Artifact, dataset: str) -> dict[str, list[Any]]:
    """What a trained SAE is and where it came from, from its weights, its plan and its facts."""
    plan, facts, weights = artifact.manifest["plan"], artifact.facts, "sae.safetensors"
    return {
        "fingerprint": [artifact.fingerprint],
        "model_id": [model_id],
        "sites_read": [[str(site) for site in sae.ends.read]],
        "sites_written": [[str(site) for site in sae.ends.write]],
        "architecture": [plan["architecture"]],
        "nonlinearity": [type(sae.nonlinearity).__name__],
        "d_in": [sae.d_in],
        "d_out": [sae.d_out],
        "n_features": [sae.n_features],
        "k": [plan["recipe"].get("k")],
        "sparsity_weight": [facts["sparsity_weight"]],
        "activation_scale": [facts["activation_scale"]],
        "input_norm": [sae.input_norm],
        "has_skip": [sae.W_skip is not None],
        "seed": [plan["training"].get("seed")],
        "train_dataset_id": [dataset if facts.get("origin") is None else None],
        "train_tokens": [facts["n_tokens"]],
        "weights_uri": [f"artifacts/sae/{artifact.fingerprint}/{weights}"],
        "weights_sha256": [artifact.manifest["files"][weights]["sha256"]],
        "config": [json.dumps(plan, sort_keys=True)],
        "origin": [facts.get("origin", "trained")],
    }
