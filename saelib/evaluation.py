"""How good is an SAE on held-out documents? Reconstruction, sparsity, and what splicing it in costs the model.

The feature activations come from the clean pass, and every site that the SAE writes is replaced: so it is for an SAE at
one site, a transcoder and a crosscoder alike. Masked positions (BOS, special tokens, padding, attention sinks) pass
through untouched in clean, spliced and ablated runs alike, and are left out of every sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor

from saelib.base import Ends, Frozen, Site
from saelib.batches import Batch, batches_of, pad_id
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.metrics import Interval, loss_recovered, mean_interval, ratio_interval
from saelib.rng import mix
from saelib.sae import SAE
from saelib.sparse import Firings
from saelib.text import TokenShard

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Limits",
    "batch_sequences",
    "by_site",
    "chosen_batches",
    "documents_of",
    "evaluate",
    "kept_positions",
    "looking",
    "next_token_loss",
    "rows_at",
    "sites_of",
    "unmasked",
]

Limits = float | None | Mapping[Site, float | None]
"""Norm above which a position is an attention sink: one for every site, or one a site. None: no position is."""

Patch = Callable[[Tensor], Tensor]
_RUNS = ("clean", "spliced", "mean", "zero")


class EvaluationConfig(Frozen):
    """How much held-out text the model runs on. Reconstruction uses the same tokens."""

    max_tokens: PositiveInt = 100_000


class Evaluation(NamedTuple):
    """Metric name → value with interval; `fires` counts each feature's firings over the held-out tokens."""

    metrics: dict[str, Interval]
    fires: np.ndarray
    n_tokens: int


def unmasked(lm: LanguageModel, batch: Batch) -> Bool[Tensor, "batch position"]:
    """Positions that hold text."""
    return (batch.attention_mask == 1) & ~torch.isin(batch.input_ids, torch.tensor(lm.special_ids))


def next_token_loss(
    logits: Float[Tensor, "batch position vocab"], batch: Batch
) -> Float[Tensor, "batch position_minus_1"]:
    """Cross-entropy in nats of every token after the first; zero at padding."""
    target = batch.input_ids[:, 1:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, reduction="none")
    return loss * batch.attention_mask[:, 1:].to(loss.device)


