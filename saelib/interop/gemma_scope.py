"""Gemma Scope: `params.npz`; Gemma Scope 2: `params.safetensors` beside `config.json`. Both are JumpReLU.

f = relu(z) · 1[z > threshold] with z = x w_enc + b_enc. Neither file says whether b_dec is taken from x; it is not
unless `b_dec_in` asks for it. Source: Lieberum et al. 2024 (arXiv:2408.05147), and sae-lens' loaders of both.
"""

from pathlib import Path
from typing import Any

import torch

from saelib.base import Ends, Site
from saelib.errors import CheckpointError
from saelib.interop.files import Config, read_tensors
from saelib.interop.found import UNKNOWN, About, Found, flag
from saelib.interop.parts import Parts, published
from saelib.interop.tensors import Shape, checked
from saelib.nonlinearity import JumpReLU
from saelib.sae import SAE

__all__ = ["describe", "read"]

_SKIP = "affine_skip_connection"
_ENCODER: dict[str, Shape] = {"w_enc": ("d_in", "F"), "b_enc": ("F",), "threshold": ("F",)}
_ARCHITECTURES = {"jump_relu": "jumprelu"}


def describe(config: Config, folder: Path) -> About:  # noqa: ARG001
    """What `config.json` says, where there is one. `model.layers.3.output` is the output of `model.layers.3`."""
    name, model_name = str(config.get("architecture", "jump_relu")), config.get("model_name")
    read = _site(config.get("hf_hook_point_in"))
    write = _site(config.get("hf_hook_point_out")) if config.get("hf_hook_point_out") else read
    ours = _ARCHITECTURES.get(name, name)
    if write != read:
        ours += "_skip_transcoder" if config.get("affine_connection") else "_transcoder"
    return About(ours, model_name if isinstance(model_name, str) else None, Ends(read=(read,), write=(write,)))


def _site(name: Any) -> Site:
    if not isinstance(name, str) or not name:
        return UNKNOWN
    path, _, side = name.rpartition(".")
    sides = {"input": Site(path=path, side="in"), "output": Site(path=path)} if path else {}
    return sides.get(side, Site(path=name))


def read(found: Found, b_dec_in: bool | None) -> SAE:
    """The SAE. Raises CheckpointError that names the architecture, the key or the tensor at fault."""
    name = str(found.config.get("architecture", "jump_relu"))
    if _ARCHITECTURES.get(name) is None:
        raise CheckpointError(
            f"{found.settings}: the key 'architecture' is {name!r}, which is unknown; known are {list(_ARCHITECTURES)}"
        )
    kept = read_tensors(found.weights)
    has_skip = flag(found.config, "affine_connection", _SKIP in kept, found.settings) or _SKIP in kept
    out = "d_in" if found.ends.read == found.ends.write else "d_out"
    wanted = _ENCODER | {"w_dec": ("F", out), "b_dec": (out,)} | ({_SKIP: ("d_in", out)} if has_skip else {})
    wanted |= {"scaling_factor": ("F",)} if "scaling_factor" in kept else {}
    tensors = checked(found.weights, kept, wanted, {})
    if bool((tensors.get("scaling_factor", torch.ones(1)) != 1).any()):
        raise CheckpointError(f"{found.weights}: scaling_factor is not 1, and what it is meant to scale is not said")
    parts = Parts(
        W_enc=tensors["w_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["w_dec"],
        b_dec=tensors["b_dec"],
        nonlinearity=JumpReLU(threshold=tensors["threshold"]),
        subtracts=bool(b_dec_in),
        W_skip=tensors.get(_SKIP),
    )
    if parts.subtracts and parts.W_enc.shape[0] != parts.b_dec.numel():
        raise CheckpointError(
            f"{found.weights}: b_dec has {parts.b_dec.numel()} entries and cannot be taken from the input"
        )
    return published(parts, found)
