"""What one person does to a feature, and what another then sees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalog_samples import FAMILY, explanation_rows, fingerprint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import LabelError, Labels, SQLiteLabels, Store, append, connect, labelling
from catalog.labelling import Of

SAE = f"{FAMILY}@1"
FEATURE = Of(SAE, 3)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[SQLiteLabels]:
    with SQLiteLabels(tmp_path) as opened:
        yield opened


def texts(labels: SQLiteLabels, of: Of = FEATURE) -> dict[str, str | None]:
    return {row["author"]: row["text"] for row in labelling.current(labels, of)}


def test_the_last_word_of_each_person_is_current(labels: SQLiteLabels) -> None:
    labelling.add(labels, "ada", FEATURE, "digits")
    labelling.add(labels, "bob", FEATURE, "numbers", confidence=2)
    labelling.add(labels, "ada", FEATURE, "digits in dates")
    assert texts(labels) == {"ada": "digits in dates", "bob": "numbers"}


def test_an_undo_brings_back_the_label_before(labels: SQLiteLabels) -> None:
    labelling.add(labels, "ada", FEATURE, "first")
    second = labelling.add(labels, "ada", FEATURE, "second")
    labelling.undo(labels, "ada", second.event_id)
    assert texts(labels) == {"ada": "first"}
    labelling.undo(labels, "ada", labelling.last_of(labels, "ada"))
    assert texts(labels) == {}
    assert [row["is_undone"] for row in labelling.history(labels, FEATURE)] == [True, True, False, False]
    with pytest.raises(LabelError, match="labelled nothing that could be undone"):
        labelling.last_of(labels, "ada")


def test_accept_edit_and_reject_say_what_they_are_based_on(labels: SQLiteLabels) -> None:
    labelling.accept(labels, "ada", FEATURE, "machine text", based_on="x1")
    labelling.edit(labels, "bob", FEATURE, "better text", based_on="x1", tags=["syntax"])
    labelling.reject(labels, "eve", FEATURE, note="no pattern")
    rows = {row["author"]: row for row in labelling.current(labels, FEATURE)}
    assert (rows["ada"]["action"], rows["ada"]["based_on"]) == ("accept", "x1")
    assert rows["bob"]["tags"] == ["syntax"] and rows["eve"]["text"] is None


def test_a_form_sent_twice_labels_once(labels: SQLiteLabels) -> None:
    for _ in range(2):
        labelling.add(labels, "ada", FEATURE, "digits", event_id="drawn-once")
    assert len(labelling.history(labels, FEATURE)) == 1


def test_an_undo_of_what_is_not_there_says_where_to_look(labels: SQLiteLabels) -> None:
    with pytest.raises(LabelError, match="label history"):
        labelling.undo(labels, "ada", "nothing")


def test_a_person_wins_over_the_machine_on_the_card_and_disagreement_shows(store: Store) -> None:
    append(store, "explanation", explanation_rows(SAE, [3, 4]), fingerprint(1))
    with Labels(store) as labels:
        labelling.add(labels, "ada", FEATURE, "digits", safety=1, tags=["a"])
        labelling.add(labels, "bob", FEATURE, "numbers", safety=3)
        labelling.reject(labels, "ada", Of(SAE, 4))
    columns = "feature, name, name_source, agreement, safety, explanation"
    sql = f"select {columns} from feature_card where explanation is not null"
    assert sorted(connect(store).execute(sql).fetchall()) == [
        (3, "numbers", "human", "disputed", 3, "explained 3"),
        (4, "explained 4", "machine", None, None, "explained 4"),
    ]


ACTS = st.lists(
    st.tuples(st.sampled_from(["ada", "bob"]), st.sampled_from(["add", "reject", "undo"]), st.integers(0, 2)),
    max_size=12,
)


@given(ACTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_view_and_the_store_agree_on_what_is_current(
    shared_store: Store, tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, str, int]]
) -> None:
    """Oracle: a plain list of what each person said, from which an undo takes the last."""
    connection, truth = connect(shared_store), dict[tuple[str, int], list[str]]()
    with SQLiteLabels(tmp_path_factory.mktemp("labels")) as labels:
        for n, (author, act, feature) in enumerate(acts):
            said = truth.setdefault((author, feature), [])
            if act != "undo":
                event = do(labels, author, act, Of(SAE, feature), f"text {n}")
                said.append(event)
            elif said:
                labelling.undo(labels, author, said.pop())
        rows = labels.events("label_event")
        current = {(r["author"], f): r["event_id"] for f in range(3) for r in labelling.current(labels, Of(SAE, f))}
    connection.register("rows", rows)
    connection.execute("insert into label_event by name from rows").fetchall()
    viewed = dict(connection.execute("select (author, feature), event_id from label").fetchall())
    expected = {key: said[-1] for key, said in truth.items() if said}
    assert current == expected
    assert viewed == expected


def do(labels: SQLiteLabels, author: str, act: str, of: Of, text: str) -> Any:
    event = labelling.add(labels, author, of, text) if act == "add" else labelling.reject(labels, author, of)
    return event.event_id
