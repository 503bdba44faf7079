"""SAE → what is known of every feature → the catalog."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog import TABLES, Publication, Store, current
from catalog import publish as publish_tables
from flows.artifact import Artifact, Draft, Work, find, keep_piece, kept_piece
from flows.config import RunConfig
from flows.place import Place, StepReport, Tick
from flows.rows import corpus as corpus_rows
from flows.rows import features as feature_rows
from flows.rows import related as related_rows
from flows.rows.described import Described
from flows.rows.examples import examples as example_rows
from flows.steps.harvest import each as in_order
from flows.steps.loading import (
    language_model,
    load_activations,
    load_sae,
    load_tokens,
    shard_name,
    token_shards,
    use_threads,
)
from saelib.effects import loss_effects
from saelib.geometry import decoder_neighbors, logit_effects
from saelib.sae import SAE
from saelib.summaries.examples import choose_examples
from saelib.summaries.rows import shard_firings
from saelib.summaries.sample import Sample
from saelib.summaries.summary import Summary

__all__ = ["describe", "describe_work", "is_current", "publish", "publish_work"]

Trained = tuple[Artifact, Artifact, Artifact]
"""An SAE, its metrics, its features."""


def describe_work(config: RunConfig, sae: Artifact, tokens: Artifact, activations: Artifact) -> Work:
    """Depends on the SAE, the corpus, and what is kept."""
    plan = {
        "describe": config.describe.model_dump(mode="json"),
        "dataset_id": corpus_rows.dataset_id(config, tokens),
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("features", 1, plan, (sae, tokens, activations))


class _Job:
    """What a shard's worker needs. A plain object, which an orchestrator passes on as it is."""

    def __init__(self, config: RunConfig, parents: Sequence[Artifact], folder: Path, sae: SAE, tick: Tick) -> None:
        self.config, self.folder, self.sae, self.tick = config, folder, sae, tick
        self.trained, self.tokens, self.activations = parents

    @property
    def share(self) -> float:
        """Share of the sequences that make about `activation_tokens`."""
        n_rows = int(sum(self.activations.facts["n_rows"]))
        return min(1.0, self.config.describe.activation_tokens / max(1, n_rows))


def describe(  # noqa: PLR0913
    config: RunConfig,
    sae: Artifact,
    tokens: Artifact,
    activations: Artifact,
    place: Place,
    each: Callable[..., list[Any]] = in_order,
) -> Artifact:
    """Every feature's statistics and examples: pass 1 by shard, merged in shard order; pass 2 on the sample."""
    work = describe_work(config, sae, tokens, activations)

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        folder = draft.directory / "pieces"
        folder.mkdir(exist_ok=True)
        model = load_sae(sae, config.lm.resolved_device())
        n_tokens = sum(activations.facts["n_rows"])
        with place.watch.bar("describe", n_tokens, "tokens") as tick:
            job = _Job(config, (sae, tokens, activations), folder, model, tick)
            each(describe_shard, list(range(len(activations.facts["n_rows"]))), job)
        found = _found(job, place, work.fingerprint)
        tables = _tables(found, config, tokens)
        for name, table in tables.items():
            pq.write_table(table, draft.directory / f"{name}.parquet", compression="zstd", row_group_size=65_536)
            draft.rows[name] = table.num_rows
        draft.facts["delta_ce_rank_correlation"] = found.effects.rank_correlation
        draft.facts["delta_ce_features"] = int(np.isfinite(found.effects.ablated).sum())
        report.n_tokens = n_tokens
        shutil.rmtree(folder)

    return place.make("describe", work, fill)


def describe_shard(index: int, job: _Job) -> None:
    """Pass 1 of one shard: its summary and its part of the sample, unless they are there already."""
    summary, sample = (job.folder / f"{kind}-{index:05d}.safetensors" for kind in ("summary", "sample"))
    n_rows = job.activations.facts["n_rows"][index]
    if not (kept_piece(summary) and kept_piece(sample)):
        use_threads(job.config.resolved_threads())
        config = job.config.describe
        shard = load_activations(job.activations.file(shard_name(index)), len(job.activations.facts["widths"]))
        tokens = load_tokens(job.tokens.file(shard_name(index)))
        firings = shard_firings(job.sae, tokens, shard, job.trained.facts["site"], config.seed)
        lm = language_model(job.config.lm)
        keep_piece(summary, Summary.of(firings, max(lm.n_vocab, len(lm.tokenizer))).save())
        keep_piece(sample, Sample.of(firings, job.share, config.seed).save())
    job.tick(n_rows)


