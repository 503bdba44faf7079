"""A store that may be read and not written: reading and SQL work, everything that writes says so in our words."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_store import ForkServer, Mounts, Whole, appearing, copied, kill_after

NOBODY = 65534


@pytest.fixture(params=["permissions", "mount"])
def locked(
    request: pytest.FixtureRequest, server: ForkServer, whole: Whole, faults_folder: Path
) -> Iterator[tuple[Path, int | None]]:
    """A store with a label in it that cannot be written, and the user to be."""
    store = copied(whole.store, faults_folder / f"locked-{request.param}")
    assert server.run("label", store=store, event_id="kept").made is None
    writer = server.start("label", store=store, event_id="last", times=2)
    writer.wait()
    server.run("inspect", store=store)
    if request.param == "mount":
        mounts: Mounts = request.getfixturevalue("mounts")
        mounts.read_only(store)
        yield store, None
        return
    as_root = os.geteuid() == 0
    if not as_root:
        _chmod(store, 0o555, 0o444)
    yield store, NOBODY if as_root else None
    if not as_root:
        _chmod(store, 0o755, 0o644)


def _chmod(store: Path, folder: int, file: int) -> None:
    for path in (store, *store.rglob("*")):
        path.chmod(folder if path.is_dir() else file)


def test_read_only_store_is_read_and_every_writer_is_told(
    server: ForkServer, locked: tuple[Path, int | None], text: Path
) -> None:
    store, uid = locked
    sql = "select count(*), (select count(*) from label_event) from feature"
    assert server.run("ask", uid=uid, store=store, sql=sql).made == [[128, 3]]
    assert server.run("damages", uid=uid, store=store).made == []
    sql_command = [] if uid else [["sql", "select 1"]]  # starts a python, which nobody may not be allowed to
    for words in (["features"], ["verify"], *sql_command):
        done = server.run("almanac", uid=uid, words=[*words, "--store", str(store)])
        assert done.status == 0, done.log
    refused = server.run("label", uid=uid, store=store, event_id="refused")
    assert refused.error in ("StoreError", "DamagedError") and "events.sqlite cannot be" in refused.message
    again = server.run("build", uid=uid, store=store, corpus=text)
    changed = server.run("build", uid=uid, store=store, corpus=text, changes={"training": {"seed": 1}})
    for refused in (again, changed):
        assert refused.error in ("DiskError", "StoreError"), (refused.error, refused.message)
        assert "write" in refused.message or "allow writing" in refused.message


def test_new_store_in_a_folder_that_cannot_be_written_is_refused(
    server: ForkServer, faults_folder: Path, text: Path
) -> None:
    uid = NOBODY if os.geteuid() == 0 else None
    folder = faults_folder / "closed"
    folder.mkdir(mode=0o555)
    refused = server.run("build", uid=uid, store=folder / "store", corpus=text)
    assert refused.error == "StoreError" and "may write" in refused.message
    shutil.rmtree(folder)


def test_read_only_store_of_a_killed_writer_is_read(
    server: ForkServer, whole: Whole, faults_folder: Path, tmp_path: Path
) -> None:
    """Labels that are still in the write-ahead log, in a folder that nobody can write to any more."""
    store = copied(whole.store, faults_folder / "killed-writer")
    acknowledged = tmp_path / "acknowledged"
    with appearing(tmp_path, "acknowledged") as appeared:
        job = server.start("label", store=store, event_id="late", times=10_000, acknowledged=acknowledged)
        assert kill_after(job, appeared, 0.2).status == -9
    assert server.run("ask", store=store, sql="select 1").made == [[1]]
    uid = NOBODY if os.geteuid() == 0 else None
    found = server.run("ask", uid=uid, store=store, sql="select event_id from label_event").made
    assert {line for line in acknowledged.read_text().split("\n")[:-1]} <= {event_id for (event_id,) in found}
