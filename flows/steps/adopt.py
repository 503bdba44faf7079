"""An SAE that exists → an artifact like those that were trained here."""

from flows.artifact import Artifact, Draft, Work
from flows.config import RunConfig
from flows.imports import Imported, imported
from flows.place import Place, StepReport
from flows.steps.loading import language_model, site_widths
from flows.steps.widths import check_widths
from saelib import interop
from saelib.evaluation import sites_of

__all__ = ["adopt", "adopt_work"]


def adopt_work(one: Imported) -> Work:
    """Depends on the files, and on the sites that it is said to read and write."""
    ends = one.given.ends
    plan = {
        "architecture": one.found.architecture,
        "format": one.found.format,
        "content": one.content,
        "read": [str(site) for site in ends.read],
        "write": [str(site) for site in ends.write],
        "recipe": {},
        "training": {},
    }
    return Work("sae", 2, plan, ())


def adopt(config: RunConfig, place: Place) -> list[Artifact]:
    """Every SAE that the run imports, in its order; it is never rescaled, and f keeps the unit of its tool."""
    return [_adopted(config, one, place) for one in imported(config.imports)]


def _adopted(config: RunConfig, one: Imported, place: Place) -> Artifact:
    def fill(draft: Draft, report: StepReport) -> None:  # noqa: ARG001
        sae, lm = interop.read(one.found.weights, one.given.ends), language_model(config.lm)
        sites = sites_of(sae.ends)
        check_widths(sae, dict(zip(map(str, sites), site_widths(lm, sites), strict=True)), lm.name)
        sae.save(draft.directory)
        draft.facts |= {
            "name": one.name,
            "sites": [str(site) for site in sites],
            "activation_scale": None,
            "threshold": None,
            "plan": {},
            "sparsity_weight": None,
            "n_tokens": None,
            "n_features": sae.n_features,
            "origin": one.found.format,
        }

    return place.make("import", adopt_work(one), fill)
