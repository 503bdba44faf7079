"""The conformance test of every LabelStore: nothing acknowledged is ever lost, doubled or changed."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import DamagedError, Event, LabelError, Labels, LabelStore, LockedError, SQLiteLabels, Store
from catalog import sqlite_labels as module
from catalog.events import EVENT_TABLES, MAX_TEXT

HERE = Path(__file__).parent


@pytest.fixture(params=["sqlite", "with copy"])
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLiteLabels]:
    with SQLiteLabels(tmp_path) if request.param == "sqlite" else Labels(Store.create(tmp_path / "s")) as opened:
        yield opened


def event(text: str = "digits", action: str = "write", author: str = "ada", **more: Any) -> Event:
    head = {name: more.pop(name) for name in ("undoes", "event_id", "created_at") if name in more}
    values = {"sae_id": "a@1", "feature": 1, "text": text, **more}
    return Event("label_event", author, action, {k: v for k, v in values.items() if v is not None}, **head)


def undo_of(done: Event, **more: Any) -> Event:
    return Event(
        "label_event", more.pop("author", done.author), "undo", {"sae_id": "a@1", "feature": 1}, done.event_id, **more
    )


def test_what_is_appended_comes_back_as_it_was(labels: LabelStore) -> None:
    said = event(
        "Umlaut ä, 漢字, emoji 🙂\nline two\ttab", tags=["a", "b"], confidence=3, kind="input", safety=1, seconds=2.5
    )
    assert labels.append([said]) == 1
    (row,) = labels.events("label_event").to_pylist()
    assert {**said.values, "author": "ada", "action": "write", "event_id": said.event_id}.items() <= row.items()
    found = labels.find(said.event_id)
    assert found is not None and found.content == said.content


def test_events_are_in_the_order_of_recording(labels: LabelStore) -> None:
    for i in range(5):
        labels.append([event(f"text {i}")])
    rows = labels.events("label_event").to_pylist()
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(5)]
    times = [row["created_at"] for row in rows]
    assert times == sorted(set(times)), "no two events have the same time"
    assert abs(times[-1] - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)


def test_last_grows_with_every_event_and_bounds_what_is_new(labels: LabelStore) -> None:
    assert labels.last() == 0
    labels.append([event("one")])
    seen = labels.last()
    labels.append([event("two"), event("three")])
    assert labels.last() > seen
    assert labels.events("label_event", after=seen)["text"].to_pylist() == ["two", "three"]
    assert labels.events("label_event", until=seen)["text"].to_pylist() == ["one"]


def test_the_same_event_twice_is_recorded_once(labels: LabelStore) -> None:
    said = event()
    assert [labels.append([said]), labels.append([said, said])] == [1, 0]
    assert labels.events("label_event").num_rows == 1


def test_an_event_id_that_was_used_for_something_else_is_refused(labels: LabelStore) -> None:
    said = event()
    labels.append([said])
    with pytest.raises(LabelError, match="was used before for something else"):
        labels.append([event("other", event_id=said.event_id)])


def test_all_or_none_are_recorded(labels: LabelStore) -> None:
    with pytest.raises(LabelError):
        labels.append([event("good"), event(undoes="nothing", action="undo", text=None)])
    assert labels.last() == 0


TABLES_OF_PEOPLE = {
    "label_event": ("write", {"sae_id": "a@1", "feature": 1, "text": "x"}),
    "tag": ("put", {"tag": "syntax", "is_safety": False}),
    "queue": ("put", {"queue_id": "q", "sql": "select 1", "overlap": 2}),
    "collection": ("put", {"collection_id": "c", "sae_id": "a@1", "feature": 1}),
    "saved_query": ("put", {"query_id": "q", "sql": "select 1", "parameters": "{}"}),
    "watch": ("put", {"monitor_id": "m", "sae_id": "a@1", "feature": 1, "threshold": 0.5, "safety": 2}),
    "acknowledgement": ("put", {"monitor_id": "m", "fingerprint": "f", "note": "seen"}),
}


@pytest.mark.parametrize("table", EVENT_TABLES)
def test_every_table_of_people_is_kept_and_undone(labels: LabelStore, table: str) -> None:
    action, values = TABLES_OF_PEOPLE[table]
    done = Event(table, "ada", action, values)
    labels.append([done])
    undo_values = {"sae_id": "a@1", "feature": 1} if table == "label_event" else {}
    labels.append([Event(table, "ada", "undo", undo_values, undoes=done.event_id)])
    rows = labels.events(table).to_pylist()
    assert [row["action"] for row in rows] == [action, "undo"] and values.items() <= rows[0].items()
    assert rows[1]["undoes"] == done.event_id


REFUSED: list[tuple[str, Event, str]] = [
    ("no text", event(""), "text of a label is empty"),
    ("blank text", event(" \n\t "), "text of a label is empty"),
    ("no text to accept", event(None, "accept"), "text of a label is empty"),
    ("a long text", event("x" * (MAX_TEXT + 1)), "10,001 characters; at most 10,000"),
    ("a very long note", event(note="x" * 100_000), "note has 100,000 characters"),
    ("an escape sequence", event("\x1b[2J"), r"control character U\+001B at place 0"),
    ("a NUL", event("a\x00b"), r"U\+0000 at place 1"),
    ("a carriage return", event("a\rb"), r"U\+000D"),
    ("a C1 control", event("\x9b31m"), r"U\+009B"),
    ("half a surrogate pair", event("\ud800"), r"U\+D800"),
    ("a control character in a tag", event(tags=["ok", "\x07"]), "tags has the control character"),
    ("a control character in the author", event(author="a\x07"), "author has the control character"),
    ("no author", event(author=" "), "author is empty"),
    ("no event_id", event(event_id=""), "event_id is empty"),
    ("an unknown action", event(action="wrote"), "unknown action 'wrote'.*'write'"),
    ("an unknown table", Event("labels", "ada", "write", {}), "'labels' is not a table of people's events"),
    ("a machine's table", Event("feature", "ada", "put", {}), "'feature' is not a table of people's events"),
    ("an unknown column", event(txt="x"), "no column 'txt'.*'text'"),
    ("a column that the store sets", event(visit_id="v", author_="x"), "no column 'author_'"),
    ("an unknown kind", event(kind="thing"), "kind is 'thing'; it must be one of input"),
    ("too sure", event(confidence=4), "confidence is 4; it must be a whole number from 1 to 3"),
    ("not a number", event(confidence="3"), "confidence is '3'"),
    ("true for a number", event(safety=True), "safety is True"),
    ("a negative feature", event(feature=-1), "feature is -1"),
    ("no feature", event(feature=None), "label_event needs feature"),
    ("no SAE", event(sae_id=None), "label_event needs sae_id"),
    ("words for seconds", event(seconds="quick"), "seconds is 'quick'; it must be float"),
    ("a text for a list", event(tags="syntax"), "tags is 'syntax'"),
    ("an undo of nothing", event(action="undo", text=None), "an undo names the event"),
    ("a label that undoes", event(undoes="x"), "an undo names the event"),
    ("an undo of what is not there", event(action="undo", text=None, undoes="nobody"), "no event 'nobody' to undo"),
    ("a time to come", event(created_at=datetime(2999, 1, 1)), "yet to come"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_recorded_is_refused_with_the_reason(labels: LabelStore, bad: Event, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        labels.append([bad])
    assert labels.last() == 0


def test_an_undo_is_refused_where_it_makes_no_sense(labels: LabelStore) -> None:
    said = event()
    undo = undo_of(said)
    labels.append([said, undo])
    for bad, message in (
        (undo_of(said), "undone already"),
        (undo_of(undo), "an undo cannot be undone"),
        (Event("tag", "ada", "undo", {}, undoes=said.event_id), "belongs to label_event, not to tag"),
    ):
        with pytest.raises(LabelError, match=message):
            labels.append([bad])
    other = event(author="bob")
    labels.append([other])
    with pytest.raises(LabelError, match="is bob's; only they undo it"):
        labels.append([undo_of(other, author="ada")])
    assert labels.append([undo]) == 0, "the same undo sent again is no error"


def test_rehearse_says_what_append_would_and_records_nothing(labels: LabelStore) -> None:
    known = event("known")
    labels.append([known])
    new = event("new")
    answers = labels.rehearse([known, new, event(""), undo_of(new), undo_of(new)])
    assert answers[:2] == ["known", "new"] and "empty" in answers[2] and answers[3] == "new" and "already" in answers[4]
    assert labels.events("label_event").num_rows == 1


@given(st.text(min_size=1, max_size=50))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_kept_as_it_was_or_refused(labels: LabelStore, text: str) -> None:
    before = labels.last()
    try:
        labels.append([event(text)])
    except LabelError:
        assert labels.last() == before
    else:
        assert labels.events("label_event", after=before)["text"].to_pylist() == [text]


def test_threads_of_one_process_share_a_store(labels: LabelStore) -> None:
    threads = [
        threading.Thread(target=lambda n=n: [labels.append([event(f"{n} {i}")]) for i in range(10)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels.events("label_event").num_rows == 80


def test_eight_processes_some_killed_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    n_each, chance = 150, random.Random(1)
    SQLiteLabels(tmp_path).close()
    writers = start_writers([10**6] * 5 + [n_each] * 3, tmp_path)
    for doomed in writers[:5]:  # which would write for hours, so that every kill lands on one at work
        time.sleep(chance.uniform(0.0, 0.1))
        doomed.kill()
    codes = [writer.wait() for writer in writers]
    acknowledged = [line for path in tmp_path.glob("ack-*") for line in path.read_text().split("\n")[:-1]]
    with SQLiteLabels(tmp_path) as labels:
        stored = labels.events("label_event")["event_id"].to_pylist()
        assert labels.check() == []
    assert codes == [-9] * 5 + [0] * 3 and len(acknowledged) >= 5 + 3 * n_each
    assert set(acknowledged) <= set(stored), "an acknowledged label was lost"
    assert len(stored) == len(set(stored)), "a label was doubled"


def start_writers(counts: list[int], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Writers of so many labels each that have all begun: each has acknowledged something."""
    command = [sys.executable, str(HERE / "write_labels.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}"}
    acknowledged = [folder / f"ack-{i}" for i in range(len(counts))]
    writers = [
        subprocess.Popen([*command, f"writer{i}", str(count), str(acknowledged[i])], env=environment)
        for i, count in enumerate(counts)
    ]
    while not all(path.exists() and path.stat().st_size for path in acknowledged):
        assert not any(writer.poll() for writer in writers)
        time.sleep(0.005)
    return writers


# ---- what SQLite in particular must do ------------------------------------------


def test_events_cannot_be_changed_or_removed_by_sql(tmp_path: Path) -> None:
    with SQLiteLabels(tmp_path) as labels:
        labels.append([event()])
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as connection:
        for sql in ("update event set author = 'eve'", "delete from event"):
            with pytest.raises(sqlite3.IntegrityError, match="events are never"):
                connection.execute(sql)


def test_a_writer_that_holds_the_file_for_long_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    with SQLiteLabels(tmp_path) as labels, contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as other:
        other.execute("begin immediate")
        with pytest.raises(LockedError, match="was busy for 0.2 s, nothing was recorded"):
            labels.append([event()])
        other.execute("rollback")
        assert labels.append([event()]) == 1


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at" * 50, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_damaged_file_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.sqlite").write_bytes(content)
    with pytest.raises(DamagedError, match="restore it from a backup"):
        SQLiteLabels(tmp_path)


