"""Artifacts are finished or absent, named by what they were made from, and checked when they are read."""

import errno
import threading
from pathlib import Path

import pytest

from catalog import Store
from flows.artifact import Artifact, Work, find, finished, making, verify_artifacts
from flows.disk import check_room, write_piece
from flows.errors import ArtifactError, DiskError


def silent(_: str) -> None:
    return None


def make(store: Store, work: Work, content: bytes = b"hello") -> Artifact:
    with making(store, work, silent) as draft:
        assert draft is not None
        write_piece(draft.directory / "data.bin", content)
        draft.facts["n"] = 5
    return finished(store, work)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def test_fingerprint_depends_on_kind_version_plan_and_parents_and_not_on_key_order(store: Store) -> None:
    work = Work("tokens", 1, {"a": 1, "b": 2})
    assert work.fingerprint == Work("tokens", 1, {"b": 2, "a": 1}).fingerprint
    parent = make(store, work)
    others = [
        Work("sae", 1, {"a": 1, "b": 2}),
        Work("tokens", 2, {"a": 1, "b": 2}),
        Work("tokens", 1, {"a": 1, "b": 3}),
        Work("tokens", 1, {"a": 1, "b": 2}, (parent,)),
    ]
    assert len({work.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_artifact_is_absent_while_it_is_made_and_found_afterwards(store: Store) -> None:
    work = Work("tokens", 1, {})
    with making(store, work, silent) as draft:
        assert draft is not None
        write_piece(draft.directory / "data.bin", b"x")
        assert find(store, work) is None
    made = finished(store, work)
    assert made.file("data.bin").read_bytes() == b"x"
    with making(store, work, silent) as draft:
        assert draft is None


def test_step_that_fails_leaves_nothing_visible_and_keeps_its_pieces(store: Store) -> None:
    work = Work("tokens", 1, {})
    with pytest.raises(KeyboardInterrupt), making(store, work, silent) as draft:
        assert draft is not None
        write_piece(draft.directory / "piece", b"1")
        raise KeyboardInterrupt
    assert find(store, work) is None
    with making(store, work, silent) as draft:
        assert draft is not None
        assert (draft.directory / "piece").read_bytes() == b"1"


def test_second_build_of_the_same_thing_waits_and_says_who_holds_it(store: Store) -> None:
    work, said, inside, leave = Work("tokens", 1, {}), [], threading.Event(), threading.Event()

    def first() -> None:
        with making(store, work, silent) as draft:
            assert draft is not None
            inside.set()
            leave.wait(30)

    def say(text: str) -> None:
        said.append(text)
        leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(30)
    with making(store, work, say) as draft:
        assert draft is None
    thread.join()
    assert "waiting" in said[0]
    assert "process" in said[0]


def test_full_disk_is_said_in_our_words(store: Store) -> None:
    with pytest.raises(DiskError, match="disk of .* is full"), making(store, Work("tokens", 1, {}), silent):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match="GB are free"):
        check_room(store.root, 1 << 62, "harvest")


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_damaged_file_is_named_when_it_is_read_and_by_verify(store: Store, harm: str) -> None:
    made = make(store, Work("tokens", 1, {}))
    path = made.directory / "data.bin"
    if harm == "truncate":
        path.write_bytes(b"hel")
    elif harm == "flip":
        path.write_bytes(b"hellO")
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match="data.bin is damaged"):
        made.file("data.bin")
    damages: list[Path] = []
    verify_artifacts(store, lambda where, _: damages.append(where))
    assert damages == [path]


def test_manifest_that_cannot_be_read_is_an_error_not_a_missing_artifact(store: Store) -> None:
    work = Work("tokens", 1, {})
    (make(store, work).directory / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        find(store, work)
