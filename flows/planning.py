"""What would a build reuse, what would it run, how much disk and time would that take?"""

from typing import Any, NamedTuple

from catalog import Store, connect
from catalog.guard import answering
from flows.artifact import Artifact, Work, find
from flows.config import RunConfig
from flows.steps.features import describe_work, is_current, publish_work
from flows.steps.harvest import harvest_work, tokenize_work
from flows.steps.loading import language_model
from flows.steps.train import evaluate_work, train_work
from saelib.activations import rows_bytes
from saelib.lm import site_width

__all__ = ["Planned", "plan_run"]

STEP_OF_KIND = {
    "tokens": "tokenize",
    "activations": "harvest",
    "sae": "train",
    "metrics": "evaluate",
    "features": "describe",
    "publication": "publish",
}


class Planned(NamedTuple):
    """One step of a build that has not run yet, or has."""

    step: str
    is_done: bool
    size: str
    duration: str


def plan_run(config: RunConfig, store: Store | None) -> list[Planned]:
    """Every step in order. What hangs on a step that is to do is to do as well."""
    rates = {} if store is None else _rates(store)
    rows: list[Planned] = []

    def add(work: Work | None, kind: str, n_tokens: int | None) -> Artifact | None:
        found = find(store, work) if store is not None and work is not None else None
        if store is not None and found is not None and kind == "publication" and not is_current(store, found):
            found = None
        rows.append(_planned(STEP_OF_KIND[kind], found, n_tokens, rates, config))
        return found

    corpus_tokens = config.corpus.max_tokens
    tokens = add(tokenize_work(config), "tokens", corpus_tokens)
    n_tokens = tokens.facts["n_tokens"] if tokens else corpus_tokens
    activations = add(harvest_work(config, tokens) if tokens else None, "activations", n_tokens)
    groups: list[tuple[Artifact, Artifact, Artifact]] = []
    n_saes = len(config.harvest.sites) * len(config.recipes)
    for site in range(len(config.harvest.sites)):
        for number in range(len(config.recipes)):
            work = train_work(config, activations, site, number) if activations else None
            sae = add(work, "sae", config.training.n_tokens)
            known = (sae, tokens, activations) if sae and tokens and activations else None
            metrics = add(evaluate_work(config, *known) if known else None, "metrics", config.evaluation.max_tokens)
            features = add(describe_work(config, *known) if known else None, "features", n_tokens)
            if sae and metrics and features:
                groups.append((sae, metrics, features))
    complete = tokens is not None and len(groups) == n_saes
    add(publish_work(config, tokens, groups) if complete and tokens else None, "publication", None)
    return rows


def _rates(store: Store) -> dict[str, float]:
    """Tokens a second of each step when it last ran here."""
    sql = "select step, arg_max(tokens_per_second, ended_at) from run where tokens_per_second > 0 group by step"
    with answering(sql):
        rows: list[tuple[Any, ...]] = connect(store).execute(sql).fetchall()
    return {step: float(rate) for step, rate in rows}


def _planned(
    step: str, found: Artifact | None, n_tokens: int | None, rates: dict[str, float], config: RunConfig
) -> Planned:
    if found is not None:
        return Planned(step, True, f"{found.n_bytes / 1e6:,.1f} MB", "")
    seconds = n_tokens / rates[step] if n_tokens and step in rates else None
    duration = "not measured here yet" if seconds is None else f"about {seconds:,.0f} s"
    return Planned(step, False, _expected_bytes(step, n_tokens, config), duration)


def _expected_bytes(step: str, n_tokens: int | None, config: RunConfig) -> str:
    """Only harvest is large, and known beforehand: rows of every site and 20 bytes of alignment."""
    if step != "harvest" or n_tokens is None:
        return ""
    lm = language_model(config.lm)
    widths = [site_width(lm, site) for site in config.harvest.sites]
    return f"{rows_bytes(n_tokens, widths, lm.dtype) / 1e6:,.1f} MB"
