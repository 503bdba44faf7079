"""text → tokens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from safetensors.numpy import save

from catalog.store import Store
from flows.artifact import Artifact, Draft, Work, every
from flows.config import RunConfig
from flows.disk import write_piece
from flows.errors import ArtifactError
from flows.place import Place, StepReport
from flows.rows import corpus as corpus_rows
from flows.steps.loading import contiguous, language_model, shard_name, site_widths
from saelib.errors import ConfigError
from saelib.lm import model_fingerprint
from saelib.text import corpus_fingerprint
from saelib.text import tokenize as tokenize_corpus

__all__ = ["tokenize", "tokenize_work", "tokenizer_threads"]


def tokenize_work(config: RunConfig) -> Work:
    """Depends on the text, the tokenizer, and how documents are cut and shared out."""
    plan = {
        "corpus": config.corpus.model_dump(mode="json", exclude={"name", "licence", "role"}),
        "content": corpus_fingerprint(config.corpus),
        "model": model_fingerprint(config.lm),
    }
    return Work("tokens", 3, plan)


def tokenize(config: RunConfig, place: Place) -> Artifact:
    """Documents to token shards, with the tables `document`, `sequence` and `quarantine` beside them."""
    work = tokenize_work(config)

    def fill(draft: Draft, report: StepReport) -> None:
        lm = language_model(config.lm)
        site_widths(lm, config.resolved_harvest().sites)  # a site that is not there is said before the work begins
        total = config.corpus.max_tokens or 0
        with tokenizer_threads(config.resolved_threads()), place.watch.bar("tokenize", total, "tokens") as tick:
            tokenized = tokenize_corpus(lm, config.corpus, tick)
        if not any(tokenized.held_out):
            raise ConfigError(
                f"no document is held out of {len(tokenized.documents)}, so nothing could be evaluated; "
                "raise corpus.held_out_share or name corpus.held_out"
            )
        for note in tokenized.notes:
            place.watch.say(f"tokenize: {note}")
        sizes = []
        for index, shard in enumerate(tokenized.shards):  # each is made when it is asked for
            write_piece(draft.directory / shard_name(index), save(contiguous(shard)))
            sizes.append((shard.token_ids.size, shard.n_sequences, int(shard.lengths.max())))
        report.n_tokens = sum(n_tokens for n_tokens, _, _ in sizes)
        draft.facts |= {
            "name": config.corpus.name,
            "held_out": tokenized.held_out,
            "n_documents": len(tokenized.documents),
            "n_sequences": sum(n_sequences for _, n_sequences, _ in sizes),
            "n_tokens": report.n_tokens,
            "context_tokens": max(longest for _, _, longest in sizes),
            "counts": tokenized.counts._asdict(),
        }
        draft.rows |= corpus_rows.write(draft.directory, lm, tokenized, work.fingerprint)
        before = _before(place.store, work, config.corpus.name)
        if before is not None:
            place.watch.say(f"tokenize: {_changed(before, work, draft, config.corpus.name)}")

    return place.make("tokenize", work, fill)


@contextmanager
def tokenizer_threads(n: int) -> Iterator[None]:
    """A fast tokenizer works on several documents at once, and takes its threads from the environment: `n` of them,
    where none were started in this process before.

    Afterwards it works with one, unless somebody said otherwise: processes that are forked later must not wait for
    threads that they do not have.
    """
    wanted = {"TOKENIZERS_PARALLELISM": str(n > 1).lower(), "RAYON_NUM_THREADS": str(n)}
    after = {"TOKENIZERS_PARALLELISM": "false"} | {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        del os.environ["RAYON_NUM_THREADS"]
        os.environ.update(after)


def _before(store: Store, work: Work, name: str) -> Artifact | None:
    """The latest tokens of a corpus of the same name and other content."""
    older: list[Artifact] = []
    with suppress(ArtifactError):  # one that is damaged is for the step that reads it
        older = [artifact for artifact in every(store, "tokens") if artifact.facts.get("name") == name]
    older = [artifact for artifact in older if artifact.manifest["plan"]["content"] != work.plan["content"]]
    return max(older, key=lambda artifact: (artifact.directory / "manifest.json").stat().st_mtime, default=None)


def _changed(before: Artifact, work: Work, draft: Draft, name: str) -> str:
    """What to say of a corpus that is not what it was."""
    old, new = (corpus_rows.dataset_name(name, made.fingerprint) for made in (before, work))
    differs = ""
    with suppress(ArtifactError):
        was = corpus_rows.content_keys(before.file("document.parquet"))
        now = corpus_rows.content_keys(draft.directory / "document.parquet")
        same, gone = int(np.isin(now, was).sum()), int((~np.isin(was, now)).sum())
        differs = f": {same} are as they were, {now.size - same} are new, {gone} are gone"
    counts = f"{draft.facts['n_documents']} documents where there were {before.facts['n_documents']}{differs}"
    return (
        f"the corpus {name!r} changed since {old} was made: {counts}. This is a new data set, {new}; {old} stays, "
        "with all that was learned from it"
    )
