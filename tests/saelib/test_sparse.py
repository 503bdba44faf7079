"""Firings and what is made of them, against dense matrices and plain autograd."""

import pytest
import torch
from torch import Tensor

from saelib.objective import L0, L1, AuxK, GateReconstruction, Reconstruction
from saelib.sparse import ByFeature, Firings, decode_rows, dot_pairs, firings_where, sum_by_feature
from saelib.trainable import BatchTopK, LearnedGate, LearnedReLU, LearnedThreshold, LearnedTopK, Trainable
from saelib.trainee import Pass, Start, Trainee, decode_prefixes, encode_firings, squared_errors

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
    keep = firings.value > 1
    assert torch.equal(firings.where(keep).dense(), torch.where(dense > 1, dense, 0.0))


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


def float64_trainee(nonlinearity: Trainable, tied: bool = True) -> Trainee:
    x = some_matrix(40, D, seed=8)
    y = x if tied else some_matrix(40, D + 1, seed=9)
    trainee = Trainee(F, nonlinearity, Start(x, y, x.mean(dim=0), y.mean(dim=0), tied), seed=3)
    with torch.no_grad():
        trainee.b_enc.add_(0.1 * some_matrix(F, seed=4))
        trainee.b_dec.add_(0.1 * some_matrix(y.shape[1], seed=5))
        trainee.encoder_rows.add_(0.1 * some_matrix(F, D, seed=6))
    return trainee


def gradients(trainee: Trainee, loss: Tensor) -> dict[str, Tensor]:
    """Zero where the loss does not depend on a parameter."""
    trainee.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in trainee.named_parameters()
    }


def dense_pre(trainee: Trainee, x: Tensor) -> Tensor:
    """Pre-activations as plain autograd would have them."""
    center = trainee.b_dec if trainee.tied else trainee.center
    return (x - center) @ trainee.encoder_rows.t() + trainee.b_enc


def at_firings(found: Firings, of: Tensor) -> Tensor:
    """`of`, and zero where nothing was found."""
    there = torch.zeros(found.n_tokens, F, dtype=torch.bool)
    there[found.rows(), found.feature] = True
    return torch.where(there, of, 0.0)


def made_pass(trainee: Trainee, x: Tensor, y: Tensor, dead: Tensor, prefixes: tuple[int, ...] = (F,)) -> Pass:
    everything = trainee.pre(x)
    found = trainee.nonlinearity.candidates(everything, trainee.vectors, 0.0)
    by = ByFeature.of(found)
    pre = encode_firings(trainee, x, found, by)
    value = trainee.nonlinearity.activate(found, pre, trainee.vectors)
    y_hats = decode_prefixes(trainee, value, found, by, prefixes) + trainee.b_dec
    errors = squared_errors(y_hats, y)
    return Pass(trainee, x, y, y_hats, errors, found, by, pre, value, everything, dead, 2.0)


