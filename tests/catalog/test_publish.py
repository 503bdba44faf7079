"""A publication is in the catalog whole or not at all, and every version stays what it was."""

import dataclasses
import importlib
import os
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalog_samples import (
    DATASET,
    FAMILY,
    N_SEQUENCES,
    changed,
    corpus,
    examples,
    explanation_rows,
    features,
    fingerprint,
    lists_of_features,
    publication,
    with_table,
)

from catalog import (
    TABLES,
    LockedError,
    Publication,
    SchemaError,
    Store,
    StoreError,
    append,
    connect,
    current,
    publish,
    verify,
)
from catalog.conform import as_table
from catalog.locks import exclusive

publishing = importlib.import_module("catalog.publish")  # `catalog.publish` is the function


@pytest.fixture
def fresh(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "fresh")


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return connect(store).execute(sql).fetchall()


def parts_on_disk(store: Store) -> set[str]:
    return {str(path.relative_to(store.catalog)) for path in store.catalog.glob("*/**/part-0.parquet")}


# ---- versions ----------------------------------------------------------------


def test_a_first_publication_is_version_one_and_its_rows_are_there(fresh: Store) -> None:
    published = publish(fresh, publication(8))
    assert (published.sae_id, published.version, published.is_new) == (f"{FAMILY}@1", 1, True)
    assert rows(fresh, "select sae_id, count(*) from feature group by all") == [(f"{FAMILY}@1", 8)]
    assert rows(fresh, "select family, version, parent_sae_id from sae") == [(FAMILY, 1, None)]
    assert rows(fresh, "select distinct other_sae_id from neighbor") == [(f"{FAMILY}@1",)]
    assert rows(fresh, "select metric from sae_metric order by 1") == [("fvu",), ("l0",)]


def test_the_same_publication_again_changes_nothing(fresh: Store) -> None:
    first = publish(fresh, publication(8))
    before = parts_on_disk(fresh)
    again = publish(fresh, publication(8))
    assert again == dataclasses.replace(first, is_new=False)
    assert parts_on_disk(fresh) == before and current(fresh).number == first.snapshot


def test_another_training_is_the_next_version_and_names_its_parent(fresh: Store) -> None:
    publish(fresh, publication(8, train=1))
    assert publish(fresh, publication(8, train=2)).sae_id == f"{FAMILY}@2"
    assert rows(fresh, "select sae_id, parent_sae_id from sae order by 1") == [
        (f"{FAMILY}@1", None),
        (f"{FAMILY}@2", f"{FAMILY}@1"),
    ]
    assert rows(fresh, "select sae_id from current_sae") == [(f"{FAMILY}@2",)]


def test_another_describe_of_the_same_training_replaces_its_tables_and_keeps_the_version(fresh: Store) -> None:
    publish(fresh, publication(8, content=0))
    publish(fresh, publication(8, train=2))
    again = publish(fresh, publication(8, content=5))
    assert (again.sae_id, again.is_new) == (f"{FAMILY}@1", True)
    expected = features(8, 5)["density"].tolist()
    assert [
        d for (d,) in rows(fresh, f"select density from feature where sae_id = '{FAMILY}@1' order by feature")
    ] == expected
    assert rows(fresh, "select count(*) from feature") == [(16,)]


def test_a_table_left_out_of_a_republication_is_gone(fresh: Store) -> None:
    publish(fresh, publication(8))
    without = publication(8, content=1)
    publish(fresh, dataclasses.replace(without, tables={k: v for k, v in without.tables.items() if k != "histogram"}))
    assert rows(fresh, "select count(*) from histogram") == [(0,)]


def test_families_count_their_own_versions(fresh: Store) -> None:
    publish(fresh, publication(8, train=1))
    assert publish(fresh, publication(8, train=2, family="other/family")).sae_id == "other/family@1"


def test_shared_tables_are_replaced_by_their_own_key(fresh: Store) -> None:
    publish(fresh, publication(8))
    second = {name: merged(rows, corpus(3, "second")[name]) for name, rows in corpus().items() if name != "model"}
    other = dataclasses.replace(publication(8, train=2), shared=second)
    publish(fresh, other)
    assert rows(fresh, "select dataset_id, role from dataset order by 1") == [
        ("second", "general"),
        (DATASET, "general"),
    ]
    assert rows(fresh, "select count(*) from sequence where dataset_id = 'second'") == [(N_SEQUENCES,)]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: [*one[name], *other[name]] for name in one}


