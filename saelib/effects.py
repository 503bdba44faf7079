"""What a feature is worth to the model: the change of its loss when the feature is taken out.

delta_ce_linear = −Σ f · (∂CE/∂x · d) / predictions for every feature from one backward pass; delta_ce the same by true
ablation, x → x − f d, for a sample of features. Positive: without the feature the model predicts worse.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from scipy.stats import spearmanr
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch
from saelib.evaluation import chosen_batches, kept_positions, next_token_loss
from saelib.lm import LanguageModel, patch_sites
from saelib.rng import mix
from saelib.sae import SAE
from saelib.sparse import dot_pairs
from saelib.text import TokenShard

__all__ = ["EffectsConfig", "LossEffects", "loss_effects"]


class EffectsConfig(Frozen):
    """Token budgets, and for how many features the linear figure is checked by ablation."""

    tokens: PositiveInt = 16_384
    ablated_features: NonNegativeInt = 32
    ablation_tokens: PositiveInt = 8_192
    seed: int = 0


class LossEffects(NamedTuple):
    """Nats a prediction, by feature. `ablated` is NaN outside the sample of features."""

    linear: np.ndarray
    linear_tokens: int
    ablated: np.ndarray
    ablation_tokens: int
    rank_correlation: float | None
    """Spearman's, of linear and true on the sample; None where fewer than 3 features of it fire."""


def loss_effects(
    lm: LanguageModel,
    sae: SAE,
    shards: Sequence[TokenShard],
    max_norm: float | None,
    config: EffectsConfig,
    tick: Callable[[int], None] = lambda _: None,
) -> LossEffects:
    """Both figures on the first sequences of `shards`."""
    total, predictions = np.zeros(sae.n_features), 0
    for _, batch in chosen_batches(lm, shards, config.tokens):
        total += _linear(lm, sae, batch, max_norm)
        predictions += int(batch.attention_mask[:, 1:].sum())
        tick(int(batch.attention_mask.sum()))
    linear = -total / max(1, predictions)
    firing = np.flatnonzero(total)
    sample = np.sort(firing[np.argsort(mix(config.seed, firing), kind="stable")[: config.ablated_features]])
    ablated, n_ablation = _ablated(lm, sae, chosen_batches(lm, shards, config.ablation_tokens), sample, max_norm)
    true = np.full(sae.n_features, np.nan)
    true[sample] = ablated
    correlation = float(spearmanr(linear[sample], ablated).statistic) if sample.size >= 3 else None
    if correlation is not None and np.isnan(correlation):
        correlation = None
    return LossEffects(linear, predictions, true, n_ablation, correlation)


def _forward(lm: LanguageModel, batch: Batch) -> Tensor:
    logits: Tensor = lm.model(
        input_ids=batch.input_ids.to(lm.device), attention_mask=batch.attention_mask.to(lm.device), use_cache=False
    ).logits
    return next_token_loss(logits, batch)


def _linear(lm: LanguageModel, sae: SAE, batch: Batch, max_norm: float | None) -> np.ndarray:
    """Σ f · (∂CE/∂x · d) of each feature on one batch."""
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.detach().requires_grad_())
        return seen[0]

    with torch.enable_grad(), patch_sites(lm, {sae.ends.write[0]: watch}):
        _forward(lm, batch).sum().backward()  # type: ignore[no-untyped-call]
    x, gradient = seen[0].detach(), seen[0].grad
    if gradient is None:
        return np.zeros(sae.n_features)
    keep = kept_positions(lm, batch, x, max_norm)
    firings = sae.fire(x[keep].float())
    part = firings.value * dot_pairs(firings, gradient[keep].float().contiguous(), sae.W_dec)
    by_feature = torch.zeros(sae.n_features, dtype=torch.float64, device=part.device)
    return by_feature.index_add_(0, firings.feature, part.double()).cpu().numpy()


def _ablated(
    lm: LanguageModel, sae: SAE, batches: list[tuple[TokenShard, Batch]], features: np.ndarray, max_norm: float | None
) -> tuple[np.ndarray, int]:
    """Mean change of the loss when each feature is subtracted; sequences on which it does not fire are skipped."""
    change, predictions = np.zeros(features.size), 0
    for _, batch in batches:
        predictions += int(batch.attention_mask[:, 1:].sum())
        x, clean = _clean(lm, sae.ends.write[0], batch)
        keep = kept_positions(lm, batch, x, max_norm)
        f = torch.zeros(*keep.shape, features.size, device=keep.device)
        f[keep] = sae.fire(x[keep].float()).columns(torch.from_numpy(features))
        for index, feature in enumerate(features):
            rows = f[:, :, index].any(dim=1).nonzero().squeeze(1).cpu()
            if rows.numel() == 0:
                continue
            part = Batch(batch.sequences[rows.numpy()], batch.input_ids[rows], batch.attention_mask[rows])
            taken = (f[rows, :, index].unsqueeze(-1) * sae.W_dec[feature]).to(x.dtype)
            with torch.no_grad(), patch_sites(lm, {sae.ends.write[0]: partial(torch.sub, other=taken)}):
                change[index] += float((_forward(lm, part).sum(dim=1) - clean[rows]).double().sum())
    return change / max(1, predictions), predictions


def _clean(lm: LanguageModel, site: Site, batch: Batch) -> tuple[Tensor, Tensor]:
    """The site's activations, and the loss of each sequence."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    with torch.no_grad(), patch_sites(lm, {site: look}):
        loss = _forward(lm, batch).sum(dim=1)
    return seen[0], loss
