"""SAEs with all that is known of them → the catalog."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog import TABLES, Publication, Store, append, current
from catalog import publish as publish_tables
from flows.artifact import Artifact, Draft, Work, find
from flows.config import RunConfig
from flows.place import Place, StepReport
from flows.rows import corpus as corpus_rows
from flows.rows.sae import sae_row
from flows.steps.loading import language_model, load_sae

__all__ = ["is_current", "publish", "publish_work"]

Trained = tuple[Artifact, Artifact, Artifact]
"""An SAE, its metrics, its features."""


def publish_work(config: RunConfig, tokens: Artifact, trained: Sequence[Trained]) -> Work:
    """Depends on everything that is published, and on the names it is published under."""
    plan = {
        "model_id": config.lm.model_id,
        "dataset": config.corpus.name,
        "licence": config.corpus.licence,
        "role": config.corpus.role,
        "names": config.names(),
    }
    parents = tuple(artifact for group in trained for artifact in group)
    return Work("publication", 2, plan, (tokens, *parents))


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
        shared = _shared(config, tokens, activations, draft.directory)
        for name, group in zip(work.plan["names"], trained, strict=True):
            made = publish_tables(place.store, _publication(config, tokens, shared, group, name))
            published.append({"sae_id": made.sae_id, "version": made.version})
        _quarantine(config, tokens, activations, place)
        draft.facts["published"] = published
        draft.facts["parts"] = _parts(place.store, {str(entry["sae_id"]) for entry in published})

    return place.make("publish", work, fill)


def _shared(config: RunConfig, tokens: Artifact, activations: Artifact, folder: Path) -> dict[str, Any]:
    """The tables that SAEs of one corpus share. Large ones lie in hidden files, which are gone when this is done."""
    dataset, lm = corpus_rows.dataset_id(config, tokens), language_model(config.lm)
    large = {
        name: corpus_rows.named(tokens.file(f"{name}.parquet"), dataset, folder / f".{name}.parquet")
        for name in ("document", "sequence")
    }
    return {
        "model": corpus_rows.model(config, tokens, lm),
        "dataset": corpus_rows.dataset(config, tokens, activations),
        **large,
    }


def _publication(config: RunConfig, tokens: Artifact, shared: dict[str, Any], group: Trained, name: str) -> Publication:
    sae, metrics, features = group
    dataset = corpus_rows.dataset_id(config, tokens)
    tables: dict[str, Any] = {
        name: features.file(f"{name}.parquet")
        for name in ("feature", "histogram", "feature_token", "feature_logit", "example", "neighbor", "activation")
    }
    tables["sae"] = sae_row(config.lm.model_id, load_sae(sae, "cpu"), sae, dataset)
    return Publication(
        family=f"{config.lm.model_id}/{name}",
        fingerprint=sae.fingerprint,
        tables=tables,
        shared=shared,
        appended={
            "feature_stat": features.file("feature_stat.parquet"),
            "sae_metric": _metric_rows(metrics, features, dataset),
        },
    )


def _quarantine(config: RunConfig, tokens: Artifact, activations: Artifact, place: Place) -> None:
    """What was refused, once: done again, it adds nothing."""
    dataset = corpus_rows.dataset_id(config, tokens)
    refused = corpus_rows.quarantine(tokens, activations, dataset)
    for fingerprint, rows in refused.items():
        append(place.store, "quarantine", rows, fingerprint)
    n_refused = sum(rows.num_rows for rows in refused.values())
    if n_refused:
        columns = "document_id, step, reason, uri, detail"
        place.watch.say(
            f"publish: {n_refused} documents are in quarantine; to see them: "
            f"almanac sql \"select {columns} from quarantine where dataset_id = '{dataset}'\""
        )


def _metric_rows(metrics: Artifact, features: Artifact, dataset: str) -> pa.Table:
    rows = [(name, *values, metrics.fingerprint) for name, values in sorted(metrics.facts["metrics"].items())]
    correlation = features.facts["delta_ce_rank_correlation"]
    if correlation is not None:
        n = features.facts["delta_ce_features"]
        rows.append(("delta_ce_rank_correlation", correlation, None, None, n, features.fingerprint))
    names = ("metric", "value", "lower", "upper", "n", "fingerprint")
    columns: dict[str, Any] = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return pa.table({"dataset_id": [dataset] * len(rows)} | columns)
