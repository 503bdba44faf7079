"""sae-lens: `cfg.json` beside `sae_weights.safetensors`, as version 6 writes them and as versions before it did.

Source: sae-lens 6.54.12, saes/*.py and loading/pretrained_sae_loaders.py (handle_pre_6_0_config).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.errors import CheckpointError
from saelib.interop.files import Config, read_config, read_tensors
from saelib.interop.found import About, Found, ends_named, flag, number, settled, whole
from saelib.interop.parts import Parts, gated, norms_in_encoder, published, scaled, topk, whitened
from saelib.interop.saelens_legacy import modern
from saelib.interop.tensors import Shape, checked
from saelib.nonlinearity import JumpReLU, Nonlinearity, ReLU
from saelib.sae import SAE, InputNorm

__all__ = ["KINDS", "REFUSED", "describe", "read"]

_PLAIN: dict[str, Shape] = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
}
_GATED: dict[str, Shape] = {name: shape for name, shape in _PLAIN.items() if name != "b_enc"} | {
    "b_gate": ("d_sae",),
    "b_mag": ("d_sae",),
    "r_mag": ("d_sae",),
}
_THRESHOLD: dict[str, Shape] = {"threshold": ("d_sae",)}
_LEARNED: dict[str, Shape] = {"topk_threshold": ()}
_SKIP: dict[str, Shape] = {"W_skip": ("d_out", "d_in")}


class Kind(NamedTuple):
    """How the file of one architecture is read."""

    tensors: dict[str, Shape]
    nonlinearity: Callable[[dict[str, Tensor], Config, Path], Nonlinearity]
    transcoder: bool = False
    rescales: bool | None = None
    """Whether it emits z · ‖W_dec row‖ where the settings do not say; None: it never does."""


def _relu(tensors: dict[str, Tensor], config: Config, path: Path) -> Nonlinearity:  # noqa: ARG001
    return ReLU()


def _gated(tensors: dict[str, Tensor], config: Config, path: Path) -> Nonlinearity:  # noqa: ARG001
    return gated(tensors["b_gate"], tensors["r_mag"], tensors["b_mag"])


def _topk(tensors: dict[str, Tensor], config: Config, path: Path) -> Nonlinearity:
    return topk(whole(config, "k", path), tensors["b_enc"].numel())


def _threshold(tensors: dict[str, Tensor], config: Config, path: Path) -> Nonlinearity:  # noqa: ARG001
    return JumpReLU(threshold=tensors["threshold"])


def _learned(tensors: dict[str, Tensor], config: Config, path: Path) -> Nonlinearity:  # noqa: ARG001
    return JumpReLU(threshold=torch.full_like(tensors["b_enc"], float(tensors["topk_threshold"])))


KINDS: dict[str, Kind] = {
    "standard": Kind(_PLAIN, _relu),
    "gated": Kind(_GATED, _gated),
    "topk": Kind(_PLAIN, _topk, rescales=False),
    "jumprelu": Kind(_PLAIN | _THRESHOLD, _threshold),
    "batchtopk": Kind(_PLAIN | _LEARNED, _learned, rescales=True),
    "matryoshka_batchtopk": Kind(_PLAIN | _LEARNED, _learned, rescales=True),
    "transcoder": Kind(_PLAIN, _relu, transcoder=True),
    "skip_transcoder": Kind(_PLAIN | _SKIP, _relu, transcoder=True),
    "jumprelu_transcoder": Kind(_PLAIN | _THRESHOLD, _threshold, transcoder=True),
    "jumprelu_skip_transcoder": Kind(_PLAIN | _THRESHOLD | _SKIP, _threshold, transcoder=True),
}

REFUSED = {
    "abstopk": "its activations are signed, and a feature activation here is never negative",
    "temporal": "its activations depend on the tokens before, and here a token's features are its own",
    "matching_pursuit": "it has no encoder: its activations are searched for step by step",
}
"""Architectures that sae-lens writes and that are no SAE of ours."""


def describe(config: Config, folder: Path) -> About:
    """What `cfg.json` says of the SAE. Raises CheckpointError where a key has a wrong kind of value."""
    config = modern(config, folder / "cfg.json")
    metadata = config["metadata"]
    kind = KINDS.get(str(config.get("architecture")))
    out = metadata.get("hook_name_out") or ("unknown" if kind is not None and kind.transcoder else None)
    model_name = metadata.get("model_name")
    return About(
        str(config.get("architecture")),
        model_name if isinstance(model_name, str) else None,
        ends_named(metadata.get("hook_name"), out),
    )


def read(found: Found, b_dec_in: bool | None) -> SAE:
    """The SAE. Raises CheckpointError that names the architecture, the key or the tensor at fault."""
    path = found.folder / "cfg.json"
    config = modern(found.config, path)
    kind = _kind(config, path)
    sizes = {"d_in": whole(config, "d_in", path), "d_sae": whole(config, "d_sae", path)}
    sizes["d_out"] = whole(config, "d_out", path) if kind.transcoder else sizes["d_in"]
    tensors = _tensors(found, kind, config, sizes)
    stated = not kind.transcoder and flag(config, "apply_b_dec_to_input", True, path)
    parts = Parts(
        W_enc=tensors["W_enc"],
        b_enc=tensors.get("b_enc", tensors.get("b_gate", tensors["b_dec"])),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        nonlinearity=kind.nonlinearity(tensors, config, path),
        subtracts=settled(b_dec_in, stated, found),
        W_skip=tensors["W_skip"].t() if "W_skip" in tensors else None,
    )
    _check_shape_of_input(config, path)
    return published(_normalised(parts, found, kind, config), found)


def _kind(config: Config, path: Path) -> Kind:
    name = config.get("architecture")
    if reason := REFUSED.get(str(name)):
        raise CheckpointError(f"{path}: the architecture {name!r} cannot be read: {reason}")
    kind = KINDS.get(str(name))
    if kind is None:
        raise CheckpointError(f"{path}: the key 'architecture' is {name!r}, which is unknown; known are {list(KINDS)}")
    return kind


def _tensors(found: Found, kind: Kind, config: Config, sizes: dict[str, int]) -> dict[str, Tensor]:
    """The weights, with what older versions wrote in another form brought into the present one."""
    kept = read_tensors(found.weights)
    if "threshold" in kind.tensors and "log_threshold" in kept and "threshold" not in kept:
        kept["threshold"] = kept.pop("log_threshold").exp()
    wanted = kind.tensors | ({"scaling_factor": ("d_sae",)} if "scaling_factor" in kept else {})
    tensors = checked(found.weights, kept, wanted, sizes)
    factor = tensors.pop("scaling_factor", torch.ones(1))
    if bool((factor != 1).any()):
        if not config.get("finetuning_scaling_factor"):
            raise CheckpointError(
                f"{found.weights}: scaling_factor is not 1 but the key 'finetuning_scaling_factor' of cfg.json is not "
                "true; they contradict each other, so one of the files is of another SAE"
            )
        tensors["W_dec"] = tensors["W_dec"] * factor.unsqueeze(1)  # it scales f in the decoder only
    return tensors


def _check_shape_of_input(config: Config, path: Path) -> None:
    """Both forms read the same numbers: heads side by side are a flat vector."""
    if (reshape := config.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise CheckpointError(f"{path}: the key 'reshape_activations' is {reshape!r}; 'none' or 'hook_z' is wanted")


def _normalised(parts: Parts, found: Found, kind: Kind, config: Config) -> Parts:
    """Scale, then decoder norms, then whitening: the order in which sae-lens folds them."""
    path = found.folder / "cfg.json"
    name = str(config.get("normalize_activations", "none"))
    if name not in _BEFORE | _AFTER:
        raise CheckpointError(
            f"{path}: the key 'normalize_activations' is {name!r}, which is unknown; known are {[*_BEFORE, *_AFTER]}"
        )
    if kind.transcoder and name in (*_BEFORE, "covariance_whitening") and name != "none":
        raise CheckpointError(
            f"{path}: the key 'normalize_activations' is {name!r} in a transcoder, whose two sites sae-lens folds it "
            "into alike; 'none' is wanted, fold it into the weights with sae-lens"
        )
    rescales = kind.rescales is not None and flag(config, "rescale_acts_by_decoder_norm", kind.rescales, path)
    parts = _BEFORE.get(name, _as_is)(parts, found, rescales)
    parts = norms_in_encoder(parts) if rescales else parts
    parts = _AFTER.get(name, _as_is)(parts, found, rescales)
    return replace(parts, input_norm=_NOT_UNDONE.get(parts.input_norm, "none")) if kind.transcoder else parts


_NOT_UNDONE: dict[str, InputNorm] = {"layer_norm": "layer_norm_in", "constant_norm": "constant_norm_in"}
"""A transcoder's input norm is not undone on the site that it writes."""


