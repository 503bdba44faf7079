"""A published SAE: it eats raw activations, one token at a time, and nothing in it depends on how it was trained.

pre = norm(x) W_enc + b_enc        f = nonlinearity(pre)        ŷ = norm⁻¹(f W_dec + b_dec) + x W_skip
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from saelib.base import Ends
from saelib.errors import CheckpointError, ConfigError, ShapeError
from saelib.nonlinearity import Nonlinearity, nonlinearity_from, settings_of, tensors_of
from saelib.preactivations import Preactivations
from saelib.sparse import Firings, decode_rows

__all__ = ["SAE", "InputNorm"]

_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")

InputNorm = Literal["none", "layer_norm", "constant_norm", "layer_norm_in", "constant_norm_in"]
"""layer_norm: (x − mean) / (std + 1e-5), undone by · std + mean, std unbiased; constant_norm: x · sqrt(d_in) / ‖x‖.
With `_in` it is not undone on the output, as in sae-lens' transcoders, which write another site."""


class SAE(nn.Module):
    """A sparse autoencoder, a transcoder (it may write another site than it reads) or a crosscoder (several sites).

    W_enc [d_in, n_features], b_enc [n_features], W_dec [n_features, d_out], b_dec [d_out] and, where there is a skip
    term, W_skip [d_in, d_out], all in units of the raw activation. Source: Bricken et al. 2023, "Towards
    Monosemanticity"; the subtraction of b_dec from the input that some formulations have is folded into b_enc.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None

    def __init__(  # noqa: PLR0913
        self,
        weights: dict[str, Tensor],
        nonlinearity: Nonlinearity,
        ends: Ends,
        architecture: str,
        input_norm: InputNorm = "none",
    ) -> None:
        super().__init__()
        _check_shapes(weights)
        for name in (*_WEIGHTS, "W_skip"):
            self.register_buffer(name, weights.get(name))
        nonlinearity.check(self.n_features)
        self.nonlinearity = nonlinearity
        self.ends = ends
        self.architecture = architecture
        self.input_norm: InputNorm = input_norm

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

    def pre(self, x: Float[Tensor, "n_tokens d_in"]) -> Preactivations:
        """Pre-activations of every feature, made when they are asked for."""
        if x.shape[-1] != self.d_in:
            raise ShapeError(
                f"the SAE reads vectors of d_in={self.d_in} but got {x.shape[-1]}; read the site {self.ends.read[0]}"
            )
        x = x.to(self.W_enc.dtype)
        if self.input_norm != "none":
            shift, size, _ = self._norm(x)
            x = (x - shift) / size
        return Preactivations(x, self.W_enc, self.b_enc)

    def fire(self, x: Float[Tensor, "n_tokens d_in"]) -> Firings:
        """The features that fire on each token."""
        return self.nonlinearity.fire(self.pre(x))

    def encode(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens n_features"]:
        """Feature activations as a dense matrix; `fire` and `encode_sparse` give the same without the zeros."""
        return self.fire(x).dense()

    def encode_sparse(
        self, x: Float[Tensor, "n_tokens d_in"]
    ) -> tuple[Float[Tensor, "n_tokens most"], Int[Tensor, "n_tokens most"]]:
        """Values and feature indices of each token's firings, features increasing, padded with value 0 at feature 0."""
        return self.fire(x).padded()

    def decode(self, f: Firings | Float[Tensor, "n_tokens n_features"]) -> Float[Tensor, "n_tokens d_out"]:
        """f W_dec + b_dec: the reconstruction ŷ, but for an input norm and a skip term, which `rebuild` adds."""
        if isinstance(f, Firings):
            return decode_rows(f, f.value, self.W_dec) + self.b_dec
        return f @ self.W_dec + self.b_dec

    def rebuild(
        self, x: Float[Tensor, "n_tokens d_in"], f: Firings | Float[Tensor, "n_tokens n_features"]
    ) -> Float[Tensor, "n_tokens d_out"]:
        """The reconstruction ŷ from what was read and the feature activations, as they are or edited."""
        x = x.to(self.W_enc.dtype)
        y_hat = self.decode(f)
        if self._is_undone:
            shift, _, size = self._norm(x)
            y_hat = y_hat * size + shift
        return y_hat if self.W_skip is None else y_hat + x @ self.W_skip

    def gain(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "*n_tokens_or_1 1"]:
        """What one unit of f · W_dec becomes in the output of each token: 1 without an input norm."""
        return self._norm(x.to(self.W_enc.dtype))[2] if self._is_undone else x.new_ones(1, 1)

    def forward(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens d_out"]:
        """The reconstruction of what it writes from what it reads."""
        return self.rebuild(x, self.fire(x))

    @property
    def _is_undone(self) -> bool:
        return self.input_norm in ("layer_norm", "constant_norm")

    def _norm(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is taken from a token, what the rest is divided by, and what the output is multiplied by."""
        if self.input_norm.startswith("layer_norm"):
            size = x.std(dim=-1, keepdim=True)
            return x.mean(dim=-1, keepdim=True), size + 1e-5, size
        if self.input_norm.startswith("constant_norm"):
            size = x.norm(dim=-1, keepdim=True).clamp_min(1e-12) / self.d_in**0.5
            return x.new_zeros(1), size, size
        return x.new_zeros(1), x.new_ones(1, 1), x.new_ones(1, 1)

    def save(self, folder: Path) -> list[Path]:
        """Write sae.safetensors and sae.json into `folder`; returns the files."""
        tensors = {name: tensor for name, tensor in self.named_buffers()} | tensors_of(self.nonlinearity)
        record: dict[str, Any] = {"format": "sae-almanac-sae", "version": 1, "architecture": self.architecture}
        record |= {"ends": self.ends.model_dump(), "nonlinearity": settings_of(self.nonlinearity)}
        if self.input_norm != "none":
            record["input_norm"] = self.input_norm
        packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
        (folder / "sae.safetensors").write_bytes(save(packed))  # save_file hides a full disk in its own error
        (folder / "sae.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        return [folder / "sae.safetensors", folder / "sae.json"]

    @classmethod
    def load(cls, folder: Path) -> "SAE":
        """Read what `save` wrote. Raises CheckpointError that names what is damaged or missing."""
        try:
            record = json.loads((folder / "sae.json").read_text())
            tensors = load_file(folder / "sae.safetensors")
            ends, architecture = Ends.model_validate(record["ends"]), record["architecture"]
            settings, input_norm = record["nonlinearity"], record.get("input_norm", "none")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read the SAE in {folder}: {type(error).__name__}: {error}; train or publish it again"
            ) from error
        if missing := [name for name in _WEIGHTS if name not in tensors]:
            raise CheckpointError(
                f"{folder / 'sae.safetensors'} lacks {', '.join(missing)}; it has {sorted(tensors)}: restore it"
            )
        try:
            return cls(tensors, nonlinearity_from(settings, tensors), ends, architecture, input_norm)
        except (CheckpointError, ShapeError, ConfigError) as error:
            raise CheckpointError(f"the SAE in {folder} is damaged: {error}") from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAE":
        """Where the weights go, the tensors of the nonlinearity go with them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {name: fn(tensor) for name, tensor in tensors_of(self.nonlinearity).items()}
        if moved:
            self.nonlinearity = self.nonlinearity.model_copy(update=moved)  # type: ignore[attr-defined]
        return self


def _check_shapes(weights: dict[str, Tensor]) -> None:
    if weights["W_enc"].dim() != 2 or weights["W_dec"].dim() != 2:
        raise ShapeError(
            f"W_enc has shape {tuple(weights['W_enc'].shape)} and W_dec {tuple(weights['W_dec'].shape)}; matrices "
            "[d_in, n_features] and [n_features, d_out] are wanted"
        )
    d_in, n_features = weights["W_enc"].shape
    d_out = weights["W_dec"].shape[1]
    wanted = {"b_enc": (n_features,), "W_dec": (n_features, d_out), "b_dec": (d_out,), "W_skip": (d_in, d_out)}
    for name, shape in wanted.items():
        if name in weights and tuple(weights[name].shape) != shape:
            raise ShapeError(
                f"{name} has shape {tuple(weights[name].shape)} beside W_enc ({d_in}, {n_features}); {shape} is wanted"
            )
