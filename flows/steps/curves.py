"""Training curves as they grow: points every so many steps, in the catalog every few seconds, so that one can watch."""

from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from flows.place import Place
from saelib.training import Progress, Training

__all__ = ["Curve", "write_curves"]

POINTS = 200
"""Points of a training curve, where it takes no longer than that many times LIVE_SECONDS."""

LIVE_SECONDS = 5.0
"""At most so long (and one step) lies between two points, and between two writings of them."""


class Curve:
    """Points of one SAE's training, until they are written."""

    def __init__(self, training: Training, fingerprint: str, run_id: str) -> None:
        self.training, self.fingerprint, self.run_id = training, fingerprint, run_id
        self.every = max(1, training.plan.n_steps // POINTS)
        self.points: list[dict[str, Any]] = []
        self.written = self._last = monotonic()
        self._last_tokens = training.n_tokens

    def add(self, progress: Progress) -> None:
        """A point of the step just made, if one is due."""
        now = monotonic()
        if progress.step % self.every and not self.training.done and now - self._last < LIVE_SECONDS:
            return
        rate = (progress.n_tokens - self._last_tokens) / max(1e-9, now - self._last)
        self._last, self._last_tokens = now, progress.n_tokens
        point = progress._asdict() | {
            "step": progress.step + 1,  # steps done
            "loss_terms": list(progress.loss_terms.items()),
            "fingerprint": self.fingerprint,
            "run_id": self.run_id,
            "tokens_per_second": rate,
            "dead_share_tokens": self.training.plan.dead_after_tokens,
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }
        self.points.append(point)


def write_curves(curves: Sequence[Curve], place: Place, at_once: bool) -> None:
    """Append the points of all curves to the catalog, together, if it is time."""
    now = monotonic()
    if not at_once and now - min(curve.written for curve in curves) < LIVE_SECONDS:
        return
    place.train_progress([point for curve in curves for point in curve.points])
    for curve in curves:
        curve.points, curve.written = [], now
