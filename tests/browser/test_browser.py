"""What people do with the dashboard, in Chromium."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from store import HOSTILE, HOSTILE_SAE_ID, SAE_ID

from catalog import Labels, Store, labelling
from catalog.labelling import Of
from catalog.locks import exclusive

SAE = quote(SAE_ID, safe="")
ROW_HEIGHT = 35


def go(page: Any, url: str, feature: int, sae: str = SAE) -> None:
    page.goto(f"{url}/feature?sae={sae}&feature={feature}")
    at(page, feature)


def at(page: Any, feature: int) -> None:
    """The card and the form of this feature are on the screen."""
    page.wait_for_selector(f".almanac[data-feature='{feature}'] form[data-feature='{feature}']")


def settled(page: Any) -> None:
    """The server has answered everything that was sent."""
    page.wait_for_selector(".almanac[data-pending='0']")


def said(store: Path, feature: int) -> list[tuple[str, str]]:
    with Labels(Store.open(store)) as labels:
        return [(row["author"], row["text"]) for row in labelling.current(labels, Of(SAE_ID, feature))]


def test_browse_open_label_undo_reload(page: Any, server: Any, store_folder: Path) -> None:
    page.goto(server.url)
    page.get_by_role("link", name="Features").click()
    page.goto(f"{server.url}/features?sae={SAE}&sort=density")
    table = page.wait_for_selector("[data-testid=stDataFrame] canvas").bounding_box()
    page.mouse.click(table["x"] + 120, table["y"] + 1.5 * ROW_HEIGHT)  # the first row: the dense feature
    at(page, 1)
    assert "sort=density" in page.url and "feature=1" in page.url
    page.fill("textarea[name=text]", "the dense one")
    page.fill("input[name=tags]", "syntax, dense")
    page.click("[data-choice=confidence-3]")
    page.click("[data-choice=safety-1]")
    page.click("button.primary")
    at(page, 29)  # the next by density
    settled(page)
    assert said(store_folder, 1) == [("ada", "the dense one")]
    page.keyboard.press("ArrowLeft")
    at(page, 1)
    page.reload()
    at(page, 1)
    assert page.inner_text("h1") == "the dense one"
    assert page.input_value("textarea[name=text]") == "the dense one"
    page.click(".history [data-act=undo]")
    page.wait_for_selector(".history .undone")
    assert said(store_folder, 1) == []
    page.reload()
    at(page, 1)
    assert page.inner_text("h1") == "no name yet" and page.input_value("textarea[name=text]") == ""


def test_two_people_at_once_are_both_kept(new_page: Callable[..., Any], server: Any, store_folder: Path) -> None:
    ada, bob = new_page(), new_page()
    for page in (ada, bob):
        go(page, server.url, 3)
    bob.fill("input[name=author]", "bob")
    bob.press("input[name=author]", "Tab")
    for page, text in ((ada, "one thing"), (bob, "another thing")):
        page.fill("textarea[name=text]", text)
    ada.click("[data-act=save]")
    bob.click("[data-act=save]")
    for page in (ada, bob):
        settled(page)
    assert sorted(said(store_folder, 3)) == [("ada", "one thing"), ("bob", "another thing")]
    ada.reload()
    at(ada, 3)
    assert "2 people: disputed" in ada.inner_text(".chips")
    assert ada.locator(".history li").count() == 2 and ada.locator(".history [data-act=undo]").count() == 1
    bob.reload()
    at(bob, 3)
    assert bob.input_value("input[name=author]") == "bob"  # the browser remembers who it was


def test_keys_move_undo_and_never_act_while_typing(page: Any, server: Any, store_folder: Path) -> None:
    go(page, server.url, 4)
    for key, feature in (("ArrowRight", 5), ("j", 6), ("k", 5), ("ArrowLeft", 4)):
        page.keyboard.press(key)
        at(page, feature)
    page.keyboard.press("w")
    page.keyboard.type("jukebox")
    assert page.input_value("textarea[name=text]") == "jukebox"
    page.keyboard.press("Control+Enter")
    at(page, 5)
    page.keyboard.press("Control+Enter")  # nothing is typed here: nothing is saved
    settled(page)
    assert said(store_folder, 4) == [("ada", "jukebox")] and said(store_folder, 5) == []
    page.click("h1")
    page.keyboard.press("u")
    at(page, 4)
    page.wait_for_selector(".history .undone")
    assert said(store_folder, 4) == []


def test_next_stays_ahead_of_a_hurried_reader(page: Any, server: Any) -> None:
    go(page, server.url, 0)
    for feature in range(1, 30):
        page.keyboard.press("ArrowRight")
        at(page, feature)
    assert page.is_disabled("[data-act=next]") and page.url.endswith("feature=29")


def test_neighbours_open_and_back_returns(page: Any, server: Any) -> None:
    go(page, server.url, 2)
    page.click(".neighbors button >> nth=0")
    at(page, 7)
    page.go_back()
    at(page, 2)
    page.fill("input[name=go]", "21")
    page.press("input[name=go]", "Enter")
    at(page, 21)


@pytest.mark.parametrize(
    ("text", "answer"), [("x" * 100_000, "at most 10,000"), ("a\x1b[31mb", "U+001B"), ("  ", "empty")]
)
def test_a_label_that_cannot_be_kept_stays_in_the_form(page: Any, server: Any, text: str, answer: str) -> None:
    go(page, server.url, 6)
    page.fill("textarea[name=text]", text)
    page.click("[data-act=save]")
    page.wait_for_selector(".status.problem")
    assert answer in page.inner_text(".status")
    assert page.input_value("textarea[name=text]") == text


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("feature?sae=nobody&feature=1", "no SAE 'nobody'"),
        (f"feature?sae={SAE}&feature=777", "it has the features 0 to 29"),
        (f"feature?sae={quote(HOSTILE[0])}", "window.owned=1"),
    ],
)
def test_error_pages_say_what_to_do_and_show_no_trace(page: Any, server: Any, path: str, answer: str) -> None:
    page.goto(f"{server.url}/{path}")
    page.get_by_text("Not in this store").wait_for()
    shown = page.inner_text("[data-testid=stMain]")
    assert answer in shown and "Traceback" not in shown
    assert page.evaluate("window.owned") is None


VISITS = (
    ("", "[data-testid=stDataFrame] canvas >> nth=1"),
    (f"features?sae={SAE}&q={quote(HOSTILE[4])}", "[data-testid=stDataFrame] canvas, [data-testid=stCaption]"),
    (f"features?sae={quote(HOSTILE_SAE_ID)}", "[data-testid=stDataFrame] canvas"),
    (f"feature?sae={quote(HOSTILE_SAE_ID)}&feature=1", ".almanac[data-feature='1']"),
    *((f"feature?sae={SAE}&feature={n}", f".almanac[data-feature='{n}'] .bucket") for n in (10, 14, 17, 20)),
    ("sql?sql=" + quote("select text, tags, note, author from label"), "textarea"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "marker"), VISITS)
def test_hostile_text_is_only_text_wherever_it_is_shown(page: Any, server: Any, path: str, marker: str) -> None:
    page.goto(f"{server.url}/{path}")
    page.wait_for_selector(marker)
    if path.startswith("feature?"):
        page.keyboard.press("m")  # all examples
        page.hover("h1")
    if path.startswith("sql"):
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_selector("[data-testid=stDataFrame] canvas")
    assert page.evaluate("window.owned") is None
    assert page.locator("iframe, img[src*=evil], svg[onload], [onerror], [onmouseover], script[src*=evil]").count() == 0
    assert page.locator("a[href^='javascript:'], a[href*='evil']").count() == 0


def test_hostile_text_typed_into_the_form_is_only_text(page: Any, server: Any) -> None:
    go(page, server.url, 24)
    page.fill("input[name=author]", "<img src=x onerror=window.owned=1>")
    page.press("input[name=author]", "Tab")
    page.fill("input[name=tags]", HOSTILE[1])
    page.fill("input[name=note]", HOSTILE[4])
    page.fill("textarea[name=text]", HOSTILE[8])
    page.click("[data-act=save]")
    page.wait_for_selector(".history li")
    page.reload()
    at(page, 24)
    assert page.inner_text("h1") == HOSTILE[8] and HOSTILE[1] in page.inner_text(".chips")
    assert page.evaluate("window.owned") is None


@pytest.mark.parametrize(("scheme", "is_light"), [("light", True), ("dark", False)])
def test_the_page_follows_the_systems_light_or_dark(
    new_page: Callable[..., Any], server: Any, scheme: str, is_light: bool
) -> None:
    page = new_page(color_scheme=scheme)
    go(page, server.url, 8)
    color = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", color)[:3])) > 3 * 128) == is_light


def test_a_label_that_waits_survives_a_reload(page: Any, server: Any, store_folder: Path) -> None:
    go(page, server.url, 13)
    page.evaluate(
        """(sae) => sessionStorage.setItem("almanac.outbox", JSON.stringify(
            [{id: "waiting-1", sae, feature: 13, author: "ada", text: "it waited", tags: []}]))""",
        SAE_ID,
    )
    page.reload()
    at(page, 13)
    page.get_by_role("heading", name="it waited").wait_for()
    settled(page)
    assert ("ada", "it waited") in said(store_folder, 13)


def test_the_overview_follows_a_build_to_its_end(page: Any, server: Any, store_folder: Path) -> None:
    with exclusive(store_folder / "locks" / "sae-0123456789abcdef.lock", "making sae", 5.0):
        page.goto(server.url)
        page.get_by_text("A build is running").wait_for()
    page.get_by_text("A build is running").wait_for(state="detached")


def test_the_form_is_above_the_fold(page: Any, server: Any) -> None:
    go(page, server.url, 12)
    assert page.locator("form.label").bounding_box()["y"] + page.locator("form.label").bounding_box()["height"] < 800
    assert page.locator(".bucket").first.bounding_box()["y"] < 800


def test_a_server_that_dies_and_comes_back_gets_the_label_that_was_saved_meanwhile(
    new_page: Callable[..., Any], own_server: Any, browser: Any
) -> None:
    own_server.start()
    context = browser.new_context()  # not watched: losing the server is an error to the browser
    page = context.new_page()
    go(page, own_server.url, 9)  # the first visit of this server is a deep link
    own_server.stop(signal.SIGKILL)
    page.fill("textarea[name=text]", "saved in the dark")
    page.click("[data-act=save]")
    page.wait_for_selector(".almanac[data-pending='1']")
    own_server.start()
    settled(page)
    context.close()
    assert said(own_server.store, 9) == [("ada", "saved in the dark")]
    own_server.stop()
    assert "Traceback" not in own_server.log.read_text()


def test_a_store_that_moves_is_missed_and_found_again_and_a_taken_port_is_named(page: Any, own_server: Any) -> None:
    own_server.start()
    page.goto(f"{own_server.url}/features")
    page.wait_for_selector("[data-testid=stDataFrame] canvas")
    elsewhere = own_server.store.with_name("elsewhere")
    shutil.move(own_server.store, elsewhere)
    page.reload()
    page.get_by_text("There is no store to show").wait_for()
    shutil.move(elsewhere, own_server.store)
    page.reload()
    page.wait_for_selector("[data-testid=stDataFrame] canvas")
    command = [sys.executable, "-P", "-m", "dashboard", "--port", str(own_server.port)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1 and "--port" in second.stderr and str(own_server.port) in second.stderr
    page.close()  # before the server goes
    assert own_server.stop() == 0
    assert own_server.log.read_text().strip() == f"SAE Almanac: {own_server.url}   (stop with Ctrl-C)"
