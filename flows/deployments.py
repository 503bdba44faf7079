"""The flows that Prefect runs. Prefect is imported here and in flows.tasks, nowhere else."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from flows import tasks
from flows.artifact import Artifact
from flows.config import RunConfig
from flows.errors import ServerError
from flows.path import path
from flows.place import Place

__all__ = ["build_catalog", "run_build"]


# one shard at a time: a step uses all cores (or the whole GPU) by itself
RUNNER: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)


@flow(name="build-catalog", flow_run_name="build-{config.name}", task_runner=RUNNER)
def build_catalog(config: RunConfig, place: Place) -> Artifact:
    """The whole path, each step a task and each shard a task."""
    context = FlowRunContext.get()
    place.flow = "build-catalog"
    if context is not None and context.flow_run is not None:
        place.prefect_run_id = str(context.flow_run.id)
    return path(config, place, tasks)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Prefect tells each task's states at INFO; the bars say the same to people."""
    loggers = [logging.getLogger(name) for name in ("prefect", "prefect.flow_runs", "prefect.task_runs")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def run_build(config: RunConfig, place: Place) -> Artifact:
    """Run the flow on the server of PREFECT_API_URL, else on Prefect's own embedded one."""
    if not PREFECT_API_URL.value():
        place.watch.say("orchestrator: starting Prefect's embedded server (10 to 40 s the first time) …")
    else:
        place.watch.say(f"orchestrator: using the Prefect server at {PREFECT_API_URL.value()}")
    try:
        with _quiet_logs():
            return build_catalog(config, place)
    except RuntimeError as error:
        if "server" in str(error).lower() or "api" in str(error).lower():
            raise ServerError(
                f"Prefect's server cannot be reached or did not start: {error}; "
                "run with --local to do without it, or start one with `prefect server start` and set PREFECT_API_URL"
            ) from error
        raise


os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
