"""Many writers of labels, and publishers under readers, killed again and again. (A smaller form of both is in
tests/catalog; here there are more kills, and every process is one of the whole program.)"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pytest
from catalog_samples import published_store
from fault_store import ForkServer, Job, appearing, kill_after, seeded

from catalog import Store, connect

N_PROCESSES, N_LABEL_KILLS, N_PUBLISH_KILLS = 8, 24, 12


def test_labels_of_eight_writers_under_kill_9_are_neither_lost_nor_doubled(
    server: ForkServer, tmp_path: Path, figures: list[str]
) -> None:
    store, chance, killed, started = Store.create(tmp_path / "store"), seeded("labels"), 0, 0
    writers: list[tuple[str, Job]] = []

    def start() -> None:
        nonlocal started
        started += 1
        name = f"ack-{started}"
        job = server.start(
            "label", store=store.root, event_id=f"w{started}", acknowledged=tmp_path / name, times=100_000
        )
        writers.append((name, job))

    for _ in range(N_PROCESSES):
        start()
    while killed < N_LABEL_KILLS:
        name, victim = writers.pop(chance.randrange(len(writers)))
        with appearing(tmp_path, name) as appeared:
            killed += kill_after(victim, appeared, chance.uniform(0, 0.05)).status == -9
        start()
    for _, writer in writers:
        killed += writer.kill().status == -9
    acknowledged = {line for path in tmp_path.glob("ack-*") for line in path.read_text().split("\n")[:-1]}
    assert server.run("damages", store=store.root).made == []
    found = server.run("ask", store=store.root, sql="select event_id from label_event").made
    stored = [event_id for (event_id,) in found]
    assert acknowledged <= set(stored), "an acknowledged label was lost"
    assert len(stored) == len(set(stored)), "a label was doubled"
    assert len(stored) - len(acknowledged) <= killed, "at most the label under way was not acknowledged"
    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
        assert outsider.execute("select count(*) from label_event").fetchall() == [(len(stored),)], "the copy follows"
    figures.append(f"label writers: {killed} killed, {len(acknowledged)} labels acknowledged, 0 lost")
    assert killed >= N_LABEL_KILLS and len(acknowledged) >= killed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("n_kills", "n_versions"), [(N_PUBLISH_KILLS, 1), pytest.param(20, 200, marks=pytest.mark.slow)]
)
def test_eight_readers_see_whole_versions_while_the_publisher_is_killed(
    server: ForkServer, tmp_path: Path, figures: list[str], n_kills: int, n_versions: int
) -> None:
    """At least so many kills that land, and so many versions published between them."""
    store, chance, landed = published_store(tmp_path / "store"), seeded("publish"), 0
    expected = next(iter(server.run("inspect", store=store.root).made["inside"].values()))
    stop, acknowledged = tmp_path / "stop", tmp_path / "acknowledged"
    readers = [server.start("read_on", store=store.root, until=stop, expected=expected) for _ in range(N_PROCESSES)]
    try:
        number = 0
        while landed < n_kills or n_acknowledged(acknowledged) < n_versions:
            job = server.start("publish_on", store=store.root, train=2 + 1000 * number, acknowledged=acknowledged)
            number += 1
            with appearing(tmp_path, "acknowledged") as appeared:
                # an even share of the versions before each kill; a busy machine takes longer for it
                share = n_versions * min(number, n_kills) // n_kills
                due = partial(has_published, appeared, acknowledged, share)
                landed += kill_after(job, due, chance.uniform(0, 0.6)).status == -9
    finally:
        stop.touch()
    seen = [reader.wait().made for reader in readers]
    assert [one["errors"] for one in seen] == [[]] * N_PROCESSES
    assert [one["torn"] for one in seen] == [[]] * N_PROCESSES
    assert all(one["n_read"] for one in seen) and landed >= n_kills
    assert server.run("damages", store=store.root).made == []
    published = {sae_id for (sae_id,) in connect(store).execute("select sae_id from sae").fetchall()}
    lines = acknowledged.read_text().split("\n")[:-1] if acknowledged.exists() else []
    assert set(lines) <= published, "an acknowledged version is gone"
    assert len(published) >= n_versions
    figures.append(
        f"publishers: {landed} killed under {N_PROCESSES} readers, {sum(one['n_read'] for one in seen)} reads, "
        f"{len(published)} versions, 0 torn"
    )


def has_published(appeared: Callable[[], bool], acknowledged: Path, n: int) -> bool:
    return appeared() and n_acknowledged(acknowledged) >= n


def n_acknowledged(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
