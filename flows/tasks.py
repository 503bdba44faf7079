"""Every Prefect policy in one place, and no logic: the same public names as flows.steps."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from prefect import task, unmapped
from prefect.cache_policies import NO_CACHE  # the manifest decides what is done: one memory, not two
from prefect.task_runners import ThreadPoolTaskRunner

from flows import steps
from flows.workers import Each, Step, Workers

__all__ = ["adopt", "describe", "each", "evaluate", "harvest", "publish", "tokenize", "train"]

on_gpu = task(tags=["gpu"], cache_policy=NO_CACHE, persist_result=False)
plain = task(cache_policy=NO_CACHE, persist_result=False)


def each(workers: Workers) -> Each:
    """One task a shard, each on a thread that does it here (one worker) or waits for the process that does it."""

    def in_tasks(step: Step, shards: Sequence[int], job: Any) -> list[Any]:
        parameters = dict(zip(signature(step).parameters, (list(shards), unmapped(job)), strict=True))
        threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers.n)
        with threads as runner, workers.at_work():
            return list(runner.map(on_gpu(workers.doing(step)), parameters).result())

    return in_tasks


tokenize = plain(steps.tokenize)
adopt = plain(steps.adopt)
harvest, describe = (
    steps.harvest,
    steps.describe,
)  # no tasks themselves: `each` over shards, then a merge in shard order
train = on_gpu(steps.train)
evaluate = on_gpu(steps.evaluate)
publish = plain(steps.publish)
