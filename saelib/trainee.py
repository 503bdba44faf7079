"""An SAE while it is trained: parameters in scaled space, and a step that touches only the features that fire.

Two autograd functions carry the gradient through firings; a dense [n_tokens, n_features] gradient never exists.
The step costs 2 d n_features + 8 d k operations a token against 12 d n_features for plain autograd.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelib.base import Ends
from saelib.preactivations import Preactivations
from saelib.sae import SAE
from saelib.sparse import ByFeature, Firings, decode_rows, dot_pairs, sum_by_feature
from saelib.trainable import Trainable, check_trainable

__all__ = [
    "Pass",
    "Scales",
    "Start",
    "Trainee",
    "decode_firings",
    "decode_prefixes",
    "encode_firings",
    "squared_errors",
]

_QUANTILE_TOKENS = 4096
_QUANTILE_FEATURES = 1024


class Start(NamedTuple):
    """What a trainee starts from: a sample of what it reads and writes, in scaled space, and the means of both."""

    x: Float[Tensor, "sample d_in"]
    y: Float[Tensor, "sample d_out"]
    x_center: Float[Tensor, " d_in"]
    y_center: Float[Tensor, " d_out"]
    tied: bool
    """Whether it writes what it reads: then encoder and decoder start equal, and b_dec is taken from the input."""
    skip: bool = False


class Scales(NamedTuple):
    """x_scaled = x · read, y_scaled = y · write; one number a site, repeated over its width."""

    read: Float[Tensor, " d_in"]
    write: Float[Tensor, " d_out"]


class _Encode(torch.autograd.Function):
    """value = (x − center) · encoder_rows[feature] + b_enc[feature], made already; backward touches fired rows only.

    Gradients of the matrices are added to where they live, `.grad`: a fresh matrix would be faulted in every step.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Inputs: b_enc, b_dec (whose gradients autograd hands back), trainee, x, firings, by."""
        _, _, ctx.trainee, ctx.x, ctx.firings, ctx.by = inputs
        return ctx.firings.value.clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        trainee: Trainee = ctx.trainee
        g_b_enc = torch.zeros_like(trainee.b_enc).index_add_(0, ctx.firings.feature, g)
        rows = trainee.encoder_rows
        sum_by_feature(ctx.by, g.contiguous(), ctx.x, out=_gradient(rows)).addr_(g_b_enc, trainee.center, alpha=-1)
        g_b_dec = -(g_b_enc @ rows.detach()) if trainee.tied else None
        return g_b_enc, g_b_dec, None, None, None, None


class _Decode(torch.autograd.Function):
    """Σ value · W_dec[feature] a row; the gradient of W_dec is one sparse product, that of value sampled dots."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, W_dec: Tensor, firings: Firings, by: ByFeature, learns: bool) -> Tensor:
        ctx.W_dec, ctx.firings, ctx.by, ctx.learns = W_dec, firings, by, learns
        ctx.save_for_backward(value)
        return decode_rows(firings, value, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0].contiguous()
        if ctx.learns:
            sum_by_feature(ctx.by, ctx.saved_tensors[0].detach(), g, out=_gradient(ctx.W_dec))
        return dot_pairs(ctx.firings, g, ctx.W_dec.detach()), None, None, None, None


