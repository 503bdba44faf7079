"""tokens → activations."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from catalog.store import Store
from flows.artifact import Artifact, Draft, Work, keep_piece, kept_piece
from flows.config import RunConfig, RunHarvest
from flows.disk import check_room, write_piece
from flows.place import Place, StepReport, Tick
from flows.steps.loading import (
    each_token_shard,
    language_model,
    load_tokens,
    rows_file,
    shard_name,
    site_file,
    site_widths,
    use_threads,
)
from flows.workers import Each, Job, in_order
from saelib.activations import MASKS, ActivationShard, Harvester, rows_bytes, text_tokens
from saelib.batches import auto_batch_tokens
from saelib.errors import ActivationError, BatchTooLarge
from saelib.lm import device_of, model_fingerprint, shape_of
from saelib.shard_files import ROWS, parts_of
from saelib.sinks import sink_norms

__all__ = ["Kept", "harvest", "harvest_work", "kept_shards"]

TOO_LARGE = "too-large"
"""In an unfinished artifact: its batches are more than the device has memory for, so it will never be finished."""

FIRST_REASONS = 3


def harvest_work(config: RunConfig, tokens: Artifact, store: Store | None = None) -> Work:
    """Depends on the tokens, the model, and everything that decides a batch's numbers.

    Batches are halved as often as memory ran out in this store.
    """
    work = _work(config, tokens, _with_batches(config, tokens))
    while store is not None and (work.partial(store) / TOO_LARGE).exists():
        work = _work(config, tokens, _planned(work).halved())
    return work


def _work(config: RunConfig, tokens: Artifact, wanted: RunHarvest) -> Work:
    plan = {
        "harvest": wanted.model_dump(mode="json", exclude={"max_quarantine_share"}),
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "model": model_fingerprint(config.lm),
        "device": config.lm.resolved_device(),
        "threads": config.resolved_threads(),
    }
    return Work("activations", 3, plan, (tokens,))


def _with_batches(config: RunConfig, tokens: Artifact) -> RunHarvest:
    """What is wanted, with a number of tokens a batch."""
    wanted = config.resolved_harvest()
    if wanted.batch_tokens != "auto":
        return wanted
    size = auto_batch_tokens(shape_of(config.lm), tokens.facts["context_tokens"], device_of(config.lm))
    return wanted.model_copy(update={"batch_tokens": size})


def _planned(work: Work) -> RunHarvest:
    return RunHarvest.model_validate(work.plan["harvest"])


class Kept(NamedTuple):
    """Which token shards are harvested, and what that takes: rows and bytes to 2 %, since few tokens are sinks."""

    shards: list[int]
    n_rows: int
    n_bytes: int
    n_left_out: int
    """Shards to learn from that a limit leaves out."""


def kept_shards(config: RunConfig, tokens: Artifact) -> Kept:
    """Held-out shards; then shards to learn from, in order: until `max_tokens` are reached, within `max_bytes`, and
    one at least. Counts every text token, so the shards are read, one at a time."""
    lm, wanted = language_model(config.lm), config.resolved_harvest()
    row = rows_bytes(1, site_widths(lm, wanted.sites), wanted.row_dtype(lm))
    sizes = [int(text_tokens(lm, shard).size) for shard in each_token_shard(tokens)]
    held_out = tokens.facts["held_out"]
    room = None if wanted.max_bytes is None else wanted.max_bytes - row * sum(_where(sizes, held_out))
    learned: list[int] = []
    n_tokens = 0
    for shard in (index for index, flag in enumerate(held_out) if not flag):
        is_enough = wanted.max_tokens is not None and n_tokens >= wanted.max_tokens
        if learned and (is_enough or (room is not None and row * (n_tokens + sizes[shard]) > room)):
            break
        learned.append(shard)
        n_tokens += sizes[shard]
    shards = sorted([*learned, *(index for index, flag in enumerate(held_out) if flag)])
    n_rows = sum(sizes[shard] for shard in shards)
    return Kept(shards, n_rows, row * n_rows, list(held_out).count(False) - len(learned))


def _where(sizes: Sequence[int], flags: Sequence[bool]) -> list[int]:
    return [size for size, flag in zip(sizes, flags, strict=True) if flag]


class _Job(Job):
    """What a shard's worker needs. A plain object, which an orchestrator passes on as it is."""

    def __init__(  # noqa: PLR0913  what a shard depends on, each its own thing
        self,
        config: RunConfig,
        wanted: RunHarvest,
        tokens: Artifact,
        draft: Draft,
        norms: Sequence[float | None],
        tick: Tick,
    ) -> None:
        self.config, self.wanted, self.tokens, self.draft, self.norms = config, wanted, tokens, draft, norms
        self.tick = tick

    @cached_property
    def harvester(self) -> Harvester:
        """With the language model of the process that it is in."""
        return Harvester(language_model(self.config.lm), self.wanted, tuple(self.norms))


