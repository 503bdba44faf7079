"""What a run trains: every entry of [[recipes]] at its sites, and every combination of the lists in it.

Beside the settings of its architecture an entry may say where it is trained (`site`, or `read` and `write`) and how it
is trained otherwise than the run (`seed`, `learning_rate`, `training`).
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError

from flows.complaints import complaint
from flows.errors import RecipeError
from saelib.architectures import ARCHITECTURES, Recipe, recipe
from saelib.base import Ends, Site
from saelib.errors import ConfigError
from saelib.schedule import TrainingConfig

__all__ = ["SHARED", "SWEPT", "Choice", "choices", "names_sites", "sites_named"]

SWEPT = ("n_features", "k", "l1_weight", "l0_weight", "learning_rate", "seed", "site")
"""Keys whose value may be a list: an SAE is trained for each."""

SHARED = ("batch_tokens", "stream", "checkpoint_every_steps")
"""What cannot differ between SAEs that are trained in one pass over the activations."""

_ENDS = ("site", "read", "write")
_TRAINING = ("seed", "learning_rate")

_READS_ONE_WRITES_ANOTHER = {"transcoder", "skip_transcoder"}
_SPANS_SITES = {"crosscoder"}


class Choice(NamedTuple):
    """One SAE that is to be trained. `settings` are those of its architecture, with what was left out filled in."""

    recipe: Recipe
    settings: dict[str, Any]
    ends: Ends
    training: TrainingConfig
    suffix: str
    """What a list of the recipe gave it, for its name: '-k16-seed1'."""

    @property
    def name(self) -> str:
        """Sites, architecture, width, and what sets it apart within a sweep."""
        read, write = ("+".join(map(str, sites)) for sites in (self.ends.read, self.ends.write))
        where = read if self.ends.read == self.ends.write else f"{read}..{write}"
        return f"{where}/{self.recipe.architecture}-{self.recipe.n_features}{self.suffix}"


def choices(recipes: Sequence[Mapping[str, Any]], sites: Sequence[Site], training: TrainingConfig) -> list[Choice]:
    """Every SAE of a run, in order. Raises RecipeError that names the entry and what is wrong with it.

    A recipe that names no site is trained at each of `sites`; a crosscoder spans all of them.
    """
    made: list[Choice] = []
    for number, entry in enumerate(recipes):
        try:
            made += _of_entry(entry, sites, training)
        except (ConfigError, ValidationError, TypeError) as error:
            raise RecipeError(f"recipes.{number}: {_said(error)}") from error
    for number, choice in enumerate(made):
        if any(choice[:4] == other[:4] for other in made[:number]):
            raise RecipeError(f"two recipes are the same: {choice.name}; leave one out, or give it another seed")
    return made


def names_sites(entry: Mapping[str, Any]) -> bool:
    """Whether a recipe says where it is trained."""
    return any(key in entry for key in _ENDS)


def sites_named(recipes: Sequence[Mapping[str, Any]]) -> tuple[Site, ...]:
    """The sites that recipes mention, once, in order."""
    return tuple(dict.fromkeys(site for entry in recipes for key in _ENDS for site in _sites(entry.get(key, ()), key)))


def _of_entry(entry: Mapping[str, Any], sites: Sequence[Site], training: TrainingConfig) -> Iterator[Choice]:
    _check_keys(entry)
    lists = {key: entry[key] for key in SWEPT if isinstance(entry.get(key), list | tuple)}
    if empty := [key for key, values in lists.items() if not values]:
        raise ConfigError(f"{empty[0]} is an empty list; give it one value or more")
    varied = [key for key, values in lists.items() if len(values) > 1 and key not in ("n_features", "site")]
    for values in product(*lists.values()):
        single = {**entry, **dict(zip(lists, values, strict=True))}
        own = {key: value for key, value in single.items() if key not in (*_ENDS, *_TRAINING, "training")}
        made = recipe(**own)
        trained = _training(single, training)
        suffix = "".join(f"-{key}{single[key]}" for key in varied)
        for ends in _ends(single, sites):
            yield Choice(made, _filled(own), ends, trained, suffix)


def _check_keys(entry: Mapping[str, Any]) -> None:
    architecture = entry.get("architecture")
    if architecture not in ARCHITECTURES:
        if architecture is None:
            raise ConfigError(f"a recipe needs an architecture, one of {', '.join(ARCHITECTURES)}")
        raise ConfigError(_unknown("architecture", str(architecture), ARCHITECTURES))
    known = ("architecture", *inspect.signature(ARCHITECTURES[architecture]).parameters, *_ENDS, *_TRAINING, "training")
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(_unknown(f"setting of {architecture}", key, known))
        if isinstance(value, list | tuple) and key not in (*SWEPT, *_ENDS, "prefixes"):
            raise ConfigError(f"{key} is a list; lists are tried one after the other for {', '.join(SWEPT)} alone")


def _unknown(what: str, got: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.0)
    return f"unknown {what} {got!r}; known are {', '.join(known)}. Did you mean {near[0]!r}?"


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of the architecture, but for its name."""
    parameters = inspect.signature(ARCHITECTURES[settings["architecture"]]).parameters
    return {name: settings.get(name, parameter.default) for name, parameter in parameters.items()}


