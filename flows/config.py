"""A run file: TOML, strict. What is left out has a default; what is unknown is an error that names the nearest key."""

import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from flows.complaints import complaint
from flows.errors import RecipeError, RunConfigError
from flows.imports import Import, imported
from flows.recipes import Choice, choices, names_sites, sites_named
from saelib.activations import HarvestConfig
from saelib.architectures import Recipe
from saelib.base import Frozen, Site
from saelib.effects import EffectsConfig
from saelib.evaluation import EvaluationConfig
from saelib.lm import LMConfig
from saelib.schedule import TrainingConfig
from saelib.text import CorpusConfig, Source

__all__ = ["KEEP_RULE", "DescribeConfig", "RunConfig", "RunHarvest", "load_run"]

KEEP_RULE = r"^(all|none|last|\d+ days?)$"
DEFAULT_SITE = Site(path="model.layers.1")


class RunHarvest(HarvestConfig):
    """How activations are read, and how many are kept."""

    sites: tuple[Site, ...] = ()
    """Sites that recipes name are added."""
    max_tokens: PositiveInt | None = None
    """Tokens to learn from that are kept on disk, in whole shards; the held-out ones always are."""
    max_bytes: PositiveInt | None = None
    """Disk that all rows may take: held-out shards, and as many whole shards to learn from as fit, one at least."""
    max_quarantine_share: NonNegativeFloat = 0.01
    """Share of the documents that may be left out because the model gives NaN or Inf for them."""

    def halved(self) -> "RunHarvest":
        """With batches of half as many tokens."""
        assert self.batch_tokens != "auto", "a plan names a number"
        return self.model_copy(update={"batch_tokens": max(1, self.batch_tokens // 2)})


class DescribeConfig(Frozen):
    """What is counted as rare or dense, and how much is kept for later questions."""

    rare_density: NonNegativeFloat = 1e-5
    dense_density: NonNegativeFloat = 0.1
    activation_tokens: PositiveInt = 1_000_000
    n_neighbors: PositiveInt = 20
    n_tokens_listed: PositiveInt = 20
    held_out_share: NonNegativeFloat = 0.3
    effects: EffectsConfig = EffectsConfig()
    seed: int = 0


class RunConfig(Frozen):
    """One run of the path."""

    name: str = "run"
    lm: LMConfig = LMConfig()
    corpus: CorpusConfig = CorpusConfig(name="stdlib", sources=(Source(kind="stdlib"),))
    harvest: RunHarvest = RunHarvest()
    recipes: tuple[dict[str, Any], ...] = Field(default=({"architecture": "batchtopk", "n_features": 4096, "k": 32},))
    imports: tuple[Import, ...] = ()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    describe: DescribeConfig = DescribeConfig()
    threads: PositiveInt | None = None
    workers: PositiveInt = 1
    """Processes that share the shards of harvest and describe, each with as many threads. Changes no result."""
    keep_activations: Annotated[str, Field(pattern=KEEP_RULE)] = "all"
    """Whose rows stay on disk after a run: all, none, those of the last run, or as many days as are said."""

    def resolved_threads(self) -> int:
        """Threads of torch: those asked for, else the cores this process may use. Part of every plan that computes."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _listed_sites(self) -> tuple[Site, ...]:
        """Where a recipe is trained that names no site."""
        default = () if all(map(names_sites, self.recipes)) else (DEFAULT_SITE,)
        return self.harvest.sites or default

    def resolved_harvest(self) -> RunHarvest:
        """With every site: those listed, then those that recipes and imports name."""
        ends = [site for given in self.imports for site in (*given.read, *given.write)]
        sites = dict.fromkeys((*self._listed_sites(), *sites_named(self.recipes), *ends))
        return self.harvest.model_copy(update={"sites": tuple(sites)})

    def choices(self) -> list[Choice]:
        """Every SAE that is to be trained, checked."""
        return choices(self.recipes, self._listed_sites(), self.training)

    def names(self) -> list[str]:
        """Of all its SAEs, as they stand in an sae_id: those that exist, then those that are trained."""
        return [*(one.name for one in imported(self.imports)), *(choice.name for choice in self.choices())]

    def resolved_recipes(self) -> list[Recipe]:
        """Their recipes."""
        return [choice.recipe for choice in self.choices()]


def load_run(path: str | Path) -> RunConfig:
    """A run from a TOML file, or from the name of one that comes with the program (`demo`).

    Raises RunConfigError for a file that is missing, is no TOML, or holds what a run does not have.
    """
    content, where = _read(path)
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise RunConfigError(f"{where} is no valid TOML: {error}") from error
    sites = table.get("harvest", {}).get("sites", [])
    if isinstance(sites, list):
        table.get("harvest", {})["sites"] = [_site(site, where) for site in sites]
    try:
        config = RunConfig.model_validate(table)
    except ValidationError as error:
        raise RunConfigError(f"{where}: {complaint(error, RunConfig)}") from error
    try:
        config.choices()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    return config


def _read(path: str | Path) -> tuple[str, str]:
    file = Path(path)
    if file.is_file():
        return file.read_text(encoding="utf-8"), str(file)
    shipped = files("flows") / "runs"
    names = sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir() if entry.name.endswith(".toml"))
    name = str(path).removesuffix(".toml")
    if name in names:
        return (shipped / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml"
    raise RunConfigError(
        f"no run file {str(path)!r}; give a TOML file or one of the runs that come along: {', '.join(names)}"
    )


def _site(site: Any, where: str) -> Any:
    try:
        return Site.parse(site).model_dump() if isinstance(site, str) else site
    except ValidationError as error:
        raise RunConfigError(
            f"{where}: site {site!r} is not understood; write 'module.path' or 'module.path:in'"
        ) from error
