"""How many features fire, and which."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelib.architectures import recipe
from saelib.errors import ConfigError
from saelib.nonlinearity import BatchTopK, JumpReLU, Nonlinearity, ReLU, TopK
from saelib.trainee import Trainee

N, F = 31, 50


def some_pre(seed: int) -> torch.Tensor:
    return torch.randn(N, F, generator=torch.Generator().manual_seed(seed))


def test_relu_fires_on_every_positive_entry() -> None:
    pre = some_pre(0)
    assert torch.equal(ReLU().fire(pre).dense(), pre.clamp_min(0))


@pytest.mark.parametrize("k", [1, 7, 49])
def test_topk_keeps_the_k_largest_positive_of_each_token(k: int) -> None:
    pre = some_pre(1)
    pre[5] = -pre[5].abs()
    wanted = np.zeros((N, F), dtype=np.float32)
    for token, row in enumerate(pre.numpy()):
        for feature in np.argsort(-row)[:k]:
            wanted[token, feature] = max(row[feature], 0)
    assert np.array_equal(TopK(k=k).fire(pre).dense().numpy(), wanted)


def test_batchtopk_keeps_n_k_in_the_batch() -> None:
    pre = some_pre(2)
    firings = BatchTopK(k=4).fire(pre)
    assert firings.feature.numel() == 4 * N
    assert firings.value.min() >= pre.flatten().topk(4 * N).values.min()


@given(seed=st.integers(0, 1000), floor=st.floats(0, 4), k=st.integers(1, 40))
def test_batchtopk_does_not_depend_on_its_floor(seed: int, floor: float, k: int) -> None:
    pre = some_pre(seed)
    assert torch.equal(BatchTopK(k=k).fire(pre, floor).dense(), BatchTopK(k=k).fire(pre).dense())


def test_batchtopk_never_fires_below_zero() -> None:
    firings = BatchTopK(k=40).fire(some_pre(3))
    assert firings.value.min() > 0


def test_jumprelu_keeps_what_exceeds_its_feature_threshold() -> None:
    pre, threshold = some_pre(4), torch.rand(F)
    assert torch.equal(JumpReLU(threshold=threshold).fire(pre).dense(), torch.where(pre > threshold, pre, 0.0))


def test_batchtopk_is_published_as_jumprelu_and_the_others_as_themselves() -> None:
    threshold = torch.rand(F)
    published = BatchTopK(k=3).published(threshold)
    assert isinstance(published, JumpReLU) and torch.equal(published.threshold, threshold)
    for same in (ReLU(), TopK(k=3), JumpReLU(threshold=threshold)):
        assert same.published(torch.zeros(F)) is same


@pytest.mark.parametrize("nonlinearity", [TopK(k=50), BatchTopK(k=51), TopK(k=0), BatchTopK(k=-1)])
def test_k_outside_the_width_is_refused_with_both_numbers(nonlinearity: Nonlinearity) -> None:
    with pytest.raises(ConfigError, match=r"keeps k=-?\d+ features .* n_features=50; .* lower k or widen the SAE"):
        nonlinearity.check(F)
    with pytest.raises(ConfigError, match="n_features=50"):
        Trainee(F, torch.zeros(4), nonlinearity, seed=0)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_recipe_refuses_k_of_its_whole_width(architecture: str) -> None:
    with pytest.raises(ConfigError, match="n_features=16"):
        recipe(architecture, n_features=16, k=16)
