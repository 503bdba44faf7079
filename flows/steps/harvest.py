"""tokens → activations."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as save_tensors

from flows.artifact import Artifact, Draft, Work, keep_piece, kept_piece
from flows.config import RunConfig
from flows.disk import check_room
from flows.place import Place, StepReport, Tick
from flows.steps.loading import (
    language_model,
    load_tokens,
    shard_name,
    site_widths,
    token_shards,
    use_threads,
)
from saelib.activations import MASKS, Harvester, rows_bytes, sink_norms
from saelib.lm import model_fingerprint

__all__ = ["each", "harvest", "harvest_work"]

Each = Callable[..., list[Any]]


def each(step: Callable[..., Any], shards: Sequence[Any], *rest: Any) -> list[Any]:
    """A step on every shard, in order."""
    return [step(shard, *rest) for shard in shards]


def harvest_work(config: RunConfig, tokens: Artifact) -> Work:
    """Depends on the tokens, the model, and everything that decides a batch's numbers."""
    plan = {
        "harvest": config.resolved_harvest().model_dump(mode="json"),
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "model": model_fingerprint(config.lm),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("activations", 2, plan, (tokens,))


class _Job:
    """What a shard's worker needs. A plain object, which an orchestrator passes on as it is."""

    def __init__(self, config: RunConfig, tokens: Artifact, draft: Draft, harvester: Harvester, tick: Tick) -> None:
        self.config, self.tokens, self.draft, self.harvester, self.tick = config, tokens, draft, harvester, tick


def harvest(config: RunConfig, tokens: Artifact, place: Place, each: Each = each) -> Artifact:
    """Activation shards, one task each; those that a killed run finished are kept."""

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        lm, wanted = language_model(config.lm), config.resolved_harvest()
        everything, held_out = token_shards(tokens), tokens.facts["held_out"]
        sizes = [int(shard.token_ids.size) for shard in everything]
        shards = _kept_shards(sizes, held_out, wanted.max_tokens)
        n_tokens, widths = sum(sizes[shard] for shard in shards), site_widths(lm, wanted.sites)
        check_room(draft.directory, rows_bytes(n_tokens, widths, lm.dtype), "harvest")
        norms = sink_norms(lm, everything, wanted)
        with place.watch.bar("harvest", n_tokens, "tokens") as tick:
            job = _Job(config, tokens, draft, Harvester(lm, wanted, tuple(norms)), tick)
            counts = each(harvest_shard, shards, job)
        draft.facts |= {
            "sites": [str(site) for site in wanted.sites],
            "shards": shards,
            "n_rows": [count["n_rows"] for count in counts],
            "n_masked": {reason: sum(count["n_masked"][reason] for count in counts) for reason in MASKS},
            "held_out": [held_out[shard] for shard in shards],
            "sink_norms": norms,
            "widths": widths,
            "dtype": str(lm.dtype).removeprefix("torch."),
        }
        report.n_tokens = sum(draft.facts["n_rows"])

    return place.make("harvest", harvest_work(config, tokens), fill)


def _kept_shards(sizes: Sequence[int], held_out: Sequence[bool], max_tokens: int | None) -> list[int]:
    """Held-out shards, and those to learn from, in order, until `max_tokens` are reached: one at least."""
    kept, n_tokens = [], 0
    for shard, (size, flag) in enumerate(zip(sizes, held_out, strict=True)):
        if flag or max_tokens is None or n_tokens < max_tokens:
            kept.append(shard)
            n_tokens += 0 if flag else size
    return kept


def harvest_shard(index: int, job: _Job) -> dict[str, Any]:
    """One shard: read it, unless that is done, and say how many rows it has."""
    path = job.draft.directory / shard_name(index)
    if not kept_piece(path):
        use_threads(job.config.resolved_threads())
        shard = load_tokens(job.tokens.file(shard_name(index)))
        made = job.harvester(shard, f"shard {index}", job.tick)
        count = {"n_rows": int(made.token_id.size), "n_masked": made.n_masked}
        tensors = {name: tensor.contiguous() for name, tensor in made.tensors().items()}
        keep_piece(path, save_tensors(tensors, metadata={"count": json.dumps(count)}))
        return count
    with safe_open(path, framework="np") as file:
        count = json.loads(file.metadata()["count"])
    job.tick(count["n_rows"])
    return dict(count)