def same_gradients(trainee: Trainee, got: dict[str, Tensor], loss: Tensor) -> None:
    for name, gradient in gradients(trainee, loss).items():
        torch.testing.assert_close(
            got[name], gradient, atol=1e-9, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


NONE = torch.zeros(0, dtype=torch.int64)
FORMS = [LearnedReLU(start_l0=5.0), LearnedTopK(k=4), BatchTopK(k=4)]
by_form = pytest.mark.parametrize("nonlinearity", FORMS, ids=lambda value: type(value).__name__)


@by_form
@pytest.mark.parametrize("tied", [True, False], ids=["autoencoder", "transcoder"])
def test_sparse_backward_equals_plain_autograd(nonlinearity: Trainable, tied: bool) -> None:
    trainee, x = float64_trainee(nonlinearity, tied), some_matrix(N, D)
    y = x if tied else some_matrix(N, D + 1, seed=11)
    weight = some_matrix(*y.shape, seed=7)
    step = made_pass(trainee, x, y, NONE)
    got = gradients(trainee, ((y - step.y_hat).square() * weight).sum() + 0.3 * step.value.square().sum())
    f = at_firings(step.found, dense_pre(trainee, x))
    plain = f @ trainee.W_dec + trainee.b_dec
    torch.testing.assert_close(step.y_hat, plain, atol=1e-12, rtol=0)
    assert all(gradient.any() for gradient in got.values())
    same_gradients(trainee, got, ((y - plain).square() * weight).sum() + 0.3 * f.square().sum())


def test_prefixes_are_what_the_first_features_reconstruct_and_so_is_their_gradient() -> None:
    trainee, x = float64_trainee(BatchTopK(k=5)), some_matrix(N, D)
    edges = (3, 9, F)
    step = made_pass(trainee, x, x, NONE, edges)
    weights = torch.tensor([0.2, 0.3, 1.0], dtype=torch.float64)
    got = gradients(trainee, Reconstruction(weights=tuple(weights.tolist()))(step, 1.0))
    f = at_firings(step.found, dense_pre(trainee, x))
    plain = torch.stack([f[:, :edge] @ trainee.W_dec[:edge] + trainee.b_dec for edge in edges])
    torch.testing.assert_close(step.y_hats, plain, atol=1e-12, rtol=0)
    errors = (x - plain).square().sum(dim=2).mean(dim=1)
    same_gradients(trainee, got, (weights / weights.sum()) @ errors / 2.0)


def test_a_threshold_learns_from_the_rectangle_around_it_alone() -> None:
    trainee, x = float64_trainee(LearnedThreshold(start_l0=5.0, bandwidth=0.6)), some_matrix(N, D)
    step = made_pass(trainee, x, x, NONE)
    got = gradients(trainee, Reconstruction()(step, 1.0) + L0(weight=0.1)(step, 1.0))
    pre = dense_pre(trainee, x).detach()
    threshold = trainee.vectors["threshold"].detach()
    fires, near = pre > threshold, (pre - threshold).abs() < 0.3
    torch.testing.assert_close(step.value.sum(), torch.where(fires, pre, 0.0).sum())
    error = torch.where(fires, pre, 0.0) @ trainee.W_dec + trainee.b_dec - x
    g_f = (2 * error @ trainee.W_dec.t() / N / 2.0).detach()
    wanted = -(near * (g_f * threshold + 0.1 / N)).sum(dim=0) / 0.6
    assert wanted.any()
    torch.testing.assert_close(got["learned.threshold"], wanted, atol=1e-9, rtol=0)


def test_a_gate_learns_from_its_own_terms_and_the_magnitude_from_the_reconstruction() -> None:
    trainee, x = float64_trainee(LearnedGate(start_l0=5.0)), some_matrix(N, D)
    step = made_pass(trainee, x, x, NONE)
    terms = (Reconstruction(), L1(weight=0.5), GateReconstruction())
    got = gradients(trainee, torch.stack([term(step, 1.0) for term in terms]).sum())
    pre = at_firings(step.found, dense_pre(trainee, x))
    opened = at_firings(step.found, torch.ones(N, F, dtype=torch.float64))
    r_mag, b_mag = trainee.vectors["r_mag"], trainee.vectors["b_mag"]
    f = opened * ((dense_pre(trainee, x) - trainee.b_enc) * r_mag.exp() + b_mag).relu()
    y_hat, frozen = f @ trainee.W_dec + trainee.b_dec, pre @ trainee.W_dec.detach() + trainee.b_dec.detach()
    loss = (
        (x - y_hat).square().sum(dim=1) + (x - frozen).square().sum(dim=1) + 0.5 * (D / 4096) ** 0.5 * pre.sum(dim=1)
    ).mean() / 2.0
    same_gradients(trainee, got, loss)


def test_auxk_gradient_is_that_of_dead_features_on_a_detached_error() -> None:
    trainee, x = float64_trainee(LearnedTopK(k=2)), some_matrix(N, D)
    dead = torch.tensor([1, 4, 8, 15, 16])
    step = made_pass(trainee, x, x, dead)
    got = gradients(trainee, AuxK(weight=0.5)(step, 1.0))
    error, pre = (x - step.y_hat).detach(), dense_pre(trainee, x)
    best = pre[:, dead].topk(D // 2, dim=1).indices
    chosen = torch.zeros(N, F, dtype=torch.bool)
    chosen[torch.arange(N).unsqueeze(1), dead[best]] = True
    f = torch.where(chosen & (pre > 0), pre, 0.0)
    same_gradients(trainee, got, 0.5 * (error - f @ trainee.W_dec).square().sum(dim=1).mean() / 2.0)
    alive = torch.ones(F, dtype=torch.bool)
    alive[dead] = False
    assert got["encoder_rows"][dead].any(), "the gradient reaches the encoder of dead features"
    assert not got["encoder_rows"][alive].any() and not got["W_dec"][alive].any(), "and of no other"


def test_auxk_is_zero_while_no_feature_is_dead() -> None:
    trainee, x = float64_trainee(LearnedTopK(k=2)), some_matrix(N, D)
    assert AuxK()(made_pass(trainee, x, x, NONE), 1.0).item() == 0.0