def _found(job: _Job, place: Place, fingerprint: str) -> Described:
    """Merge pass 1, run pass 2, and look at the weights."""
    config, sae = job.config.describe, job.sae
    lm = language_model(job.config.lm)
    summary = Summary.merged(sorted(job.folder.glob("summary-*")))
    sample = Sample.merged(sorted(job.folder.glob("sample-*")))
    nearest = decoder_neighbors(sae, config.n_neighbors)
    top = summary.tokens.top("at", 3)
    top_tokens = np.full((sae.n_features, 3), -1, dtype=np.int64)
    top_tokens[top.feature, top.rank] = top.token_id
    chosen = choose_examples(summary.candidates, summary.core, sample, top_tokens, nearest.other[:, 0])
    coactivation, correlation = sample.together(config.n_neighbors)
    max_norm = job.activations.facts["sink_norms"][job.trained.facts["site"]]
    shards = token_shards(job.tokens, held_out=True) or token_shards(job.tokens)
    with place.watch.bar("loss effects", config.effects.tokens, "tokens") as tick:
        effects = loss_effects(lm, sae, shards, max_norm, config.effects, tick)
    return Described(
        sae=sae,
        core=summary.core,
        tokens=summary.tokens,
        examples=chosen,
        sample=sample,
        nearest=nearest,
        logits=logit_effects(lm, sae, config.n_tokens_listed),
        coactivation=coactivation,
        correlation=correlation,
        effects=effects,
        words=corpus_rows.vocabulary(lm),
        dataset_id=corpus_rows.dataset_id(job.config, job.tokens),
        fingerprint=fingerprint,
    )


def _tables(found: Described, config: RunConfig, tokens: Artifact) -> dict[str, pa.Table]:
    """All tables of features."""
    keys = pq.read_table(tokens.file("document.parquet"), columns=["sha256"])["sha256"].to_pylist()
    document_keys = np.array([int(sha[:16], 16) for sha in keys], dtype=np.uint64)
    describe = config.describe
    return {
        "feature": feature_rows.features(found, describe),
        "feature_stat": feature_rows.feature_stats(found),
        "histogram": feature_rows.histograms(found),
        "feature_token": related_rows.feature_tokens(found, describe.n_tokens_listed),
        "feature_logit": related_rows.feature_logits(found),
        "example": example_rows(found, token_shards(tokens), document_keys, describe.held_out_share),
        "neighbor": related_rows.neighbors(found),
        "activation": related_rows.activations(found),
    }


def publish_work(config: RunConfig, tokens: Artifact, trained: Sequence[Trained]) -> Work:
    """Depends on everything that is published, and on the names it is published under."""
    names = {"model_id": config.lm.model_id, "dataset": config.corpus.name, "licence": config.corpus.licence}
    parents = tuple(artifact for group in trained for artifact in group)
    return Work("publication", 1, names | {"role": config.corpus.role}, (tokens, *parents))


def _parts(store: Store, sae_ids: set[str]) -> list[str]:
    """Files of the current snapshot that hold these SAEs; another content is another path."""
    replaced = {name for name, table in TABLES.items() if table.writing == "replaced"}
    parts = current(store).parts
    return sorted(part.path for part in parts if part.partition in sae_ids and part.table in replaced)


def is_current(store: Store, publication: Artifact) -> bool:
    """Whether the catalog still holds what was published: another run may have replaced the tables of the same SAE."""
    held = {part.path for part in current(store).parts}
    return held.issuperset(publication.facts.get("parts", ["not recorded"]))