def test_check_finds_a_changed_byte_in_a_text(tmp_path: Path) -> None:
    with SQLiteLabels(tmp_path) as labels:
        labels.append([event("a text that can be found")])
    path = tmp_path / "events.sqlite"
    path.write_bytes(path.read_bytes().replace(b"can be found", b"can bf found"))
    with SQLiteLabels(tmp_path) as labels:
        assert labels.check() and "was changed" in labels.check()[0]


def test_check_finds_events_that_are_missing(tmp_path: Path) -> None:
    with SQLiteLabels(tmp_path) as labels:
        labels.append([event("one"), event("two"), event("three")])
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as connection:
        connection.execute("drop trigger event_is_never_removed")
        connection.execute("delete from event where seq = 2")
    with SQLiteLabels(tmp_path, read_only=True) as labels:
        assert labels.check() == ["1 of 3 events are missing"]


def test_a_read_only_copy_of_the_folder_is_read(tmp_path: Path) -> None:
    with SQLiteLabels(tmp_path) as labels:
        labels.append([event()])
    shutil.copytree(tmp_path, tmp_path / "copy")
    with SQLiteLabels(tmp_path / "copy", read_only=True) as copy:
        assert copy.events("label_event").num_rows == 1
    with SQLiteLabels(tmp_path / "copy" / "nothing here", read_only=True) as nothing:
        assert nothing.last() == 0


def test_an_append_is_fast(tmp_path: Path) -> None:
    with SQLiteLabels(tmp_path) as labels:
        times = []
        for i in range(30):
            start = time.perf_counter()
            labels.append([event(f"text {i}")])
            times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.1
