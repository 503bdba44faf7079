"""Training runs as the curves component draws them: what there is, which of them are going on, and their points."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from dashboard import data
from dashboard.building import Work, at_work
from dashboard.data import Row
from dashboard.parts.text import visible

__all__ = ["MOST_CHOSEN", "choice", "curves", "runs", "view"]

MOST_RUNS = 100
MOST_CHOSEN = 18
"""As many as can be told apart: six colours, three kinds of line."""
LIVE_SECONDS = 60.0
SHORT = 8
VALUES = ("fvu", "loss", "l0", "dead_share", "learning_rate", "tokens_per_second")
DIGITS = 5


def view(chosen: Sequence[str] | None, known: list[Row], panels: Sequence[str] = ()) -> Row:
    """What the component is given. `panels` are the only ones wanted, in a small view without the list of runs."""
    ids = choice(known, chosen)
    return {
        "now": round(time.time() * 1000),
        "runs": [run for run in known if not panels or run["id"] in ids],
        "chosen": ids,
        "points": curves([run["fingerprint"] for run in known if run["id"] in ids]),
        "panels": list(panels),
        "most": MOST_CHOSEN,
    }


def runs() -> list[Row]:
    """Those that are going on first, then the newest."""
    working = [work for work in at_work(data.store()) if work.step == "train"]
    now = datetime.now(UTC)
    known = [_run(row, working, now) for row in data.rows("training_runs", n=MOST_RUNS)]
    begun = [_begun(work) for work in working if not any(_is_of(run["fingerprint"], work) for run in known)]
    return begun + sorted(known, key=lambda run: run["state"] != "running")


def choice(known: list[Row], asked: Sequence[str] | None) -> list[str]:
    """The runs asked for that there are; else those that are going on; else the newest."""
    ids = [run["id"] for run in known]
    wanted = [one for one in dict.fromkeys(asked or ()) if one in ids]
    wanted = wanted or [run["id"] for run in known if run["state"] == "running"]
    return (wanted or ids[:1])[:MOST_CHOSEN]


def curves(fingerprints: Sequence[str]) -> Row:
    """id -> columns of its points, in the order of the tokens."""
    if not fingerprints:
        return {}
    rows = data.rows("training_curves", fingerprints=",".join(fingerprints))
    return {fingerprint[:SHORT]: _columns(list(own)) for fingerprint, own in groupby(rows, lambda r: r["fingerprint"])}


def _columns(points: list[Row]) -> Row:
    terms = [dict(point["loss_terms"] or ()) for point in points]
    names = list(dict.fromkeys(name for one in terms for name in one))
    return {
        "tokens": [point["n_tokens"] for point in points],
        "step": [point["step"] for point in points],
        **{name: [_short(point[name]) for point in points] for name in VALUES},
        "terms": [[visible(name), [_short(one.get(name)) for one in terms]] for name in names if len(names) > 1],
    }


def _short(value: float | None) -> float | None:
    """A few digits are enough to draw; what is no number is nothing."""
    return None if value is None or value - value != 0 else float(f"{value:.{DIGITS}g}")


def _run(row: Row, working: list[Work], now: datetime) -> Row:
    plan = _plan(row["config"])
    recipe, plan_of_training = plan.get("recipe") or {}, plan.get("training") or {}
    last = row["last_at"].replace(tzinfo=UTC) if row["last_at"] else None
    is_held = any(_is_of(row["fingerprint"], work) for work in working)
    batch, total = plan_of_training.get("batch_tokens"), plan_of_training.get("n_tokens")
    return {
        "id": row["fingerprint"][:SHORT],
        "fingerprint": row["fingerprint"],
        "name": visible(row["sae_id"] or row["fingerprint"][:SHORT]),
        "site": "" if row["sae_id"] else visible(", ".join(map(str, plan.get("read") or ()))),
        "architecture": visible(str(row["architecture"] or plan.get("architecture") or "")),
        "sparsity": _sparsity(row, recipe),
        "features": row["n_features"] or recipe.get("n_features"),
        "state": _state(row, is_held, (now - last).total_seconds() if last else None),
        "step": row["n_tokens"] // batch if batch and row["n_tokens"] else row["step"],
        "steps": total // batch if batch and total else None,
        "tokens": row["n_tokens"],
        "last": None if last is None else round(last.timestamp() * 1000),
        "values": {name: _short(row[name]) for name in VALUES},
    }


def _begun(work: Work) -> Row:
    """A training that has written no point yet."""
    empty = dict.fromkeys(("features", "step", "steps", "tokens", "last"))
    return {
        "id": work.fingerprint[:SHORT], "fingerprint": work.fingerprint, "name": visible(work.fingerprint[:SHORT]),
        "site": "", "architecture": "", "sparsity": "", "state": "running", "values": dict.fromkeys(VALUES), **empty,
    }  # fmt: skip


def _is_of(fingerprint: str, work: Work) -> bool:
    return bool(work.fingerprint) and fingerprint.startswith(work.fingerprint)


def _state(row: Row, is_held: bool, age: float | None) -> str:
    """A run gets its row in `run` when it ends. Until then its lock, or else the age of its last point, tells."""
    if is_held:
        return "running"
    if row["run_state"]:
        return "failed" if row["run_state"] == "failed" else "finished"
    if row["sae_id"]:
        return "finished"
    return "running" if age is not None and age < LIVE_SECONDS else "stopped"


def _sparsity(row: Row, recipe: Row) -> str:
    """What sets how many features fire. A weight of the sparsity term, where there is no k to aim at."""
    is_weighed = recipe.get("loss", "target") != "target"
    k = row["k"] or (None if is_weighed else recipe.get("k"))
    weight = row["sparsity_weight"] or recipe.get("l1_weight") or recipe.get("l0_weight")
    return f"k {k}" if k else f"weight {weight:g}" if isinstance(weight, int | float) else ""


def _plan(config: str | None) -> dict[str, Any]:
    """The plan of the step `train`, as its run wrote it down."""
    try:
        plan = json.loads(config or "{}")
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}