def harvest(config: RunConfig, tokens: Artifact, place: Place, each: Each = in_order, is_read: bool = True) -> Artifact:
    """Activation shards, one task each; those that a killed run finished are kept.

    Those that were evicted are harvested again, unless no later step reads them. Where a device has too little memory
    for a batch, half of it is another plan, which is tried next.
    """

    def fill(draft: Draft, report: StepReport) -> None:
        use_threads(config.resolved_threads())
        lm, kept = language_model(config.lm), kept_shards(config, tokens)
        _announce(kept, wanted, place)
        check_room(draft.directory, kept.n_bytes, "harvest")
        norms = sink_norms(lm, each_token_shard(tokens), wanted)
        with place.watch.bar("harvest", kept.n_rows, "tokens") as tick:
            job = _Job(config, wanted, tokens, draft, norms, tick)
            counts = each(harvest_shard, kept.shards, job)
        too_large = [count["too_large"] for count in counts if "too_large" in count]
        if too_large:
            raise BatchTooLarge(too_large[0])
        draft.facts |= {
            "sites": [str(site) for site in wanted.sites],
            "shards": kept.shards,
            "n_rows": [count["n_rows"] for count in counts],
            "n_masked": {reason: sum(count["n_masked"][reason] for count in counts) for reason in MASKS},
            "held_out": [tokens.facts["held_out"][shard] for shard in kept.shards],
            "sink_norms": norms,
            "widths": site_widths(lm, wanted.sites),
            "dtype": str(wanted.row_dtype(lm)).removeprefix("torch."),
            "quarantined": _quarantined(counts, config.harvest.max_quarantine_share),
        }
        report.n_tokens = sum(draft.facts["n_rows"])

    while True:
        work = harvest_work(config, tokens, place.store)
        wanted = _planned(work)
        try:
            return place.make("harvest", work, fill, is_read)
        except BatchTooLarge as error:
            _give_up(work.partial(place.store), error)
            place.watch.say(f"harvest: {error}. Half of it is tried, which is another plan")


def _give_up(partial: Path, error: BatchTooLarge) -> None:
    """Mark the plan, so that no later run tries it again, and make room."""
    write_piece(partial / TOO_LARGE, str(error).encode())
    for piece in partial.glob("shard-*"):
        piece.unlink()


def _announce(kept: Kept, wanted: RunHarvest, place: Place) -> None:
    """Before the work begins: how much it is."""
    sites = f"{len(wanted.sites)} site" + "s" * (len(wanted.sites) > 1)
    place.watch.say(
        f"harvest: {kept.n_rows:,} tokens at {sites} in {len(kept.shards)} shards take {kept.n_bytes / 1e6:,.1f} MB; "
        f"batches of {wanted.batch_tokens:,} tokens"
    )
    if kept.n_left_out:
        limits = {"max_tokens": wanted.max_tokens, "max_bytes": wanted.max_bytes}
        named = " and ".join(f"harvest.{name} = {limit:,}" for name, limit in limits.items() if limit is not None)
        place.watch.say(f"harvest: {named} leaves out {kept.n_left_out} shards to learn from")


def _quarantined(counts: Sequence[dict[str, Any]], max_share: float) -> list[dict[str, Any]]:
    """Documents that are left out. Raises ActivationError where they are too many."""
    found = [
        {"document_id": document, "step": "harvest", "reason": "not_finite", "detail": detail}
        for count in counts
        for document, detail in count["not_finite"]
    ]
    n_documents = sum(count["n_documents"] for count in counts)
    if len(found) > max_share * n_documents:
        first = "; ".join(f"document {each['document_id']}: {each['detail']}" for each in found[:FIRST_REASONS])
        raise ActivationError(
            f"the model gives NaN or Inf for {len(found)} of {n_documents} documents, more than "
            f"harvest.max_quarantine_share = {max_share} allows ({first}{' …' * (len(found) > FIRST_REASONS)}); set "
            "lm.dtype to 'float32', leave these documents out, or raise that share: finished shards are kept"
        )
    return found


def harvest_shard(index: int, job: _Job) -> dict[str, Any]:
    """One shard: read it, unless that is done, and say how many rows it has."""
    folder = job.draft.directory
    if (folder / TOO_LARGE).exists():
        return {"too_large": (folder / TOO_LARGE).read_text(encoding="utf-8")}
    names = [rows_file(index), *(site_file(index, place) for place in range(len(job.wanted.sites)))]
    if all([kept_piece(folder / name) for name in names]):
        with safe_open(folder / names[0], framework="np") as file:
            count = json.loads(file.metadata()["count"])
        job.tick(count["n_rows"])
        return dict(count)
    use_threads(job.config.resolved_threads())
    shard = load_tokens(job.tokens.file(shard_name(index)))
    try:
        made = job.harvester(shard, f"shard {index}", job.tick)
    except BatchTooLarge as error:
        write_piece(folder / TOO_LARGE, str(error).encode())
        return {"too_large": str(error)}
    count = _counted(made, len(set(shard.token_document.tolist())))
    keep_piece(folder / names[0], *parts_of(made.columns(), {"count": json.dumps(count)}))
    for name, site in zip(names[1:], made.sites, strict=True):
        keep_piece(folder / name, *parts_of({ROWS: site}))
    return count


def _counted(made: ActivationShard, n_documents: int) -> dict[str, Any]:
    return {
        "n_rows": int(made.token_id.size),
        "n_masked": made.n_masked,
        "n_documents": n_documents,
        "not_finite": [list(each) for each in made.not_finite],
    }
