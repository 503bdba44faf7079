"""The training page in Chromium: curves that grow while they are watched, and runs laid over each other."""

import subprocess
import sys
from typing import Any

import pytest
from store import HOSTILE, HOSTILE_SAE_ID, HOSTILE_TRAIN, SAE_ID, TRAIN

from dashboard.parts.text import visible

NEW = "12" * 32
WRITER = """
import json, sys
from datetime import UTC, datetime
from catalog import Store, append
root, fingerprint, first, last, ends = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "ends"
n = last - first
rows = {
    "run_id": ["live"] * n, "step": range(first, last), "n_tokens": [1000 * (i + 1) for i in range(first, last)],
    "fvu": [1 / (i + 1) for i in range(first, last)], "tokens_per_second": [1234.0] * n,
    "created_at": [datetime.now(UTC).replace(tzinfo=None)] * n,
}
append(Store.open(root), "train_progress", rows, fingerprint=fingerprint)
if ends:
    config = json.dumps({"architecture": "topk", "recipe": {"k": 8}})
    row = {"run_id": ["live"], "step": ["train"], "state": ["finished"], "config": [config]}
    append(Store.open(root), "run", row, fingerprint=fingerprint)
"""


def write(server: Any, first: int, last: int, ends: str = "") -> None:
    """Points of a run, appended by a process of its own."""
    command = [sys.executable, "-c", WRITER, str(server.store), NEW, str(first), str(last), ends]
    subprocess.run(command, check=True)


def drawn(page: Any, n_points: int) -> None:
    page.wait_for_selector(f".curves[data-points='{n_points}']")


def test_the_curve_grows_without_a_reload_until_the_run_ends(page: Any, own_server: Any) -> None:
    write(own_server, 0, 10)
    own_server.start()
    page.goto(f"{own_server.url}/training")
    drawn(page, 10)
    page.evaluate("window.isTheSame = true")
    line = page.get_attribute("[data-panel=fvu] path[data-run]", "d")
    assert "step 9" in page.inner_text("[data-live] .facts") and "ago" in page.inner_text("[data-live] .ago")
    write(own_server, 10, 25)
    drawn(page, 25)
    grown = page.get_attribute("[data-panel=fvu] path[data-run]", "d")
    assert grown != line and grown.count("L") == 24 and page.inner_text("[data-live] .rate").startswith("1,234")
    write(own_server, 25, 30, "ends")
    drawn(page, 30)
    page.wait_for_selector("[data-live]", state="detached")
    row = page.locator(f"tr[data-run='{NEW[:8]}']").inner_text()
    assert "finished" in row and "topk" in row and "k 8" in row
    assert page.evaluate("window.isTheSame") is True
    page.close()
    assert own_server.stop() == 0
    assert "Traceback" not in own_server.log.read_text()


def test_runs_are_chosen_in_the_list_and_stay_in_the_url(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/training?run={TRAIN[:8]}")
    drawn(page, 40)
    page.click(f"[data-pick='{HOSTILE_TRAIN[:8]}']")
    drawn(page, 80)
    page.wait_for_url(f"**/training?run={TRAIN[:8]}%2C{HOSTILE_TRAIN[:8]}")
    colors = page.locator("[data-panel=fvu] path[data-run]").evaluate_all(
        "all => all.map(one => one.getAttribute('stroke'))"
    )
    assert len(set(colors)) == 2
    page.click("[data-scale=linear]")
    page.wait_for_url("**scale=linear")
    page.reload()
    drawn(page, 80)
    assert page.get_attribute("[data-scale=linear]", "aria-pressed") == "true"
    page.click(f"tr[data-run='{TRAIN[:8]}']")
    drawn(page, 40)
    page.click(f"tr[data-run='{HOSTILE_TRAIN[:8]}']")  # the last one stays
    drawn(page, 40)
    assert page.get_attribute(f"[data-pick='{HOSTILE_TRAIN[:8]}']", "aria-pressed") == "true"


def test_pointer_and_keys_read_the_curves(page: Any, server: Any) -> None:
    page.goto(f"{server.url}/training?run={TRAIN[:8]},{HOSTILE_TRAIN[:8]}")
    drawn(page, 80)
    plot = page.locator("[data-panel=fvu] .plot")
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] / 2, "y": 40})  # 20,000 of 40,000 tokens: 1/20
    tip = page.locator("[data-panel=fvu] .tip")
    assert "20k tokens" in tip.inner_text() and tip.inner_text().count("0.05") == 2
    assert visible(HOSTILE_SAE_ID) in tip.inner_text()
    assert page.locator("[data-panel=loss] .cross").is_visible()  # the line goes through every panel
    assert "0.05" in page.inner_text(f"tr[data-run='{TRAIN[:8]}']")
    page.mouse.move(5, 5)
    assert page.locator("[data-panel=fvu] .tip").is_hidden()
    page.focus("[data-panel=fvu]")
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "2k tokens" in tip.inner_text() and "0.5" in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("path", ["training", ""])
def test_names_and_terms_are_only_text(page: Any, server: Any, path: str) -> None:
    page.goto(f"{server.url}/{path}?run={TRAIN[:8]},{HOSTILE_TRAIN[:8]}" if path else server.url)
    drawn(page, 80)
    page.hover("[data-panel=fvu] .plot")
    shown = page.inner_text(".curves")
    assert HOSTILE_SAE_ID in shown and SAE_ID in shown
    assert not path or f"loss: {HOSTILE[0]}" in shown
    assert page.evaluate("window.owned") is None
    assert page.locator("iframe, img[src*=evil], svg[onload], [onerror], .curves script").count() == 0


def test_the_overview_leads_to_all_curves(page: Any, server: Any) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="All curves").click()
    page.wait_for_selector("[data-panel=loss]")
    drawn(page, 80)
    assert "/training?run=" in page.url
