"""Draws depend on what is drawn, never on when."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saelib.rng import mix, random_order, stable_hash, uniform


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30), st.integers(0, 2**32), st.randoms())
def test_mix_gives_a_row_the_same_hash_in_any_order(rows: list[int], seed: int, random) -> None:
    other = rows.copy()
    random.shuffle(other)
    column, shuffled = np.array(rows), np.array(other)
    by_row = dict(zip(rows, mix(seed, column, column % 7).tolist(), strict=True))
    assert mix(seed, shuffled, shuffled % 7).tolist() == [by_row[row] for row in other]


def test_mix_depends_on_seed_and_on_every_column() -> None:
    first, second = np.arange(1000), np.arange(5000, 6000)
    hashes = [mix(0, first, second), mix(1, first, second), mix(0, second, first), mix(0, first)]
    assert len(set(np.concatenate(hashes).tolist())) == 4000


def test_uniform_is_uniform() -> None:
    drawn = uniform(3, np.arange(100_000))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 5000).max() < 350  # 5 standard deviations


def test_random_order_is_a_permutation_that_its_seed_decides() -> None:
    order = random_order(100, "rows", 0, 7)
    assert sorted(order.tolist()) == list(range(100))
    assert np.array_equal(order, random_order(100, "rows", 0, 7))
    assert not np.array_equal(order, random_order(100, "rows", 0, 8))


def test_stable_hash_tells_parts_from_their_concatenation() -> None:
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert stable_hash("a", 1) == 13722700206037900931
