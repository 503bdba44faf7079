"""How fast is the dashboard, in headless Chromium on a given store: `benchmarks/dashboard.py --store DIR`.

next feature      from the key press to the frame that shows the next feature, prefetched, at reading pace
uncached feature  from Enter in the number field to the frame that shows a feature nobody had opened before
label stored      from the browser's message to the commit, at the server
server start      from the command to the first healthy answer
A copy of the store is used; what is only told, without a bar, has none in the last column.
"""

import argparse
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from catalog import Labels, Store, connect

sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).parent]  # we are no package
from dashboard.people import record  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PRESSES, OPENINGS, LABELS, STARTS = 120, 30, 200, 3
READING_MS = 150
WATCH = """() => {
  window.painted = []
  window.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight") return
    requestAnimationFrame(() => {
      const channel = new MessageChannel()
      channel.port1.onmessage = () => window.painted.push(performance.now() - event.timeStamp)
      channel.port2.postMessage(0)
    })
  }, true)
}"""
OPEN = """async (feature) => {
  const find = (node) => node.querySelector?.(".almanac") ?? [...(node.querySelectorAll?.("*") ?? [])]
    .map((child) => child.shadowRoot?.querySelector(".almanac")).find(Boolean)
  const view = find(document)
  const input = view.querySelector("[name=go]")
  const start = performance.now()
  input.value = feature
  input.dispatchEvent(new Event("change"))
  while (view.dataset.feature !== String(feature)) await new Promise(requestAnimationFrame)
  await new Promise((done) => { const c = new MessageChannel(); c.port1.onmessage = done; c.port2.postMessage(0) })
  return performance.now() - start
}"""

Figures = dict[str, tuple[list[float], float | None, str]]


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory() as aside:
        store = Path(aside) / "store"
        shutil.copytree(given.store, store, ignore=shutil.ignore_patterns("artifacts"))
        sae_id, n_features = _largest_sae(store)
        figures: Figures = {}
        starts = [_start_once(store) for _ in range(STARTS)]
        with _serving(store) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            figures["next feature, prefetched"] = (_next(page, url, sae_id), 60, "p95")
            figures["uncached feature"] = (_uncached(page, url, sae_id, n_features), 500, "p95")
            figures["deep link, warm browser"] = (_deep_links(page, url, sae_id, n_features), None, "")
            figures["key to acknowledged label"] = (_saves(page, url, sae_id), None, "")
            browser.close()
        figures["label stored at the server"] = (_stored(Store.open(store), sae_id, n_features), 20, "p95")
        figures["server start"] = (starts, 4000, "max")
    _print(figures, sae_id, n_features)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("almanac"))
    return parser.parse_args()


def _largest_sae(store: Path) -> tuple[str, int]:
    rows = connect(store).execute("select sae_id, n_features from sae order by n_features desc, sae_id").fetchall()
    if not rows:
        raise SystemExit(f"there is no SAE in {store}; build one first")
    return rows[0][0], rows[0][1]


def _next(page: Any, url: str, sae_id: str) -> list[float]:
    _go(page, url, sae_id, 0)
    page.evaluate(WATCH)
    page.wait_for_timeout(2000)
    for feature in range(1, PRESSES + 1):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f".almanac[data-feature='{feature}']")
        page.wait_for_timeout(READING_MS)
    painted: list[float] = page.evaluate("window.painted")
    assert len(painted) == PRESSES
    return painted


def _uncached(page: Any, url: str, sae_id: str, n_features: int) -> list[float]:
    _go(page, url, sae_id, 0)
    far = random.Random(0).sample(range(n_features // 4, n_features), OPENINGS)
    found = []
    for feature in far:
        found.append(float(page.evaluate(OPEN, feature)))
        page.wait_for_timeout(1500)  # let it fetch what is around before the next measurement
    return found


def _deep_links(page: Any, url: str, sae_id: str, n_features: int) -> list[float]:
    found = []
    for feature in random.Random(1).sample(range(n_features), 5):
        start = time.monotonic()
        _go(page, url, sae_id, feature)
        found.append(1000 * (time.monotonic() - start))
    return found


def _saves(page: Any, url: str, sae_id: str) -> list[float]:
    found = []
    _go(page, url, sae_id, 1)
    for number in range(20):
        page.fill("textarea[name=text]", f"benchmark {number}")
        start = time.monotonic()
        page.press("textarea[name=text]", "Control+Enter")
        page.wait_for_selector(".almanac[data-pending='0']")
        found.append(1000 * (time.monotonic() - start))
        page.wait_for_timeout(READING_MS)
    return found


def _stored(store: Store, sae_id: str, n_features: int) -> list[float]:
    found = []
    with Labels(store) as labels:
        for number in range(LABELS):
            of = {"sae": sae_id, "feature": number % n_features}
            act = {**of, "id": f"benchmark-{number}", "author": "bench", "text": "a label"}
            start = time.perf_counter()
            answer = record(labels, [act])
            found.append(1000 * (time.perf_counter() - start))
            assert answer == {act["id"]: ""}
    return found


def _go(page: Any, url: str, sae_id: str, feature: int) -> None:
    page.goto(f"{url}/feature?sae={quote(sae_id, safe='')}&feature={feature}")
    page.wait_for_selector(f".almanac[data-feature='{feature}']")


def _start_once(store: Path) -> float:
    start = time.monotonic()
    with _serving(store):
        return 1000 * (time.monotonic() - start)


@contextmanager
def _serving(store: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-P", "-m", "dashboard", "--store", str(store), "--port", str(port)])
    try:
        while not _is_up(port):
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _print(figures: Figures, sae_id: str, n_features: int) -> None:
    print(f"\n{sae_id}, {n_features:,} features; milliseconds")
    print(f"{'':30} {'n':>5} {'p50':>8} {'p95':>8} {'max':>8}   bar")
    for name, (values, bar, of) in figures.items():
        ordered = sorted(values)
        of_values = {
            "p50": statistics.median(values),
            "p95": ordered[int(0.95 * (len(ordered) - 1))],
            "max": ordered[-1],
        }
        verdict = "" if bar is None else f"{of} ≤ {bar:g}: {'met' if of_values[of] <= bar else 'MISSED'}"
        shown = " ".join(f"{value:>8.1f}" for value in of_values.values())
        print(f"{name:30} {len(values):>5} {shown}   {verdict}")


if __name__ == "__main__":
    main()
