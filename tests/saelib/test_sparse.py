"""Firings and what is made of them, against dense matrices and plain autograd."""

import pytest
import torch
from torch import Tensor

from saelib.nonlinearity import BatchTopK, Nonlinearity, ReLU, TopK
from saelib.objective import AuxK
from saelib.sparse import ByFeature, Firings, decode_rows, dot_pairs, firings_where, sum_by_feature
from saelib.trainee import Pass, Trainee, decode_firings, encode_firings

N, D, F = 13, 6, 20


def some_pre(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(N, F, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_firings(seed: int = 0) -> tuple[Firings, Tensor]:
    pre = some_pre(seed)
    pre[3] = -1.0  # a token without a firing
    mask = pre > 0.5
    return firings_where(mask, pre), torch.where(mask, pre, 0.0)


def some_matrix(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_firings_where_holds_exactly_the_true_entries() -> None:
    firings, dense = some_firings()
    assert torch.equal(firings.dense(), dense)
    assert firings.l0() == (dense > 0).sum().item() / N
    assert torch.equal(firings.rows(), dense.nonzero()[:, 0])


def test_firings_of_an_empty_mask_are_a_zero_matrix() -> None:
    firings = firings_where(torch.zeros(N, F, dtype=torch.bool), some_pre())
    assert firings.l0() == 0.0
    assert not decode_rows(firings, firings.value, some_matrix(F, D)).any()
    assert dot_pairs(firings, some_matrix(N, D), some_matrix(F, D)).numel() == 0
    assert not sum_by_feature(ByFeature.of(firings), firings.value, some_matrix(N, D)).any()


def test_columns_are_those_of_the_dense_matrix_in_the_order_asked_for() -> None:
    firings, dense = some_firings()
    wanted = torch.tensor([7, 2, 7, 19])
    assert torch.equal(firings.columns(wanted), dense[:, wanted])


def test_decode_rows_is_the_dense_product() -> None:
    firings, dense = some_firings()
    directions = some_matrix(F, D)
    torch.testing.assert_close(decode_rows(firings, firings.value, directions), dense @ directions)


def test_dot_pairs_is_the_dense_product_at_the_firings() -> None:
    firings, dense = some_firings()
    left, directions = some_matrix(N, D), some_matrix(F, D, seed=2)
    torch.testing.assert_close(dot_pairs(firings, left, directions), (left @ directions.t())[dense > 0])


def test_sum_by_feature_is_the_dense_product() -> None:
    firings, dense = some_firings()
    right = some_matrix(N, D)
    torch.testing.assert_close(sum_by_feature(ByFeature.of(firings), firings.value, right), dense.t() @ right)


def float64_trainee(nonlinearity: Nonlinearity) -> Trainee:
    trainee = Trainee(F, torch.zeros(D), nonlinearity, seed=3).double()
    with torch.no_grad():
        trainee.b_enc.copy_(0.1 * some_matrix(F, seed=4))
        trainee.b_dec.copy_(0.1 * some_matrix(D, seed=5))
        trainee.encoder_rows.add_(0.1 * some_matrix(F, D, seed=6))
    return trainee


def gradients(trainee: Trainee, loss: Tensor) -> dict[str, Tensor]:
    """Zero where the loss does not depend on a parameter."""
    names, parameters = zip(*trainee.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def dense_f(trainee: Trainee, x: Tensor, fired: Tensor) -> Tensor:
    """f as plain autograd would have it."""
    return torch.where(fired, (x - trainee.b_dec) @ trainee.encoder_rows.t() + trainee.b_enc, 0.0)


@pytest.mark.parametrize("nonlinearity", [ReLU(), TopK(k=4), BatchTopK(k=4)], ids=lambda value: type(value).__name__)
def test_sparse_backward_equals_plain_autograd(nonlinearity: Nonlinearity) -> None:
    trainee, x, weight = float64_trainee(nonlinearity), some_matrix(N, D), some_matrix(N, D, seed=7)
    firings = nonlinearity.fire(trainee.pre(x))
    value, by = encode_firings(trainee, x, firings)
    y_hat = decode_firings(trainee, value, firings, by) + trainee.b_dec
    got = gradients(trainee, ((x - y_hat).square() * weight).sum() + 0.3 * value.square().sum())
    f = dense_f(trainee, x, firings.dense() > 0)
    plain = f @ trainee.W_dec + trainee.b_dec
    torch.testing.assert_close(y_hat, plain, atol=1e-12, rtol=0)
    wanted = gradients(trainee, ((x - plain).square() * weight).sum() + 0.3 * f.square().sum())
    for name, gradient in wanted.items():
        assert gradient.any(), name
        torch.testing.assert_close(
            got[name], gradient, atol=1e-9, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def auxk_pass(trainee: Trainee, x: Tensor, dead: Tensor) -> Pass:
    pre = trainee.pre(x)
    firings = trainee.nonlinearity.fire(pre)
    value, by = encode_firings(trainee, x, firings)
    y_hat = decode_firings(trainee, value, firings, by) + trainee.b_dec
    return Pass(trainee, x, x, y_hat, pre, value, firings, dead, 2.0)


def test_auxk_gradient_is_that_of_dead_features_on_a_detached_error() -> None:
    trainee, x = float64_trainee(TopK(k=2)), some_matrix(N, D)
    dead = torch.tensor([1, 4, 8, 15, 16])
    step = auxk_pass(trainee, x, dead)
    got = gradients(trainee, AuxK(weight=0.5)(step, 1.0))
    error = (x - step.y_hat).detach()
    best = step.pre[:, dead].topk(D // 2, dim=1).indices
    chosen = torch.zeros(N, F, dtype=torch.bool)
    chosen[torch.arange(N).unsqueeze(1), dead[best]] = True
    f = dense_f(trainee, x, chosen & (step.pre > 0))
    loss = 0.5 * (error - f @ trainee.W_dec).square().sum(dim=1).mean() / 2.0
    for name, gradient in gradients(trainee, loss).items():
        torch.testing.assert_close(
            got[name], gradient, atol=1e-9, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    alive = torch.ones(F, dtype=torch.bool)
    alive[dead] = False
    assert got["encoder_rows"][dead].any(), "the gradient reaches the encoder of dead features"
    assert not got["encoder_rows"][alive].any() and not got["W_dec"][alive].any(), "and of no other"


def test_auxk_is_zero_while_no_feature_is_dead() -> None:
    trainee = float64_trainee(TopK(k=2))
    assert AuxK()(auxk_pass(trainee, some_matrix(N, D), torch.zeros(0, dtype=torch.int64)), 1.0).item() == 0.0
