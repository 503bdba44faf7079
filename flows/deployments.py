"""The flows that Prefect runs. Prefect is imported here and in flows.tasks, nowhere else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from catalog import Store
from flows import tasks
from flows.artifact import Artifact
from flows.config import RunConfig
from flows.errors import ServerError
from flows.path import path
from flows.place import Place, Quiet

__all__ = ["build_catalog", "run_build"]

_HERE: ContextVar[Place | None] = ContextVar("here", default=None)
"""The place of a build that was started in this process, with its bars; a worker makes its own."""


class LogWatch(Quiet):
    """Lines go to the run's log."""

    def say(self, text: str) -> None:
        """One line."""
        get_run_logger().info(text)


@flow(name="build-catalog", flow_run_name="build-{config.name}")
def build_catalog(config: RunConfig, store: str) -> Artifact:
    """The whole path into the store in a folder: each step a task, each shard a task."""
    place = _HERE.get() or Place(Store.create(store), LogWatch())
    place.flow = "build-catalog"
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        place.prefect_run_id = str(context.flow_run.id)
    return path(config, place, tasks)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """What Prefect tells of a task, a failure with its stack trace too, goes to its own log; people see bars and errors
    of ours."""
    consoles = [console for console in logging.getLogger().handlers if isinstance(console, PrefectConsoleHandler)]
    before = [console.level for console in consoles]
    for console in consoles:
        console.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for console, level in zip(consoles, before, strict=True):
            console.setLevel(level)


def run_build(config: RunConfig, place: Place) -> Artifact:
    """Run the flow on the server of PREFECT_API_URL, else on Prefect's own embedded one."""
    if not PREFECT_API_URL.value():
        place.watch.say("orchestrator: starting Prefect's embedded server (10 to 40 s the first time) …")
    else:
        place.watch.say(f"orchestrator: using the Prefect server at {PREFECT_API_URL.value()}")
    try:
        with _quiet_logs():
            _HERE.set(place)
            return build_catalog(config, str(place.store.root))
    except RuntimeError as error:
        if place.prefect_run_id is None:  # the flow has not begun
            raise ServerError(
                f"Prefect's server cannot be reached or did not start: {error}; "
                "run with --local to do without it, or start one with `prefect server start` and set PREFECT_API_URL"
            ) from error
        raise
