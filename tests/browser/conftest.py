"""One server for the session, one Chromium a module, a context of its own for every test.

A context watches: at the end of a test nothing may have gone wrong in the browser, and nothing left this machine.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "dashboard"))  # the store of the dashboard's tests

from store import make_store  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PROBES = ("/_stcore/health", "/_stcore/host-config")  # Streamlit asks for these under the page's own path first
LOCAL = ("http://127.0.0.1", "ws://127.0.0.1", "blob:", "data:")
WAIT_MS = 30_000
START_SECONDS = 60.0


@dataclass
class Server:
    """`python -m dashboard` on a store, on a port of its own."""

    store: Path
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.port = self.port or _free_port()
        command = [sys.executable, "-P", "-m", "dashboard", "--store", str(self.store), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, "--user", "ada"], stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=20)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@dataclass
class Watched:
    """What went wrong in the browser contexts of one test."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def follow(self, context: Any) -> None:
        context.on("console", self._console)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("request", lambda request: self._request(request.url))

    def _console(self, message: Any) -> None:
        is_probe = "404" in message.text and message.location["url"].endswith(PROBES)
        if message.type == "error" and not is_probe:
            self.errors.append(f"{message.text} ({message.location['url']})")

    def _request(self, url: str) -> None:
        if not url.startswith(LOCAL):
            self.outside.append(url)


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power
        return make_store(tmp_path_factory.mktemp("browser") / "store").root


@pytest.fixture(scope="session")
def server(store_folder: Path) -> Iterator[Server]:
    serving = Server(store_folder, store_folder.with_name("server.log"))
    serving.start()
    try:
        yield serving
    finally:
        serving.stop()


@pytest.fixture
def own_server(store_folder: Path, tmp_path: Path) -> Iterator[Server]:
    """A server to stop and a store to move; not started yet."""
    shutil.copytree(store_folder, tmp_path / "store")
    serving = Server(tmp_path / "store", tmp_path / "server.log")
    try:
        yield serving
    finally:
        if serving.process is not None and serving.process.poll() is None:
            serving.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing; install it with `apt-get install chromium`")
    sync_api = pytest.importorskip("playwright.sync_api", reason="install it with `pip install playwright`")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def new_page(browser: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Pages, each in a context of its own; pictures of them are kept where the test fails."""
    watched, pages = Watched(), []

    def make(**options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        context.set_default_timeout(WAIT_MS)
        watched.follow(context)
        pages.append(context.new_page())
        return pages[-1]

    yield make
    if getattr(request.node, "has_failed", False):
        for number, page in enumerate(pages):
            page.screenshot(path=tmp_path / f"page-{number}.png")
    for page in pages:
        page.context.close()
    assert watched.errors == [] and watched.outside == []


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    return new_page()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.has_failed = report.failed
    return report


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
