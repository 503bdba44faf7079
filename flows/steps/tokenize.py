"""text → tokens."""

from safetensors.numpy import save

from flows.artifact import Artifact, Draft, Work
from flows.config import RunConfig
from flows.disk import write_piece
from flows.errors import RunConfigError
from flows.place import Place, StepReport
from flows.rows import corpus as corpus_rows
from flows.steps.loading import contiguous, language_model, shard_name, site_widths
from saelib.errors import ConfigError
from saelib.lm import model_fingerprint
from saelib.text import corpus_fingerprint
from saelib.text import tokenize as tokenize_corpus

__all__ = ["tokenize", "tokenize_work"]


def tokenize_work(config: RunConfig) -> Work:
    """Depends on the text, the tokenizer, and how documents are cut and shared out."""
    plan = {
        "corpus": config.corpus.model_dump(mode="json", exclude={"name", "licence", "role"}),
        "content": corpus_fingerprint(config.corpus),
        "model": model_fingerprint(config.lm),
    }
    return Work("tokens", 2, plan)


def _check_unpacked(config: RunConfig) -> None:
    """Describe takes every token of a sequence for one document's: with several in one it would credit the first."""
    if config.corpus.packing != "none":
        raise RunConfigError(
            f"corpus.packing = {config.corpus.packing!r}: features of packed sequences cannot be described yet; "
            "'none' is wanted, which gives every document sequences of its own"
        )


def tokenize(config: RunConfig, place: Place) -> Artifact:
    """Documents to token shards, with the tables `document` and `sequence` beside them."""
    work = tokenize_work(config)

    def fill(draft: Draft, report: StepReport) -> None:
        lm = language_model(config.lm)
        lm.check_predicts("next-token loss, which every build measures")
        _check_unpacked(config)
        site_widths(lm, config.resolved_harvest().sites)  # a site that is not there is said before the work begins
        with place.watch.bar("tokenize", config.corpus.max_tokens or 0, "tokens") as tick:
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
            "held_out": tokenized.held_out,
            "n_documents": len(tokenized.documents),
            "n_sequences": sum(n_sequences for _, n_sequences, _ in sizes),
            "n_tokens": report.n_tokens,
            "context_tokens": max(longest for _, _, longest in sizes),
            "counts": tokenized.counts._asdict(),
        }
        draft.rows |= corpus_rows.write(draft.directory, lm, tokenized, work.fingerprint)

    return place.make("tokenize", work, fill)
