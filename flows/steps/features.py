"""SAE → what is known of every feature."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.artifact import Artifact, Draft, Work, keep_piece, kept_piece
from flows.config import DescribeConfig, RunConfig
from flows.place import Place, StepReport, Tick
from flows.rows import corpus as corpus_rows
from flows.rows import features as feature_rows
from flows.rows import related as related_rows
from flows.rows.described import Described
from flows.rows.examples import Text
from flows.rows.examples import examples as example_rows
from flows.steps.loading import (
    held_out_shards,
    language_model,
    load_activations,
    load_sae,
    load_tokens,
    places_of,
    shard_name,
    sink_limits,
    token_shards,
    use_threads,
)
from flows.steps.widths import check_widths
from flows.workers import Each, Job, in_order
from saelib.effects import loss_effects
from saelib.geometry import decoder_neighbors, logit_effects
from saelib.sae import SAE
from saelib.summaries.examples import Silences, choose_examples
from saelib.summaries.rows import shard_firings
from saelib.summaries.sample import Sample
from saelib.summaries.summary import Summary, merged_candidates, merged_statistics

__all__ = ["describe", "describe_work"]

FEATURES_AT_A_TIME = 1024
"""Whose candidates and examples are held together: about 100 MB."""


def describe_work(config: RunConfig, sae: Artifact, tokens: Artifact, activations: Artifact) -> Work:
    """Depends on the SAE, the corpus, and what is kept."""
    plan = {
        "describe": config.describe.model_dump(mode="json"),
        "dataset_id": corpus_rows.dataset_id(config, tokens),
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("features", 2, plan, (sae, tokens, activations))


class _Job(Job):
    """What a shard's worker needs. A plain object, which an orchestrator passes on as it is."""

    def __init__(self, config: RunConfig, parents: Sequence[Artifact], folder: Path, tick: Tick) -> None:
        self.config, self.folder, self.tick = config, folder, tick
        self.trained, self.tokens, self.activations = parents

    @cached_property
    def sae(self) -> SAE:
        """On the device of the process that it is in."""
        return load_sae(self.trained, self.config.lm.resolved_device())

    def pieces(self, kind: str) -> list[Path]:
        """Those of pass 1 on disk, in shard order."""
        return sorted(self.folder.glob(f"{kind}-*"))

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
    each: Each = in_order,
) -> Artifact:
    """Every feature's statistics and examples: pass 1 by shard, merged in shard order; pass 2 on the sample."""
    work = describe_work(config, sae, tokens, activations)

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        folder = draft.directory / "pieces"
        folder.mkdir(exist_ok=True)
        lm, facts = language_model(config.lm), activations.facts
        if not lm.predicts_next_token:
            place.watch.say(f"describe: {lm.name!r} predicts no next token: no effects on logits or on the loss")
        n_tokens = sum(activations.facts["n_rows"])
        with place.watch.bar("describe", n_tokens, "tokens") as tick:
            job = _Job(config, (sae, tokens, activations), folder, tick)
            check_widths(job.sae, dict(zip(facts["sites"], facts["widths"], strict=True)), lm.name)
            each(describe_shard, list(range(len(activations.facts["shards"]))), job)
        found = _found(job, place, work.fingerprint)
        tables = _tables(found, config.describe)
        for name, table in tables.items():
            pq.write_table(table, draft.directory / f"{name}.parquet", compression="zstd", row_group_size=65_536)
            draft.rows[name] = table.num_rows
        draft.rows["example"] = _write_examples(draft.directory / "example.parquet", found, job)
        draft.facts["delta_ce_rank_correlation"] = found.effects.rank_correlation
        draft.facts["delta_ce_features"] = int(np.isfinite(found.effects.ablated).sum())
        report.n_tokens = n_tokens
        shutil.rmtree(folder)

    return place.make("describe", work, fill)


