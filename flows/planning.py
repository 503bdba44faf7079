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
from flows.steps.harvest import harvest_work
from flows.steps.loading import language_model, site_widths
from flows.steps.publish import is_current, publish_work
from flows.steps.tokenize import tokenize_work
from flows.steps.train import train_work
from saelib.activations import rows_bytes

__all__ = ["Planned", "plan_run"]

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
        rows.append(_planned(STEP_OF_KIND[kind], found, n_tokens, rates, config)._replace(of=of))
        return found

    tokens = add(tokenize_work(config), "tokens", config.corpus.max_tokens)
    n_tokens = tokens.facts["n_tokens"] if tokens else config.corpus.max_tokens
    n_kept = _kept(n_tokens, config)
    activations = add(harvest_work(config, tokens) if tokens else None, "activations", n_kept)
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


def _kept(n_tokens: int | None, config: RunConfig) -> int | None:
    """Tokens whose activations are kept: whole shards to learn from, and about the held-out share."""
    most = config.harvest.max_tokens
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
        return Planned(step, True, f"{found.n_bytes / 1e6:,.1f} MB", "")
    seconds = n_tokens / rates[step] if n_tokens and step in rates else None
    duration = "not measured here yet" if seconds is None else f"about {seconds:,.0f} s"
    return Planned(step, False, _expected_bytes(step, n_tokens, config), duration)


def _expected_bytes(step: str, n_tokens: int | None, config: RunConfig) -> str:
    """Only harvest is large, and known beforehand (at most): rows of every site and 20 bytes of alignment."""
    if step != "harvest" or n_tokens is None:
        return ""
    lm = language_model(config.lm)
    widths = site_widths(lm, config.resolved_harvest().sites)
    return f"{rows_bytes(n_tokens, widths, lm.dtype) / 1e6:,.1f} MB"
