"""Rows in the order, types and completeness of their table, or a refusal that names the column."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from catalog_samples import fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import TABLES, SchemaError, arrow_schema, conform
from catalog.conform import as_table

LOGITS = {"sae_id": ["a@1"] * 3, "feature": [2, 0, 1], "fingerprint": ["f"] * 3, "sign": [1] * 3, "rank": [0] * 3}
RUN = {"run_id": ["r"], "step": ["train"], "state": ["finished"]}


def conformed(table: str, **columns: Any) -> pa.Table:
    return conform(table, as_table(table, columns))


@given(st.permutations(list(LOGITS)), st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint8]))
@settings(max_examples=25, deadline=None)
def test_order_of_columns_and_width_of_integers_do_not_matter(order: list[str], kind: type) -> None:
    columns = {name: LOGITS[name] for name in order}
    columns["feature"] = np.array(LOGITS["feature"], dtype=kind)
    assert conform("feature_logit", as_table("feature_logit", columns)).equals(conformed("feature_logit", **LOGITS))


@pytest.mark.parametrize("name", sorted(TABLES))
def test_conform_of_a_conformed_table_is_itself(name: str) -> None:
    rows = arrow_schema(name).empty_table()
    assert conform(name, rows).equals(rows)


def test_missing_nullable_columns_are_null() -> None:
    rows = conformed("feature_logit", **LOGITS)
    assert rows.schema.equals(arrow_schema("feature_logit"))
    assert rows["logit"].null_count == 3


def test_a_matrix_becomes_a_column_of_lists() -> None:
    rows = conformed(
        "histogram", sae_id=["a"], feature=[0], fingerprint=["f"], dataset_id=["d"], kind=["act"],
        edges=np.array([[0.0, 1.0, 2.0]]), counts=np.array([[3, 4]], dtype=np.int32),
    )  # fmt: skip
    assert rows["edges"].to_pylist() == [[0.0, 1.0, 2.0]] and rows["counts"].to_pylist() == [[3, 4]]


def test_times_with_a_zone_become_utc() -> None:
    berlin = datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    rows = conform("run", pa.table({**{k: v for k, v in RUN.items()}, "started_at": pa.array([berlin])}))
    assert rows["started_at"].to_pylist() == [datetime(2026, 7, 1, 10, 0)]
    assert conformed("run", **RUN, started_at=[berlin.astimezone(UTC)])["started_at"].to_pylist() == [
        datetime(2026, 7, 1, 10, 0)
    ]


def test_a_map_of_numbers_is_kept() -> None:
    rows = conformed("train_progress", fingerprint=["f"], run_id=["r"], step=[1], loss_terms=[{"mse": 0.5}])
    assert rows["loss_terms"].to_pylist() == [[("mse", 0.5)]]


REFUSED = [
    ("an unknown column", "feature_logit", {**LOGITS, "logits": [1.0] * 3}, "no column 'logits'.*'logit'"),
    ("a missing key", "feature_logit", {k: v for k, v in LOGITS.items() if k != "sign"}, "lacks the column 'sign'"),
    ("a null in a key", "feature_logit", {**LOGITS, "sign": [1, None, 1]}, "sign has 1 nulls"),
    ("a doubled key", "feature_logit", {**LOGITS, "feature": [1, 1, 0]}, "2 rows with the key.*must be unique"),
    ("a number too large", "feature_logit", {**LOGITS, "rank": [0, 0, 2**40]}, "rank must hold int32"),
    ("text for a number", "feature_logit", {**LOGITS, "rank": ["a", "b", "c"]}, "rank must hold int32"),
    ("NaN", "feature_logit", {**LOGITS, "logit": [1.0, float("nan"), 0.0]}, "logit has 1 values that are not finite"),
    ("infinity", "feature_logit", {**LOGITS, "logit": np.array([1.0, 2.0, np.inf])}, "not finite, the first is inf"),
    ("NaN in a map", "train_progress",
     {"fingerprint": ["f"], "run_id": ["r"], "step": [1], "loss_terms": [{"a": float("nan")}]}, "not finite"),
    ("an unknown word", "run", {**RUN, "state": ["done"]}, "state is 'done'; it must be one of running, finished"),
    ("a share above one", "train_progress",
     {"fingerprint": ["f"], "run_id": ["r"], "step": [1], "dead_share": [1.5]}, "must stay within 0 and 1"),
    ("broken JSON", "run", {**RUN, "config": ["{"]}, "config must hold JSON"),
    ("columns of different length", "run", {**RUN, "host": ["a", "b"]}, "differ in length"),
    ("an object", "run", {**RUN, "n_tokens": [object()]}, "n_tokens must hold int64"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "columns", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_rows_that_do_not_fit_are_refused_by_column(table: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        conform(table, as_table(table, columns))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_keys_are_refused_exactly_when_one_occurs_twice(keys: list[tuple[int, int]]) -> None:
    columns = {
        "sae_id": ["a"] * len(keys), "fingerprint": [fingerprint(1)] * len(keys), "sign": [1] * len(keys),
        "feature": [feature for feature, _ in keys], "rank": [rank for _, rank in keys],
    }  # fmt: skip
    if len(set(keys)) == len(keys):
        assert conformed("feature_logit", **columns).num_rows == len(keys)
    else:
        with pytest.raises(SchemaError, match="must be unique"):
            conformed("feature_logit", **columns)