def describe_shard(index: int, job: _Job) -> None:
    """Pass 1 of the `index`-th shard that is kept: its summary and its part of the sample, unless they are there."""
    summary, sample = (job.folder / f"{kind}-{index:05d}.safetensors" for kind in ("summary", "sample"))
    n_rows = job.activations.facts["n_rows"][index]
    if not (kept_piece(summary) and kept_piece(sample)):
        use_threads(job.config.resolved_threads())
        config = job.config.describe
        number = job.activations.facts["shards"][index]
        read, write = places_of(job.sae.ends, job.activations)
        places = sorted({*read, *write})
        shard = load_activations(job.activations, number, places)
        tokens = load_tokens(job.tokens.file(shard_name(number)))
        read, write = ([places.index(place) for place in end] for end in (read, write))
        firings = shard_firings(job.sae, tokens, shard, read, config.seed, write)
        lm = language_model(job.config.lm)
        keep_piece(summary, Summary.of(firings, max(lm.n_vocab, len(lm.tokenizer))).save())
        keep_piece(sample, Sample.of(firings, job.share, config.seed).save())
    job.tick(n_rows)


def _found(job: _Job, place: Place, fingerprint: str) -> Described:
    """Merge pass 1, run pass 2, and look at the weights."""
    config, sae = job.config.describe, job.sae
    lm = language_model(job.config.lm)
    core, token_counts = merged_statistics(job.pieces("summary"))
    sample = Sample.merged(job.pieces("sample"))
    nearest = decoder_neighbors(sae, config.n_neighbors)
    top = token_counts.top("at", 3)
    top_tokens = np.full((sae.n_features, 3), -1, dtype=np.int64)
    top_tokens[top.feature, top.rank] = top.token_id
    coactivation, correlation = sample.together(config.n_neighbors)
    limits = sink_limits(sae, job.activations)
    widths = [job.activations.facts["widths"][place] for place in places_of(sae.ends, job.activations)[1]]
    shards = held_out_shards(job.tokens, job.activations)
    with place.watch.bar("loss effects", config.effects.tokens, "tokens") as tick:
        effects = loss_effects(lm, sae, shards, limits, config.effects, tick)
    return Described(
        sae=sae,
        core=core,
        tokens=token_counts,
        sample=sample,
        silences=Silences.of(sample, top_tokens, nearest.other[:, 0]),
        nearest=nearest,
        logits=logit_effects(lm, sae, config.n_tokens_listed, widths),
        coactivation=coactivation,
        correlation=correlation,
        effects=effects,
        words=corpus_rows.vocabulary(lm),
        dataset_id=corpus_rows.dataset_id(job.config, job.tokens),
        fingerprint=fingerprint,
    )


def _write_examples(path: Path, found: Described, job: _Job) -> int:
    """The table `example`, some features at a time, and how many rows it has: the candidates of all would be large."""
    document_keys = corpus_rows.content_keys(job.tokens.file("document.parquet"))
    text, share, n_rows = Text(token_shards(job.tokens)), job.config.describe.held_out_share, 0
    with ExitStack() as stack:
        writer = None
        for first in range(0, found.n_features, FEATURES_AT_A_TIME):
            features = range(first, min(first + FEATURES_AT_A_TIME, found.n_features))
            candidates = merged_candidates(job.pieces("summary"), features)
            chosen = choose_examples(candidates, found.core, found.sample, found.silences, features)
            rows = example_rows(found, chosen, text, document_keys, share, n_rows)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
            writer.write_table(rows)
            n_rows += rows.num_rows
    return n_rows


def _tables(found: Described, describe: DescribeConfig) -> dict[str, pa.Table]:
    """All tables of features but `example`."""
    return {
        "feature": feature_rows.features(found, describe),
        "feature_stat": feature_rows.feature_stats(found),
        "histogram": feature_rows.histograms(found),
        "feature_token": related_rows.feature_tokens(found, describe.n_tokens_listed),
        "feature_logit": related_rows.feature_logits(found),
        "neighbor": related_rows.neighbors(found),
        "activation": related_rows.activations(found),
    }
