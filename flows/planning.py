"""What would a build reuse, what would it run, how much disk and time would that take?"""

from typing import Any, NamedTuple

from catalog import Store, connect
from catalog.guard import answering
from flows.artifact import Artifact, Work, find
from flows.config import RunConfig
from flows.imports import imported
from flows.naming import with_module_paths
from flows.steps.adopt import adopt_work
from flows.steps.evaluate import evaluate_work
from flows.steps.features import describe_work
from flows.steps.harvest import harvest_work, kept_shards
from flows.steps.loading import language_model, site_widths
from flows.steps.publish import is_current, publish_work
from flows.steps.tokenize import tokenize_work
from flows.steps.train import train_work
from saelib.activations import rows_bytes

__all__ = ["Planned", "plan_run", "reads_rows"]

STEP_OF_KIND = {
    "tokens": "tokenize",
    "activations": "harvest",
    "import": "import",
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
    of: str = ""
    """The SAE, where the step is one of an SAE."""


def plan_run(config: RunConfig, store: Store | None) -> list[Planned]:
    """Every step in order. What hangs on a step that is to do is to do as well."""
    config = with_module_paths(config)
    rates = {} if store is None else _rates(store)
    rows: list[Planned] = []

    def add(work: Work | None, kind: str, n_tokens: int | None, of: str = "") -> Artifact | None:
        found = find(store, work) if store is not None and work is not None else None
        if store is not None and found is not None and kind == "publication" and not is_current(store, found):
            found = None
        is_enough = store is None or tokens is None or kind != "activations" or not reads_rows(config, tokens, store)
        done = found if found is not None and (is_enough or not found.is_evicted) else None
        rows.append(_planned(STEP_OF_KIND[kind], done, n_tokens, rates, config)._replace(of=of))
        return found

    tokens: Artifact | None = None
    tokens = add(tokenize_work(config), "tokens", config.corpus.max_tokens)
    harvested = harvest_work(config, tokens, store) if tokens else None
    n_kept = _kept(config, tokens, find(store, harvested) if store and harvested else None)
    activations = add(harvested, "activations", n_kept)
    read = (tokens, activations) if tokens and activations else None
    names, groups = config.names(), list[tuple[Artifact, ...]]()
    for one in imported(config.imports):
        sae = add(adopt_work(one), "import", None, one.name)
        groups.append((sae,) if sae else ())
    for choice in config.choices():
        sae = add(train_work(config, choice, *read) if read else None, "sae", choice.training.n_tokens, choice.name)
        groups.append((sae,) if sae else ())
    steps = (("metrics", evaluate_work, config.evaluation.max_tokens), ("features", describe_work, n_kept))
    for kind, work_of, n in steps:
        for index, name in enumerate(names):
            sae = groups[index][0] if groups[index] else None
            found = add(work_of(config, sae, *read) if sae and read else None, kind, n, name)
            groups[index] += (found,) if found else ()
    trained = [(group[0], group[1], group[2]) for group in groups if len(group) == 3]
    is_complete = tokens is not None and len(trained) == len(names)
    add(publish_work(config, tokens, trained) if is_complete and tokens else None, "publication", None)
    return rows


def reads_rows(config: RunConfig, tokens: Artifact, store: Store) -> bool:
    """Will a build read rows of its activations? Not where they were evicted and all that reads them is done."""
    activations = find(store, harvest_work(config, tokens, store))
    if activations is None or not activations.is_evicted:
        return True
    read = (tokens, activations)
    works = [*map(adopt_work, imported(config.imports)), *(train_work(config, c, *read) for c in config.choices())]
    saes = [find(store, work) for work in works]
    return any(
        sae is None or find(store, work_of(config, sae, *read)) is None
        for sae in saes
        for work_of in (evaluate_work, describe_work)
    )


def _kept(config: RunConfig, tokens: Artifact | None, activations: Artifact | None) -> int | None:
    """Tokens whose activations are kept: as many as there are; as many as will be, where the text is tokenized; else at
    most, by `max_tokens` alone: whole shards to learn from, and about the held-out share."""
    if activations is not None:
        return int(sum(activations.facts["n_rows"]))
    if tokens is not None:
        return kept_shards(config, tokens).n_rows
    n_tokens, most = config.corpus.max_tokens, config.harvest.max_tokens
    if n_tokens is None or most is None:
        return n_tokens
    held_out = round(n_tokens * config.corpus.held_out_share)
    return min(n_tokens, most + config.corpus.shard_tokens + held_out)


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
        gone = " evicted" if found.is_evicted else ""
        return Planned(step, True, f"{found.n_bytes / 1e6:,.1f} MB{gone}", "")
    seconds = n_tokens / rates[step] if n_tokens and step in rates else None
    duration = "not measured here yet" if seconds is None else f"about {seconds:,.0f} s"
    return Planned(step, False, _expected_bytes(step, n_tokens, config), duration)


def _expected_bytes(step: str, n_tokens: int | None, config: RunConfig) -> str:
    """Only harvest is large, and known beforehand: rows of every site, and 20 bytes of what stands beside each."""
    if step != "harvest" or n_tokens is None:
        return ""
    lm = language_model(config.lm)
    wanted = config.resolved_harvest()
    return f"{rows_bytes(n_tokens, site_widths(lm, wanted.sites), wanted.row_dtype(lm)) / 1e6:,.1f} MB"