class _SquaredErrors(torch.autograd.Function):
    """‖y − ŷ‖² a token; the gradient reaches ŷ. Written out, each pass over [n_tokens, d] is made once."""

    @staticmethod
    def forward(ctx: Any, y_hats: Tensor, y: Tensor) -> Tensor:
        away = y_hats - y
        ctx.save_for_backward(away)
        errors: Tensor = torch.linalg.vecdot(away, away)
        return errors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (away,) = ctx.saved_tensors
        return away * (2 * grads[0]).unsqueeze(-1), None


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class Trainee(nn.Module):
    """Parameters in scaled space, E‖x‖² = d: W_dec has unit rows, the encoder reads x − center.

    The encoder is kept by rows, [n_features, d_in], since gradients arrive by feature. `learned` are the vectors of
    the nonlinearity.
    """

    def __init__(self, n_features: int, nonlinearity: Trainable, start: Start, seed: int = 0) -> None:
        super().__init__()
        check_trainable(nonlinearity, n_features)
        self.nonlinearity, self.tied = nonlinearity, start.tied
        directions = torch.randn(n_features, start.x.shape[1], generator=torch.Generator().manual_seed(seed))
        rows = torch.nn.functional.normalize(directions, dim=1).to(start.x)
        written = rows.clone() if start.tied else _predicted(rows, start)
        self.W_dec, self.encoder_rows = nn.Parameter(written), nn.Parameter(rows)
        self.b_dec = nn.Parameter(start.y_center.clone())
        self.register_buffer("x_center", start.x_center.clone())
        bias, learned = nonlinearity.start(self._quantile(start.x))
        self.b_enc = nn.Parameter(bias)
        self.learned = nn.ParameterDict(learned)
        d_in, d_out = rows.shape[1], written.shape[1]
        self.W_skip = nn.Parameter(rows.new_zeros(d_in, d_out)) if start.skip else None

    @property
    def n_features(self) -> int:
        """Number of directions being learned."""
        return int(self.W_dec.shape[0])

    @property
    def center(self) -> Tensor:
        """What is taken from the input: b_dec of an autoencoder, else the mean of what is read."""
        return self.b_dec.detach() if self.tied else self.get_buffer("x_center")

    @property
    def vectors(self) -> dict[str, Tensor]:
        """What the nonlinearity may read."""
        return {**self.learned, "b_enc": self.b_enc}

    def pre(self, x: Float[Tensor, "n_tokens d"], product: torch.dtype = torch.float32) -> Preactivations:
        """Pre-activations, without a gradient."""
        with torch.no_grad():
            offset = self.b_enc - self.encoder_rows @ self.center
        return Preactivations(x, self.encoder_rows.t(), offset, product)

    @torch.no_grad()
    def _quantile(self, x: Tensor) -> Tensor:
        """What a feature's pre exceeds on start_l0 / n_features of the sample."""
        n_features, start_l0 = self.encoder_rows.shape[0], self.nonlinearity.start_l0
        if start_l0 is None:
            return x.new_zeros(n_features)
        some = x[:_QUANTILE_TOKENS] - self.center
        rank = max(1, round((1 - start_l0 / n_features) * some.shape[0]))
        parts = torch.split(self.encoder_rows, _QUANTILE_FEATURES)
        return torch.cat([(rows @ some.t()).kthvalue(rank, dim=1).values for rows in parts]).clamp_min(0)

    @torch.no_grad()
    def keep_unit_rows(self) -> None:
        """Renormalise the decoder rows after an optimiser step."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Drop the part of the decoder's gradient that the renormalisation would undo."""
        if self.W_dec.grad is not None:
            along = torch.linalg.vecdot(self.W_dec.grad, self.W_dec).unsqueeze(1)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def published(self, scales: Scales, threshold: float, ends: Ends, architecture: str) -> SAE:
        """The same function on raw activations.

        f is in the unit of what is written, f_raw = f · unit with 1 / unit the root mean square of the written scales,
        so that the decoder rows of an SAE with one written site stay unit.
        """
        unit = 1 / scales.write.square().mean().sqrt().item()
        weights = {
            "W_enc": ((self.encoder_rows * scales.read).t() * unit).contiguous(),
            "b_enc": (self.b_enc - self.encoder_rows @ self.center) * unit,
            "W_dec": self.W_dec / (scales.write * unit),
            "b_dec": self.b_dec / scales.write,
        }
        if self.W_skip is not None:
            weights["W_skip"] = self.W_skip * scales.read.unsqueeze(1) / scales.write
            weights["b_dec"] = weights["b_dec"] - (self.center @ self.W_skip) / scales.write
        form = self.nonlinearity.published(self.vectors, threshold, unit)
        return SAE({name: tensor.detach() for name, tensor in weights.items()}, form, ends, architecture)


