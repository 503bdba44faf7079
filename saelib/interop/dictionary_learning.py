"""dictionary_learning: `ae.pt`, a state dict, beside `config.json`. Source: dictionary_learning 0.1.0.

The decoder of most classes is an nn.Linear, so its weight is [d, F] and is transposed here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelib.base import Ends, Site
from saelib.errors import CheckpointError
from saelib.interop.files import Config, read_tensors
from saelib.interop.found import About, Found, settled, site_named, whole
from saelib.interop.parts import Parts, gated, published, topk
from saelib.interop.tensors import Shape, checked
from saelib.nonlinearity import JumpReLU, Nonlinearity, ReLU
from saelib.sae import SAE

__all__ = ["CLASSES", "describe", "read"]

_LINEAR: dict[str, Shape] = {"encoder.weight": ("F", "d"), "decoder.weight": ("d", "F")}
_BIAS: dict[str, Shape] = {"encoder.bias": ("F",)}
_MATRICES: dict[str, Shape] = {"W_enc": ("d", "F"), "b_enc": ("F",), "W_dec": ("F", "d"), "b_dec": ("d",)}
_TOPK: dict[str, Shape] = {"k": (), "threshold": ()}


def _relu(tensors: dict[str, Tensor], found: Found) -> Nonlinearity:  # noqa: ARG001
    return ReLU()


def _gated(tensors: dict[str, Tensor], found: Found) -> Nonlinearity:  # noqa: ARG001
    return gated(tensors["gate_bias"], tensors["r_mag"], tensors["mag_bias"])


def _jumprelu(tensors: dict[str, Tensor], found: Found) -> Nonlinearity:  # noqa: ARG001
    return JumpReLU(threshold=tensors["threshold"])


def _topk(tensors: dict[str, Tensor], found: Found) -> Nonlinearity:
    k = whole({"k": float(tensors["k"])}, "k", found.weights)
    said = found.config.get("trainer", {}).get("k", k)
    if said != k:
        raise CheckpointError(
            f"{found.weights}: k is {k} but the key 'k' of config.json is {said!r}; one is another SAE's"
        )
    return topk(k, tensors["encoder.bias"].numel())


def _learned(tensors: dict[str, Tensor], found: Found) -> Nonlinearity:
    threshold = float(tensors["threshold"])
    if threshold < 0:
        raise CheckpointError(
            f"{found.weights}: threshold is {threshold}, so it was never learned, and without it a token's features "
            "depend on its batch; train past `threshold_start_step`, or set it"
        )
    n_features = (tensors["b_enc"] if "b_enc" in tensors else tensors["encoder.bias"]).numel()
    return JumpReLU(threshold=torch.full((n_features,), threshold))


class Class(NamedTuple):
    """How one of its classes is read."""

    architecture: str
    tensors: dict[str, Shape]
    nonlinearity: Callable[[dict[str, Tensor], Found], Nonlinearity]
    b_enc: str
    b_dec: str
    subtracts: bool | None
    """Whether the bias of the decoder is taken from the input; None: it is not said, and not unless it is asked for."""


CLASSES: dict[str, Class] = {
    "AutoEncoder": Class("standard", _LINEAR | _BIAS | {"bias": ("d",)}, _relu, "encoder.bias", "bias", True),
    "AutoEncoderNew": Class(
        "standard", _LINEAR | _BIAS | {"decoder.bias": ("d",)}, _relu, "encoder.bias", "decoder.bias", False
    ),
    "GatedAutoEncoder": Class(
        "gated",
        _LINEAR | {"decoder_bias": ("d",), "r_mag": ("F",), "gate_bias": ("F",), "mag_bias": ("F",)},
        _gated,
        "gate_bias",
        "decoder_bias",
        True,
    ),
    "JumpReluAutoEncoder": Class(
        "jumprelu", _MATRICES | {"threshold": ("F",)}, _jumprelu, "b_enc", "b_dec", None
    ),
    "AutoEncoderTopK": Class("topk", _LINEAR | _BIAS | _TOPK | {"b_dec": ("d",)}, _topk, "encoder.bias", "b_dec", True),
    "BatchTopKSAE": Class(
        "batchtopk", _LINEAR | _BIAS | _TOPK | {"b_dec": ("d",)}, _learned, "encoder.bias", "b_dec", True
    ),
    "MatryoshkaBatchTopKSAE": Class(
        "matryoshka", _MATRICES | _TOPK | {"group_sizes": ("groups",)}, _learned, "b_enc", "b_dec", True
    ),
}  # fmt: skip

_SIDES: dict[str, tuple[str, str]] = {"in": ("in", "in"), "out": ("out", "out"), "in_and_out": ("in", "out")}
"""Which sides of the module are read and written, by the buffer's `io`."""


def describe(config: Config, folder: Path) -> About:
    """What `config.json` says of the SAE. Raises CheckpointError that names a key of a wrong kind."""
    trainer, buffer = config.get("trainer"), config.get("buffer", {})
    if not isinstance(trainer, dict) or not isinstance(buffer, dict):
        raise CheckpointError(
            f"{folder / 'config.json'}: the keys 'trainer' and 'buffer' are to be objects of settings"
        )
    chosen = CLASSES.get(str(trainer.get("dict_class")))
    model_name = trainer.get("lm_name")
    site = site_named(trainer.get("submodule_name"))
    read, write = _SIDES.get(str(buffer.get("io", "out")), ("out", "out"))
    ends = Ends(
        read=(Site.model_validate({"path": site.path, "side": read}),),
        write=(Site.model_validate({"path": site.path, "side": write}),),
    )
    return About(
        chosen.architecture if chosen else str(trainer.get("dict_class")),
        model_name if isinstance(model_name, str) else None,
        ends,
    )


def read(found: Found, b_dec_in: bool | None) -> SAE:
    """The SAE. Raises CheckpointError that names the class, the key or the tensor at fault."""
    trainer, path = found.config["trainer"], found.settings
    chosen = CLASSES.get(str(trainer.get("dict_class")))
    if chosen is None:
        name = trainer.get("dict_class")
        raise CheckpointError(f"{path}: the key 'dict_class' is {name!r}, which is unknown; known are {list(CLASSES)}")
    sizes = {
        axis: whole(trainer, key, path) for axis, key in (("d", "activation_dim"), ("F", "dict_size")) if key in trainer
    }
    tensors = checked(found.weights, read_tensors(found.weights), chosen.tensors, sizes)
    parts = Parts(
        W_enc=tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].t(),
        b_enc=tensors[chosen.b_enc],
        W_dec=tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].t(),
        b_dec=tensors[chosen.b_dec],
        nonlinearity=chosen.nonlinearity(tensors, found),
        subtracts=bool(b_dec_in) if chosen.subtracts is None else settled(b_dec_in, chosen.subtracts, found),
    )
    return published(parts, found)
