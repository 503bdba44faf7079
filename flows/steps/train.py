"""activations → SAE → how good it is."""

from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from flows.artifact import Artifact, Draft, Work, keep_piece, kept_piece
from flows.config import RunConfig
from flows.place import Place, StepReport
from flows.steps.loading import language_model, load_activations, load_sae, shard_name, token_shards, use_threads
from saelib.base import Ends
from saelib.errors import ActivationError
from saelib.evaluation import evaluate as evaluate_sae
from saelib.metrics import Interval
from saelib.sae import SAE
from saelib.shuffled import ShuffledRows
from saelib.training import Progress, Training

__all__ = ["evaluate", "evaluate_work", "train", "train_work"]

PROGRESS_ROWS = 200
"""Points of a training curve."""


def train_work(config: RunConfig, activations: Artifact, site: int, number: int) -> Work:
    """Depends on the activations, the recipe, and how it is trained."""
    made = config.resolved_recipes()[number]
    plan = {
        "architecture": made.architecture,
        "recipe": dict(config.recipes[number]),
        "product": config.training.resolved_product(config.lm.resolved_device()),
        "site": site,
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("sae", 1, plan, (activations,))


def train(config: RunConfig, activations: Artifact, site: int, number: int, place: Place) -> Artifact:
    """One recipe at one site. Checkpoints at intervals; a killed run continues exactly from the last one."""
    work = train_work(config, activations, site, number)

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        recipe = config.resolved_recipes()[number]
        held_out = activations.facts["held_out"]
        paths = [path for path, flag in zip(activations.files("shard-"), held_out, strict=True) if not flag]
        rows = ShuffledRows(
            paths, (site,), config.training.batch_tokens, config.training.seed, config.lm.resolved_device()
        )
        training = Training(recipe, config.training, rows)
        checkpoint = draft.directory / "checkpoint.safetensors"
        was_there = checkpoint.exists()
        if kept_piece(checkpoint):
            training.restore(checkpoint)
            place.watch.say(f"train: resumed at step {training.step} of {training.plan.n_steps}")
        elif was_there:
            place.watch.say("train: the checkpoint is damaged, so training starts anew")
        report.n_tokens = (training.plan.n_steps - training.step) * config.training.batch_tokens
        _run(training, place, checkpoint, work.fingerprint, report.run_id)
        training.published(Ends.at(config.harvest.sites[site])).save(draft.directory)
        checkpoint.unlink(missing_ok=True)
        draft.facts |= {
            "site": site,
            "activation_scale": training.site_scales,
            "threshold": training.threshold / training.site_scales[0],
            "plan": training.plan._asdict(),
            "n_tokens": training.n_tokens,
            "n_features": recipe.n_features,
        }

    return place.make("train", work, fill)


def _run(training: Training, place: Place, checkpoint: Path, fingerprint: str, run_id: str) -> None:
    """The loop, watched and checkpointed."""
    every = max(1, training.plan.n_steps // PROGRESS_ROWS)
    buffer: list[dict[str, Any]] = []
    batch = training.config.batch_tokens
    last, last_tokens = monotonic(), training.n_tokens
    with place.watch.bar("train", training.plan.n_steps * batch, "tokens") as tick:
        tick(training.n_tokens)
        for progress in training.run():
            if not np.isfinite(progress.loss):
                raise ActivationError(
                    f"the loss became {progress.loss} at step {progress.step}; finite numbers are wanted: "
                    "lower training.learning_rate, or look for NaN in the activations"
                )
            tick(batch)
            if progress.step % every == 0 or training.step == training.plan.n_steps:
                now = monotonic()
                rate = (progress.n_tokens - last_tokens) / max(1e-9, now - last)
                last, last_tokens = now, progress.n_tokens
                buffer.append(_point(progress, run_id, rate, training.plan.dead_after_tokens))
            if training.step % training.config.checkpoint_every_steps == 0:
                keep_piece(checkpoint, training.save())
                place.train_progress(fingerprint, buffer)
                buffer.clear()
    place.train_progress(fingerprint, buffer)


def _point(progress: Progress, run_id: str, rate: float, window: int) -> dict[str, Any]:
    point = progress._asdict() | {"run_id": run_id, "tokens_per_second": rate, "dead_share_tokens": window}
    point["loss_terms"] = list(progress.loss_terms.items())
    point["created_at"] = datetime.now(UTC).replace(tzinfo=None)
    return point


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
        shards = token_shards(tokens, held_out=True)
        lm = language_model(config.lm)
        model = load_sae(sae, config.lm.resolved_device())
        site = sae.facts["site"]
        with place.watch.bar("evaluate", min(config.evaluation.max_tokens, tokens.facts["n_tokens"]), "tokens") as tick:
            made = evaluate_sae(lm, model, shards, activations.facts["sink_norms"][site], config.evaluation, tick)
        report.n_tokens = made.n_tokens
        metrics = made.metrics | {"dead_share": _dead_share(model, activations, site)}
        draft.facts |= {"metrics": {name: [_or_none(value) for value in metric] for name, metric in metrics.items()}}

    return place.make("evaluate", work, fill)


def _or_none(value: float) -> float | None:
    """A number that has no value (a share of nothing) is null, in the manifest and in the table."""
    return value if np.isfinite(value) else None


def _dead_share(sae: SAE, activations: Artifact, site: int) -> Interval:
    """Share of features that never fire on all held-out tokens, not only on those that the model ran on."""
    fires, n_tokens = np.zeros(sae.n_features, dtype=np.int64), 0
    for index, flag in enumerate(activations.facts["held_out"]):
        if flag:
            shard = load_activations(activations.file(shard_name(index)), len(activations.facts["widths"]))
            rows = shard.sites[site].float().to(sae.W_enc.device)
            fires += np.bincount(sae.fire(rows).feature.cpu().numpy(), minlength=sae.n_features)
            n_tokens += rows.shape[0]
    dead = float((fires == 0).mean())
    return Interval(dead, dead, dead, n_tokens)
