"""Every Prefect policy in one place, and no logic: the same public names as flows.steps."""

from collections.abc import Callable, Sequence
from typing import Any

from prefect import task, unmapped
from prefect.cache_policies import NO_CACHE  # the manifest decides what is done: one memory, not two

from flows import steps

__all__ = ["adopt", "describe", "each", "evaluate", "harvest", "publish", "tokenize", "train"]

on_gpu = task(tags=["gpu"], cache_policy=NO_CACHE, persist_result=False)
plain = task(cache_policy=NO_CACHE, persist_result=False)


def each(step: Callable[..., Any], shards: Sequence[Any], *rest: Any) -> list[Any]:
    """One task a shard, on the flow's task runner (steps.each is a plain loop)."""
    return list(on_gpu(step).map(shards, *map(unmapped, rest)).result())


tokenize = plain(steps.tokenize)
adopt = plain(steps.adopt)
harvest, describe = (
    steps.harvest,
    steps.describe,
)  # no tasks themselves: `each` over shards, then a merge in shard order
train = on_gpu(steps.train)
evaluate = on_gpu(steps.evaluate)
publish = plain(steps.publish)
