"""The quality bar: the reference SAE's numbers on a real model of 260k parameters, with the settings of the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.config import RunConfig, load_run
from saelib.activations import Harvester
from saelib.base import Ends
from saelib.evaluation import evaluate
from saelib.lm import LanguageModel, load_lm
from saelib.sae import SAE
from saelib.shard_files import ROWS, parts_of
from saelib.shuffled import ShuffledRows
from saelib.sinks import sink_norms
from saelib.text import Tokenized, tokenize
from saelib.training import Training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(almanac_data: Path) -> Iterator[RunConfig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALMANAC_DATA", str(almanac_data))
        yield load_run("stories260k")


def harvested(lm: LanguageModel, config: RunConfig, corpus: Tokenized, folder: Path) -> list[Path]:
    """Activation shards of the text to learn from."""
    harvester = Harvester(lm, config.harvest, tuple(sink_norms(lm, corpus.shards, config.harvest)))
    paths = []
    for index, shard in enumerate(corpus.shards):
        if not corpus.held_out[index]:
            paths.append(folder / f"shard-{index:05d}.safetensors")
            paths[-1].write_bytes(b"".join(parts_of({ROWS: harvester(shard, f"shard {index}").sites[0]})))
    return paths


def trained(config: RunConfig, paths: list[Path]) -> SAE:
    """The run's recipe, to the end."""
    rows = ShuffledRows([[path] for path in paths], config.training.batch_tokens, config.training.seed)
    training = Training(config.resolved_recipes()[0], config.training, rows)
    assert [progress.step for progress in training.run()][-1] == training.plan.n_steps - 1
    for path in paths:
        path.unlink()  # 390 MB
    return training.published(Ends.at(config.harvest.sites[0]))


def test_batchtopk_on_stories260k_reaches_the_reference(config: RunConfig, tmp_path: Path) -> None:
    lm = load_lm(config.lm)
    corpus = tokenize(lm, config.corpus)
    sae = trained(config, harvested(lm, config, corpus, tmp_path))
    real = [shard for shard, held_out in zip(corpus.shards, corpus.held_out, strict=True) if held_out]
    max_norm = sink_norms(lm, corpus.shards, config.harvest)[0]
    found = evaluate(lm, sae, real, max_norm, config.evaluation)
    assert found.n_tokens > 35_000
    metrics = {name: interval.value for name, interval in found.metrics.items()}
    assert metrics["fvu"] <= 0.065
    assert metrics["loss_recovered_mean"] >= 0.965
    assert metrics["l0"] <= 16.2
    assert metrics["dead_share"] <= 0.10
