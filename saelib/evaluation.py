"""How good is an SAE on held-out documents? Reconstruction, sparsity, and what splicing it in costs the model.

Masked positions (BOS, special tokens, padding, attention sinks) pass through untouched in clean, spliced and ablated
runs alike, and are left out of every sum.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor

from saelib.base import Frozen, Site
from saelib.batches import Batch, batches_of, pad_id
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.metrics import Interval, loss_recovered, mean_interval, ratio_interval
from saelib.rng import mix
from saelib.sae import SAE
from saelib.text import TokenShard

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "batch_sequences",
    "chosen_batches",
    "evaluate",
    "kept_positions",
    "next_token_loss",
    "unmasked",
]


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
        self.by_document: dict[int, dict[str, float]] = {}
        self.names = names

    def add(self, document: int, **values: float) -> None:
        """Add to the sums of one document."""
        sums = self.by_document.setdefault(document, dict.fromkeys(self.names, 0.0))
        for name, value in values.items():
            sums[name] += value

    def column(self, name: str) -> np.ndarray:
        """One sum of every document, in order."""
        return np.array([self.by_document[key][name] for key in sorted(self.by_document)], dtype=np.float64)


_RUNS = ("clean", "spliced", "mean", "zero")


def evaluate(
    lm: LanguageModel,
    sae: SAE,
    shards: Sequence[TokenShard],
    max_norm: float | None,
    config: EvaluationConfig,
    tick: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """FVU, L0, dead share, cross-entropies, loss recovered, ΔCE and KL on held-out token shards.

    `max_norm` is the sink threshold of the harvest. Needs an SAE that writes the one site it reads.
    """
    site = sae.ends.read[0]
    batches = chosen_batches(lm, shards, config.max_tokens)
    mean = _mean(lm, site, batches, max_norm)
    sums = _Sums(["error", "total", "tokens", "fires", "predictions", "kl", *_RUNS])
    fires = np.zeros(sae.n_features, dtype=np.int64)
    for shard, batch in batches:
        x, keep, losses, kl = _runs(lm, sae, site, batch, mean, max_norm)
        rows = x[keep].float()
        firings = sae.fire(rows)
        error = (rows - sae.decode(firings)).double().square().sum(dim=1)
        total = (rows - mean).double().square().sum(dim=1)
        fires += torch.bincount(firings.feature, minlength=sae.n_features).cpu().numpy()
        counts = firings.row_starts.diff()
        sequence_of_row = keep.nonzero()[:, 0]
        for index, sequence in enumerate(batch.sequences):
            mine = sequence_of_row == index
            sums.add(
                int(shard.document_id[sequence]),
                error=error[mine].sum().item(),
                total=total[mine].sum().item(),
                tokens=float(mine.sum()),
                fires=float(counts[mine].sum()),
                predictions=float(batch.attention_mask[index, 1:].sum()),
                kl=kl[index].double().sum().item(),
                **{run: losses[run][index].double().sum().item() for run in _RUNS},
            )
        tick(int(keep.sum()))
    return _evaluation(sums, fires)


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
            size = batch_sequences(lm, int(part.lengths.max()))
            chosen += [(part, batch) for batch in batches_of(part, size, pad_id(lm))]
    return chosen


def kept_positions(lm: LanguageModel, batch: Batch, x: Tensor, max_norm: float | None) -> Tensor:
    """Unmasked positions that are no attention sink by the harvest's threshold."""
    keep = unmasked(lm, batch).to(x.device)
    return keep if max_norm is None else keep & (x.float().norm(dim=-1) <= max_norm)


def _mean(lm: LanguageModel, site: Site, batches: list[tuple[TokenShard, Batch]], max_norm: float | None) -> Tensor:
    """ȳ over all chosen tokens: fixed for FVU, its bootstrap and the mean ablation."""
    total, count = torch.zeros(()), 0
    for _, batch in batches:
        x = read_sites(lm, batch.input_ids.to(lm.device), batch.attention_mask.to(lm.device), [site])[site]
        rows = x[kept_positions(lm, batch, x, max_norm)].double()
        total, count = total.to(rows.device) + rows.sum(dim=0), count + rows.shape[0]
    return (total / count).float()


def _runs(
    lm: LanguageModel, sae: SAE, site: Site, batch: Batch, mean: Tensor, max_norm: float | None
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """The site's activations, which are unmasked, the losses of the four runs, and KL(clean‖spliced) a prediction."""
    seen: dict[str, Tensor] = {}

    def look(x: Tensor) -> Tensor:
        seen["x"], seen["keep"] = x, kept_positions(lm, batch, x, max_norm)
        return x

    def splice(new: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def patch(x: Tensor) -> Tensor:
            patched, keep = x.clone(), seen["keep"]
            patched[keep] = new(x[keep].float()).to(x.dtype)
            return patched

        return patch

    patches: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": look,
        "spliced": splice(sae),
        "mean": splice(lambda rows: mean.expand_as(rows)),
        "zero": splice(torch.zeros_like),
    }
    losses, kl, clean = {}, torch.zeros(()), torch.zeros(())
    for run in _RUNS:
        logits = _logits(lm, site, batch, patches[run])
        losses[run] = next_token_loss(logits, batch)
        if run == "clean":
            clean = logits[:, :-1].float().log_softmax(-1)
        elif run == "spliced":
            other = logits[:, :-1].float().log_softmax(-1)
            kl = (clean.exp() * (clean - other)).sum(-1) * batch.attention_mask[:, 1:].to(clean.device)
    return seen["x"], seen["keep"], losses, kl


def _logits(lm: LanguageModel, site: Site, batch: Batch, patch: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad(), patch_sites(lm, {site: patch}):
        out = lm.model(
            input_ids=batch.input_ids.to(lm.device), attention_mask=batch.attention_mask.to(lm.device), use_cache=False
        )
    logits: Tensor = out.logits
    return logits


def _evaluation(sums: _Sums, fires: np.ndarray) -> Evaluation:
    tokens, predictions = sums.column("tokens"), sums.column("predictions")
    n_tokens, n_predictions = int(tokens.sum()), int(predictions.sum())
    error, total = sums.column("error"), sums.column("total")
    loss = {run: sums.column(run) for run in _RUNS}
    metrics = {
        "fvu": ratio_interval(error, total, n_tokens),
        "explained_variance": ratio_interval(total - error, total, n_tokens),
        "l0": mean_interval(sums.column("fires"), tokens),
        "kl": mean_interval(sums.column("kl"), predictions),
        "delta_ce": mean_interval(loss["spliced"] - loss["clean"], predictions),
    }
    for run in _RUNS:
        metrics[f"ce_{run}"] = mean_interval(loss[run], predictions)
    for run in ("mean", "zero"):
        recovered = ratio_interval(loss[run] - loss["spliced"], loss[run] - loss["clean"], n_predictions)
        ce = {name: float(loss[name].sum() / predictions.sum()) for name in _RUNS}
        value = loss_recovered(ce["clean"], ce["spliced"], ce[run])
        metrics[f"loss_recovered_{run}"] = recovered._replace(value=value)
    dead = float((fires == 0).mean())
    metrics["dead_share"] = Interval(dead, dead, dead, n_tokens)
    return Evaluation(metrics, fires, n_tokens)
