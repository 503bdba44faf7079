"""Harvest once, then train and measure one SAE after another."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows.config import RunConfig, load_run
from quality.variants import BATCH_TOKENS, N_FEATURES, VARIANTS
from saelib.activations import Harvester
from saelib.architectures import recipe
from saelib.base import Ends
from saelib.evaluation import evaluate
from saelib.lm import LanguageModel, load_lm
from saelib.sae import SAE
from saelib.schedule import TrainingConfig
from saelib.shard_files import ROWS, parts_of
from saelib.shuffled import ShuffledRows
from saelib.sinks import sink_norms
from saelib.text import TokenShard, tokenize
from saelib.training import Training

DEAD_TOKENS = 200_000
"""Training tokens on which a feature has to fire once."""


@dataclass(frozen=True)
class Bench:
    """The harvested training text, the held-out tokens, and the model that they are evaluated with."""

    config: RunConfig
    lm: LanguageModel
    shards: list[Path]
    held_out: list[TokenShard]
    max_norm: float | None
    results: dict[str, Any]

    def references(self) -> Iterator[dict[str, Any]]:
        """What the reference SAEs reach by their own account."""
        for name, found in self.results.items():
            real = found["real"]
            yield {
                "kind": "reference",
                "name": name,
                "l0": real["l0"],
                "fvu": real["fvu"],
                "recovered": real["ce_recovered_vs_mean"],
                "dead_share": found["dead_fraction_200k_train_tokens"],
            }

    def train(self, name: str, settings: dict[str, Any], seed: int, product: str, samples: int) -> dict[str, Any]:
        """One SAE from the start to its figures. `settings` replace those of the variant."""
        variant = VARIANTS[name]
        used = variant.settings | settings
        start = time.process_time()
        config = TrainingConfig(n_tokens=samples, batch_tokens=BATCH_TOKENS, seed=seed, product=product)
        rows = ShuffledRows([[path] for path in self.shards], BATCH_TOKENS, seed)
        training = Training(recipe(variant.architecture, n_features=N_FEATURES, **used), config, rows)
        for _ in training.run():
            pass
        sae = training.published(Ends.at(self.config.harvest.sites[0]))
        cpu_s = time.process_time() - start
        about = {"name": name, "settings": used, "seed": seed, "product": training.plan.product, "cpu_s": cpu_s}
        about["learning_rate"] = training.plan.learning_rate
        return about | self.measured(sae) | {"dead_share": dead_share(sae, rows)}

    def measured(self, sae: SAE) -> dict[str, float]:
        """On real stories, as it is published."""
        found = evaluate(self.lm, sae, self.held_out, self.max_norm, self.config.evaluation)
        value = {name: interval.value for name, interval in found.metrics.items()}
        return {
            "l0": value["l0"],
            "fvu": value["fvu"],
            "recovered": value["loss_recovered_mean"],
            "recovered_zero": value["loss_recovered_zero"],
            "tokens": found.n_tokens,
        }


def harvest(data: Path, folder: Path) -> Bench:
    """Run the model over the training text once: 390 MB in `folder`."""
    os.environ["ALMANAC_DATA"] = str(data)
    config = load_run("stories260k")
    lm = load_lm(config.lm)
    corpus = tokenize(lm, config.corpus)
    norms = tuple(sink_norms(lm, corpus.shards, config.harvest))
    harvester = Harvester(lm, config.harvest, norms)
    paths = []
    for index, (shard, held_out) in enumerate(zip(corpus.shards, corpus.held_out, strict=True)):
        if not held_out:
            paths.append(folder / f"shard-{index:05d}.safetensors")
            paths[-1].write_bytes(b"".join(parts_of({ROWS: harvester(shard, f"shard {index}").sites[0]})))
    real = [shard for shard, held_out in zip(corpus.shards, corpus.held_out, strict=True) if held_out]
    return Bench(config, lm, paths, real, norms[0], json.loads((data / "reference/results.json").read_text()))


def dead_share(sae: SAE, rows: ShuffledRows) -> float:
    """Share of features that are silent on the first training tokens."""
    fires = torch.zeros(sae.n_features, dtype=torch.int64)
    for step in range(-(-DEAD_TOKENS // rows.batch_tokens)):
        fires += torch.bincount(sae.fire(rows.batch(step)[0].float()).feature, minlength=sae.n_features)
    return (fires == 0).double().mean().item()
