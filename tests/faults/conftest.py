"""A fork server, the corpus of tests/flows, and an uninterrupted build to compare with."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "catalog"))  # its samples

from fault_store import ForkServer, Mounts, Whole
from tiny_run import corpus  # noqa: F401 (a fixture)

FIGURES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many faults there were."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the report."""
    return request.config.stash.setdefault(FIGURES, [])


@pytest.fixture(scope="session")
def faults_folder() -> Iterator[Path]:
    """A folder that other users may enter (pytest's own are private), for stores that they read."""
    folder = Path(tempfile.mkdtemp(prefix="almanac-faults-"))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Builds and readers in processes of their own, which start in no time."""
    server = ForkServer(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def text(corpus: Path, faults_folder: Path) -> Path:  # noqa: F811
    """The corpus, where everybody may read it."""
    return Path(shutil.copy(corpus, faults_folder / "modules.jsonl"))


@pytest.fixture(scope="session")
def whole(server: ForkServer, text: Path, faults_folder: Path) -> Whole:
    """Build it once. Treat it as read-only."""
    store = faults_folder / "whole"
    made = server.run("build", store=store, corpus=text).made
    return Whole(store, made, server.run("inspect", store=store).made)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    """File systems of this test."""
    made = Mounts(tmp_path)
    yield made
    made.close()
