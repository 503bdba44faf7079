"""Pictures of every page, light and dark, from a store: `make_screenshots.py [--store DIR] [--out DIR]`.

Serves the store on a free port, drives Debian's Chromium, and quantizes the pictures so that the repository stays
small. Labels that are seen on the pictures are made on a copy of the store.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import sync_playwright

from catalog import Labels, Store, connect, labelling
from catalog.labelling import Of

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZE = {"width": 1280, "height": 800}
COLORS = 128
OUT = Path(__file__).parent.parent / "docs" / "screenshots"
MARKER_TABLE = "[data-testid=stDataFrame] canvas"


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory() as aside:
        store = Path(aside) / "store"
        shutil.copytree(given.store, store, ignore=shutil.ignore_patterns("artifacts"))
        sae_id, features = _label(Store.open(store))
        port = _free_port()
        command = [sys.executable, "-P", "-m", "dashboard", "--store", str(store), "--port", str(port), "--user", "ada"]
        server = subprocess.Popen(command)
        try:
            _wait(port)
            given.out.mkdir(parents=True, exist_ok=True)
            _take(f"http://127.0.0.1:{port}", sae_id, features[0], given.out)
        finally:
            server.terminate()
            server.wait()
    total = sum(path.stat().st_size for path in given.out.glob("*.png"))
    print(f"{len(list(given.out.glob('*.png')))} pictures in {given.out}, {total / 1e6:.2f} MB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("almanac"))
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def _label(store: Store) -> tuple[str, list[int]]:
    """Names for a few features that fire on one token, so that the pictures show labels at work."""
    connection = connect(store)
    (sae_id,) = connection.execute("select sae_id from current_sae order by sae_id").fetchone() or ("",)
    rows = connection.execute(
        "select feature, trim(top_token) from feature where sae_id = ? and status = 'alive' and top_token_share > 0.5 "
        "and regexp_matches(top_token, '^ ?[a-z]{4,}$') and density > 0.0005 order by density desc limit 12",
        [sae_id],
    ).fetchall()
    with Labels(store) as labels:
        for number, (feature, token) in enumerate(rows):
            author, sure = ("ada", "bob")[number % 3 == 2], 1 + number % 3
            labelling.add(
                labels, author, Of(sae_id, feature), f"the word “{token}”", tags=["single token"], confidence=sure
            )
    return sae_id, [feature for feature, _ in rows] or [0]


def _take(url: str, sae_id: str, feature: int, out: Path) -> None:
    sae = quote(sae_id, safe="")
    question = quote(
        "select status, count(*) as n, avg(density) as density\nfrom feature\ngroup by status\norder by n desc"
    )
    pages = {
        "overview": ("", f"{MARKER_TABLE} >> nth=1"),
        "features": (f"features?sae={sae}&sort=name&status=alive", MARKER_TABLE),
        "feature": (f"feature?sae={sae}&feature={feature}", f".almanac[data-feature='{feature}'] .bucket"),
        "training": ("training", ".curves path[data-run]"),
        "sql": (f"sql?sql={question}", "textarea"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport=SIZE, color_scheme=scheme).new_page()
            for name, (path, marker) in pages.items():
                page.goto(f"{url}/{path}")
                page.wait_for_selector(marker)
                _prepare(page, name)
                page.screenshot(path=out / f"{name}-{scheme}.png", animations="disabled")
                _shrink(out / f"{name}-{scheme}.png")
        browser.close()


def _prepare(page: Any, name: str) -> None:
    """What a person would have done before looking."""
    if name == "sql":
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_selector(MARKER_TABLE)
        page.get_by_text("feature_card", exact=True).click()
    page.wait_for_load_state("networkidle")
    page.wait_for_selector("[data-testid=stStatusWidget]", state="detached")
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(700)  # canvases and charts draw after their data has come, and tell nobody


def _shrink(path: Path) -> None:
    """A palette is enough for a page of text, and a quarter of the size."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _wait(port: int) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the dashboard did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
