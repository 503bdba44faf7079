"""What a feature is worth to the model: the change of its loss when the feature is taken out.

delta_ce_linear = −Σ f · (∂CE/∂y · d) / predictions for every feature from one backward pass; delta_ce the same by true
ablation, y → y − f d, for a sample of features. Positive: without the feature the model predicts worse. Both hold every
written site y at its clean value but for the feature, so that what an early one does to a later one is not counted
twice.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from scipy.stats import spearmanr
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch
from saelib.evaluation import (
    Limits,
    by_site,
    chosen_batches,
    kept_positions,
    looking,
    next_token_loss,
    rows_at,
    sites_of,
)
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
    """Nats a prediction, by feature. `ablated` is NaN outside the sample of features; of a model that predicts no next
    token both are NaN everywhere."""

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
    max_norm: Limits,
    config: EffectsConfig,
    tick: Callable[[int], None] = lambda _: None,
) -> LossEffects:
    """Both figures on the first sequences of `shards`; nothing of either where no next token is predicted."""
    none = np.full(sae.n_features, np.nan)
    if not lm.predicts_next_token:
        return LossEffects(none, 0, none, 0, None)
    total, predictions = np.zeros(sae.n_features), 0
    for _, batch in chosen_batches(lm, shards, config.tokens):
        total += _linear(lm, sae, batch, max_norm)
        predictions += int(batch.attention_mask[:, 1:].sum())
        tick(int(batch.attention_mask.sum()))
    linear = -total / max(1, predictions)
    firing = np.flatnonzero(total)
    sample = np.sort(firing[np.argsort(mix(config.seed, firing), kind="stable")[: config.ablated_features]])
    ablated, n_ablation = _ablated(lm, sae, chosen_batches(lm, shards, config.ablation_tokens), sample, max_norm)
    true = none.copy()
    true[sample] = ablated
    correlation = float(spearmanr(linear[sample], ablated).statistic) if sample.size >= 3 else None
    if correlation is not None and np.isnan(correlation):
        correlation = None
    return LossEffects(linear, predictions, true, n_ablation, correlation)


def _forward(lm: LanguageModel, batch: Batch) -> Tensor:
    logits: Tensor = lm.forward(batch.input_ids.to(lm.device), batch.attention_mask.to(lm.device)).logits
    return next_token_loss(logits, batch)


def _linear(lm: LanguageModel, sae: SAE, batch: Batch, max_norm: Limits) -> np.ndarray:
    """Σ f · (∂CE/∂y · d) of each feature on one batch, summed over the written sites."""
    leaves: dict[Site, Tensor] = {}

    def watch(site: Site) -> Callable[[Tensor], Tensor]:
        def cut(x: Tensor) -> Tensor:
            leaves[site] = x.detach().requires_grad_()
            return leaves[site]

        return cut

    watched = patch_sites(lm, {site: watch(site) for site in sae.ends.write})
    with torch.enable_grad(), watched, looking(lm, sites_of(sae.ends)) as seen:
        _forward(lm, batch).sum().backward()  # type: ignore[no-untyped-call]
    clean = {site: x.detach() for site, x in seen.items()}
    keep = kept_positions(lm, batch, clean, max_norm)
    x = rows_at(clean, sae.ends.read, keep)
    firings = sae.fire(x)
    slopes = {site: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for site, leaf in leaves.items()}
    slope = (rows_at(slopes, sae.ends.write, keep) * sae.gain(x)).contiguous()
    part = firings.value * dot_pairs(firings, slope, sae.W_dec)
    by_feature = torch.zeros(sae.n_features, dtype=torch.float64, device=part.device)
    return by_feature.index_add_(0, firings.feature, part.double()).cpu().numpy()


def _ablated(
    lm: LanguageModel, sae: SAE, batches: list[tuple[TokenShard, Batch]], features: np.ndarray, max_norm: Limits
) -> tuple[np.ndarray, int]:
    """Mean change of the loss when each feature is subtracted; sequences on which it does not fire are skipped."""
    change, predictions = np.zeros(features.size), 0
    for _, batch in batches:
        predictions += int(batch.attention_mask[:, 1:].sum())
        with torch.no_grad(), looking(lm, sites_of(sae.ends)) as seen:
            clean = _forward(lm, batch).sum(dim=1)
        keep = kept_positions(lm, batch, seen, max_norm)
        f = torch.zeros(*keep.shape, features.size, device=keep.device)
        x = rows_at(seen, sae.ends.read, keep)
        f[keep] = sae.fire(x).columns(torch.from_numpy(features)) * sae.gain(x)
        for index, feature in enumerate(features):
            rows = f[:, :, index].any(dim=1).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            here = rows.cpu()
            part = Batch(batch.sequences[here.numpy()], batch.input_ids[here], batch.attention_mask[here])
            taken = by_site(f[rows, :, index].unsqueeze(-1) * sae.W_dec[feature], sae.ends.write, seen)
            left = {site: seen[site][rows] - part_of.to(seen[site].dtype) for site, part_of in taken.items()}
            with torch.no_grad(), patch_sites(lm, _set_to(left)):
                change[index] += float((_forward(lm, part).sum(dim=1) - clean[rows]).double().sum())
    return change / max(1, predictions), predictions


def _set_to(values: Mapping[Site, Tensor]) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Patches that put a value in the place of whatever comes."""

    def put(value: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda _: value

    return {site: put(value) for site, value in values.items()}
