"""Harvest on real documents: WikiText-2 by article, with the tokenizer and the model that come with the program."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from saelib.activations import ActivationShard, HarvestConfig, Harvester
from saelib.base import Site
from saelib.batches import auto_batch_tokens, batches_of
from saelib.documents import CorpusConfig
from saelib.lm import LanguageModel, LMConfig, load_lm, shape_of
from saelib.sources import Source
from saelib.text import TokenShard, tokenize

SITE = Site(path="model.layers.0")
BATCH_ROWS = 512


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load_lm(LMConfig(device="cpu"))


@pytest.fixture(scope="module")
def shards(demo: LanguageModel, almanac_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TokenShard]:
    """Articles, one document each."""
    text = (almanac_data / "corpora/wikitext2_valid.txt").read_text(encoding="utf-8")
    articles = [each for each in re.split(r"(?m)^(?= = [^=].* = $)", text) if each.strip()]
    path = tmp_path_factory.mktemp("wikitext") / "articles.jsonl"
    path.write_text("".join(json.dumps({"text": article}) + "\n" for article in articles))
    config = CorpusConfig(sources=(Source(path=str(path)),), max_tokens=150_000, shard_tokens=30_000)
    return list(tokenize(demo, config).shards)


@pytest.fixture(scope="module")
def harvested(demo: LanguageModel, shards: list[TokenShard]) -> ActivationShard:
    return Harvester(demo, HarvestConfig(sites=(SITE,)), (None,))(shards[0], "shard 0")


def test_padding_is_less_than_a_twentieth_of_what_is_computed(demo: LanguageModel, shards: list[TokenShard]) -> None:
    size = auto_batch_tokens(shape_of(LMConfig(device="cpu")), demo.context_tokens, demo.device)
    batches = [batch for shard in shards for batch in batches_of(shard, size, 0)]
    computed = sum(batch.input_ids.numel() for batch in batches)
    n_tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    assert n_tokens == sum(shard.token_ids.size for shard in shards)
    assert len({length for shard in shards for length in shard.lengths.tolist()}) > 20, "sequences of many lengths"
    assert (computed - n_tokens) / computed < 0.05
    assert max(batch.input_ids.numel() for batch in batches) <= size


def test_sorted_batches_give_what_single_sequences_give(
    demo: LanguageModel, shards: list[TokenShard], harvested: ActivationShard
) -> None:
    shortest = np.argsort(shards[0].lengths, kind="stable")
    some = np.sort(np.concatenate([shortest[:10], shortest[-10:]]))
    config = HarvestConfig(sites=(SITE,), batch_tokens=1)
    alone = Harvester(demo, config, (None,))(shards[0].take(some), "shard 0")
    mine = {
        place: row for row, place in enumerate(zip(some[alone.sequence].tolist(), alone.position.tolist(), strict=True))
    }
    places = list(zip(harvested.sequence.tolist(), harvested.position.tolist(), strict=True))
    chosen = [(row, mine[place]) for row, place in enumerate(places) if place in mine]
    assert len(chosen) == len(mine) > 2_000
    together, apart = (torch.tensor(each) for each in zip(*chosen, strict=True))
    torch.testing.assert_close(harvested.sites[0][together], alone.sites[0][apart], rtol=1e-5, atol=1e-5)


def test_a_batch_holds_as_few_rows_of_a_document_as_a_random_draw_from_its_shard(harvested: ActivationShard) -> None:
    documents = harvested.document_id
    n_rows, sizes = documents.size, np.unique(documents, return_counts=True)[1]

    def log_choose(n: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(BATCH_ROWS + 1) - math.lgamma(n - BATCH_ROWS + 1)

    absent = sum(math.exp(log_choose(n_rows - int(size)) - log_choose(n_rows)) for size in sizes)
    expected = BATCH_ROWS / (sizes.size - absent)
    batches = np.split(documents, range(BATCH_ROWS, n_rows, BATCH_ROWS))[:-1]
    measured = np.mean([BATCH_ROWS / np.unique(batch).size for batch in batches])
    assert len(batches) > 20 and expected > 1.1
    assert measured <= 1.1 * expected
    in_order = np.mean(
        [BATCH_ROWS / np.unique(batch).size for batch in np.array_split(np.sort(documents), len(batches))]
    )
    assert in_order > 2 * expected, "rows as they were written would not do"
