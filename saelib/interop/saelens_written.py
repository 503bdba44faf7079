"""An SAE of ours as a sae-lens 6 folder: with `apply_b_dec_to_input: false` the weights are written as they are."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from saelib.errors import ConfigError
from saelib.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saelib.sae import SAE

__all__ = ["contents"]

_VERSION = "6.54.12"
"""The version whose form this is; sae-lens reads a file that names none as one from before version 6."""

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
_NORMS |= {f"{name}_in": theirs for name, theirs in _NORMS.items()}


class _Form(NamedTuple):
    """What sae-lens calls a nonlinearity, and what it keeps of it."""

    name: str
    transcoder: str | None
    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def _relu(sae: SAE, kind: ReLU) -> _Form:  # noqa: ARG001
    return _Form("standard", "transcoder", {"b_enc": sae.b_enc}, {})


def _topk(sae: SAE, kind: TopK) -> _Form:
    return _Form("topk", None, {"b_enc": sae.b_enc}, {"k": kind.k, "rescale_acts_by_decoder_norm": False})


def _jumprelu(sae: SAE, kind: JumpReLU) -> _Form:
    return _Form("jumprelu", "jumprelu_transcoder", {"b_enc": sae.b_enc, "threshold": kind.threshold}, {})


def _gated(sae: SAE, kind: Gated) -> _Form:
    b_mag = kind.b_mag.double() + sae.b_enc.double() * kind.r_mag.double().exp()
    tensors = {"b_gate": sae.b_enc, "r_mag": kind.r_mag, "b_mag": b_mag.to(sae.b_enc.dtype)}
    return _Form("gated", None, tensors, {})


_FORMS: dict[type[Nonlinearity], Callable[[SAE, Any], _Form]] = {
    ReLU: _relu,
    TopK: _topk,
    JumpReLU: _jumprelu,
    Gated: _gated,
}


def contents(sae: SAE, model_name: str | None) -> dict[str, bytes]:
    """The files. Raises ConfigError that names what sae-lens has no form for."""
    make = _FORMS.get(type(sae.nonlinearity))
    if make is None:
        raise ConfigError(
            f"sae-lens has no {type(sae.nonlinearity).__name__} SAE; it has {', '.join(k.__name__ for k in _FORMS)}: "
            "write a GroupMax SAE as sparsify"
        )
    if len(sae.ends.read) != 1 or len(sae.ends.write) != 1:
        raise ConfigError("sae-lens has no crosscoder: an SAE that reads and writes one site each is wanted; keep ours")
    form = make(sae, sae.nonlinearity)
    config, tensors = _settings(sae, form, model_name), {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors |= form.tensors
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.t()
    packed = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return {"sae_weights.safetensors": save(packed), "cfg.json": json.dumps(config, indent=1).encode()}


def _settings(sae: SAE, form: _Form, model_name: str | None) -> dict[str, Any]:
    across = sae.ends.read != sae.ends.write or sae.W_skip is not None or sae.d_in != sae.d_out
    read, write = str(sae.ends.read[0]), str(sae.ends.write[0])
    metadata: dict[str, Any] = {
        "sae_lens_version": _VERSION,
        "model_name": model_name,
        "hook_name": read,
        "training_architecture": sae.architecture,
    }
    return {
        "architecture": _transcoder(sae, form) if across else form.name,
        "d_in": sae.d_in,
        "d_sae": sae.n_features,
        **({"d_out": sae.d_out} if across else {}),
        "dtype": _DTYPES[sae.W_enc.dtype],
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": _NORMS[sae.input_norm],
        "reshape_activations": "none",
        "metadata": metadata | ({"hook_name_out": write} if across else {}),
        **form.settings,
    }


def _transcoder(sae: SAE, form: _Form) -> str:
    if form.transcoder is None:
        raise ConfigError(
            f"sae-lens has no {form.name} transcoder, only those of ReLU and JumpReLU; write a TopK one as sparsify"
        )
    if sae.input_norm in ("layer_norm", "constant_norm"):
        raise ConfigError(
            f"this transcoder has input_norm={sae.input_norm!r}, which sae-lens would not undo on the output; one "
            "without is wanted"
        )
    return form.transcoder if sae.W_skip is None else form.transcoder.replace("transcoder", "skip_transcoder")
