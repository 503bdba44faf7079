"""sparsify: `cfg.json` beside `sae.safetensors` in a folder named after the hookpoint. Source: eai-sparsify 1.3.3."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save

from saelib.base import Ends, Site
from saelib.errors import CheckpointError, ConfigError
from saelib.interop.files import Config, read_tensors
from saelib.interop.found import About, Found, flag, settled, site_named, whole
from saelib.interop.parts import Parts, published, through, topk
from saelib.interop.tensors import Shape, checked
from saelib.nonlinearity import GroupMax, Nonlinearity, ReLU, TopK
from saelib.sae import SAE

__all__ = ["contents", "describe", "read"]

_PLAIN: dict[str, Shape] = {
    "encoder.weight": ("num_latents", "d_in"),
    "encoder.bias": ("num_latents",),
    "W_dec": ("num_latents", "d_in"),
    "b_dec": ("d_in",),
}
_SKIP: dict[str, Shape] = {"W_skip": ("d_in", "d_in")}


def _groupmax(k: int, n_features: int) -> Nonlinearity:
    return ReLU() if k == n_features else GroupMax(k=k)


_ACTIVATIONS: dict[str, Callable[[int, int], Nonlinearity]] = {"topk": topk, "groupmax": _groupmax}
_NAMES: dict[type[TopK | GroupMax], str] = {TopK: "topk", GroupMax: "groupmax"}


def describe(config: Config, folder: Path) -> About:
    """What the settings and the name of the folder say; a transcoder reads a module's input and writes its output."""
    hookpoint = site_named(config.get("hookpoint", folder.resolve().name))
    if not config.get("transcode"):
        return About(str(config.get("activation", "topk")), None, Ends.at(hookpoint))
    ends = Ends(read=(Site(path=hookpoint.path, side="in"),), write=(Site(path=hookpoint.path),))
    return About("skip_transcoder" if config.get("skip_connection") else "transcoder", None, ends)


def read(found: Found, b_dec_in: bool | None) -> SAE:
    """The SAE, with the k features that `encode` gives: `multi_topk` is a term of the loss.

    Raises CheckpointError that names the key or the tensor at fault.
    """
    config, path = found.config, found.folder / "cfg.json"
    make = _ACTIVATIONS.get(str(config.get("activation", "topk")))
    if make is None:
        name = config["activation"]
        raise CheckpointError(
            f"{path}: the key 'activation' is {name!r}, which is unknown; known are {list(_ACTIVATIONS)}"
        )
    if flag(config, "signed", False, path):
        raise CheckpointError(f"{path}: the key 'signed' is true; a feature activation here is never negative")
    d_in, n_features = whole(config, "d_in", path), config.get("num_latents", 0)
    if not n_features:
        n_features = d_in * whole({"expansion_factor": 32} | config, "expansion_factor", path)
    sizes = {"d_in": d_in, "num_latents": whole({"num_latents": n_features}, "num_latents", path)}
    wanted = _PLAIN | (_SKIP if flag(config, "skip_connection", False, path) else {})
    tensors = checked(found.weights, read_tensors(found.weights), wanted, sizes)
    parts = Parts(
        W_enc=tensors["encoder.weight"].t(),
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        nonlinearity=make(whole({"k": 32} | config, "k", path), sizes["num_latents"]),
        subtracts=settled(b_dec_in, not flag(config, "transcode", False, path), found),
        W_skip=tensors["W_skip"].t() if "W_skip" in tensors else None,
    )
    return published(parts, found)


def contents(sae: SAE, model_name: str | None) -> dict[str, bytes]:  # noqa: ARG001
    """The files. Raises ConfigError that names what sparsify has no form for."""
    kind = sae.nonlinearity
    if not isinstance(kind, TopK | GroupMax):
        raise ConfigError(
            f"sparsify has TopK and GroupMax SAEs only, and this is a {type(kind).__name__} SAE; write it as saelens"
        )
    if len(sae.ends.read) != 1 or len(sae.ends.write) != 1 or sae.d_in != sae.d_out:
        raise ConfigError(
            f"sparsify reads and writes one site each, of one width; this SAE reads {list(map(str, sae.ends.read))}, "
            f"{sae.d_in} wide, and writes {list(map(str, sae.ends.write))}, {sae.d_out} wide"
        )
    if sae.input_norm != "none":
        raise ConfigError(f"sparsify has no input norm and this SAE has {sae.input_norm!r}; write it as saelens")
    transcode = sae.ends.read != sae.ends.write
    shift = torch.zeros(()) if transcode else through(sae.b_dec, sae.W_enc)
    tensors = {
        "encoder.weight": sae.W_enc.t(),
        "encoder.bias": (sae.b_enc.double() + shift).to(sae.b_enc.dtype),
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        **({} if sae.W_skip is None else {"W_skip": sae.W_skip.t()}),
    }
    norms = sae.W_dec.float().norm(dim=1)
    config = {
        "activation": _NAMES[type(kind)],
        "expansion_factor": max(1, sae.n_features // sae.d_in),
        "normalize_decoder": bool(((norms - 1).abs() < 1e-3).all()),
        "num_latents": sae.n_features,
        "k": kind.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": transcode,
        "d_in": sae.d_in,
        "hookpoint": str(sae.ends.read[0] if not transcode else sae.ends.write[0]),
    }
    packed = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return {"sae.safetensors": save(packed), "cfg.json": json.dumps(config, indent=1).encode()}
