"""A stream is a harvest that is not written: the same rows in the same order, one shard at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import token_shard

from saelib.activations import HarvestConfig, Harvester
from saelib.architectures import recipe
from saelib.base import Site
from saelib.errors import ConfigError
from saelib.lm import LanguageModel
from saelib.schedule import TrainingConfig
from saelib.shard_files import ROWS, parts_of
from saelib.shuffled import Rows, ShuffledRows
from saelib.streaming import StreamedRows
from saelib.text import TokenShard
from saelib.training import Training

SITES = (Site(path="model.layers.0"), Site(path="model.layers.1"))
CONFIG = HarvestConfig(sites=SITES, batch_tokens=36, sink_norm_multiple=0.0)
BATCH = 16


def shards() -> list[TokenShard]:
    random = np.random.default_rng(0)
    made = []
    for first in (0, 20, 40):
        lengths = random.integers(1, 11, 14)
        made.append(token_shard([[0, *random.integers(3, 43, n).tolist()] for n in lengths], first, first))
    return made


def streamed(lm: LanguageModel, loads: list[int] | None = None) -> StreamedRows:
    corpus = shards()

    def load(index: int) -> TokenShard:
        if loads is not None:
            loads.append(index)
        return corpus[index]

    return StreamedRows(Harvester(lm, CONFIG, (None, None)), load, len(corpus), BATCH, 7)


def written(lm: LanguageModel, folder: Path) -> ShuffledRows:
    paths = []
    for index, shard in enumerate(shards()):
        paths.append([folder / f"shard-{index}.site-{place}.safetensors" for place in range(2)])
        for path, site in zip(paths[-1], Harvester(lm, CONFIG, (None, None))(shard, "shard").sites, strict=True):
            path.write_bytes(b"".join(parts_of({ROWS: site})))
    return ShuffledRows(paths, BATCH, 7)


def test_a_stream_gives_the_rows_that_a_harvest_writes_in_the_same_order(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    stream, disk = streamed(tiny_lm), written(tiny_lm, tmp_path)
    for step in (*range(40), 3, 0):
        for site, same in zip(stream.batch(step), disk.batch(step), strict=True):
            assert torch.equal(site, same), step
    assert torch.equal(stream.sample()[1], disk.sample()[1])


def test_one_shard_is_held_and_loaded_once_an_epoch(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    loads: list[int] = []
    stream, n_rows = streamed(tiny_lm, loads), sum(written(tiny_lm, tmp_path).size(shard) for shard in range(3))
    for step in range(n_rows // BATCH):
        stream.batch(step)
    assert sorted(loads) == [0, 1, 2]


def test_a_resumed_stream_loads_only_the_shard_that_it_stands_in(tiny_lm: LanguageModel) -> None:
    stream = streamed(tiny_lm)
    rows = stream.batch(40)
    loads: list[int] = []
    other = streamed(tiny_lm, loads)
    other.seek(stream.position())
    assert torch.equal(other.batch(40)[0], rows[0])
    assert len(loads) <= 2, "the batch may straddle two shards"


def test_training_from_a_stream_is_training_from_disk_and_resumes_bit_for_bit(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config = TrainingConfig(n_tokens=30 * BATCH, batch_tokens=BATCH, learning_rate=1e-2)

    def training(rows: Rows) -> Training:
        return Training(recipe("batchtopk", n_features=24, k=3), config, rows)

    whole = training(written(tiny_lm, tmp_path))
    told = list(whole.run())
    first = training(streamed(tiny_lm))
    for _ in range(17):
        first.advance()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(first.save())
    second = training(streamed(tiny_lm))
    second.restore(path)
    assert list(second.run()) == told[17:]
    for key, tensor in whole.trainee.state_dict().items():
        assert torch.equal(tensor, second.trainee.state_dict()[key]), key


def test_a_corpus_that_does_not_fill_a_batch_is_refused(tiny_lm: LanguageModel) -> None:
    shard = token_shard([[0, 1, 1], [0]])
    stream = StreamedRows(Harvester(tiny_lm, CONFIG, (None, None)), lambda _: shard, 1, 4, 0)
    with pytest.raises(ConfigError, match="0 training tokens, fewer than one batch of 4"):
        stream.batch(0)
