"""Which features are listed, in which order: what the filter row says, as it stands in the URL."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["LABELLED", "SORTS", "STATUSES", "Filter"]

STATUSES = ("alive", "rare", "dense", "dead")
LABELLED = ("unlabelled", "labelled", "explained", "disputed")
SORTS = {  # the word in the page and in the URL -> what the query calls it
    "number": "feature",
    "density": "density",
    "rarest": "rarest",
    "activation": "act_max",
    "variance": "reconstructive",
    "loss effect": "delta_ce_linear",
    "entropy": "token_entropy",
    "explained": "interpretable",
    "safety": "safety",
    "name": "name",
}
LOWEST_LOG10 = -6.0


@dataclass(frozen=True)
class Filter:
    """The filter row. None and the defaults filter nothing out."""

    status: str | None = None
    labelled: str | None = None
    q: str | None = None
    token: str | None = None
    low: float = LOWEST_LOG10
    high: float = 0.0
    sort: str = "number"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Filter":
        """From a URL or from widgets; whatever makes no sense there is left out."""
        chosen: dict[str, Any] = {}
        for name, known in (("status", STATUSES), ("labelled", LABELLED), ("sort", SORTS)):
            if given.get(name) in known:
                chosen[name] = given[name]
        for name in ("q", "token"):
            text = str(given.get(name) or "")[:200]
            if text.strip():
                chosen[name] = text
        for name in ("low", "high"):
            chosen |= _number(name, given.get(name))
        return cls(**chosen)

    @property
    def changed(self) -> dict[str, str]:
        """What differs from the defaults, as a URL has it."""
        pairs = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return {name: str(value) for name, value, default in pairs if value != default}

    @property
    def parameters(self) -> dict[str, Any]:
        """For the query browse_features."""
        return {
            "status": self.status,
            "labelled": self.labelled,
            "search": self.q,
            "token": self.token,
            "low": 0.0 if self.low <= LOWEST_LOG10 else 10**self.low,
            "high": 10**self.high,
            "sort": SORTS[self.sort],
        }


def _number(name: str, given: Any) -> dict[str, float]:
    try:
        value = float(given)
    except (TypeError, ValueError):
        return {}
    return {name: value} if LOWEST_LOG10 <= value <= 0 else {}
