"""kill -9 at random moments of every step: nothing half-made is seen, and the end is as if nothing had happened."""

from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from fault_store import (
    KINDS,
    ForkServer,
    Job,
    Outcome,
    Whole,
    appearing,
    has_finished,
    kill_after,
    seeded,
    step_inside,
    until,
)

from catalog import Store

SAE_ID = "demo_lm/model.layers.1/batchtopk-128@1"
MOMENTS = {
    "tokenize": ("artifacts/tokens/.partial-*/shard-00001*", "artifacts/tokens/.partial-*/sequence.parquet"),
    "harvest": ("artifacts/activations/.partial-*/shard-00000*", "artifacts/activations/.partial-*/.shard-00002*"),
    "train": ("artifacts/sae/.partial-*/checkpoint.safetensors", "artifacts/sae/.partial-*/sae.safetensors"),
    "evaluate": ("artifacts/metrics/.partial-*/.manifest*",),
    "describe": (
        "artifacts/features/.partial-*/pieces/summary-00001*",
        "artifacts/features/.partial-*/pieces/.sample-00002*",
        "artifacts/features/.partial-*/example.parquet",
    ),
    "publish": ("catalog/.staging/*/2.parquet", "catalog/feature/*/*/part-0.parquet", "catalog/sae/*/*/part-0.parquet"),
}
"""What a step writes on its way: a kill follows at once."""
RANDOM_KILLS = 3
"""More kills of each step, any time after it began."""
MIN_LANDED = 30


class Landed(NamedTuple):
    """A kill that ended a build, and the step that was under way (`between`: none)."""

    step: str
    aim: str


class Doomed:
    """One store, built by processes that are killed; looked at after each kill, and labelled in between."""

    def __init__(self, server: ForkServer, store: Path, text: Path, whole: Whole) -> None:
        self.server, self.store, self.text, self.whole = server, store, text, whole
        self.landed: list[Landed] = []
        self.labels: list[str] = []
        self.is_finished = False

    def start(self, **more: object) -> Job:
        return self.server.start("build", store=self.store, corpus=self.text, **more)

    def killed_at(self, marker: str, seconds: float) -> None:
        """One build, killed so long after the marker (or finished before that)."""
        with appearing(self.store, marker) as appeared:
            self.end(kill_after(self.start(), appeared, seconds), marker)

    def end(self, outcome: Outcome, aim: str) -> None:
        if outcome.status == -9:
            self.landed.append(Landed(step_inside(self.store), aim))
        else:
            assert outcome.made
            self.is_finished = True
        self.look()

    def look(self) -> None:
        """What must hold at any moment. Then somebody writes a label."""
        new = f"after-{len(self.landed)}-{len(self.labels)}"
        found = self.server.run("inspect", store=self.store, new_label=new).made
        assert found["damages"] == [] and found["half_made"] == []
        for seen in (found["inside"], found["outside"]):
            assert seen in ({}, {SAE_ID: self.whole.rows}), "a version is there with all of its tables, or not at all"
        assert found["labels"] == self.labels, "a label was lost or doubled"
        self.labels.append(new)

    def look_at_nothing_yet(self) -> None:
        """A store with a label and nothing else."""
        Store.create(self.store)
        self.look()

    def finish(self) -> None:
        """Build to the end, and compare with the store that was never killed."""
        if not self.is_finished:
            self.end(self.start().wait(), "the end")
        assert self.server.run("compare", store=self.store, other=self.whole.store).made == []
        self.look()

    def count(self) -> dict[str, int]:
        return {step: sum(kill.step == step for kill in self.landed) for step in (*KINDS, "between")}


def moments(step: str, whole: Whole, chance: Random) -> list[tuple[str, float]]:
    """Markers and delays, in the order in which a step passes them."""
    lock = f"locks/{KINDS[step]}-*.lock"
    some = sorted(chance.uniform(0, 0.6) * whole.seconds[step] for _ in range(RANDOM_KILLS))
    return [(lock, 0.0), *((lock, delay) for delay in some), *((moment, 0.0) for moment in MOMENTS[step])]


@pytest.mark.timeout(900)  # on a busy machine
def test_builds_killed_at_random_moments_of_every_step_end_as_one_that_was_not(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path, figures: list[str]
) -> None:
    chance, total = seeded("kills"), dict.fromkeys((*KINDS, "between"), 0)
    for attempt in range(3):
        doomed = Doomed(server, tmp_path / f"killed-{attempt}", text, whole)
        doomed.look_at_nothing_yet()
        for step in KINDS:
            for marker, delay in moments(step, whole, chance):
                if not has_finished(doomed.store, step):
                    doomed.killed_at(marker, delay)
        doomed.finish()
        total = {step: total[step] + n for step, n in doomed.count().items()}
        if sum(total.values()) >= MIN_LANDED and all(total[step] for step in KINDS):
            break
    figures.append(f"kill -9 at random moments: {sum(total.values())} landed: {total}")
    assert sum(total.values()) >= MIN_LANDED and all(total[step] for step in KINDS), total


WINDOWS = (
    "replace .*/tokens/.*/manifest.json",
    "rename .*/tokens/",
    "replace .*/catalog/snapshots/",
    "replace .*/catalog/current",
    "replace .*/catalog/view_file.json",
    "replace .*/catalog.duckdb",
    "replace .*/.partial-.*/checkpoint.safetensors",
    "unlink .*/.partial-.*/checkpoint.safetensors",
    "rename .*/sae/",
    "unlink .*summary-00001",
    "rmdir .*pieces",
    "rename .*/features/",
    "replace .*/catalog/sae/",
    "rename .*/publication/",
)
"""Changes of a file's name at which something becomes visible, or pieces go away, in the order of a build."""


@pytest.mark.timeout(900)
def test_builds_killed_in_front_of_what_makes_a_step_visible_end_as_one_that_was_not(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path
) -> None:
    """Windows of microseconds, which random moments miss."""
    doomed = Doomed(server, tmp_path / "store", text, whole)
    for window in WINDOWS:
        doomed.end(doomed.start(die_before=window).wait(), window)
    assert len(doomed.landed) == len(WINDOWS)
    doomed.finish()


def test_jobs_that_are_waited_for_end(server: ForkServer, whole: Whole) -> None:
    job = server.start("ask", store=whole.store, sql="select count(*) from feature")
    until(lambda: not job.is_running, "the answer")
    assert job.wait().made == [[128]]
