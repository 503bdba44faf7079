"""Matching: candidates against a full product, verdicts against what was planted."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelib.errors import ShapeError
from saelib.matching import (
    Candidates,
    Matches,
    correlated_candidates,
    correlations,
    cosine_candidates,
    cosines,
    jaccards,
    match_features,
)

D = 48


def directions(n: int, seed: int = 0) -> Tensor:
    """Unit rows that are far from each other: no two have a cosine of 0.7."""
    rows = torch.nn.functional.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)
    cosine = rows @ rows.t()
    assert float((cosine - 2 * torch.eye(n)).max()) < 0.7
    return rows


def near(row: Tensor, seed: int, noise: float = 0.02) -> Tensor:
    return row + noise * torch.randn(D, generator=torch.Generator().manual_seed(seed))


def matched(a: Tensor, b: Tensor) -> Matches:
    return match_features(*cosine_candidates(a, b, 5), related=0.7, margin=0.1)


def verdict_of(matches: Matches, a: int, b: int) -> str:
    return str(matches.verdict[(matches.a == a) & (matches.b == b)].item())


def test_a_permuted_copy_is_the_same_feature_for_feature() -> None:
    a = directions(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    matches = matched(a, 3.0 * a[order])
    assert set(matches.verdict) == {"same"} and matches.is_mutual.all() and matches.is_assigned.all()
    assert np.array_equal(order.numpy()[matches.b], matches.a)
    assert matches.score == pytest.approx(np.ones(100), abs=1e-5)


def test_a_feature_that_became_two_near_copies_is_split() -> None:
    a = directions(40)
    b = torch.cat([a, near(a[7], 3)[None]])
    b[7] = near(a[7], 4)
    matches = matched(a, b)
    assert verdict_of(matches, 7, 7) == verdict_of(matches, 7, 40) == "split"
    assert (matches.verdict == "same").sum() == 39
    assert matches.is_assigned[matches.a == 7].sum() == 1, "the assignment is one to one"


def test_two_features_that_became_one_are_merged() -> None:
    b = directions(40)
    a = torch.cat([b, near(b[7], 3)[None]])
    a[7] = near(b[7], 4)
    matches = matched(a, b)
    assert verdict_of(matches, 7, 7) == verdict_of(matches, 40, 7) == "merged"
    assert (matches.verdict == "same").sum() == 39


def test_what_has_no_partner_is_gone_and_what_has_no_origin_is_new() -> None:
    rows = directions(50)
    matches = matched(rows[:45], rows[5:])
    assert sorted(matches.a[matches.verdict == "gone"]) == [0, 1, 2, 3, 4]
    assert sorted(matches.b[matches.verdict == "new"]) == [40, 41, 42, 43, 44]
    assert (matches.b[matches.verdict == "gone"] == -1).all() and (matches.a[matches.verdict == "new"] == -1).all()
    assert (matches.score[matches.verdict == "gone"] < 0.7).all(), "the nearest there was is told"


def test_a_clear_pair_stays_the_same_beside_a_feature_that_is_only_related() -> None:
    a = directions(30)
    sibling = torch.nn.functional.normalize(a[3] + 0.8 * a[4], dim=0)
    matches = matched(a, torch.cat([a, sibling[None]]))
    assert verdict_of(matches, 3, 3) == "same"
    assert verdict_of(matches, 3, 30) == "split"
    assert matches.margin[(matches.a == 3) & (matches.b == 3)] == pytest.approx(1 - float(a[3] @ sibling), abs=1e-5)


def test_every_feature_of_both_has_a_row() -> None:
    a, b = directions(60, 1), directions(70, 2)
    b[:30] = a[:30] + 0.1 * b[:30]
    matches = matched(a, b)
    assert set(range(60)) <= set(matches.a.tolist()) and set(range(70)) <= set(matches.b.tolist())


def test_blocks_find_what_the_full_product_finds() -> None:
    a, b = torch.randn(53, 8), torch.randn(41, 8)
    full = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).t()
    for found, product in zip(cosine_candidates(a, b, 4, block=7), (full, full.t()), strict=True):
        assert torch.from_numpy(found.score) == pytest.approx(product.topk(4, dim=1).values, abs=1e-6)
        chosen = product.gather(1, torch.from_numpy(found.other))
        assert chosen == pytest.approx(torch.from_numpy(found.score), abs=1e-6)


def test_fewer_others_than_candidates_leave_empty_places() -> None:
    forward, _ = cosine_candidates(directions(6), directions(2), 5)
    assert (forward.other[:, 2:] == -1).all() and np.isneginf(forward.score[:, 2:]).all()


def test_widths_that_differ_have_no_cosine() -> None:
    with pytest.raises(ShapeError, match="48 and 12 have no cosine; match by activations"):
        cosine_candidates(directions(4), torch.randn(4, 12), 2)


def activations(n: int, n_tokens: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n, n_tokens)) * (rng.random((n, n_tokens)) < 0.2)


def test_correlations_are_those_of_numpy() -> None:
    f_a, f_b = activations(9, 300, 0), activations(7, 300, 1)
    f_b[2] = f_a[4] * 2
    f_b[6] = 0
    full = np.corrcoef(f_a, f_b[:6])[:9, 9:]
    sparse = scipy.sparse.csr_matrix(f_a), scipy.sparse.csr_matrix(f_b)
    left, right = np.array([4, 0, 8]), np.array([2, 5, 1])
    assert correlations(*sparse, (left, right)) == pytest.approx(full[left, right])
    assert np.isnan(correlations(*sparse, (np.array([0]), np.array([6])))), "it never fires"
    forward, backward = correlated_candidates(*sparse, 3)
    assert forward.score == pytest.approx(-np.sort(-full, axis=1)[:, :3], abs=1e-6)
    assert forward.other[4, 0] == 2 and backward.other[2, 0] == 4
    assert (backward.other[6] == -1).all()


def test_activations_alone_recover_a_permutation() -> None:
    f = activations(20, 400, 0)
    order = np.random.default_rng(1).permutation(20)
    found = correlated_candidates(scipy.sparse.csr_matrix(f), scipy.sparse.csr_matrix(f[order] * 5), 5)
    matches = match_features(*found, related=0.5, margin=0.1)
    assert set(matches.verdict) == {"same"} and np.array_equal(order[matches.b], matches.a)


def test_jaccard_is_common_over_either() -> None:
    a = scipy.sparse.csr_matrix(np.array([[1, 1, 1, 0], [0, 0, 0, 0]]))
    b = scipy.sparse.csr_matrix(np.array([[0, 1, 1, 1], [0, 0, 0, 0]]))
    assert jaccards(a, b, (np.array([0, 1]), np.array([0, 1]))).tolist() == [0.5, 0.0]


def test_cosines_of_pairs_are_those_of_the_rows() -> None:
    a = directions(5)
    assert cosines(a, 2 * a, (np.array([0, 3]), np.array([0, 3]))) == pytest.approx([1, 1], abs=1e-6)
    assert cosines(a, a, (np.zeros(0, dtype=int), np.zeros(0, dtype=int))).size == 0


def test_the_assignment_has_the_largest_sum() -> None:
    """Against the dense assignment, where every pair is related."""
    score = np.random.default_rng(0).random((6, 6)).astype(np.float32) * 0.2 + 0.75
    order, back = np.argsort(-score, axis=1), np.argsort(-score.T, axis=1)
    forward = Candidates(order, np.take_along_axis(score, order, axis=1))
    backward = Candidates(back, np.take_along_axis(score.T, back, axis=1))
    matches = match_features(forward, backward, related=0.7, margin=0.1)
    linked = np.full((6, 6), 9.0)
    linked[matches.a, matches.b] = 2 - matches.score
    rows, columns = linear_sum_assignment(np.c_[linked, np.full((6, 6), 4.0)])
    best = sum(2 - linked[row, column] for row, column in zip(rows, columns, strict=True) if column < 6)
    assert matches.score[matches.is_assigned].sum() == pytest.approx(best, abs=1e-5)
