"""Does an SAE fit the sites that it is put at?"""

from collections.abc import Mapping

from flows.errors import RecipeError
from saelib.sae import SAE

__all__ = ["check_widths"]


def check_widths(sae: SAE, widths: Mapping[str, int], lm_name: str) -> None:
    """`widths` are the language model's, by site. Raises RecipeError with both where they differ."""
    for verb, sites, width in (("reads", sae.ends.read, sae.d_in), ("writes", sae.ends.write, sae.d_out)):
        there = sum(widths[str(site)] for site in sites)
        if there != width:
            raise RecipeError(
                f"the SAE {verb} vectors of {width} numbers, but {lm_name!r} has {there} at "
                f"{' + '.join(map(str, sites))}; give the language model that it was trained on, or another site"
            )
