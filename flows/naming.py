"""Sites of a run by short name or wildcard → module paths, which only the language model knows."""

from typing import Any

from flows.config import RunConfig
from flows.errors import RecipeError
from flows.imports import Import
from flows.steps.loading import language_model
from saelib.base import Site
from saelib.errors import SiteNotFound
from saelib.lm import LanguageModel
from saelib.sites import needs_model, resolve_sites

__all__ = ["with_module_paths"]

_ENDS = ("site", "read", "write")


def with_module_paths(config: RunConfig) -> RunConfig:
    """The run as it is planned and fingerprinted. Raises RecipeError for a site that the model does not have."""
    if not any(map(needs_model, config.resolved_harvest().sites)):
        return config
    lm = language_model(config.lm)
    try:
        changes = {
            "harvest": config.harvest.model_copy(update={"sites": resolve_sites(lm, config.harvest.sites)}),
            "recipes": tuple(_recipe(lm, entry) for entry in config.recipes),
            "imports": tuple(_import(lm, given) for given in config.imports),
        }
    except SiteNotFound as error:
        raise RecipeError(f"harvest.sites, a recipe or an import names an unknown site: {error}") from error
    return config.model_copy(update=changes)


def _recipe(lm: LanguageModel, entry: dict[str, Any]) -> dict[str, Any]:
    named = {key: entry[key] if isinstance(entry[key], list | tuple) else [entry[key]] for key in _ENDS if key in entry}
    return entry | {key: [str(site) for site in _resolved(lm, sites)] for key, sites in named.items()}


def _import(lm: LanguageModel, given: Import) -> Import:
    return given.model_copy(update={end: _resolved(lm, getattr(given, end)) for end in ("read", "write")})


def _resolved(lm: LanguageModel, sites: Any) -> tuple[Site, ...]:
    return resolve_sites(lm, [Site.model_validate(site) if isinstance(site, dict) else site for site in sites])
