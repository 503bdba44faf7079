"""Finding, keeping and passing on features, and looking after a store, as a person at a terminal does it."""

import csv
import gzip
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_cli_catalog import SAE, Almanac, almanac, answer, own_store, read_only_store  # noqa: F401 (fixtures)

sys.path.insert(0, str(Path(__file__).parents[1] / "catalog"))
from catalog_samples import explanation_rows, fingerprint, published_store  # noqa: E402

from catalog import QUERIES, Store, append, connect, query  # noqa: E402
from flows.config import RunConfig  # noqa: E402
from flows.place import Place  # noqa: E402


def rows(shown: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(shown)
    return found


def test_every_question_is_answered_on_a_real_catalog(built: tuple[RunConfig, Place]) -> None:
    """Those whose tables stay empty until somebody labels, steers or monitors answer with no rows."""
    connection = connect(built[1].store)
    sae_id, dataset_id = connection.execute("select s.sae_id, d.dataset_id from sae s, dataset d").fetchall()[0]
    given = {"sae_id": sae_id, "feature": 3, "features": "1,3", "token": "return", "contrast_id": "c", "suite": "s",
             "dataset_id": dataset_id, "old_sae_id": sae_id, "new_sae_id": sae_id, "since": "2026-01-01",
             "text": "return", "collection_id": "c"}  # fmt: skip
    n_rows = {}
    for name, asked in QUERIES.items():
        required = {p.name: given[p.name] for p in asked.parameters if p.is_required and p.name in given}
        required |= {p.name: "x" for p in asked.parameters if p.is_required and p.name not in given}
        n_rows[name] = query(connection, name, **required).num_rows
    for name in ("card", "examples", "read_feature", "provenance", "labelling_queue", "token_features", "logits_of"):
        assert n_rows[name] > 0, name
    for name in ("separating_features", "failing_prompts", "alerts", "steering_response", "disagreements"):
        assert n_rows[name] == 0, name


def test_search_finds_by_text_token_logit_and_condition(almanac: Almanac, own_store: Store) -> None:  # noqa: F811
    at = ("--store", own_store.root, "--format", "json")
    answer(almanac("label", "add", "tiny", 3, "import statements", "--store", own_store.root))
    found = rows(answer(almanac("search", "text", "imprt statemnts", *at)))
    assert [(row["feature"], row["name"], row["source"]) for row in found] == [(3, "import statements", "ada")]
    assert {row["feature"] for row in rows(answer(almanac("search", "token", "import", *at)))} == {0, 5}
    assert {row["feature"] for row in rows(answer(almanac("search", "logit", "import", *at)))} == {0, 5}
    found = rows(answer(almanac("search", "where", "act_max > 5", *at)))
    assert [row["feature"] for row in found] == [6, 7]


def test_what_was_found_is_kept_in_a_collection_and_made_into_a_page(
    almanac: Almanac, own_store: Store, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    at = ("--store", own_store.root)
    assert "2 features put into 'strong'" in answer(almanac("search", "where", "act_max > 5", "--into", "strong", *at))
    answer(almanac("collection", "add", "strong", "tiny", 1, *at))
    answer(almanac("collection", "remove", "strong", "tiny", 6, *at))
    shown = rows(answer(almanac("collection", "show", "strong", "--format", "json", *at)))
    assert [row["feature"] for row in shown] == [7, 1]
    assert rows(answer(almanac("collection", "list", "--format", "json", *at)))[0]["n_features"] == 2
    assert "2 features" in answer(
        almanac("share", "page", "--collection", "strong", "-o", tmp_path / "strong.html", *at)
    )
    assert "feature 7 of" in (tmp_path / "strong.html").read_text()


def test_a_question_is_saved_asked_again_and_forgotten(almanac: Almanac, own_store: Store) -> None:  # noqa: F811
    at = ("--store", own_store.root)
    answer(almanac("sql", "select feature from feature where act_max > 6", "--save", "strongest", *at))
    assert "strongest" in answer(almanac("query", *at))
    assert rows(answer(almanac("query", "strongest", "--format", "json", *at))) == [{"feature": 7}]
    answer(almanac("query", "strongest", "--forget", *at))
    assert "no query 'strongest'" in almanac("query", "strongest", *at).err
    refused = almanac("sql", "select 1", "--save", "card", *at)
    assert refused.code == 1 and "comes with the catalog" in refused.err


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_whole_table_is_exported(almanac: Almanac, read_only_store: Store, tmp_path: Path, suffix: str) -> None:  # noqa: F811
    file = tmp_path / f"features.{suffix}"
    answer(almanac("export-table", "feature", "-o", file, "--where", "feature > 2"))
    expected = connect(read_only_store).sql("from feature where feature > 2").to_arrow_table()
    if suffix == "parquet":
        assert pq.read_table(file).equals(expected)
    elif suffix == "csv":
        with file.open(newline="") as opened:
            assert [row["top_token"] for row in csv.DictReader(opened)] == expected["top_token"].to_pylist()
    else:
        assert [json.loads(line) for line in file.read_text().split("\n") if line] == expected.to_pylist()
    same = answer(almanac("sql", "from feature where feature > 2", "--format", "jsonl"))
    assert suffix != "jsonl" or same == file.read_text()


def test_a_condition_cannot_do_more_than_choose_rows(almanac: Almanac, tmp_path: Path) -> None:  # noqa: F811
    for trick in ("true); copy feature to '/tmp/x.csv'; select (1", "true) union select * from feature where (true"):
        result = almanac("export-table", "feature", "-o", tmp_path / "x.csv", "--where", trick)
        assert result.code == 1 and "LINE 1" in result.err and not (tmp_path / "x.csv").exists()
    assert not Path("/tmp/x.csv").exists()


@pytest.mark.parametrize("form", ["neuronpedia", "saedashboard"])
def test_features_travel_to_another_store(almanac: Almanac, own_store: Store, tmp_path: Path, form: str) -> None:  # noqa: F811
    append(own_store, "explanation", explanation_rows(SAE, [1, 2]), fingerprint(1))
    answer(almanac("share", "features", "tiny", tmp_path / "out", "--format", form, "--store", own_store.root))
    other = Store.create(tmp_path / "other")
    again = ("share", "import", tmp_path / "out", "--name", "theirs", "--store", other.root)
    assert "theirs@1 published: 8 features, 24 examples" in answer(almanac(*again))
    assert "theirs@1 was there already" in answer(almanac(*again))
    shown = answer(almanac("show", "theirs", 3, "--store", other.root))
    assert "strongest" in shown
    names = connect(other).execute("select feature, name from feature_card where name is not null").fetchall()
    assert sorted(names) == ([(1, "explained 1"), (2, "explained 2")] if form == "neuronpedia" else [])


def test_explanations_of_others_are_put_onto_an_sae_that_is_there(
    almanac: Almanac, own_store: Store, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    (tmp_path / "explanations").mkdir()
    row = {"modelId": "tiny", "layer": "x", "index": "4", "description": "digits", "typeName": "np_max-act-logits"}
    (tmp_path / "explanations" / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert "1 explanations of" in answer(
        almanac("share", "import", tmp_path, "--onto", "tiny", "--store", own_store.root)
    )
    assert "digits" in answer(almanac("show", "tiny", 4, "--store", own_store.root))
    (tmp_path / "explanations" / "batch-0.jsonl.gz").write_bytes(b"not gzip")
    assert "cannot be read" in almanac("share", "import", tmp_path, "--onto", "tiny", "--store", own_store.root).err


def test_an_sae_is_retired_and_put_back(almanac: Almanac, own_store: Store) -> None:  # noqa: F811
    at = ("--store", own_store.root)
    assert f"{SAE} is retired" in answer(almanac("retire", "tiny", *at))
    assert "there is no SAE in this store" in almanac("show", "tiny", 1, *at).err
    assert f"{SAE} is back" in answer(almanac("retire", "tiny", "--undo", *at))
    assert "feature 1" in answer(almanac("show", "tiny", 1, *at))


def test_a_backup_is_restored_into_a_fresh_store_once(almanac: Almanac, own_store: Store, tmp_path: Path) -> None:  # noqa: F811
    answer(almanac("label", "add", "tiny", 1, "digits", "--store", own_store.root))
    assert "wrote 1 events" in answer(almanac("backup", tmp_path / "b.gz", "--store", own_store.root))
    fresh = published_store(tmp_path / "fresh")
    assert "1 events restored, 0 were there" in answer(almanac("restore", tmp_path / "b.gz", "--store", fresh.root))
    assert "0 events restored, 1 were there" in answer(almanac("restore", tmp_path / "b.gz", "--store", fresh.root))
    assert "digits" in answer(almanac("show", "tiny", 1, "--store", fresh.root))


def test_migrate_says_that_there_is_nothing_to_do(almanac: Almanac, own_store: Store) -> None:  # noqa: F811
    assert "already" in answer(almanac("migrate", "--store", own_store.root))
