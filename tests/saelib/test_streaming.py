"""Streaming gives the rows that a harvest writes, in a seeded order, and goes on from any position."""

from collections.abc import Callable

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
from saelib.streaming import StreamedRows
from saelib.text import TokenShard
from saelib.training import Training

SITES = (Site(path="model.layers.0"), Site(path="model.layers.1"))
CONFIG = HarvestConfig(sites=SITES, batch_sequences=3, sink_norm_multiple=0.0)
BATCH = 16


def shards() -> list[TokenShard]:
    random = np.random.default_rng(0)
    made = []
    for first in (0, 20, 40):
        lengths = random.integers(1, 11, 14)
        made.append(token_shard([[0, *random.integers(3, 43, n).tolist()] for n in lengths], first, first))
    return made


def streamed(lm: LanguageModel, loads: list[int] | None = None, buffer: int = 60, batch: int = BATCH) -> StreamedRows:
    corpus = shards()

    def load(index: int) -> TokenShard:
        if loads is not None:
            loads.append(index)
        return corpus[index]

    return StreamedRows(Harvester(lm, CONFIG, (None, None)), len(corpus), load, batch, 7, buffer)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[np.lexsort(rows.numpy().round(4).T)]


def test_an_epoch_of_the_stream_is_what_a_harvest_writes(tiny_lm: LanguageModel) -> None:
    harvester = Harvester(tiny_lm, CONFIG, (None, None))
    harvests = [harvester(shard, "shard") for shard in shards()]
    for site in range(2):
        written = torch.cat([harvest.sites[site] for harvest in harvests])
        n = written.shape[0]
        stream = streamed(tiny_lm, batch=n)
        first = stream.batch(0)[site]
        torch.testing.assert_close(sorted_rows(first), sorted_rows(written), atol=1e-5, rtol=1e-4)
        assert not torch.equal(first, stream.batch(1)[site]), "another epoch has another order"


def test_rows_of_two_sites_are_one_token(tiny_lm: LanguageModel) -> None:
    harvests = [Harvester(tiny_lm, CONFIG, (None, None))(shard, "shard") for shard in shards()]
    first, second = (torch.cat([harvest.sites[site] for harvest in harvests]) for site in range(2))
    for x, y in zip(*streamed(tiny_lm).batch(2), strict=True):
        place = (first - x).abs().sum(dim=1).argmin()
        torch.testing.assert_close(second[place], y, atol=1e-5, rtol=1e-4)


def test_a_batch_is_the_same_in_any_order_and_after_a_seek(tiny_lm: LanguageModel) -> None:
    forward = streamed(tiny_lm)
    batches = [forward.batch(step)[0] for step in range(25)]
    back = streamed(tiny_lm)
    for step in (24, 3, 17, 0, 23):
        assert torch.equal(back.batch(step)[0], batches[step])
    forward = streamed(tiny_lm)
    forward.batch(13)
    position = forward.position()
    assert 0 < position["row"] <= 13 * BATCH
    other = streamed(tiny_lm)
    other.seek(position)
    assert torch.equal(other.batch(13)[0], batches[13])
    assert torch.equal(other.batch(14)[0], batches[14])
    assert torch.equal(streamed(tiny_lm).sample()[0], torch.cat(batches)[:60])


def test_a_seek_spares_the_rows_before_it(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = streamed(tiny_lm)
    stream.batch(40)
    read: Callable[..., object] = Harvester.read
    reads: list[int] = []
    monkeypatch.setattr(Harvester, "read", lambda *given: (reads.append(1), read(*given))[1])
    other = streamed(tiny_lm)
    other.seek(stream.position())
    other.batch(40)
    assert len(reads) <= 8, "one buffer, or two where the batch straddles them"


def test_training_from_a_stream_resumes_bit_for_bit(tiny_lm: LanguageModel, tmp_path) -> None:
    config = TrainingConfig(n_tokens=30 * BATCH, batch_tokens=BATCH, learning_rate=1e-2)

    def training() -> Training:
        return Training(recipe("batchtopk", n_features=24, k=3), config, streamed(tiny_lm))

    whole = training()
    told = list(whole.run())
    first = training()
    for _ in range(17):
        first.advance()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(first.save())
    second = training()
    second.restore(path)
    assert list(second.run()) == told[17:]
    for key, tensor in whole.trainee.state_dict().items():
        assert torch.equal(tensor, second.trainee.state_dict()[key]), key


def test_a_corpus_of_special_tokens_alone_is_refused(tiny_lm: LanguageModel) -> None:
    shard = token_shard([[0, 1, 1], [0]])
    stream = StreamedRows(Harvester(tiny_lm, CONFIG, (None, None)), 1, lambda _: shard, 4, 0, 8)
    with pytest.raises(ConfigError, match="no token to train on"):
        stream.batch(0)
