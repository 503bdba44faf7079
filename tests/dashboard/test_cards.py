"""What the component is given, against what the fixture says."""

from store import SAE_ID, WORDS

from catalog import Store
from dashboard.cards import cards
from dashboard.parts.text import visible


def test_a_card_has_what_the_tables_have(served: Store) -> None:
    (card,) = cards(SAE_ID, [7])
    assert card["status"] == "alive" and card["histogram"]["counts"] == [35, 7]
    assert [bucket["bucket"] for bucket in card["buckets"]] == ["top", "q5", "q1", "near_miss", "negative"]
    assert [row["act"] for row in card["buckets"][0]["rows"]] == ["7", "6.9", "6.8", "6.7"]
    assert [near["feature"] for near in card["neighbors"][0]["rows"]] == [12, 13, 14]


def test_segments_keep_every_token_of_the_window_and_mark_those_that_fire(served: Store) -> None:
    (card,) = cards(SAE_ID, [7])
    segments = card["buckets"][0]["rows"][0]["segments"]
    window = [visible(WORDS[(7 * 7 + j) % len(WORDS)]) for j in range(8, 33)]
    assert "".join(segment[0] for segment in segments) == "".join(window)
    assert [segment[1:] for segment in segments if len(segment) > 1] == [[10, "7", True], [5, "3.5", False]]


def test_a_negative_shows_its_token_without_a_level(served: Store) -> None:
    (card,) = cards(SAE_ID, [7])
    negative = card["buckets"][-1]["rows"][0]
    assert [segment[1:] for segment in negative["segments"] if len(segment) > 1] == [[-1, "0", True]]


def test_a_dead_feature_has_a_card(served: Store) -> None:
    (card,) = cards(SAE_ID, [0])
    assert card["status"] == "dead" and card["histogram"] is None and card["buckets"] == []
    assert card["properties"][0]["note"] == "never fires"


def test_cards_come_in_the_order_asked_and_unknown_ones_are_left_out(served: Store) -> None:
    assert [card["feature"] for card in cards(SAE_ID, [9, 4, 99, 5])] == [9, 4, 5]
    assert cards(SAE_ID, []) == []


def test_no_character_of_a_token_is_unseen(served: Store) -> None:
    texts = [segment[0] for card in cards(SAE_ID, list(range(30))) for bucket in card["buckets"]
             for row in bucket["rows"] for segment in row["segments"]]  # fmt: skip
    assert texts and all(text == visible(text) for text in texts)