def _as_is(parts: Parts, found: Found, rescales: bool) -> Parts:  # noqa: ARG001
    return parts


def _scaled(parts: Parts, found: Found, rescales: bool) -> Parts:
    path = found.folder / "activation_scaler.json"
    if not path.is_file():
        raise CheckpointError(
            f"{found.folder}: the key 'normalize_activations' is 'expected_average_only_in', so the SAE reads "
            "activations times a number that activation_scaler.json holds, and that file is missing; copy it from the "
            'training checkpoint, or write {"scaling_factor": …} into it'
        )
    scale = number(read_config(path), "scaling_factor", path)
    if scale <= 0:
        raise CheckpointError(f"{path}: the key 'scaling_factor' is {scale}; a positive number is wanted")
    parts = scaled(parts, scale)
    if rescales and isinstance(parts.nonlinearity, JumpReLU):  # a BatchTopK's threshold is in the unit of its rows
        return replace(parts, nonlinearity=JumpReLU(threshold=parts.nonlinearity.threshold / scale))
    return parts


def _whitened(parts: Parts, found: Found, rescales: bool) -> Parts:  # noqa: ARG001
    path = found.folder / "activation_whitening.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{found.folder}: the key 'normalize_activations' is 'covariance_whitening', so the SAE reads whitened "
            "activations, and activation_whitening.safetensors is missing; copy it from the training checkpoint"
        )
    square: Shape = ("d_in", "d_in")
    wanted: dict[str, Shape] = {"mean": ("d_in",), "matrix": square, "inverse_matrix": square}
    tensors = checked(path, read_tensors(path), wanted, {"d_in": parts.W_enc.shape[0]}, torch.float64)
    return whitened(parts, tensors["mean"], tensors["matrix"], tensors["inverse_matrix"])


def _layer_norm(parts: Parts, found: Found, rescales: bool) -> Parts:  # noqa: ARG001
    return replace(parts, input_norm="layer_norm")


def _constant_norm(parts: Parts, found: Found, rescales: bool) -> Parts:  # noqa: ARG001
    return replace(parts, input_norm="constant_norm")


_BEFORE: dict[str, Callable[[Parts, Found, bool], Parts]] = {"none": _as_is, "expected_average_only_in": _scaled}
_AFTER: dict[str, Callable[[Parts, Found, bool], Parts]] = {
    "layer_norm": _layer_norm,
    "constant_norm_rescale": _constant_norm,
    "covariance_whitening": _whitened,
}