def _predicted(rows: Tensor, start: Start) -> Tensor:
    """Unit decoder rows along what a step in each encoder direction goes with in the written site."""
    x, y = start.x - start.x_center, start.y - start.y_center
    moved = rows @ (x.t() @ y) / x.shape[0]
    return torch.nn.functional.normalize(moved + 1e-6 * torch.ones_like(moved), dim=1)


class Pass(NamedTuple):
    """What one forward pass of training made; the terms of an objective read it."""

    trainee: Trainee
    x: Float[Tensor, "n_tokens d_in"]
    y: Float[Tensor, "n_tokens d_out"]
    y_hats: Float[Tensor, "n_prefixes n_tokens d_out"]
    """Reconstructions from nested prefixes of the features; the last one is from all of them."""
    errors: Float[Tensor, "n_prefixes n_tokens"]
    """‖y − ŷ‖² of each of them, with its gradient."""
    found: Firings
    """Candidates, with their pre-activation."""
    by: ByFeature
    pre: Float[Tensor, " n_firings"]
    """Pre-activations of the candidates, with their gradient."""
    value: Float[Tensor, " n_firings"]
    """Feature activations of the candidates, with their gradient."""
    everything: Preactivations
    """Where more pre-activations can be had."""
    dead: Tensor
    """Indices of the features that have not fired for the dead window, increasing."""
    variance: float
    """E‖y − ȳ‖² of the initial sample: the constant that errors are divided by."""

    @property
    def y_hat(self) -> Float[Tensor, "n_tokens d_out"]:
        """The reconstruction from all features."""
        return self.y_hats[-1]


def encode_firings(trainee: Trainee, x: Float[Tensor, "n_tokens d"], firings: Firings, by: ByFeature) -> Tensor:
    """The pre-activations of `firings` with a gradient to the encoder; that of its matrix is added to `.grad`."""
    pre: Tensor = _Encode.apply(trainee.b_enc, trainee.b_dec, trainee, x, firings, by)  # type: ignore[no-untyped-call]
    return pre


def decode_firings(trainee: Trainee, value: Tensor, firings: Firings, by: ByFeature, learns: bool = True) -> Tensor:
    """Σ value · decoder row, without b_dec; the gradient reaches the values and, if it `learns`, the decoder."""
    decoded: Tensor = _Decode.apply(value, trainee.W_dec, firings, by, learns)  # type: ignore[no-untyped-call]
    return decoded


def squared_errors(
    y_hats: Float[Tensor, "n_prefixes n_tokens d_out"], y: Float[Tensor, "n_tokens d_out"]
) -> Float[Tensor, "n_prefixes n_tokens"]:
    """‖y − ŷ‖² of every reconstruction; the gradient reaches ŷ and not y."""
    errors: Tensor = _SquaredErrors.apply(y_hats, y)  # type: ignore[no-untyped-call]
    return errors


def decode_prefixes(
    trainee: Trainee, value: Tensor, firings: Firings, by: ByFeature, prefixes: tuple[int, ...]
) -> Float[Tensor, "n_prefixes n_tokens d_out"]:
    """The sums over the features below each of `prefixes`, increasing: each firing is decoded once."""
    n, n_tokens = len(prefixes), firings.n_tokens
    if n == 1:
        return decode_firings(trainee, value, firings, by).unsqueeze(0)
    edges = torch.tensor(prefixes, device=value.device)
    row = firings.rows() * n + torch.bucketize(firings.feature, edges, right=True)
    starts = torch.zeros(n_tokens * n + 1, dtype=torch.int32, device=value.device)
    torch.cumsum(torch.bincount(row, minlength=n_tokens * n), 0, out=starts[1:])
    by_group = by._replace(token=row[by.order].to(torch.int32), n_tokens=n_tokens * n)
    parts = decode_firings(trainee, value, firings._replace(row_starts=starts), by_group)
    return parts.view(n_tokens, n, -1).cumsum(dim=1).transpose(0, 1)
