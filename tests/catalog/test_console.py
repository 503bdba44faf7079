"""SQL of strangers is stopped in time, whatever it does, and the next question is answered."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import HUNGRY, refused
from catalog_samples import FAMILY, publication

from catalog import DamagedError, Event, Labels, QueryError, QueryTimeout, Store, current, publish, verify
from catalog.console import Console, run


@pytest.fixture(scope="module")
def console(shared_store: Store) -> Iterator[Console]:
    with Console(shared_store) as opened:
        yield opened


def test_an_answer_is_the_same_as_in_the_process(console: Console) -> None:
    answer = console.run("select feature, density, act_quantiles, status from feature order by feature")
    assert answer.column_names == ["feature", "density", "act_quantiles", "status"]
    assert answer["feature"].to_pylist() == list(range(8))


def test_no_more_rows_than_the_limit(console: Console) -> None:
    assert console.run("from range(100)", limit=7).num_rows == 7


def test_an_error_leaves_the_child_ready(console: Console) -> None:
    with pytest.raises(QueryError, match=r"LINE 1: selec"):
        console.run("selec 1")
    assert console.run("select 1 as a").to_pylist() == [{"a": 1}]


@pytest.mark.parametrize("name", sorted(HUNGRY))
def test_a_hungry_question_is_stopped_in_time(console: Console, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(QueryTimeout):
        console.run(HUNGRY[name], timeout_seconds=1.0)
    assert time.monotonic() - start < 15
    assert console.run("select count(*) as n from feature").to_pylist() == [{"n": 8}]


def test_an_answer_of_many_bytes_is_refused(console: Console) -> None:
    with pytest.raises(QueryError, match="bytes, at most 64,000,000 are shown"):
        console.run("select repeat('x', 1000000) as a from range(100)", limit=100)


def test_every_attack_is_stopped_in_the_child_too(console: Console, shared_store: Store, tmp_path: Path) -> None:
    part = shared_store.catalog / current(shared_store).parts_of("feature")[0].path
    attacks = refused(shared_store.root, part, tmp_path / "written")
    for name, sql in attacks.items():
        with pytest.raises(QueryError):
            assert console.run(sql, timeout_seconds=20) is None, name
    assert not (tmp_path / "written").exists() and not verify(shared_store)


def test_a_warm_console_sees_new_labels_and_new_versions(store: Store) -> None:
    with Console(store) as console:
        assert console.run("select count(*) as n from label").to_pylist() == [{"n": 0}]
        with Labels(store) as labels:
            labels.append([Event("label_event", "ada", "write", {"sae_id": f"{FAMILY}@1", "feature": 1, "text": "x"})])
            assert console.run("select count(*) as n from label").to_pylist() == [{"n": 1}]
        publish(store, publication(8, train=2))
        assert console.run("select count(*) as n from feature").to_pylist() == [{"n": 16}]


def test_a_damaged_store_is_a_named_error(store: Store) -> None:
    (store.catalog / "current").write_text("{")
    with pytest.raises(DamagedError, match="current is damaged"):
        run(store, "select 1")


def test_the_child_ends_with_its_console(shared_store: Store) -> None:
    console = Console(shared_store)
    console.warm()
    child = console._child
    assert child is not None and child.poll() is None
    console.close()
    assert child.poll() is not None
