"""Readers keep their snapshot, follow when they want to, and never see half of anything."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest
from catalog_samples import FAMILY, fingerprint, publication

from catalog import (
    CatalogError,
    DamagedError,
    Event,
    Labels,
    Reader,
    Store,
    append,
    connect,
    current,
    guarded,
    publish,
    query,
    verify,
)
from catalog import connection as connections

HERE = Path(__file__).parent
#: one row per version: all of its tables must have been published together
WHOLE = """
select s.sae_id, s.n_features, (select count(*) from feature f where f.sae_id = s.sae_id),
       (select count(*) from example e where e.sae_id = s.sae_id),
       (select count(*) from neighbor n where n.sae_id = s.sae_id),
       (select count(*) from sae_metric m where m.sae_id = s.sae_id)
from sae s
"""


def label(text: str, feature: int = 1, author: str = "ada") -> Event:
    return Event("label_event", author, "write", {"sae_id": f"{FAMILY}@1", "feature": feature, "text": text})


def test_a_connection_keeps_its_snapshot(store: Store) -> None:
    connection = connect(store)
    publish(store, publication(8, train=2))
    publish(store, publication(8, content=3))
    assert connection.execute("select count(*) from feature").fetchall() == [(8,)]
    assert connect(store).execute("select count(*) from feature").fetchall() == [(16,)]


def test_a_reader_follows_new_snapshots_and_old_cursors_stay(store: Store) -> None:
    reader = Reader(store)
    old, version = reader.cursor(), reader.version()
    publish(store, publication(8, train=2))
    assert reader.version() != version
    assert reader.cursor().execute("select count(*) from feature").fetchall() == [(16,)]
    assert old.execute("select count(*) from feature").fetchall() == [(8,)]
    reader.close()


def test_a_label_is_seen_at_once_by_every_reader_of_ours(store: Store) -> None:
    reader = Reader(store)
    cursor, version = reader.cursor(), reader.version()
    with Labels(store) as labels:
        labels.append([label("digits")])
        assert reader.version() != version
        for cursor in (reader.cursor(), connect(store)):
            found = cursor.execute(
                "select feature, name, name_source from feature_card where name is not null"
            ).fetchall()
            assert found == [(1, "digits", "human")]
    reader.close()


def test_outsiders_see_labels_through_the_copy(store: Store) -> None:
    connect(store)
    with Labels(store) as labels:
        labels.append([label("digits")])
    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
        assert outsider.execute("select name from feature_card where name is not null").fetchall() == [("digits",)]


def test_the_copy_follows_by_itself_within_five_seconds(store: Store) -> None:
    connect(store)
    with Labels(store) as labels:
        labels.append([label("one")])
        deadline = time.monotonic() + 5
        with duckdb.connect(str(store.view_file), read_only=True) as outsider:
            while outsider.execute("select count(*) from label_event").fetchall() == [(0,)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_connect_brings_a_copy_up_to_date_that_a_killed_process_left_behind(store: Store) -> None:
    connect(store)
    values = {"sae_id": f"{FAMILY}@1", "feature": 2, "text": "left"}
    code = (
        "import os, sys; from catalog import *; labels = Labels(Store.open(sys.argv[1])); "
        f"labels.append([Event('label_event', 'bob', 'write', {values!r})]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.root)], env=environment(), check=False)
    connect(store)
    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
        assert outsider.execute("select author from label").fetchall() == [("bob",)]


def test_cursors_of_many_threads_get_their_own_answers(store: Store) -> None:
    reader, wrong = Reader(store), []

    def ask(feature: int) -> None:
        for _ in range(20):
            found = reader.cursor().execute("select feature from feature where feature = $f", {"f": feature}).fetchall()
            if found != [(feature,)]:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    reader.close()


def test_a_connection_reads_nothing_but_its_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    mine = {"a": [1]}  # noqa: F841 (a replacement scan would find it)
    connection = connect(store)
    for sql in (
        f"from '{tmp_path}/secret.csv'",
        "from mine",
        "set threads = 1",
        "from read_text('/etc/passwd')",
        "load icu_x",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(sql).fetchall()


def test_an_empty_store_answers_with_no_rows(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "empty")
    connection = connect(store)
    assert connection.execute("select count(*) from feature_card").fetchall() == [(0,)]
    assert current(store).number == 0 and not verify(store)


@pytest.mark.parametrize("damage", ["missing", "truncated", "zeros"])
def test_a_damaged_part_is_a_named_error(store: Store, damage: str) -> None:
    (part,) = current(store).parts_of("example")
    path = store.catalog / part.path
    path.chmod(0o644)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else bytes(len(content)))
    connection = connect(store)
    with pytest.raises(DamagedError, match="almanac verify"):
        guarded(connection, "select * from example", 5)
    with pytest.raises(DamagedError, match="almanac verify"):
        query(connection, "examples", sae_id=f"{FAMILY}@1", feature=1)
    assert guarded(connection, "select count(*) as n from feature_card", 5).to_pylist() == [{"n": 8}], (
        "the rest is whole"
    )
    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
        assert outsider.execute("select count(*) from feature_card").fetchall() == [(8,)]
    assert str(path) in [str(damage.path) for damage in verify(store)]
    assert publish(store, publication(8, train=2)).version == 2


@pytest.mark.parametrize("content", ["", "{", '{"snapshot": 1}', '{"snapshot": 1, "sha256": "0"}'])
def test_a_damaged_pointer_is_a_named_error(store: Store, content: str) -> None:
    (store.catalog / "current").write_text(content)
    with pytest.raises(DamagedError):
        connect(store)
    with pytest.raises(DamagedError):
        publish(store, publication(8, train=2))


def test_a_lost_pointer_or_snapshot_is_a_named_error(store: Store) -> None:
    append(store, "run", {"run_id": ["r"], "step": ["train"], "state": ["finished"]}, fingerprint(1))
    (store.catalog / "snapshots" / f"{current(store).number:08d}.json").rename(store.catalog / "elsewhere.json")
    with pytest.raises(DamagedError, match=r"\.json is missing"):
        connect(store)
    with pytest.raises(DamagedError, match=r"\.json is missing"):
        publish(store, publication(8, train=2))
    append_again = store.catalog / "elsewhere.json"
    append_again.rename(store.catalog / "snapshots" / "00000002.json")
    (store.catalog / "current").unlink()
    with pytest.raises(DamagedError, match="is missing, though there are snapshots"):
        connect(store)


def test_a_folder_that_cannot_be_written_is_still_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Labels(store) as labels:
        labels.append([label("digits")])
    monkeypatch.setattr(Store, "is_writable", property(lambda self: False))
    monkeypatch.setattr(connections, "exclusive", None)  # no lock is taken, nothing is written
    assert connect(store).execute("select name from feature_card where feature = 1").fetchall() == [("digits",)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}


def test_readers_see_whole_versions_while_publishers_are_killed(store: Store) -> None:
    """Readers in a loop, publishers killed -9 at random moments: no error, no version without all of its tables."""
    stop, errors, torn, n_read = threading.Event(), [], [], [0]
    connect(store)

    def read(outside: bool) -> None:
        reader = Reader(store)
        while not stop.is_set():
            try:
                if outside:
                    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
                        found = outsider.execute(WHOLE).fetchall()
                else:
                    found = reader.cursor().execute(WHOLE).fetchall()
            except (duckdb.Error, CatalogError) as error:
                errors.append(error)
                continue
            n_read[0] += 1
            torn.extend(row for row in found if row[1:] != (8, 8, 24, 8, 2))
        reader.close()

    threads = [threading.Thread(target=read, args=(i == 0,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        n_published = kill_publishers(store, kills=4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and not torn and n_read[0] > 0
    published = publish(store, publication(8, train=999, content=999))
    assert published.version > n_published > 0 and not verify(store)


def kill_publishers(store: Store, kills: int) -> int:
    """How many publications were acknowledged before each of the publishers was killed."""
    chance, acknowledged = random.Random(0), 0
    for kill in range(kills):
        command = [sys.executable, str(HERE / "publish_forever.py"), str(store.root), str(2 + 100 * kill)]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdout is not None and publisher.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.4))
            publisher.kill()
            acknowledged += 1 + len(publisher.stdout.readlines())
    return acknowledged
