"""A published SAE: it eats raw activations, one token at a time, and nothing in it depends on how it was trained.

pre = x W_enc + b_enc        f = nonlinearity(pre)        ŷ = f W_dec + b_dec
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from saelib.base import Ends
from saelib.errors import CheckpointError, ShapeError
from saelib.nonlinearity import JumpReLU, Nonlinearity, ReLU, TopK
from saelib.sparse import Firings, decode_rows

__all__ = ["SAE"]

_CHUNK_BYTES = 64 << 20
"""Pre-activations are made in pieces of this size, so that memory does not grow with the batch."""

_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


class SAE(nn.Module):
    """A sparse autoencoder (or a transcoder: it may write another site than it reads).

    W_enc [d_in, n_features], b_enc [n_features], W_dec [n_features, d_out], b_dec [d_out], all in units of the raw
    activation. Source: Bricken et al. 2023, "Towards Monosemanticity"; the subtraction of b_dec from the input that
    some formulations have is folded into b_enc.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, weights: dict[str, Tensor], nonlinearity: Nonlinearity, ends: Ends, architecture: str) -> None:
        super().__init__()
        _check_shapes(weights)
        for name in _WEIGHTS:
            self.register_buffer(name, weights[name])
        self.nonlinearity = nonlinearity
        self.ends = ends
        self.architecture = architecture

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return int(self.W_enc.shape[0])

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return int(self.W_dec.shape[1])

    @property
    def n_features(self) -> int:
        """Number of learned directions."""
        return int(self.W_dec.shape[0])

    def pre(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens n_features"]:
        """Pre-activations of every feature."""
        if x.shape[-1] != self.d_in:
            raise ShapeError(
                f"the SAE reads vectors of d_in={self.d_in} but got {x.shape[-1]}; read the site {self.ends.read[0]}"
            )
        return torch.addmm(self.b_enc, x.to(self.W_enc.dtype), self.W_enc)

    def fire(self, x: Float[Tensor, "n_tokens d_in"]) -> Firings:
        """The features that fire on each token."""
        rows = max(1, _CHUNK_BYTES // (4 * self.n_features))
        parts = [self.nonlinearity.fire(self.pre(chunk)) for chunk in torch.split(x, rows)]
        if len(parts) == 1:
            return parts[0]
        starts, offset = [parts[0].row_starts[:1]], 0
        for part in parts:
            starts.append(part.row_starts[1:] + offset)
            offset += part.feature.numel()
        return Firings(
            torch.cat(starts),
            torch.cat([part.feature for part in parts]),
            torch.cat([part.value for part in parts]),
            self.n_features,
        )

    def encode(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens n_features"]:
        """Feature activations as a dense matrix; `fire` gives the same without the zeros."""
        return self.fire(x).dense()

    def decode(self, f: Firings | Float[Tensor, "n_tokens n_features"]) -> Float[Tensor, "n_tokens d_out"]:
        """The reconstruction ŷ."""
        if isinstance(f, Firings):
            return decode_rows(f, f.value, self.W_dec) + self.b_dec
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens d_out"]:
        """The reconstruction of what it writes from what it reads."""
        return self.decode(self.fire(x))

    def save(self, folder: Path) -> list[Path]:
        """Write sae.safetensors and sae.json into `folder`; returns the files."""
        tensors = {name: getattr(self, name).contiguous() for name in _WEIGHTS}
        record: dict[str, Any] = {"format": "sae-almanac-sae", "version": 1, "architecture": self.architecture}
        record["ends"] = self.ends.model_dump()
        record["nonlinearity"], extra = _nonlinearity_record(self.nonlinearity)
        (folder / "sae.safetensors").write_bytes(save(tensors | extra))  # save_file hides a full disk in its own error
        (folder / "sae.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        return [folder / "sae.safetensors", folder / "sae.json"]

    @classmethod
    def load(cls, folder: Path) -> "SAE":
        """Read what `save` wrote. Raises CheckpointError that names what is damaged or missing."""
        try:
            record = json.loads((folder / "sae.json").read_text())
            tensors = load_file(folder / "sae.safetensors")
            kind, ends, architecture = (
                record["nonlinearity"],
                Ends.model_validate(record["ends"]),
                record["architecture"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read the SAE in {folder}: {type(error).__name__}: {error}; train or publish it again"
            ) from error
        missing = [name for name in (*_WEIGHTS, *_tensors_of(kind)) if name not in tensors]
        if missing:
            raise CheckpointError(
                f"{folder / 'sae.safetensors'} lacks {', '.join(missing)}; it has {sorted(tensors)}: restore it"
            )
        return cls(tensors, _nonlinearity_from(kind, tensors), ends, architecture)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAE":
        """Where the weights go, the thresholds go with them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.nonlinearity, JumpReLU):
            self.nonlinearity = JumpReLU(threshold=fn(self.nonlinearity.threshold))
        return self


def _nonlinearity_record(nonlinearity: Nonlinearity) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(nonlinearity, JumpReLU):
        return {"kind": "JumpReLU"}, {"threshold": nonlinearity.threshold.contiguous()}
    if isinstance(nonlinearity, TopK):
        return {"kind": "TopK", "k": nonlinearity.k}, {}
    return {"kind": "ReLU"}, {}


def _tensors_of(record: dict[str, Any]) -> tuple[str, ...]:
    return ("threshold",) if record["kind"] == "JumpReLU" else ()


def _nonlinearity_from(record: dict[str, Any], tensors: dict[str, Tensor]) -> Nonlinearity:
    if record["kind"] == "JumpReLU":
        return JumpReLU(threshold=tensors["threshold"])
    if record["kind"] == "TopK":
        return TopK(k=record["k"])
    return ReLU()


def _check_shapes(weights: dict[str, Tensor]) -> None:
    if weights["W_enc"].dim() != 2 or weights["W_dec"].dim() != 2:
        raise ShapeError(
            f"W_enc has shape {tuple(weights['W_enc'].shape)} and W_dec {tuple(weights['W_dec'].shape)}; matrices "
            "[d_in, n_features] and [n_features, d_out] are wanted"
        )
    d_in, n_features = weights["W_enc"].shape
    d_out = weights["W_dec"].shape[1]
    wanted = {"b_enc": (n_features,), "W_dec": (n_features, d_out), "b_dec": (d_out,)}
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise ShapeError(
                f"{name} has shape {tuple(weights[name].shape)} beside W_enc ({d_in}, {n_features}); {shape} is wanted"
            )
