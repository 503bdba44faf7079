"""A run file: TOML, strict. What is left out has a default; what is unknown is an error that names the nearest key."""

import difflib
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, ValidationError

from flows.errors import RunConfigError
from saelib.activations import HarvestConfig
from saelib.architectures import Recipe, recipe
from saelib.base import Frozen, Site
from saelib.effects import EffectsConfig
from saelib.evaluation import EvaluationConfig
from saelib.lm import LMConfig
from saelib.schedule import TrainingConfig
from saelib.text import CorpusConfig, Source

__all__ = ["DescribeConfig", "RunConfig", "load_run"]


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
    harvest: HarvestConfig = HarvestConfig(sites=(Site(path="model.layers.1"),))
    recipes: tuple[dict[str, Any], ...] = Field(default=({"architecture": "batchtopk", "n_features": 4096, "k": 32},))
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    describe: DescribeConfig = DescribeConfig()
    threads: PositiveInt | None = None

    def resolved_threads(self) -> int:
        """Threads of torch: those asked for, else the cores this process may use. Part of every plan that computes."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def resolved_recipes(self) -> list[Recipe]:
        """Recipes, checked."""
        return [recipe(**settings) for settings in self.recipes]


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
        raise RunConfigError(f"{where}: {_explained(error)}") from error
    config.resolved_recipes()
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


def _explained(error: ValidationError) -> str:
    """The first complaint in our words."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        return f"{'.'.join(keys)} = {first.get('input')!r}: {first['msg']}"
    known = _known_keys(RunConfig, keys[:-1])
    near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.0)
    meant = f"; did you mean {near[0]!r}? Known are {', '.join(sorted(known))}" if near else ""
    return f"unknown key {'.'.join(keys)!r}{meant}"


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit() or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
