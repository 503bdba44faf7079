"""What the weights alone say: which features point the same way, and which tokens a feature writes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelib.lm import LanguageModel
from saelib.sae import SAE

__all__ = ["N_LOGIT_BINS", "LogitEffects", "Nearest", "decoder_neighbors", "encoder_decoder_cosine", "logit_effects"]

_BLOCK = 1024
N_LOGIT_BINS = 50


class Nearest(NamedTuple):
    """For every feature the others by cosine: [n_features, n]."""

    other: np.ndarray
    cosine: np.ndarray


class LogitEffects(NamedTuple):
    """What adding one unit of a decoder direction does to the logits, through the final norm's gain."""

    top: np.ndarray
    """[n_features, n] token ids, most promoted first."""
    top_logit: np.ndarray
    bottom: np.ndarray
    """[n_features, n] token ids, most suppressed first."""
    bottom_logit: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray
    """Excess kurtosis over the vocabulary; large where a feature writes a few tokens."""
    edges: np.ndarray
    """[n_features, N_LOGIT_BINS + 1]"""
    counts: np.ndarray


def decoder_neighbors(sae: SAE, n: int) -> Nearest:
    """The `n` features whose decoder rows have the largest cosine, over all pairs, in blocks.

    A row is what a feature writes at all of its sites, side by side.
    """
    directions = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    n = min(n, sae.n_features - 1)
    others, cosines = [], []
    for start in range(0, sae.n_features, _BLOCK):
        cosine = directions[start : start + _BLOCK] @ directions.t()
        index = torch.arange(cosine.shape[0], device=cosine.device)
        cosine[index, start + index] = -2
        best = cosine.topk(n, dim=1)
        others.append(best.indices.cpu().numpy())
        cosines.append(best.values.cpu().numpy())
    return Nearest(np.concatenate(others), np.concatenate(cosines))


def encoder_decoder_cosine(sae: SAE) -> np.ndarray | None:
    """Cosine of each feature's encoder column and decoder row; None where they live in different spaces."""
    if sae.ends.read != sae.ends.write:
        return None
    cosine: np.ndarray = torch.nn.functional.cosine_similarity(sae.W_enc.t(), sae.W_dec, dim=1).cpu().numpy()
    return cosine


def _final_norm(lm: LanguageModel) -> nn.Module | None:
    """The last norm that is not inside a block (a block's path has a number in it)."""
    final = None
    for path, module in lm.model.named_modules():
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in path.split(".")):
            final = module
    return final


def _gain(norm: nn.Module, d: int, like: Tensor) -> Tensor:
    """What the norm multiplies each coordinate by, found by asking it: some add 1 to their weight (Gemma)."""
    probe = torch.ones(d, device=like.device)
    probe[1::2] = -1  # mean zero but for odd d, norm √d: LayerNorm and RMSNorm both leave it as it is
    with torch.no_grad():
        up, down = norm(probe.to(like.dtype).unsqueeze(0)), norm(-probe.to(like.dtype).unsqueeze(0))
    gain: Tensor = ((up - down)[0].float() / 2) / probe
    return gain


def _through_norm(lm: LanguageModel, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The linear part of the final norm: its gain, after removing the mean where the norm is a LayerNorm."""
    norm = _final_norm(lm)
    weight = None if norm is None else getattr(norm, "weight", None)
    if norm is None or weight is None or weight.shape[-1] != directions.shape[1]:
        return directions
    if isinstance(norm, nn.LayerNorm):
        directions = directions - directions.mean(dim=1, keepdim=True)
    gain: Tensor = _gain(norm, directions.shape[1], weight).to(directions)
    return directions * gain


def logit_effects(lm: LanguageModel, sae: SAE, n: int, widths: Sequence[int] | None = None) -> LogitEffects | None:
    """Direct logit effect of every feature: decoder row · final norm gain · unembedding, `n` tokens at either end.

    None where the model predicts no next token: what an encoder's output layer says is of the token itself.
    Of an SAE that writes several sites it is that of the last one, from where the way to the logits is the shortest.
    `widths` are those of the written sites; without them they share d_out equally.
    """
    if not lm.predicts_next_token:
        return None
    unembedding = lm.unembedding.float()
    parts: list[LogitEffects] = []
    last = widths[-1] if widths else sae.d_out // len(sae.ends.write)
    for start in range(0, sae.n_features, 256):
        directions = sae.W_dec[start : start + 256, -last:].float().to(unembedding.device)
        logits = _through_norm(lm, directions) @ unembedding.t()
        top, bottom = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
        centred = logits - logits.mean(dim=1, keepdim=True)
        deviation = centred.square().mean(dim=1).sqrt().clamp_min(1e-12)
        edges, counts = _histogram(logits)
        made = (
            top.indices, top.values, bottom.indices, -bottom.values,
            centred.pow(3).mean(dim=1) / deviation**3, centred.pow(4).mean(dim=1) / deviation**4 - 3, edges, counts,
        )  # fmt: skip
        parts.append(LogitEffects(*(tensor.cpu().numpy() for tensor in made)))
    return LogitEffects(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _histogram(logits: Float[Tensor, "n vocab"]) -> tuple[Tensor, Tensor]:
    """Equal-width bins between each row's smallest and largest logit."""
    low, high = logits.min(dim=1, keepdim=True).values, logits.max(dim=1, keepdim=True).values
    width = (high - low).clamp_min(1e-12)
    index = ((logits - low) / width * N_LOGIT_BINS).long().clamp_(max=N_LOGIT_BINS - 1)
    counts = torch.zeros(logits.shape[0], N_LOGIT_BINS, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, index, torch.ones_like(index))
    return low + width * torch.linspace(0, 1, N_LOGIT_BINS + 1, device=logits.device), counts
