"""Whatever is typed, only questions are answered; nothing is written, and the views still work."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from attacks import ALLOWED, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import QueryError, Store, connect, current, guarded, verify

NAMES = sorted(refused(Path(), Path(), Path()))
local_table = pa.table({"a": [1]})


@pytest.fixture(scope="module")
def connection(shared_store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(shared_store) as opened:
        yield opened


@pytest.fixture(scope="module")
def attacks(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    outside = tmp_path_factory.mktemp("outside") / "written"
    part = shared_store.catalog / current(shared_store).parts_of("feature")[0].path
    return refused(shared_store.root, part, outside)


def state_of(store: Store) -> dict[str, str]:
    files = (
        path for path in store.root.rglob("*") if path.is_file() and path.suffix in (".parquet", ".json", ".duckdb")
    )
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_refused_and_nothing_has_changed(
    connection: duckdb.DuckDBPyConnection, shared_store: Store, attacks: dict[str, str], name: str
) -> None:
    before = state_of(shared_store)
    with pytest.raises(QueryError):
        guarded(connection, attacks[name], 10)
    assert state_of(shared_store) == before
    assert guarded(connection, "select count(*) as n from feature_card", 10).to_pylist() == [{"n": 8}]
    assert guarded(connection, "select count(*) as n from label_event", 10).to_pylist() == [{"n": 0}]


def test_after_all_attacks_the_store_is_whole(shared_store: Store, attacks: dict[str, str]) -> None:
    assert not verify(shared_store)
    outside = attacks["copy to a file"].split("'")[1]
    assert not Path(outside).exists() and len(attacks) >= 25


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_a_question_is_answered(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    guarded(connection, ALLOWED[name], 10)


def test_the_order_that_was_asked_for_is_kept(connection: duckdb.DuckDBPyConnection) -> None:
    answer = guarded(connection, "select i from range(300000) t(i) order by hash(i)", 1000)
    expected = connection.sql("select i from range(300000) t(i) order by hash(i) limit 1000").to_arrow_table()
    assert answer.equals(expected)


@given(st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_no_more_rows_than_the_limit(connection: duckdb.DuckDBPyConnection, limit: int) -> None:
    assert guarded(connection, "from range(20)", limit).num_rows == min(limit, 20)


@pytest.mark.parametrize(
    ("sql", "line", "marked"),
    [
        ("selec 1", 1, "selec"),
        ("select\n  nope\nfrom feature", 2, "nope"),
        ("select *\nfrom featur", 2, "featur"),
        ("select 1\nwhere true\nand\n feature(3)", 4, "feature"),
        ("with x as (\n  select 1 as a\n)\nselect b from x", 4, "b"),
    ],
)
def test_an_error_marks_the_line_as_it_was_typed(
    connection: duckdb.DuckDBPyConnection, sql: str, line: int, marked: str
) -> None:
    with pytest.raises(QueryError) as raised:
        guarded(connection, sql, 10)
    shown = str(raised.value)
    assert f"LINE {line}: " in shown
    shown_line, caret = shown[shown.index("LINE ") :].split("\n")[:2]
    assert shown_line[caret.index("^") :].startswith(marked), shown


words = st.sampled_from(
    ["select", "1", "(", ")", "--", "/*", "*/", ";", "'", '"', "copy", "to", "x", "with", "as", "\n", "from", "$$"]
)


@given(st.lists(words, max_size=12).map(" ".join))
@settings(max_examples=200, deadline=None)
def test_any_text_is_answered_or_refused(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    with contextlib.suppress(QueryError):
        guarded(connection, sql, 5)
    assert connection.execute("select count(*) from feature").fetchall() == [(8,)]