# ---- what is refused, and that nothing changes then ---------------------------


def with_features(n: int = 8, **columns: Any) -> Publication:
    return with_table(publication(8), "feature", changed(features(n), **columns))


def with_histogram(**columns: Any) -> Publication:
    return with_table(publication(8), "histogram", changed(lists_of_features(8)["histogram"], **columns))


def with_examples(**columns: Any) -> Publication:
    return with_table(publication(8), "example", changed(examples(8), **columns))


def without_artifact() -> Publication:
    return dataclasses.replace(publication(8), shared={"model": {"model_id": ["tiny"]}})


FALLING = [None] + [[5.0, 4.0, *range(6, 15)]] * 7
MISPLACED = dataclasses.replace(publication(8), shared={"feature": features(8)})
NO_SAE = dataclasses.replace(publication(8), tables={"feature": features(8)})
REFUSED: list[tuple[str, Publication, str]] = [
    ("a feature out of range", with_histogram(feature=[*range(7), 8]), "runs from 0 to 8, but the SAE has .* 0 to 7"),
    ("a density above one", with_features(density=[1.5] * 8), "within 0 and 1"),
    ("NaN", with_features(act_mean=[float("nan")] * 8), "not finite"),
    ("falling quantiles", with_features(act_quantiles=FALLING), "must not fall"),
    ("ten quantiles", with_features(act_quantiles=[[1.0] * 10] * 8), "11 numbers"),
    ("a doubled key", with_features(feature=[0, 0, *range(2, 8)]), "unique"),
    ("a feature without a row", with_features(7), "one row for each of 8 features, got 7"),
    ("an example without its sequence", with_examples(sequence_id=[99] * 24), "sequence 99 of data set"),
    ("lists of unequal length", with_examples(fire_acts=[[1.0]] * 24), "as many as fire_acts, got 2 and 1"),
    ("an edge too few", with_histogram(edges=[[0.0, 1.0]] * 8), "edges must have 1 more than counts, got 2 and 2"),
    ("rows of another SAE", with_features(sae_id=["x@9"] * 8), "another SAE 'x@9'"),
    ("a table that is appended", with_table(publication(8), "sae_metric", {}), "not replaced by SAE"),
    ("an unknown table", with_table(publication(8), "featur", {}), "no table 'featur'"),
    ("a table of people", with_table(publication(8), "label_event", {}), "not replaced by SAE"),
    ("no sae", NO_SAE, "needs the table 'sae'"),
    ("two saes", with_table(publication(8), "sae", {"n_features": [8, 8]}), "one row with n_features; got 2"),
    ("a family with @", publication(8, family="a@1"), "without '@'"),
    ("a shared table out of place", MISPLACED, "not shared"),
    ("shared rows of no artifact", without_artifact(), "lacks the column 'fingerprint'"),
]


