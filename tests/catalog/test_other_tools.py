"""What goes out in other tools' formats comes back the same; a page shows everything and runs nothing."""

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalog_samples import FAMILY, explanation_rows, fingerprint, published_store

from catalog import Event, Labels, NotFound, SchemaError, Store, append, connect, publish, verify
from catalog.exchange import as_explanations, as_publication, shared
from catalog.exchange_files import SharedFormat, read_shared, write_shared
from catalog.page import page

SAE = f"{FAMILY}@1"
NEURONPEDIA_FEATURE = {
    "modelId", "layer", "index", "maxActApprox", "frac_nonzero", "pos_str", "pos_values", "neg_str", "neg_values",
    "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "correlated_features_indices", "correlated_features_pearson", "topkCosSimIndices",
    "topkCosSimValues", "hasVector",
}  # fmt: skip
NEURONPEDIA_ACTIVATION = {
    "tokens", "values", "maxValue", "maxValueTokenIndex", "minValue", "binMin", "binMax", "binContains",
    "qualifyingTokenIndex", "dataSource",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = published_store(tmp_path_factory.mktemp("exchange") / "store")
    append(store, "explanation", explanation_rows(SAE, [1, 2]), fingerprint(1))
    with Labels(store) as labels:
        labels.append([Event("label_event", "ada", "write", {"sae_id": SAE, "feature": 3, "text": "<b>digits</b>"})])
    return store


@pytest.mark.parametrize("form", ["neuronpedia", "saedashboard"])
def test_what_goes_out_comes_back_the_same(source: Store, tmp_path: Path, form: SharedFormat) -> None:
    out = shared(connect(source), SAE)
    write_shared(out, tmp_path / "files", form)
    read = read_shared(tmp_path / "files")
    other = Store.create(tmp_path / "other")
    made = publish(other, as_publication(read, "theirs"))
    rows = as_explanations(read, made.sae_id)
    if rows:
        append(other, "explanation", rows, fingerprint(2))
    back = shared(connect(other), made.sae_id)
    assert verify(other) == [] and len(back.features) == 8 and len(back.activations) == 24
    for before, after in zip(out.features, back.features, strict=True):
        assert same({**before, "layer": 0}, {**after, "layer": 0})
    for before, after in zip(out.activations, back.activations, strict=True):
        assert same({**before, "layer": 0, "dataSource": 0}, {**after, "layer": 0, "dataSource": 0})
    said = [(row["index"], row["description"]) for row in back.explanations]
    expected = [(row["index"], row["description"]) for row in out.explanations]
    assert said == (expected if form == "neuronpedia" else []) and len(expected) == 3
    assert publish(other, as_publication(read_shared(tmp_path / "files"), "theirs")).is_new is False


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(np.isclose(left, right, rtol=1e-5)) if isinstance(left, float) else bool(left == right)


def test_the_files_have_the_keys_of_their_formats(source: Store, tmp_path: Path) -> None:
    out = shared(connect(source), SAE, [3])
    write_shared(out, tmp_path / "np", "neuronpedia")
    write_shared(out, tmp_path / "sd", "saedashboard")
    lines = gzip.decompress((tmp_path / "np/features/batch-0.jsonl.gz").read_bytes()).splitlines()
    (feature,) = map(json.loads, lines)
    assert set(feature) == NEURONPEDIA_FEATURE and feature["index"] == "3" and feature["maxActApprox"] == 3.0
    first = json.loads(gzip.decompress((tmp_path / "np/activations/batch-0.jsonl.gz").read_bytes()).splitlines()[0])
    assert set(first) - {"modelId", "layer", "index"} == NEURONPEDIA_ACTIVATION
    assert (first["maxValue"], first["maxValueTokenIndex"], first["binMin"], first["binContains"]) == (
        5.0,
        2,
        -1.0,
        -1.0,
    )
    batch = json.loads((tmp_path / "sd/batch-0.json").read_text())
    (dashboard,) = batch["features"]
    assert dashboard["feature_index"] == 3 and dashboard["activations"][0]["bin_contains"] == -1.0
    assert len(dashboard["activations"]) == 3 and batch["model_id"] == "tiny"
    assert {path.name for path in (tmp_path / "sd").iterdir()} == {
        "batch-0.json", "run_settings.json", "skipped_indexes.json",
    }  # fmt: skip


def test_intervals_of_others_become_quantile_buckets(tmp_path: Path) -> None:
    """Ten intervals (SAEDashboard's HTML), five of the same or a top group: every example gets a place."""
    activations = [
        {"bin_min": float(low), "bin_max": low + 1.0, "bin_contains": 0.1, "tokens": ["a", "b"],
         "values": [0.0, low + 0.5], "qualifying_token_index": 1} for low in range(10)
    ]  # fmt: skip
    top = {
        "bin_min": -1,
        "bin_max": 9.9,
        "bin_contains": -1,
        "tokens": ["c"],
        "values": [9.9],
        "qualifying_token_index": 0,
    }
    feature = {"feature_index": 2, "frac_nonzero": 0.01, "activations": [top, *activations]}
    path = tmp_path / "batch-0.json"
    path.write_text(json.dumps({"model_id": "gpt2", "layer": 8, "features": [feature]}))
    store = Store.create(tmp_path / "store")
    publish(store, as_publication(read_shared(path), "theirs"))
    found = (
        connect(store)
        .execute("select bucket, count(*) from example where feature = 2 group by all order by all")
        .fetchall()
    )
    assert found == [("q1", 2), ("q2", 2), ("q3", 2), ("q4", 2), ("q5", 2), ("top", 1)]
    status = connect(store).execute("select status, density from feature order by feature").fetchall()
    assert status == [("dead", None), ("dead", None), ("alive", 0.01)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("batch-0.json", "{", "cannot be read as SAEDashboard"),
        ("batch-0.json", '{"features": [3]}', "cannot be read as SAEDashboard"),
        ("features/a.jsonl", "{\n", "line 1 is not JSON"),
        ("features/a.jsonl", "[1]\n", "not an object but list"),
        ("features/a.jsonl", '{"index": "x"}\n', "names no feature"),
        ("features/a.jsonl.gz", "not gzip", "cannot be read"),
        ("nothing.txt", "", "holds neither"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(SchemaError, match=message):
        as_publication(read_shared(tmp_path), "theirs")


# ---- the page -----------------------------------------------------------------------------


class Parsed(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_shows_its_features_and_needs_nothing_else(source: Store) -> None:
    html = page(connect(source), [(SAE, 3), (SAE, 0)], "Two <features>", "a note")
    parsed = Parsed()
    parsed.feed(html)
    shown = "".join(parsed.words)
    assert "<b>digits</b>" in shown and "<b>digits" not in html, "a label is text"
    assert "<script>" in shown and "script" not in parsed.tags, "so is a token of the corpus"
    assert not parsed.links and not re.search(r"url\(|@import|https?:", html), "nothing is loaded from anywhere"
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert "\x1b" not in html and "\u202e" not in html and "\\u202e" in html
    assert shown.count("feature 3 of") == 1 and shown.count("feature 0 of") == 1 and "strongest" in shown


def test_a_page_shades_tokens_by_their_share_of_the_strongest(source: Store) -> None:
    html = page(connect(source), [(SAE, 5)], "x")
    shades = [float(found) for found in re.findall(r"--a: ([\d.]+)", html)]
    assert shades[:2] == [0.2, 1.0], "activations 1 and 5 of a feature whose largest is 5"


def test_a_page_of_a_feature_that_is_not_there_is_refused(source: Store) -> None:
    with pytest.raises(NotFound, match="features 0 to 7"):
        page(connect(source), [(SAE, 99)], "x")