def batch_sequences(lm: LanguageModel, context: int, budget_bytes: int = 64 << 20) -> int:
    """As many sequences as keep the logits under the budget."""
    return max(1, min(64, budget_bytes // (4 * lm.n_vocab * context)))


class _Sums:
    """Sums a document, in float64."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.by_document: dict[int, np.ndarray] = {}

    def add(self, documents: np.ndarray, **values: np.ndarray) -> None:
        """Add `values` [n] to the sums of the documents [n] that they belong to."""
        keys, place = np.unique(documents, return_inverse=True)
        rows = np.zeros((keys.size, len(self.names)))
        for name, value in values.items():
            rows[:, self.names.index(name)] = np.bincount(place, value, keys.size)
        for key, row in zip(keys.tolist(), rows, strict=True):
            self.by_document[key] = self.by_document.get(key, 0.0) + row

    def column(self, name: str) -> np.ndarray:
        """One sum of every document, in order."""
        index = self.names.index(name)
        return np.array([self.by_document[key][index] for key in sorted(self.by_document)], dtype=np.float64)


def evaluate(
    lm: LanguageModel,
    sae: SAE,
    shards: Sequence[TokenShard],
    max_norm: Limits,
    config: EvaluationConfig,
    tick: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """FVU, L0, dead share, cross-entropies, loss recovered, ΔCE and KL on held-out token shards.

    `max_norm` is the sink threshold of the harvest. FVU is over the written sites side by side, as they are; both
    ablations replace all of them. Of a model that predicts no next token (an encoder) there is no metric of the loss.
    """
    batches = chosen_batches(lm, shards, config.max_tokens)
    mean = _mean(lm, sae.ends, batches, max_norm)
    sums = _Sums(["error", "total", "tokens", "fires", "predictions", "kl", *_RUNS])
    fires = np.zeros(sae.n_features, dtype=np.int64)
    for shard, batch in batches:
        made = _runs(lm, sae, batch, mean, max_norm)
        documents = documents_of(shard, batch)
        fires += np.bincount(made.firings.feature.cpu().numpy(), minlength=sae.n_features)
        sums.add(
            documents[made.keep.cpu().numpy()],
            error=(made.y - made.y_hat).double().square().sum(dim=1).cpu().numpy(),
            total=(made.y - mean).double().square().sum(dim=1).cpu().numpy(),
            tokens=np.ones(made.y.shape[0]),
            fires=made.firings.row_starts.diff().cpu().numpy(),
        )
        there = batch.attention_mask[:, 1:].numpy() == 1
        losses = {name: loss.double().cpu().numpy()[there] for name, loss in made.losses.items()}
        sums.add(documents[:, 1:][there], predictions=np.ones(there.sum()), **losses)
        tick(int(made.keep.sum()))
    return _evaluation(sums, fires, lm.predicts_next_token)


def documents_of(shard: TokenShard, batch: Batch) -> np.ndarray:
    """[batch, position] the document of each token; meaningless at padding."""
    place = shard.sequence_starts[batch.sequences][:, None] + np.arange(batch.input_ids.shape[1])
    documents: np.ndarray = shard.token_document[np.minimum(place, shard.token_ids.size - 1)]
    return documents


def chosen_batches(lm: LanguageModel, shards: Sequence[TokenShard], max_tokens: int) -> list[tuple[TokenShard, Batch]]:
    """Batches of whole sequences, those with the smallest hash, until `max_tokens` are reached: the first ones would be
    a few long documents."""
    lengths = np.concatenate([shard.lengths for shard in shards])
    order = np.argsort(mix(0, np.concatenate([shard.sequence_id for shard in shards])), kind="stable")
    within = np.zeros(lengths.size, dtype=bool)
    within[order] = np.cumsum(lengths[order]) - lengths[order] < max_tokens
    chosen, start = [], 0
    for shard in shards:
        part = shard.take(np.flatnonzero(within[start : start + shard.n_sequences]))
        start += shard.n_sequences
        if part.n_sequences:
            size = batch_sequences(lm, int(part.lengths.max())) * int(part.lengths.max())
            chosen += [(part, batch) for batch in batches_of(part, size, pad_id(lm))]
    return chosen


def sites_of(ends: Ends) -> tuple[Site, ...]:
    """Every site that is read or written, once, in that order."""
    return tuple(dict.fromkeys((*ends.read, *ends.write)))


@contextmanager
def looking(lm: LanguageModel, sites: Sequence[Site]) -> Iterator[dict[Site, Tensor]]:
    """While open, a forward pass leaves its activations at `sites` in the dictionary."""
    seen: dict[Site, Tensor] = {}

    def look(site: Site) -> Patch:
        def keep(x: Tensor) -> Tensor:
            seen[site] = x
            return x

        return keep

    with patch_sites(lm, {site: look(site) for site in sites}):
        yield seen


def kept_positions(lm: LanguageModel, batch: Batch, seen: Mapping[Site, Tensor], max_norm: Limits) -> Tensor:
    """Unmasked positions that are an attention sink at none of the sites, by the harvest's thresholds."""
    keep = unmasked(lm, batch).to(next(iter(seen.values())).device)
    for site, x in seen.items():
        limit = max_norm.get(site) if isinstance(max_norm, Mapping) else max_norm
        if limit is not None:
            keep = keep & (x.float().norm(dim=-1) <= limit)
    return keep


def rows_at(seen: Mapping[Site, Tensor], sites: Sequence[Site], keep: Tensor) -> Float[Tensor, "n_tokens d"]:
    """The kept positions at `sites`, side by side."""
    return torch.cat([seen[site][keep].float() for site in sites], dim=1)


def by_site(y: Float[Tensor, "*n d_out"], sites: Sequence[Site], seen: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Columns of what is written, taken apart again."""
    return dict(zip(sites, torch.split(y, [seen[site].shape[-1] for site in sites], dim=-1), strict=True))


def _mean(lm: LanguageModel, ends: Ends, batches: list[tuple[TokenShard, Batch]], max_norm: Limits) -> Tensor:
    """ȳ over all chosen tokens: fixed for FVU, its bootstrap and the mean ablation."""
    total, count = torch.zeros(()), 0
    sites = sites_of(ends)
    for _, batch in batches:
        seen = read_sites(lm, batch.input_ids.to(lm.device), batch.attention_mask.to(lm.device), sites)
        rows = rows_at(seen, ends.write, kept_positions(lm, batch, seen, max_norm)).double()
        total, count = total.to(rows.device) + rows.sum(dim=0), count + rows.shape[0]
    return (total / count).float()


class _Runs(NamedTuple):
    """One batch: what is written and its reconstruction at the kept positions; a prediction's loss in each of the four
    runs and its KL(clean‖spliced), of a model that predicts a next token."""

    keep: Tensor
    y: Tensor
    y_hat: Tensor
    firings: Firings
    losses: dict[str, Tensor]


def _runs(lm: LanguageModel, sae: SAE, batch: Batch, mean: Tensor, max_norm: Limits) -> _Runs:
    sites, logits = sites_of(sae.ends), None
    if lm.predicts_next_token:
        with looking(lm, sites) as seen:
            logits = _logits(lm, batch)
    else:
        seen = read_sites(lm, batch.input_ids.to(lm.device), batch.attention_mask.to(lm.device), sites)
    keep = kept_positions(lm, batch, seen, max_norm)
    x, y = rows_at(seen, sae.ends.read, keep), rows_at(seen, sae.ends.write, keep)
    firings = sae.fire(x)
    y_hat = sae.rebuild(x, firings)
    if logits is None:
        return _Runs(keep, y, y_hat, firings, {})
    losses = {"clean": next_token_loss(logits, batch)}
    for run, new in (("spliced", y_hat), ("mean", mean.expand_as(y)), ("zero", torch.zeros_like(y))):
        with patch_sites(lm, _replacing(by_site(new, sae.ends.write, seen), keep)):
            other = _logits(lm, batch)
        losses[run] = next_token_loss(other, batch)
        if run == "spliced":
            losses["kl"] = _divergence(logits, other)
    return _Runs(keep, y, y_hat, firings, losses)


def _divergence(clean: Tensor, other: Tensor) -> Float[Tensor, "batch position_minus_1"]:
    """KL(clean‖other) of each prediction."""
    log_p, log_q = (logits[:, :-1].float().log_softmax(-1) for logits in (clean, other))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _replacing(rows: Mapping[Site, Tensor], keep: Tensor) -> dict[Site, Patch]:
    """Patches that put `rows` at the kept positions of each site."""

    def put(new: Tensor) -> Patch:
        def patch(x: Tensor) -> Tensor:
            patched = x.clone()
            patched[keep] = new.to(x.dtype)
            return patched

        return patch

    return {site: put(new) for site, new in rows.items()}


def _logits(lm: LanguageModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits: Tensor = lm.forward(batch.input_ids.to(lm.device), batch.attention_mask.to(lm.device)).logits
    return logits


def _evaluation(sums: _Sums, fires: np.ndarray, predicts: bool) -> Evaluation:
    tokens, error, total = sums.column("tokens"), sums.column("error"), sums.column("total")
    n_tokens, dead = int(tokens.sum()), float((fires == 0).mean())
    metrics = {
        "fvu": ratio_interval(error, total, n_tokens),
        "explained_variance": ratio_interval(total - error, total, n_tokens),
        "l0": mean_interval(sums.column("fires"), tokens),
        "dead_share": Interval(dead, dead, dead, n_tokens),
    }
    return Evaluation(metrics | (_loss_metrics(sums) if predicts else {}), fires, n_tokens)


def _loss_metrics(sums: _Sums) -> dict[str, Interval]:
    predictions, loss = sums.column("predictions"), {run: sums.column(run) for run in _RUNS}
    metrics = {f"ce_{run}": mean_interval(loss[run], predictions) for run in _RUNS}
    metrics["kl"] = mean_interval(sums.column("kl"), predictions)
    metrics["delta_ce"] = mean_interval(loss["spliced"] - loss["clean"], predictions)
    ce = {run: float(loss[run].sum() / predictions.sum()) for run in _RUNS}
    for run in ("mean", "zero"):
        recovered = ratio_interval(loss[run] - loss["spliced"], loss[run] - loss["clean"], int(predictions.sum()))
        value = loss_recovered(ce["clean"], ce["spliced"], ce[run])
        metrics[f"loss_recovered_{run}"] = recovered._replace(value=value)
    return metrics