@pytest.mark.parametrize(("bad", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_bad_publication_is_refused_and_the_old_one_stays(store: Store, bad: Publication, message: str) -> None:
    before, number = parts_on_disk(store), current(store).number
    with pytest.raises((SchemaError, ValueError), match=message):
        publish(store, dataclasses.replace(bad, fingerprint=fingerprint(7)))
    assert parts_on_disk(store) == before and current(store).number == number
    assert not list((store.catalog / ".staging").glob("*"))
    assert rows(store, "select count(*) from feature") == [(8,)]


def test_a_corpus_that_examples_of_another_sae_need_is_not_taken_away(store: Store) -> None:
    shorter = {
        name: values[:3] if len(values) == N_SEQUENCES else values for name, values in corpus()["sequence"].items()
    }
    few = changed(examples(8), sequence_id=[0] * 24)
    other = with_table(publication(8, train=9, family="other"), "example", few)
    with pytest.raises(SchemaError, match="not in the catalog"):
        publish(store, dataclasses.replace(other, shared={**corpus(), "sequence": shorter}))


def test_a_full_disk_is_an_error_that_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with connect(store):
        pass
    number = current(store).number
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left on device; nothing was published"):
        publish(store, publication(8, train=5))
    monkeypatch.undo()
    assert current(store).number == number and not verify(store)
    assert publish(store, publication(8, train=5)).version == 2


# ---- files --------------------------------------------------------------------


def big_examples(n: int) -> pa.Table:
    table = as_table("example", examples(n, per_feature=5))
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    return shuffled.sort_by("feature")  # grouped by feature, in any order within


@pytest.mark.parametrize("row_group", [900, 100_000])
def test_a_file_that_is_streamed_gives_the_same_bytes_as_a_table_in_memory(tmp_path: Path, row_group: int) -> None:
    n = 9_000
    rows_of = big_examples(n)
    pq.write_table(rows_of, tmp_path / "example.parquet", row_group_size=row_group)
    hashes = []
    for name, given in (("memory", rows_of), ("file", tmp_path / "example.parquet")):
        store = Store.create(tmp_path / name)
        base = publication(n)
        small = {key: base.tables[key] for key in ("sae", "feature")}
        publish(store, dataclasses.replace(base, tables={**small, "example": given}))
        (part,) = current(store).parts_of("example")
        hashes.append(part.sha256)
    assert hashes[0] == hashes[1]


def test_rows_lie_sorted_and_row_groups_end_with_a_feature(fresh: Store) -> None:
    n = 9_000
    base = publication(n)
    publish(fresh, dataclasses.replace(base, tables={**base.tables, "example": big_examples(n)}))
    (part,) = current(fresh).parts_of("example")
    with pq.ParquetFile(fresh.catalog / part.path) as file:
        assert file.num_row_groups == 2, "45,000 rows, at most 40,960 in a group"
        groups = [file.read_row_group(i, ["feature", "rank"]) for i in range(file.num_row_groups)]
    assert all(group.num_rows <= TABLES["example"].row_group_rows for group in groups)
    for earlier, later in zip(groups, groups[1:], strict=False):
        assert earlier["feature"][-1].as_py() < later["feature"][0].as_py()
    whole = pa.concat_tables(groups)
    assert whole.equals(whole.sort_by([("feature", "ascending"), ("rank", "ascending")]))


def test_a_file_that_is_not_sorted_is_refused(fresh: Store, tmp_path: Path) -> None:
    backwards = as_table("example", examples(8)).sort_by([("feature", "descending")])
    pq.write_table(backwards, tmp_path / "example.parquet", row_group_size=6)
    original = TABLES["example"].row_group_rows
    object.__setattr__(TABLES["example"], "row_group_rows", 6)
    try:
        with pytest.raises(SchemaError, match=r"is not sorted: example.feature goes back"):
            publish(fresh, with_table(publication(8), "example", tmp_path / "example.parquet"))
    finally:
        object.__setattr__(TABLES["example"], "row_group_rows", original)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_a_file_that_is_not_parquet_is_refused(fresh: Store, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "example.parquet").write_bytes(content)
    with pytest.raises(SchemaError, match="cannot be read as Parquet rows of 'example'"):
        publish(fresh, with_table(publication(8), "example", tmp_path / "example.parquet"))


def test_the_same_rows_give_the_same_files_in_any_store(tmp_path: Path) -> None:
    stores = [Store.create(tmp_path / name) for name in "ab"]
    for store in stores:
        publish(store, publication(8))
    first, second = ({(p.path, p.sha256) for p in current(store).parts} for store in stores)
    assert first == second


def test_the_folder_of_a_part_changes_with_its_content(fresh: Store) -> None:
    publish(fresh, publication(8, content=0))
    (before,) = current(fresh).parts_of("feature")
    publish(fresh, publication(8, content=1))
    (after,) = current(fresh).parts_of("feature")
    assert before.path != after.path and (fresh.catalog / before.path).exists()
    assert "sae_id=tiny%2FL1.resid_post%2Fbatchtopk%401/" in before.path


def test_leftovers_of_a_killed_publisher_are_collected_by_the_next(store: Store) -> None:
    staged = store.catalog / ".staging" / "dead" / "0.parquet"
    orphan = store.catalog / "feature" / "sae_id=x" / "orphan" / "part-0.parquet"
    half = store.root / ".catalog.duckdb.123.tmp"
    for path in (staged, orphan, half):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert not verify(store)
    kept = {path for path in parts_on_disk(store) if "orphan" not in path}
    publish(store, publication(8, train=2))
    assert not staged.exists() and not orphan.exists() and not half.exists()
    assert kept <= parts_on_disk(store), "the files of earlier snapshots stay: their readers may still be there"


# ---- append ---------------------------------------------------------------------


def test_appended_rows_are_there_and_add_up(store: Store) -> None:
    for i in range(3):
        append(store, "run", {"run_id": [f"r{i}"], "step": ["train"], "state": ["finished"]}, fingerprint(i))
    assert rows(store, "select run_id, fingerprint from run order by 1") == [
        (f"r{i}", fingerprint(i)) for i in range(3)
    ]


def test_appending_the_same_fingerprint_twice_adds_nothing(store: Store) -> None:
    explained = explanation_rows(f"{FAMILY}@1", [1, 2])
    append(store, "explanation", explained, fingerprint(1))
    number = current(store).number
    append(store, "explanation", explained, fingerprint(1))
    append(store, "explanation", explanation_rows(f"{FAMILY}@1", [3]), fingerprint(1))
    assert current(store).number == number
    assert rows(store, "select count(*) from explanation") == [(2,)]


def test_volatile_tables_take_more_rows_of_one_fingerprint_but_the_same_rows_once(store: Store) -> None:
    def progress(step: int) -> dict[str, Any]:
        return {"run_id": ["r"], "step": [step], "loss_terms": [{"mse": 0.1}]}

    for step in (1, 2, 2):
        append(store, "train_progress", progress(step), fingerprint(1))
    assert rows(store, "select step, loss_terms['mse'] from train_progress order by 1") == [(1, 0.1), (2, 0.1)]


def test_append_refuses_tables_that_are_replaced(store: Store) -> None:
    with pytest.raises(SchemaError, match="'feature' is replaced, not appended"):
        append(store, "feature", {}, fingerprint(1))
    with pytest.raises(SchemaError, match="'label_event' is event, not appended"):
        append(store, "label_event", {}, fingerprint(1))


def test_appending_no_rows_changes_nothing(store: Store) -> None:
    number = current(store).number
    append(store, "run", {"run_id": [], "step": [], "state": []}, fingerprint(1))
    assert current(store).number == number


def test_many_appends_keep_few_snapshot_files(store: Store) -> None:
    for i in range(20):
        append(store, "run", {"run_id": [f"r{i}"], "step": ["train"], "state": ["finished"]}, fingerprint(i))
    assert len(list((store.catalog / "snapshots").glob("*.json"))) <= 17
    assert not verify(store)


def test_many_small_parts_become_one_and_lose_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MANY_PARTS", 4)
    reader = connect(store)
    for i in range(11):
        row = {"run_id": [f"r{i:02}"], "step": ["train"], "state": ["finished"]}
        append(store, "run", row, fingerprint(i))
        append(store, "run", row, fingerprint(i))
    assert len(current(store).parts_of("run")) <= 4
    assert [run for (run,) in rows(store, "select run_id from run order by 1")] == [f"r{i:02}" for i in range(11)]
    assert reader.execute("select count(*) from run").fetchall() == [(0,)] and not verify(store)


# ---- several writers, and a store that moves ----------------------------------------


def test_publishers_at_once_all_get_through_one_after_the_other(fresh: Store) -> None:
    versions: list[int] = []

    def one(train: int) -> None:
        versions.append(publish(fresh, publication(8, train=train)).version)

    threads = [threading.Thread(target=one, args=(train,)) for train in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4, 5] and not verify(fresh)


def test_a_publisher_that_waits_too_long_says_who_holds_the_lock(store: Store) -> None:
    with (
        exclusive(store.locks / "catalog.lock", "publishing something large", 1.0),
        pytest.raises(LockedError, match="publishing something large, since"),
    ):
        publish(store, publication(8, train=3), timeout_seconds=0.1)


def test_the_view_file_opens_read_only_from_any_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(store)  # the store is a copy: it has moved, and this makes its view file fit
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(str(store.view_file), read_only=True) as outsider:
        assert outsider.execute("select count(*) from feature_card").fetchall() == [(8,)]
        assert len(outsider.execute(f"from examples_of('{FAMILY}@1', 3, 2)").fetchall()) == 2
        assert outsider.execute("select count(*) from duckdb_views() where not internal").fetchall()[0][0] >= len(
            TABLES
        )
        paths = outsider.execute("select sql from duckdb_views() where view_name = 'feature'").fetchall()[0][0]
    assert str(store.root) in paths


def test_a_store_that_moved_is_read_where_it_is(store: Store, tmp_path: Path) -> None:
    connect(store)
    moved = store.root.rename(tmp_path / "it's moved")
    assert rows(Store.open(moved), "select count(*) from example") == [(24,)]
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as outsider:
        assert outsider.execute("select count(*) from example").fetchall() == [(24,)]
