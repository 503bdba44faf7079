"""Every table is described whole, and the reference page is made from the description."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from catalog import TABLES, NotFound, Table, arrow_schema

ROOT = Path(__file__).parents[2]
GROUPS = {"provenance", "corpus", "features", "identity", "interpretation", "people", "applications"}


@pytest.fixture(params=sorted(TABLES))
def table(request: pytest.FixtureRequest) -> Table:
    return TABLES[request.param]


def test_every_column_has_a_unit_and_a_meaning(table: Table) -> None:
    for column in table.columns:
        assert column.unit.strip() and column.meaning.strip(), column.name
        assert not column.meaning.endswith("."), "meanings are phrases"


def test_column_names_are_unique(table: Table) -> None:
    assert len(set(table.names)) == len(table.names)


def test_key_sort_and_partition_are_columns_that_are_never_null(table: Table) -> None:
    for name in (*table.key, *filter(None, [table.partition])):
        assert not table.column(name).nullable, name
    assert set(table.sort) <= set(table.names) and table.sort


def test_the_leading_sort_column_is_never_null(table: Table) -> None:
    assert not table.column(table.sort[0]).nullable


def test_machine_made_tables_carry_the_fingerprint(table: Table) -> None:
    assert table.writing == "event" or "fingerprint" in table.names


def test_people_own_the_event_tables_and_nothing_else(table: Table) -> None:
    assert (table.writing == "event") == (table.group == "people")
    if table.writing == "event":
        assert table.key == ("event_id",) and {"created_at", "author", "action", "undoes"} <= set(table.names)


def test_volatile_tables_are_appended(table: Table) -> None:
    assert not table.volatile or table.writing == "appended"


def test_words_are_texts(table: Table) -> None:
    assert all(column.type == pa.string() for column in table.columns if column.one_of)


def test_duckdb_reads_the_types_of_the_table(table: Table) -> None:
    rows = arrow_schema(table.name).empty_table()
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        assert connection.sql("from rows").to_arrow_table().column_names == list(table.names)


def test_groups_are_the_ones_of_the_design() -> None:
    assert {table.group for table in TABLES.values()} == GROUPS
    assert {name for name, table in TABLES.items() if table.volatile} == {"run", "lineage", "train_progress"}


def test_a_table_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"no table 'featur'.*'feature'"):
        arrow_schema("featur")


def test_the_reference_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_table_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
