"""An SAE while it is trained: parameters in scaled space, and a step that touches only the features that fire.

Two autograd functions carry the gradient through firings; a dense [n_tokens, n_features] gradient never exists.
The step costs 2 d n_features + 8 d k operations a token against 12 d n_features for plain autograd.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelib.base import Ends
from saelib.nonlinearity import Nonlinearity
from saelib.sae import SAE
from saelib.sparse import ByFeature, Firings, decode_rows, dot_pairs, sum_by_feature

__all__ = ["Pass", "Trainee", "decode_firings", "encode_firings"]


class _Encode(torch.autograd.Function):
    """value = (x − b_dec) · encoder_rows[feature] + b_enc[feature], made already; backward touches fired rows only."""

    @staticmethod
    def forward(  # noqa: PLR0913  (one argument for each gradient that autograd hands back)
        ctx: Any, x: Tensor, rows: Tensor, b_enc: Tensor, b_dec: Tensor, firings: Firings, by: ByFeature
    ) -> Tensor:
        ctx.save_for_backward(x, rows, b_enc, b_dec)
        ctx.firings, ctx.by = firings, by
        return firings.value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, rows, b_enc, b_dec = ctx.saved_tensors
        g_b_enc = torch.zeros_like(b_enc).index_add_(0, ctx.firings.feature, g)
        g_rows = sum_by_feature(ctx.by, g.contiguous(), x)
        g_rows.addr_(g_b_enc, b_dec, alpha=-1)
        return None, g_rows, g_b_enc, -(g_b_enc @ rows), None, None


class _Decode(torch.autograd.Function):
    """Σ value · W_dec[feature] a token; the gradient of W_dec is one sparse product, that of value sampled dots."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, W_dec: Tensor, firings: Firings, by: ByFeature) -> Tensor:
        ctx.save_for_backward(value, W_dec)
        ctx.firings, ctx.by = firings, by
        return decode_rows(firings, value, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        value, W_dec = ctx.saved_tensors
        g = g.contiguous()
        return dot_pairs(ctx.firings, g, W_dec), sum_by_feature(ctx.by, value.detach(), g), None, None


class Trainee(nn.Module):
    """Parameters in scaled space, E‖x‖² = d: W_dec has unit rows, the encoder reads x − b_dec.

    The encoder is kept by rows, [n_features, d_in], since gradients arrive by feature.
    """

    def __init__(self, n_features: int, mean: Float[Tensor, " d"], nonlinearity: Nonlinearity, seed: int) -> None:
        super().__init__()
        nonlinearity.check(n_features)
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(n_features, mean.numel(), generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions)
        self.encoder_rows = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.b_dec = nn.Parameter(mean.clone())
        self.nonlinearity = nonlinearity

    @property
    def n_features(self) -> int:
        """Number of directions being learned."""
        return int(self.W_dec.shape[0])

    def pre(self, x: Float[Tensor, "n_tokens d"], out: Tensor | None = None) -> Float[Tensor, "n_tokens n_features"]:
        """Pre-activations, without a gradient; `out` is reused from step to step, so that no page is faulted anew."""
        with torch.no_grad():
            offset = self.b_enc - self.encoder_rows @ self.b_dec
            return torch.addmm(offset, x, self.encoder_rows.t(), out=out)

    @torch.no_grad()
    def keep_unit_rows(self) -> None:
        """Renormalise the decoder rows after an optimiser step."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Drop the part of the decoder's gradient that the renormalisation would undo."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    def published(self, scale: float, threshold: float, ends: Ends, architecture: str) -> SAE:
        """The same function on raw activations: x_scaled = scale · x, f_raw = f / scale, decoder rows stay unit."""
        with torch.no_grad():
            W_enc = self.encoder_rows.t().contiguous()
            weights = {
                "W_enc": W_enc.clone(),
                "b_enc": (self.b_enc - self.encoder_rows @ self.b_dec) / scale,
                "W_dec": self.W_dec.detach().clone(),
                "b_dec": self.b_dec.detach() / scale,
            }
            thresholds = torch.full_like(self.b_enc, max(threshold, 0.0) / scale)
        return SAE(weights, self.nonlinearity.published(thresholds), ends, architecture)


class Pass(NamedTuple):
    """What one forward pass of training made; the terms of an objective read it."""

    trainee: Trainee
    x: Float[Tensor, "n_tokens d"]
    y: Float[Tensor, "n_tokens d"]
    y_hat: Float[Tensor, "n_tokens d"]
    pre: Float[Tensor, "n_tokens n_features"]
    value: Float[Tensor, " n_firings"]
    """Feature activations with their gradient, aligned with `firings`."""
    firings: Firings
    dead: Tensor
    """Indices of the features that have not fired for the dead window."""
    variance: float
    """E‖y − ȳ‖² of the initial sample: the constant that errors are divided by."""


def encode_firings(trainee: Trainee, x: Float[Tensor, "n_tokens d"], firings: Firings) -> tuple[Tensor, ByFeature]:
    """The firings' values with a gradient to the encoder, and the firings sorted by feature."""
    by = ByFeature.of(firings)
    weights = (trainee.encoder_rows, trainee.b_enc, trainee.b_dec)
    value: Tensor = _Encode.apply(x, *weights, firings, by)  # type: ignore[no-untyped-call]
    return value, by


def decode_firings(trainee: Trainee, value: Tensor, firings: Firings, by: ByFeature) -> Tensor:
    """Σ value · decoder row, without b_dec, with gradients to the values and to the decoder."""
    decoded: Tensor = _Decode.apply(value, trainee.W_dec, firings, by)  # type: ignore[no-untyped-call]
    return decoded
