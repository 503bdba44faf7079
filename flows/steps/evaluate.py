"""SAE → how good it is on text that it was not trained on."""

import numpy as np
import torch

from flows.artifact import Artifact, Draft, Work
from flows.config import RunConfig
from flows.place import Place, StepReport
from flows.steps.loading import (
    held_out_shards,
    language_model,
    load_activations,
    load_sae,
    places_of,
    sink_limits,
    use_threads,
)
from flows.steps.widths import check_widths
from saelib.evaluation import evaluate as evaluate_sae
from saelib.metrics import Interval
from saelib.sae import SAE

__all__ = ["evaluate", "evaluate_work"]


def evaluate_work(config: RunConfig, sae: Artifact, tokens: Artifact, activations: Artifact) -> Work:
    """Depends on the SAE, the held-out text, and how much of it is used."""
    plan = {
        "evaluation": config.evaluation.model_dump(mode="json"),
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("metrics", 1, plan, (sae, tokens, activations))


def evaluate(config: RunConfig, sae: Artifact, tokens: Artifact, activations: Artifact, place: Place) -> Artifact:
    """Metrics on held-out documents, with intervals."""
    work = evaluate_work(config, sae, tokens, activations)

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        shards = held_out_shards(tokens, activations)
        lm = language_model(config.lm)
        model = load_sae(sae, config.lm.resolved_device())
        check_widths(model, dict(zip(activations.facts["sites"], activations.facts["widths"], strict=True)), lm.name)
        if not lm.predicts_next_token:
            place.watch.say(f"evaluate: {lm.name!r} predicts no next token: no cross-entropy, KL or loss recovered")
        limits = sink_limits(model, activations)
        with place.watch.bar("evaluate", min(config.evaluation.max_tokens, tokens.facts["n_tokens"]), "tokens") as tick:
            made = evaluate_sae(lm, model, shards, limits, config.evaluation, tick)
        report.n_tokens = made.n_tokens
        metrics = made.metrics | {"dead_share": _dead_share(model, activations)}
        draft.facts |= {"metrics": {name: [_or_none(value) for value in metric] for name, metric in metrics.items()}}

    return place.make("evaluate", work, fill)


def _or_none(value: float) -> float | None:
    """A number that has no value (a share of nothing) is null, in the manifest and in the table."""
    return value if np.isfinite(value) else None


def _dead_share(sae: SAE, activations: Artifact) -> Interval:
    """Share of features that never fire on all held-out tokens, not only on those that the model ran on."""
    fires, n_tokens = np.zeros(sae.n_features, dtype=np.int64), 0
    read, _ = places_of(sae.ends, activations)
    for index, flag in zip(activations.facts["shards"], activations.facts["held_out"], strict=True):
        if flag:
            rows = torch.cat(load_activations(activations, index, read).sites, dim=1).float()
            fires += np.bincount(sae.fire(rows.to(sae.W_enc.device)).feature.cpu().numpy(), minlength=sae.n_features)
            n_tokens += rows.shape[0]
    dead = float((fires == 0).mean())
    return Interval(dead, dead, dead, n_tokens)
