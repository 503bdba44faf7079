"""How many features fire, and which: against plain loops and dense matrices, in every precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelib.architectures import recipe
from saelib.errors import ConfigError, ShapeError
from saelib.nonlinearity import Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK, settings_of
from saelib.preactivations import Preactivations
from saelib.sparse import ByFeature
from saelib.trainable import BatchTopK, LearnedReLU, LearnedThreshold, LearnedTopK, Trainable
from saelib.trainee import Start, Trainee

N, F, D = 31, 50, 7


def some_pre(seed: int, n_features: int = F, dtype: torch.dtype = torch.float32) -> Preactivations:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(N, D, generator=generator), torch.randn(n_features, D, generator=generator)
    bias = 0.1 * torch.randn(n_features, generator=generator)
    return Preactivations(x.to(dtype), weight.to(dtype).t(), bias.to(dtype))


def plain_topk(pre: Tensor, k: int) -> Tensor:
    wanted = torch.zeros_like(pre)
    for token, row in enumerate(pre):
        for feature in np.argsort(-row.numpy())[:k]:
            wanted[token, feature] = max(row[feature], 0)
    return wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_fires_on_every_positive_entry(dtype: torch.dtype) -> None:
    pre = some_pre(0, dtype=dtype)
    torch.testing.assert_close(ReLU().fire(pre).dense(), pre.dense().clamp_min(0))


@pytest.mark.parametrize("k", [1, 7, 49])
def test_topk_keeps_the_k_largest_positive_of_each_token(k: int) -> None:
    pre = some_pre(1)
    torch.testing.assert_close(TopK(k=k).fire(pre).dense(), plain_topk(pre.dense(), k))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), n_features=st.integers(2, 700), share=st.floats(0.001, 0.999))
def test_the_kernels_find_what_a_dense_search_finds(seed: int, n_features: int, share: float) -> None:
    pre = some_pre(seed, n_features)
    dense, k = pre.dense(), max(1, int(share * (n_features - 1)))
    value, _ = dense.topk(k, dim=1)
    found = pre.largest(k)
    assert torch.equal(found.row_starts.diff(), (value > 0).sum(dim=1))
    torch.testing.assert_close(found.dense().sort(dim=1).values[:, -k:], value.clamp_min(0).sort(dim=1).values)
    bound = torch.rand(n_features)
    torch.testing.assert_close(pre.above(bound).dense(), torch.where(dense > bound, dense, 0.0))
    for row, start in enumerate(found.row_starts[:-1]):
        assert bool((found.feature[start : found.row_starts[row + 1]].diff() > 0).all()), "features increase in a row"


def test_of_equal_entries_the_first_ones_are_kept() -> None:
    weight = torch.ones(1, 40)
    found = Preactivations(torch.tensor([[2.0], [-1.0]]), weight, torch.zeros(40)).largest(3)
    assert found.feature.tolist() == [0, 1, 2] and found.row_starts.tolist() == [0, 3, 3]


def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = some_pre(5)
    whole = pre.largest(6), pre.above(torch.ones(F))
    monkeypatch.setattr("saelib.preactivations.PIECE_TOKENS", 4)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for before, after in zip(whole, (pre.largest(6), pre.above(torch.ones(F))), strict=True):
            assert torch.equal(before.row_starts, after.row_starts) and torch.equal(before.feature, after.feature)
            torch.testing.assert_close(before.value, after.value)
    assert torch.get_num_threads() == 2, "the workers' one thread is their own"
    torch.set_num_threads(1)


def test_torch_finds_what_the_kernels_find(monkeypatch: pytest.MonkeyPatch) -> None:
    pre, bound = some_pre(5, 90), torch.rand(90)
    found = pre.largest(6), pre.above(bound), pre.largest_of_groups(9)
    by = [ByFeature.of(each) for each in found]
    for module in ("preactivations", "sparse"):
        monkeypatch.setattr(f"saelib.{module}.compiled_for", lambda tensor: False)
    for before, after in zip(found, (pre.largest(6), pre.above(bound), pre.largest_of_groups(9)), strict=True):
        assert all(torch.equal(old, new) for old, new in zip(before[:3], after[:3], strict=True))
    for before, each in zip(by, found, strict=True):
        after = ByFeature.of(each)
        assert all(torch.equal(old, new) for old, new in zip(before[:3], after[:3], strict=True))


def test_features_chosen_in_bfloat16_have_exact_values() -> None:
    exact = some_pre(6, 400)
    rough = Preactivations(exact.x, exact.weight, exact.bias, torch.bfloat16)
    found, dense = rough.largest(8), exact.dense()
    torch.testing.assert_close(found.value, dense[found.rows(), found.feature])
    best = TopK(k=8).fire(exact).dense() > 0
    assert (best & (found.dense() > 0)).sum() > 0.95 * best.sum()
    bound = torch.full((400,), 0.7)
    torch.testing.assert_close(rough.above(bound).dense(), torch.where(dense > bound, dense, 0.0))


def test_largest_among_names_features_as_of_all() -> None:
    pre, some = some_pre(7), torch.tensor([3, 8, 9, 30, 49])
    wanted = torch.zeros(N, F)
    wanted[:, some] = plain_topk(pre.dense()[:, some], 2)
    torch.testing.assert_close(pre.largest_among(some, 2).dense(), wanted)


def batchtopk(pre: Preactivations, k: int, floor: float = 0.0) -> Tensor:
    return BatchTopK(k=k).candidates(pre, {}, floor).dense()


def test_batchtopk_keeps_n_k_in_the_batch() -> None:
    pre = some_pre(2)
    f = batchtopk(pre, 4)
    assert (f > 0).sum() == 4 * N
    torch.testing.assert_close(f[f > 0].min(), pre.dense().flatten().topk(4 * N).values.min())


@settings(deadline=None)
@given(seed=st.integers(0, 1000), floor=st.floats(0, 8), k=st.integers(1, 40))
def test_batchtopk_does_not_depend_on_its_floor(seed: int, floor: float, k: int) -> None:
    pre = some_pre(seed)
    assert torch.equal(batchtopk(pre, k, floor), batchtopk(pre, k))


def test_batchtopk_never_fires_below_zero() -> None:
    f = batchtopk(some_pre(3), 40)
    assert f.min() == 0 and (f > 0).any()


def test_jumprelu_keeps_what_exceeds_its_feature_threshold_and_zero() -> None:
    pre, threshold = some_pre(4), torch.rand(F) - 0.3
    wanted = torch.where(pre.dense() > threshold, pre.dense(), 0.0).clamp_min(0)
    torch.testing.assert_close(JumpReLU(threshold=threshold).fire(pre).dense(), wanted)


def test_groupmax_keeps_the_largest_of_each_group() -> None:
    pre = some_pre(8)
    groups = pre.dense().view(N, 5, 10)
    wanted = torch.where(groups == groups.amax(dim=2, keepdim=True), groups, 0.0).clamp_min(0).view(N, F)
    torch.testing.assert_close(GroupMax(k=5).fire(pre).dense(), wanted)


def test_gated_opens_by_its_gate_and_fires_by_its_magnitude() -> None:
    pre, r_mag, b_mag = some_pre(9), 0.1 * torch.randn(F), torch.randn(F)
    wanted = (pre.dense() > 0) * (pre.dense() * r_mag.exp() + b_mag).clamp_min(0)
    torch.testing.assert_close(Gated(r_mag=r_mag, b_mag=b_mag).fire(pre).dense(), wanted)


def test_what_is_published_is_one_token_at_a_time() -> None:
    learned = {"b_enc": torch.zeros(F), "threshold": torch.rand(F)}
    published = BatchTopK(k=3).published(learned, 0.5, 2.0)
    assert isinstance(published, JumpReLU) and torch.equal(published.threshold, torch.ones(F))
    learned_threshold = LearnedThreshold().published(learned, 0.0, 2.0)
    assert isinstance(learned_threshold, JumpReLU)
    assert torch.equal(learned_threshold.threshold, 2 * learned["threshold"])
    assert LearnedTopK(k=3).published(learned, 0.0, 1.0) == TopK(k=3)
    assert LearnedReLU().published(learned, 0.0, 1.0) == ReLU()


def test_k_comes_down_from_its_multiple() -> None:
    assert LearnedTopK(k=4).widened(2.5) == LearnedTopK(k=10)
    assert LearnedReLU().widened(3.0) == LearnedReLU()


@pytest.mark.parametrize("nonlinearity", [LearnedTopK(k=50), BatchTopK(k=51), LearnedTopK(k=0), BatchTopK(k=-1)])
def test_k_outside_the_width_is_refused_with_both_numbers(nonlinearity: Trainable) -> None:
    with pytest.raises(ConfigError, match=r"TopK keeps k=-?\d+ features .* n_features=50; .* lower k or widen the SAE"):
        nonlinearity.check(F)
    x = torch.randn(9, 4)
    with pytest.raises(ConfigError, match="n_features=50"):
        Trainee(F, nonlinearity, Start(x, x, x[0], x[0], tied=True))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_recipe_refuses_k_of_its_whole_width(architecture: str) -> None:
    with pytest.raises(ConfigError, match="n_features=16"):
        recipe(architecture, n_features=16, k=16)


@pytest.mark.parametrize(
    "nonlinearity", [JumpReLU(threshold=torch.rand(3)), Gated(r_mag=torch.rand(F), b_mag=torch.rand(3))]
)
def test_a_tensor_of_another_width_is_refused_by_name(nonlinearity: Nonlinearity) -> None:
    with pytest.raises(ShapeError, match=r"(threshold|b_mag) has shape \(3,\); \(50,\) is wanted"):
        nonlinearity.check(F)


def test_groups_of_different_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="GroupMax makes k=7 groups of one size, which 50 features do not give"):
        GroupMax(k=7).check(F)


class Fresh(ReLU):
    """A nonlinearity that no reader knows."""


def test_a_form_that_no_reader_knows_is_not_written_down() -> None:
    with pytest.raises(ConfigError, match="Fresh is a training form and is not kept"):
        settings_of(Fresh())
