"""Every page with a good store, and with everything that can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from store import FAMILY, HOSTILE_SAE_ID, SAE_ID, training
from streamlit.testing.v1 import AppTest

from catalog import Store, StoreError, append
from catalog.locks import exclusive
from dashboard import data

Show = Callable[..., AppTest]
PAGES = ("overview", "features", "feature", "training", "sql")


def texts(page: AppTest) -> str:
    """All that is written on the page."""
    kinds = ("header", "subheader", "text", "caption", "markdown", "info", "code")
    return "\n".join(str(element.value) for kind in kinds for element in page.get(kind))


def view(page: AppTest) -> dict[str, object]:
    """What the component was given."""
    component = page.get("bidi_component")[0]
    found: dict[str, object] = json.loads(component.proto.json)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_drawn(show: Show, served: Store, name: str) -> None:
    page = show(name)
    assert not page.exception and not page.error
    assert "no store" not in texts(page)


@pytest.mark.parametrize("name", PAGES)
def test_without_a_store_every_page_says_how_to_make_one(
    show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ALMANAC_STORE", str(tmp_path / "nowhere"))
    page = show(name)
    assert not page.exception
    assert "almanac build" in texts(page) and str(tmp_path / "nowhere") in texts(page)


@pytest.mark.parametrize("name", PAGES[:4])
def test_an_empty_store_says_how_to_fill_it(
    show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Store.create(tmp_path / "store")
    monkeypatch.setenv("ALMANAC_STORE", str(tmp_path / "store"))
    page = show(name)
    assert not page.exception
    assert "almanac build" in texts(page)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"sae": "nobody@1"}, "no SAE 'nobody@1'"),
        ({"sae": SAE_ID, "feature": "30"}, "features 0 to 29"),
        ({"sae": SAE_ID, "feature": "99999999999999999999"}, "features 0 to 29"),
        ({"sae": SAE_ID, "feature": "-1"}, "no feature number"),
        ({"sae": SAE_ID, "feature": "<script>"}, "no feature number"),
    ],
)
def test_a_url_that_means_nothing_says_what_there_is(
    show: Show, served: Store, query: dict[str, str], said: str
) -> None:
    page = show("feature", **query)
    assert not page.exception
    assert said in texts(page)


@pytest.mark.parametrize(
    ("table", "name"),
    [("feature", "features"), ("example", "feature"), ("run", "overview"), ("train_progress", "training")],
)
def test_a_damaged_table_is_named_and_the_rest_still_works(show: Show, own: Store, table: str, name: str) -> None:
    for path in (own.catalog / table).rglob("part-0.parquet"):
        path.chmod(0o644)
        path.write_bytes(b"not parquet")
    page = show(name)
    assert not page.exception
    assert "damaged" in texts(page) and "almanac verify" in texts(page)
    assert not show("sql").exception


def test_a_store_that_moves_while_it_is_served_is_missed_and_found_again(show: Show, own: Store) -> None:
    page = show("features")
    assert "30 features" in texts(page) or "8 features" in texts(page)
    elsewhere = own.root.with_name("elsewhere")
    shutil.move(own.root, elsewhere)
    assert "There is no store to show" in texts(page.run())
    shutil.move(elsewhere, own.root)
    page.run()
    assert not page.exception and "no store" not in texts(page)


def test_the_feature_page_gives_the_feature_of_the_url_with_its_place(show: Show, served: Store) -> None:
    given = view(show("feature", sae=SAE_ID, feature="7"))
    assert (given["start"], given["total"], given["author"]) == (7, 30, "ada")
    assert [item["feature"] for item in given["items"]] == [7]  # type: ignore[attr-defined]


def test_the_list_of_the_features_page_is_what_next_walks_through(show: Show, served: Store) -> None:
    given = view(show("feature", sae=SAE_ID, feature="12", labelled="labelled", sort="density"))
    assert given["order"] == list(range(20, 9, -1))
    assert given["start"] == 8 and given["list"] == "found"


def test_without_a_feature_the_page_opens_the_first_and_says_so_in_the_url(show: Show, served: Store) -> None:
    page = show("feature", sae=SAE_ID)
    assert page.query_params["feature"] in ("0", ["0"])


def test_filters_are_read_from_the_url(show: Show, served: Store) -> None:
    page = show("features", sae=SAE_ID, status="dead")
    assert "1 of 30 features" in texts(page).replace("\\", "")
    assert page.selectbox(key="features_sae").value == SAE_ID


def test_searching_finds_names_and_tokens(show: Show, served: Store) -> None:
    page = show("features", sae=SAE_ID)
    page.text_input(key="features_q").input("onmouseover").run()
    assert not page.exception
    found = page.dataframe[0].value
    assert 16 in list(found["feature"])


def test_an_sae_with_a_hostile_name_is_shown_like_any_other(show: Show, served: Store) -> None:
    page = show("features", sae=HOSTILE_SAE_ID)
    assert not page.exception and "8 of 8 features" in texts(page).replace("\\", "")


def test_the_overview_shows_coverage_in_features_and_firings(show: Show, served: Store) -> None:
    saes = show("overview").dataframe[0].value.set_index("SAE")
    fires = [0, 3_000, 1, *(20 + 10 * i for i in range(27))]
    assert saes.loc[SAE_ID, "labelled, of features"] == pytest.approx(100 * 11 / 30)
    assert saes.loc[SAE_ID, "labelled, of firings"] == pytest.approx(100 * sum(fires[10:21]) / sum(fires))
    assert saes.loc[SAE_ID, "labelled"] == 11
    assert FAMILY in SAE_ID


def test_a_running_build_is_told_with_its_curve(show: Show, own: Store) -> None:
    fingerprint = "ab" * 32
    append(own, "train_progress", training(fingerprint, "new"), fingerprint=fingerprint)
    assert "build is running" not in texts(show("overview"))
    with exclusive(own.locks / f"sae-{fingerprint[:16]}.lock", "making sae", 1.0):
        page = show("overview")
    assert "A build is running" in texts(page) and "train" in texts(page)
    assert not page.exception


def test_a_store_that_cannot_be_written_is_shown_and_says_why_labels_are_not_kept(
    show: Show, served: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data, "Labels", refuse)
    with pytest.raises(StoreError, match="allow writing"):
        data.labels()
    assert not show("feature", sae=SAE_ID, feature="3").exception


def test_sql_is_off_where_others_can_reach_the_server(
    show: Show, served: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlit.get_option", {"server.address": "0.0.0.0"}.get)
    assert "SQL is off" in texts(show("sql"))


def test_sql_answers_and_refuses(show: Show, served: Store) -> None:
    page = show("sql", sql="select count(*) as n, 1 as n from feature")
    page.button[0].click().run()
    assert page.dataframe[0].value.iloc[0, 0] == 38
    page.text_area(key="sql").input("drop view feature").run()
    page.button[0].click().run()
    assert not page.exception and not page.dataframe and "SELECT" in texts(page)