def publish(
    config: RunConfig, tokens: Artifact, activations: Artifact, trained: list[Trained], place: Place
) -> Artifact:
    """All SAEs of the run into the catalog; done again where the catalog no longer holds them."""
    work = publish_work(config, tokens, trained)
    before = find(place.store, work)
    if before is not None and not is_current(place.store, before):
        shutil.rmtree(before.directory)

    def fill(draft: Draft, report: StepReport) -> None:  # noqa: ARG001
        published = []
        for sae, metrics, features in trained:
            made = publish_tables(place.store, _publication(config, tokens, activations, (sae, metrics, features)))
            published.append({"sae_id": made.sae_id, "version": made.version})
        draft.facts["published"] = published
        draft.facts["parts"] = _parts(place.store, {str(entry["sae_id"]) for entry in published})

    return place.make("publish", work, fill)


def _publication(config: RunConfig, tokens: Artifact, activations: Artifact, group: Trained) -> Publication:
    sae, metrics, features = group
    lm = language_model(config.lm)
    dataset = corpus_rows.dataset_id(config, tokens)
    site = config.harvest.sites[sae.facts["site"]]
    architecture = sae.manifest["plan"]["architecture"]
    tables: dict[str, Any] = {
        name: features.file(f"{name}.parquet")
        for name in ("feature", "histogram", "feature_token", "feature_logit", "example", "neighbor", "activation")
    }
    tables["sae"] = _sae_row(config, sae, dataset)
    shared = {
        "model": corpus_rows.model(config, tokens, lm),
        "dataset": corpus_rows.dataset(config, tokens, activations),
        "document": _named(tokens.file("document.parquet"), dataset),
        "sequence": _named(tokens.file("sequence.parquet"), dataset),
    }
    return Publication(
        family=f"{config.lm.model_id}/{site}/{architecture}-{sae.facts['n_features']}",
        fingerprint=sae.fingerprint,
        tables=tables,
        shared=shared,
        appended={
            "feature_stat": features.file("feature_stat.parquet"),
            "sae_metric": _metric_rows(metrics, features, dataset),
        },
    )


def _named(path: Path, dataset: str) -> pa.Table:
    """A table of the corpus with the data set's name before it."""
    table = pq.read_table(path)
    return table.add_column(0, "dataset_id", pa.array([dataset] * table.num_rows))


def _sae_row(config: RunConfig, sae: Artifact, dataset: str) -> dict[str, list[Any]]:
    plan, facts = sae.manifest["plan"], sae.facts
    model = load_sae(sae, "cpu")
    site = str(config.harvest.sites[facts["site"]])
    recipe = plan["recipe"]
    return {
        "fingerprint": [sae.fingerprint],
        "model_id": [config.lm.model_id],
        "sites_read": [[site]],
        "sites_written": [[site]],
        "architecture": [plan["architecture"]],
        "nonlinearity": [type(model.nonlinearity).__name__],
        "d_in": [model.d_in],
        "d_out": [model.d_out],
        "n_features": [model.n_features],
        "k": [recipe.get("k")],
        "sparsity_weight": [recipe.get("l1_weight")],
        "activation_scale": [facts["activation_scale"]],
        "input_norm": ["none"],
        "has_skip": [False],
        "seed": [plan["training"]["seed"]],
        "train_dataset_id": [dataset],
        "train_tokens": [facts["n_tokens"]],
        "weights_uri": [f"artifacts/sae/{sae.fingerprint}/sae.safetensors"],
        "weights_sha256": [sae.manifest["files"]["sae.safetensors"]["sha256"]],
        "config": [json.dumps(plan, sort_keys=True)],
        "origin": ["trained"],
    }


def _metric_rows(metrics: Artifact, features: Artifact, dataset: str) -> pa.Table:
    rows = [(name, *values, metrics.fingerprint) for name, values in sorted(metrics.facts["metrics"].items())]
    correlation = features.facts["delta_ce_rank_correlation"]
    if correlation is not None:
        n = features.facts["delta_ce_features"]
        rows.append(("delta_ce_rank_correlation", correlation, None, None, n, features.fingerprint))
    names = ("metric", "value", "lower", "upper", "n", "fingerprint")
    columns: dict[str, Any] = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return pa.table({"dataset_id": [dataset] * len(rows)} | columns)
