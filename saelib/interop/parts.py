"""From the form that a tool computes to ours, in float64: f and the output stay what they are, only biases move.

theirs: z = (norm(x) − b_dec · [subtracts]) W_enc + b_enc, ours: z = norm(x) W_enc + b_enc.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.errors import CheckpointError, ConfigError, ShapeError
from saelib.interop.found import Found
from saelib.nonlinearity import Gated, Nonlinearity, ReLU, TopK
from saelib.sae import SAE, InputNorm

__all__ = ["Parts", "gated", "norms_in_encoder", "published", "scaled", "through", "topk", "whitened"]

_COLUMNS = 8192
"""Features that are multiplied at once in float64."""


@dataclass(frozen=True)
class Parts:
    """The tensors of an SAE as its tool uses them, in our orientation: W_enc [d_in, F], W_dec [F, d_out]."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    nonlinearity: Nonlinearity
    subtracts: bool
    """Whether b_dec is taken from what is read."""
    W_skip: Tensor | None = None
    input_norm: InputNorm = "none"


def through(vector: Float[Tensor, " d_in"], W_enc: Float[Tensor, "d_in n_features"]) -> Float[Tensor, " n_features"]:
    """vector W_enc in float64, some columns at a time."""
    return torch.cat([vector.double() @ part.double() for part in torch.split(W_enc, _COLUMNS, dim=1)])


def published(parts: Parts, found: Found) -> SAE:
    """The SAE. Raises CheckpointError where its parts do not make one."""
    weights = {"W_enc": parts.W_enc, "b_enc": parts.b_enc, "W_dec": parts.W_dec.contiguous(), "b_dec": parts.b_dec}
    if parts.subtracts:
        weights["b_enc"] = (parts.b_enc.double() - through(parts.b_dec, parts.W_enc)).to(parts.b_enc.dtype)
    if parts.W_skip is not None:
        weights["W_skip"] = parts.W_skip.contiguous()
    try:
        return SAE(weights, parts.nonlinearity, found.ends, found.architecture, parts.input_norm)
    except (ConfigError, ShapeError) as error:
        raise CheckpointError(f"{found.folder} makes no SAE: {error}") from error


def topk(k: int, n_features: int) -> Nonlinearity:
    """TopK; where every feature is kept, the same function without a choice."""
    return ReLU() if k == n_features else TopK(k=k)


def gated(
    b_gate: Float[Tensor, " n_features"], r_mag: Float[Tensor, " n_features"], b_mag: Float[Tensor, " n_features"]
) -> Gated:
    """The gate's bias is b_enc, so the magnitude's is what is left of it: b_mag − b_gate · exp(r_mag)."""
    left = b_mag.double() - b_gate.double() * r_mag.double().exp()
    return Gated(r_mag=r_mag, b_mag=left.to(b_mag.dtype))


def scaled(parts: Parts, scale: float) -> Parts:
    """An SAE that was trained on x · scale, made to read x: the same f from it, the output in the unit of x."""
    return replace(parts, W_enc=parts.W_enc * scale, W_dec=parts.W_dec / scale, b_dec=parts.b_dec / scale)


def norms_in_encoder(parts: Parts) -> Parts:
    """An SAE that emits z · ‖W_dec row‖ and divides the rows by it: the same f as z, from unit rows."""
    norms = parts.W_dec.double().norm(dim=1)
    return replace(
        parts,
        W_enc=(parts.W_enc.double() * norms).to(parts.W_enc.dtype),
        b_enc=(parts.b_enc.double() * norms).to(parts.b_enc.dtype),
        W_dec=(parts.W_dec.double() / norms.clamp_min(1e-12).unsqueeze(1)).to(parts.W_dec.dtype),
    )


def whitened(
    parts: Parts, mean: Float[Tensor, " d_in"], matrix: Float[Tensor, "d_in d_in"], inverse: Float[Tensor, "d_in d_in"]
) -> Parts:
    """An SAE that was trained on (x − mean) · matrix, made to read x. Source: sae-lens' fold_activation_whitening."""
    taken = mean.double() @ matrix.double()
    if parts.subtracts:
        taken = taken + parts.b_dec.double()
    b_dec = parts.b_dec.double() @ inverse.double() + mean.double()
    return replace(
        parts,
        W_enc=(matrix.double() @ parts.W_enc.double()).to(parts.W_enc.dtype),
        b_enc=(parts.b_enc.double() - through(taken, parts.W_enc)).to(parts.b_enc.dtype),
        W_dec=(parts.W_dec.double() @ inverse.double()).to(parts.W_dec.dtype),
        b_dec=b_dec.to(parts.b_dec.dtype),
        subtracts=False,
    )
