"""A folder is a store, becomes one, or is refused with what to do."""

import json
import threading
from pathlib import Path

import pytest

from catalog import SCHEMA_VERSION, LockedError, Store, StoreError
from catalog.locks import exclusive


def test_create_makes_a_store_that_opens(tmp_path: Path) -> None:
    made = Store.create(tmp_path / "new" / "store")
    assert Store.open(tmp_path / "new" / "store") == made
    assert json.loads((made.root / "almanac.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_create_twice_changes_nothing(tmp_path: Path) -> None:
    Store.create(tmp_path / "s")
    before = (tmp_path / "s" / "almanac.json").stat().st_mtime_ns
    Store.create(tmp_path / "s")
    assert (tmp_path / "s" / "almanac.json").stat().st_mtime_ns == before


def test_create_by_several_at_once_makes_one_store(tmp_path: Path) -> None:
    made: list[Store] = []
    threads = [threading.Thread(target=lambda: made.append(Store.create(tmp_path / "s"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1


def test_create_refuses_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="not empty and not a store"):
        Store.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store.create(tmp_path / "file")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (None, "is not a store: it has no almanac.json"),
        ("", "cannot be read"),
        ("[1]", "does not say format"),
        ('{"format": "something else"}', "does not say format"),
        ('{"format": "sae-almanac store"}', "schema_version None"),
        ('{"format": "sae-almanac store", "schema_version": 99}', "install a newer sae-almanac"),
    ],
)
def test_open_says_why_a_folder_is_no_store(tmp_path: Path, marker: str | None, message: str) -> None:
    if marker is not None:
        (tmp_path / "almanac.json").write_text(marker)
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path)


def test_open_says_how_to_make_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="almanac build"):
        Store.open(tmp_path / "absent")


def test_a_lock_that_is_held_names_its_holder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "a.lock", "publishing x", 1.0),
        pytest.raises(LockedError, match=r"process \d+ on .* \(publishing x, since .* UTC\)"),
        exclusive(tmp_path / "a.lock", "publishing y", 0.1),
    ):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    order: list[str] = []
    held = threading.Event()

    def first() -> None:
        with exclusive(tmp_path / "a.lock", "first", 1.0):
            held.set()
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with exclusive(tmp_path / "a.lock", "second", 10.0):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
