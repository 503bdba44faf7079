"""Every question that comes along is documented, runs, and says what is wrong with its parameters."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from catalog_samples import DATASET, FAMILY

from catalog import QUERIES, NotFound, QueryError, Store, connect, query
from catalog.lookup import check_feature, find_sae

SAE = f"{FAMILY}@1"
GIVEN: dict[str, Any] = {
    "sae_id": SAE, "feature": 3, "token": "import", "contrast_id": "c", "dataset_id": DATASET, "suite": "s",
    "features": "1,3", "text": "import", "collection_id": "c", "old_sae_id": SAE,
    "new_sae_id": SAE, "since": "2026-01-01",
}  # fmt: skip


@pytest.fixture(scope="module")
def connection(shared_store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(shared_store) as opened:
        yield opened


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_every_query_says_what_it_asks_and_runs(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    asked = QUERIES[name]
    assert asked.question.endswith((".", "?")) and asked.grain.startswith("one row")
    required = {p.name: GIVEN[p.name] for p in asked.parameters if p.is_required}
    answer = query(connection, name, **required)
    assert answer.num_columns > 1
    as_text = query(connection, name, **{key: str(value) for key, value in required.items()})
    assert as_text.equals(answer), "values may come as text, from a command line or a URL"


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_every_declared_parameter_is_used_and_no_other(name: str) -> None:
    asked = QUERIES[name]
    body = "\n".join(line for line in asked.sql.splitlines() if not line.startswith("--"))
    used = set(duckdb.sql("select unnest(regexp_extract_all($sql, '\\$(\\w+)', 1))", params={"sql": body}).fetchall())
    assert {name for (name,) in used} == {parameter.name for parameter in asked.parameters}


def test_an_answer_is_what_was_published(connection: duckdb.DuckDBPyConnection) -> None:
    (card,) = query(connection, "card", sae_id=SAE, feature=3).to_pylist()
    assert (card["feature"], card["status"], card["act_max"], card["name"]) == (3, "alive", 3.0, None)
    shown = query(connection, "examples", sae_id=SAE, feature=3).to_pylist()
    assert [row["rank"] for row in shown] == [0, 1, 2] and all(len(row["tokens"]) == 6 for row in shown)
    bins = query(connection, "histogram", sae_id=SAE, feature=3).to_pylist()
    assert bins == [{"low": 0.0, "high": 1.0, "n": 5}, {"low": 1.0, "high": 2.0, "n": 3}]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "dead"}, [0]),
        ({"token": "import", "sort": "feature"}, [0, 5]),
        ({"search": "RETURN", "sort": "feature"}, [4]),
        ({"search": "no such text"}, []),
        ({"sort": "act_max", "n": 2}, [7, 6]),
        ({"sort": "feature", "n": 3}, [0, 1, 2]),
    ],
)
def test_features_are_filtered_and_sorted(
    connection: duckdb.DuckDBPyConnection, filters: dict[str, Any], expected: list[int]
) -> None:
    assert query(connection, "features", sae_id=SAE, **filters)["feature"].to_pylist() == expected


def test_wrong_names_and_values_are_said(connection: duckdb.DuckDBPyConnection) -> None:
    for name, parameters, message in (
        ("card", {"sae_id": SAE}, "needs the parameter feature"),
        ("card", {"sae_id": SAE, "featur": 3}, "no parameter 'featur'.*'feature'"),
        ("card", {"sae_id": SAE, "feature": "three"}, "must be int, got 'three'"),
    ):
        with pytest.raises(QueryError, match=message):
            query(connection, name, **parameters)
    with pytest.raises(NotFound, match="no query 'cards'.*'card'"):
        query(connection, "cards")


@pytest.mark.parametrize("name", [SAE, FAMILY, "tiny", "L1.RESID", None])
def test_an_sae_is_found_by_what_people_type(connection: duckdb.DuckDBPyConnection, name: str | None) -> None:
    assert find_sae(connection, name) == SAE


def test_what_is_not_there_is_said_with_the_nearest(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(NotFound, match="no SAE .*did you mean 'tiny/L1.resid_post/batchtopk"):
        find_sae(connection, "tiny/L2.resid_post/batchtopk@1")
    with pytest.raises(NotFound, match="features 0 to 7"):
        check_feature(connection, SAE, 8)
    with pytest.raises(NotFound, match="features 0 to 7"):
        check_feature(connection, SAE, -1)
    with pytest.raises(NotFound, match="no SAE"):
        check_feature(connection, "x@1", 0)