def _training(entry: Mapping[str, Any], training: TrainingConfig) -> TrainingConfig:
    """That of the run, with what the recipe says otherwise."""
    changes = {**entry.get("training", {}), **{key: entry[key] for key in _TRAINING if key in entry}}
    if shared := [key for key in changes if key in SHARED]:
        raise ConfigError(
            f"training.{shared[0]} is the same for all SAEs of a run, which are trained in one pass; "
            "set it under [training], or make two runs"
        )
    try:
        return TrainingConfig.model_validate(training.model_dump() | changes)
    except ValidationError as error:
        raise ConfigError(complaint(error, TrainingConfig, "training.")) from error


def _ends(entry: Mapping[str, Any], sites: Sequence[Site]) -> list[Ends]:
    """Where a recipe is trained: at the sites it names, else at each of `sites`."""
    architecture = entry["architecture"]
    site, read, write = (_sites(entry.get(key, ()), key) for key in _ENDS)
    if site and (read or write):
        raise ConfigError("a recipe has either `site`, or `read` and `write`; leave one of them out")
    if write and not read:
        raise ConfigError("a recipe that says what it writes must say what it reads; add `read`")
    made = [Ends(read=read, write=write or read)] if read else [Ends.at(each) for each in site or sites]
    if architecture in _SPANS_SITES and not (site or read):
        made = [Ends(read=tuple(sites), write=tuple(sites))]
    for ends in made:
        if architecture in _READS_ONE_WRITES_ANOTHER and set(ends.read) == set(ends.write):
            raise ConfigError(
                f"a {architecture} reads one site and writes another; "
                "give both, as read = 'model.layers.1.mlp:in' and write = 'model.layers.1.mlp'"
            )
        if architecture in _SPANS_SITES and len({*ends.read, *ends.write}) < 2:
            raise ConfigError(
                f"a {architecture} spans two sites or more, got {', '.join(map(str, ends.read)) or 'none'}; "
                "give them as read = ['model.layers.0', 'model.layers.1']"
            )
        if len(set(ends.read)) < len(ends.read) or len(set(ends.write)) < len(ends.write):
            raise ConfigError(f"a recipe names a site twice: {', '.join(map(str, (*ends.read, *ends.write)))}")
    return made


def _sites(value: Any, key: str) -> tuple[Site, ...]:
    """One site or a list of them, as text."""
    found = []
    for each in value if isinstance(value, list | tuple) else [value]:
        try:
            found.append(Site.parse(each) if isinstance(each, str) else Site.model_validate(each))
        except ValidationError as error:
            raise RecipeError(
                f"recipes: {key} {each!r} is not understood; write 'module.path' or 'module.path:in'"
            ) from error
    return tuple(found)


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} = {first.get('input')!r}: {first['msg']}"
    return str(error)
