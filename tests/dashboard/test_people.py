"""The outbox of the browser: everything is recorded once, and everything is answered."""

from typing import Any

import pytest
from store import SAE_ID

from catalog import Labels, Store, labelling
from catalog.labelling import Of
from dashboard.people import record


def act(feature: int = 3, **changes: Any) -> dict[str, Any]:
    filled: dict[str, Any] = {"text": " a label ", "tags": ["a", " b ", "a", ""], "confidence": 2, "seconds": 1.5}
    empty: dict[str, Any] = {"safety": None, "note": "", "based_on": None}
    return {"id": "e1", "sae": SAE_ID, "feature": feature, "author": "ada", **filled, **empty, **changes}


def test_a_label_is_recorded_as_it_was_given(own: Store) -> None:
    with Labels(own) as labels:
        assert record(labels, [act()]) == {"e1": ""}
        (said,) = labelling.current(labels, Of(SAE_ID, 3))
    assert (said["text"], said["tags"], said["confidence"], said["safety"]) == ("a label", ["a", "b"], 2, None)
    assert (said["action"], said["author"], said["seconds"]) == ("write", "ada", 1.5)


def test_the_same_act_sent_again_is_recorded_once(own: Store) -> None:
    with Labels(own) as labels:
        before = labels.last()
        for _ in range(3):
            assert record(labels, [act()]) == {"e1": ""}
        assert labels.last() == before + 1


def test_a_change_of_a_label_is_an_edit_of_it(own: Store) -> None:
    with Labels(own) as labels:
        record(labels, [act()])
        record(labels, [act(id="e2", text="better", based_on="e1")])
        (said,) = labelling.current(labels, Of(SAE_ID, 3))
    assert (said["text"], said["action"], said["based_on"]) == ("better", "edit", "e1")


def test_an_undo_is_recorded_once_and_only_by_the_author(own: Store) -> None:
    with Labels(own) as labels:
        record(labels, [act()])
        undo = {"id": "u1", "undoes": "e1", "author": "ada", "feature": 3}
        assert "ada's" in record(labels, [{**undo, "id": "u0", "author": "bob"}])["u0"]
        assert record(labels, [undo]) == {"u1": ""} == record(labels, [undo])
        assert labelling.current(labels, Of(SAE_ID, 3)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "x" * 100_000}, "at most 10,000"),
        ({"text": "a\x1b[31m"}, "control character U+001B"),
        ({"text": "  "}, "empty"),
        ({"author": ""}, "author is empty"),
        ({"safety": 9}, "from 0 to 3"),
        ({"feature": None}, "reload the page"),
        ({"confidence": "high"}, "reload the page"),
    ],
)
def test_what_cannot_be_recorded_is_answered_with_what_to_do(own: Store, changes: dict[str, Any], said: str) -> None:
    with Labels(own) as labels:
        before = labels.last()
        answer = record(labels, [act(**changes), act(id="fine")])
        assert said in answer["e1"] and answer["fine"] == ""
        assert labels.last() == before + 1
