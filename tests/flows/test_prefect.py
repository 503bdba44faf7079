"""The same path as a Prefect flow on a real embedded server, with two workers: the same artifacts, states recorded."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from catalog import Store
from flows.config import RunConfig
from flows.place import Place

FLOW = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from catalog import Store
from tiny_builds import Record, tiny
from flows.cli.build import _prefect_environment
store = Store.create({store!r})
_prefect_environment(store)
from flows.deployments import run_build
from flows.place import Place
place = Place(store, Record())
run_build(tiny(Path({corpus!r}), workers=2), place)
print([(report.step, report.state) for report in place.reports])
print(place.flow, place.prefect_run_id)
"""


@pytest.fixture(scope="module")
def flow_store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store built by the flow in a process of its own, as a user's build is."""
    root = tmp_path_factory.mktemp("flow") / "store"
    script = FLOW.format(tests=str(Path(__file__).parent), store=str(root), corpus=str(corpus))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Store.open(root), done.stdout


def test_flow_makes_the_same_artifacts_as_the_plain_path(
    flow_store: tuple[Store, str], built: tuple[RunConfig, Place]
) -> None:
    def manifests(store: Store) -> dict[str, str]:
        found = store.artifacts.glob("*/*/manifest.json")
        return {path.relative_to(store.artifacts).as_posix(): path.read_text() for path in found}

    assert manifests(flow_store[0]) == manifests(built[1].store)
    assert "'publish', 'finished'" in flow_store[1]


def test_flow_run_and_a_task_for_every_shard_are_recorded_by_the_orchestrator(flow_store: tuple[Store, str]) -> None:
    with sqlite3.connect(flow_store[0].root / "prefect" / "prefect.db") as database:
        (state,) = database.execute("select state_type from flow_run").fetchone()
        tagged = database.execute("select distinct tags from task_run where name like '%_shard-%'").fetchall()
        tasks = dict(database.execute("select substr(name, 1, 8), count(*) from task_run group by 1").fetchall())
    assert state == "COMPLETED"
    assert tasks["tokenize"] == 1
    assert tasks["harvest_"] == tasks["describe"] >= 4
    assert tagged == [('["gpu"]',)]
    assert "build-catalog" in flow_store[1]


FAILS = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from tiny_builds import tiny
from pathlib import Path
from flows.cli.build import build_run
from flows.cli.common import run_app
from flows.errors import FlowError
run_app(lambda: build_run(tiny(Path({corpus!r}), workers=2), Path({store!r}), local=False), (FlowError,))
"""


@pytest.mark.slow
def test_error_of_a_shard_reaches_people_through_a_worker_and_the_orchestrator_as_one_message(
    built: tuple[RunConfig, Place], corpus: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(built[1].store.root, tmp_path / "store"))
    shutil.rmtree(store / "artifacts" / "features")
    damaged = sorted(store.glob("artifacts/activations/*/shard-*"))[-1]
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    folder = Path(__file__).parent
    script = FAILS.format(tests=str(folder), root=str(folder.parents[1]), corpus=str(corpus), store=str(store))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{damaged} is damaged") and len(done.stderr.splitlines()) == 1, done.stderr
