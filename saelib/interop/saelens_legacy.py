"""Settings of sae-lens before version 6, brought into the shape of version 6. Source: its handle_pre_6_0_config."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelib.errors import CheckpointError
from saelib.interop.files import Config

__all__ = ["modern"]

_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_FLAT = ("model_name", "hook_name", "hook_name_out", "hook_head_index", "prepend_bos", "context_size", "dataset_path")


def modern(config: Config, path: Path) -> Config:
    """Settings as version 6 writes them, from those of any version. Raises CheckpointError that names the key."""
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the key 'metadata' is {metadata!r}; an object is wanted")
    version = re.match(r"\d+", str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or ""))
    if version and int(version.group()) >= 6:
        return config | {"metadata": metadata}
    old = {_RENAMED.get(key, key): value for key, value in config.items()}
    old = {"architecture": "standard", "apply_b_dec_to_input": True} | old
    old["metadata"] = metadata | {key: old[key] for key in _FLAT if key in old}
    old["normalize_activations"] = _normalisation(old.get("normalize_activations"))
    old.setdefault("reshape_activations", "hook_z" if "hook_z" in str(old.get("hook_name", "")) else "none")
    return _activation(old, path)


def _normalisation(value: Any) -> Any:
    """Version 3 kept a boolean."""
    if value is None or isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return value


def _activation(old: Config, path: Path) -> Config:
    """An SAE of any stated architecture with the activation topk is a TopK SAE (sae-lens issues 308 and 553)."""
    name = str(old.get("activation_fn") or "relu")
    change = _ACTIVATIONS.get(name)
    if change is None:
        raise CheckpointError(
            f"{path}: the key 'activation_fn_str' is {name!r}, which is unknown; known are {list(_ACTIVATIONS)}"
        )
    return change(old)


def _relu(old: Config) -> Config:
    return old


def _topk(old: Config) -> Config:
    kwargs = old.get("activation_fn_kwargs") or {}
    k = kwargs.get("k") if isinstance(kwargs, dict) else None
    return old | {"architecture": "topk", "k": old.get("k") if k is None else k}


_ACTIVATIONS: dict[str, Callable[[Config], Config]] = {"relu": _relu, "topk": _topk}
