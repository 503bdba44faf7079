"""The training page: what it draws, which runs are going on, and rows that another process appends meanwhile."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from store import HOSTILE_SAE_ID, HOSTILE_TRAIN, SAE_ID, TRAIN, training
from streamlit.testing.v1 import AppTest

from catalog import Store, append
from catalog.locks import exclusive
from dashboard.parts.text import visible
from dashboard.training import MOST_CHOSEN, choice, curves, runs

Show = Callable[..., AppTest]
NEW = "12" * 32
PLAN = {
    "architecture": "topk",
    "read": ["L1.resid_post"],
    "recipe": {"k": 8, "n_features": 512},
    "training": {"n_tokens": 100_000, "batch_tokens": 1000},
}


def given(page: AppTest) -> dict[str, Any]:
    """What the component was given."""
    assert not page.exception
    found: dict[str, Any] = json.loads(page.get("bidi_component")[0].proto.json)
    return found


def trained(store: Store, fingerprint: str = NEW, seconds_ago: float = 5.0, **changes: Any) -> None:
    """Forty points, the last so many seconds ago."""
    last = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds_ago)
    rows = training(fingerprint, f"run of {fingerprint}") | {"created_at": [last] * 40, "learning_rate": [1e-3] * 40}
    append(store, "train_progress", rows | changes, fingerprint=fingerprint)


def ended(store: Store, state: str, fingerprint: str = NEW, plan: Any = PLAN) -> None:
    row = {"run_id": [f"run of {fingerprint}"], "step": ["train"], "state": [state], "config": [json.dumps(plan)]}
    append(store, "run", row, fingerprint=fingerprint)


def state_of(fingerprint: str = NEW) -> str:
    return next(str(run["state"]) for run in runs() if run["fingerprint"] == fingerprint)


def test_the_newest_run_is_drawn_under_its_name(show: Show, served: Store) -> None:
    data = given(show("training"))
    shown = {run["id"]: run["name"] for run in data["runs"]}
    assert shown == {TRAIN[:8]: SAE_ID, HOSTILE_TRAIN[:8]: visible(HOSTILE_SAE_ID)}
    (drawn,) = data["chosen"]
    points = data["points"][drawn]
    assert points["tokens"] == [1000 * n for n in range(1, 41)]
    assert points["fvu"][3] == 0.25 and points["terms"][0][0] == "reconstruction"


def test_the_url_says_which_runs_are_drawn_and_on_which_scale(show: Show, served: Store) -> None:
    both = f"{HOSTILE_TRAIN[:8]},nobody,{TRAIN[:8]}"
    data = given(show("training", run=both, scale="linear"))
    assert data["chosen"] == [HOSTILE_TRAIN[:8], TRAIN[:8]] == sorted(data["points"], reverse=True)
    assert data["scale"] == "linear"
    assert given(show("training", run="nobody", scale="<b>"))["scale"] == "log"


def test_rows_that_another_process_appends_are_seen_at_the_next_look(show: Show, own: Store) -> None:
    trained(own)
    page = show("training")
    assert given(page)["chosen"] == [NEW[:8]] and len(given(page)["points"][NEW[:8]]["step"]) == 40
    program = (
        "import sys; from catalog import Store, append\n"
        "rows = {'run_id': [sys.argv[3]], 'step': [40], 'n_tokens': [41000], 'fvu': [0.02]}\n"
        "append(Store.open(sys.argv[1]), 'train_progress', rows, fingerprint=sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(own.root), NEW, f"run of {NEW}"]
    subprocess.run(command, check=True)
    points = given(page.run())["points"][NEW[:8]]
    assert (points["tokens"][-1], points["fvu"][-1], points["l0"][-1]) == (41_000, 0.02, None)


@pytest.mark.parametrize(
    ("seconds_ago", "row", "state"),
    [(5, None, "running"), (300, None, "stopped"), (5, "finished", "finished"), (5, "failed", "failed")],
)
def test_a_run_is_going_on_while_it_grows_and_has_no_row_of_its_own(
    own: Store, show: Show, seconds_ago: float, row: str | None, state: str
) -> None:
    trained(own, seconds_ago=seconds_ago)
    if row:
        ended(own, row)
    assert state_of() == state
    assert state_of(TRAIN) == "finished"  # published


def test_a_run_whose_lock_is_held_is_going_on_however_seldom_it_writes(own: Store, show: Show) -> None:
    trained(own, seconds_ago=3000)
    ended(own, "failed")  # it was killed once, and goes on
    with exclusive(own.locks / f"sae-{NEW[:16]}.lock", "making sae", 1.0):
        assert state_of() == "running" and choice(runs(), None) == [NEW[:8]]
    assert state_of() == "failed"


def test_a_run_without_a_point_yet_is_shown(own: Store, show: Show) -> None:
    with exclusive(own.locks / "sae-feedfeedfeedfeed.lock", "making sae", 1.0):
        data = given(show("training"))
    assert data["runs"][0]["id"] == "feedfeed" and data["runs"][0]["state"] == "running"
    assert data["chosen"] == ["feedfeed"] and data["points"] == {}


def test_what_is_not_published_is_told_by_its_plan(own: Store, show: Show) -> None:
    trained(own)
    ended(own, "failed")
    (run,) = [run for run in runs() if run["fingerprint"] == NEW]
    assert (run["architecture"], run["sparsity"], run["features"]) == ("topk", "k 8", 512)
    assert (run["step"], run["steps"], run["name"], run["site"]) == (40, 100, NEW[:8], "L1.resid_post")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"k": 16, "loss": "target"}, "k 16"),
        ({"k": 16, "loss": "step", "l0_weight": 0.001}, "weight 0.001"),
        ({"l1_weight": 5.0}, "weight 5"),
        ({}, ""),
        (None, ""),
    ],
)
def test_what_sets_the_sparsity_is_told(own: Store, show: Show, recipe: Any, said: str) -> None:
    trained(own)
    ended(own, "finished", plan={"recipe": recipe})
    (run,) = [run for run in runs() if run["fingerprint"] == NEW]
    assert run["sparsity"] == said


def test_a_step_that_was_done_again_after_a_crash_is_one_point(own: Store, show: Show) -> None:
    trained(own, seconds_ago=100)
    trained(own, seconds_ago=10, fvu=[0.5] * 40, run_id=["again"] * 40)
    points = curves([NEW])[NEW[:8]]
    assert points["step"] == list(range(40)) and set(points["fvu"]) == {0.5}


def test_long_curves_are_thinned_and_keep_both_ends(own: Store, show: Show) -> None:
    n = 5001
    rows = {"run_id": ["long"] * n, "step": range(n), "n_tokens": range(n)}
    append(own, "train_progress", rows, fingerprint=NEW)
    steps = curves([NEW])[NEW[:8]]["step"]
    assert len(steps) <= 1001 and (steps[0], steps[-1]) == (0, n - 1)


def test_no_more_runs_are_drawn_than_can_be_told_apart() -> None:
    known = [{"id": str(n), "state": "finished"} for n in range(30)]
    assert len(choice(known, [str(n) for n in range(30)])) == MOST_CHOSEN
    assert choice(known, ["7", "x", "7"]) == ["7"] and choice(known, []) == ["0"] and choice([], None) == []


def test_before_the_first_run_the_page_says_what_makes_one(
    show: Show, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "store")
    monkeypatch.setenv("ALMANAC_STORE", str(store.root))
    assert "almanac build demo" in show("training").code[0].value
    with exclusive(store.locks / "activations-0123.lock", "making activations", 1.0):
        page = show("training")
    assert "harvest" in page.info[0].value and not page.code


def test_the_overview_shows_the_run_that_is_going_on(show: Show, own: Store) -> None:
    trained(own)
    page = show("overview")
    data = given(page)
    assert data["chosen"] == [NEW[:8]] and [run["id"] for run in data["runs"]] == [NEW[:8]]
    assert "fvu" in data["panels"]
