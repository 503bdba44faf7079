"""Training recovers what was planted, keeps its laws at every step, and resumes exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import Planted
from safetensors.torch import load_file, save_file

from saelib.architectures import ARCHITECTURES, Recipe, recipe
from saelib.errors import CheckpointError, ConfigError
from saelib.schedule import TrainingConfig, TrainingPlan
from saelib.together import train_together
from saelib.training import Training

STEPS = 400
SETTINGS: dict[str, dict[str, Any]] = {name: {"start_l0": 12.0} for name in ("standard", "gated")}
BAR = {"standard": 0.8, "gated": 0.8}
SITES = {"transcoder": ((0,), (1,)), "skip_transcoder": ((0,), (3,)), "crosscoder": ((0, 1, 2), (0, 1, 2))}
every_architecture = pytest.mark.parametrize("name", sorted(ARCHITECTURES))


def made(name: str, n_features: int) -> Recipe:
    return recipe(name, n_features=n_features, **SETTINGS.get(name, {"k": 6}))


def sites_of(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return SITES.get(name, ((0,), (0,)))


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def small() -> Planted:
    data = Planted(n_features=24, d=8, l0=2.0, n_tokens=1024)
    data.batch_tokens = 64
    return data


@every_architecture
def test_training_recovers_planted_features(name: str, planted: Planted) -> None:
    config = TrainingConfig(n_tokens=STEPS * 512, batch_tokens=512, learning_rate=6e-3)
    training = Training(made(name, 512), config, planted, *sites_of(name))
    last = list(training.run())[-1]
    W_dec = training.trainee.W_dec.detach()
    best = planted.best_cosine_per_direction(W_dec, n_epochs=STEPS / 128, sites=sites_of(name)[1])
    assert best.numel() > 300
    assert best.mean() >= BAR.get(name, 0.9)
    assert last.dead_share <= 0.05
    assert last.step == STEPS - 1 and last.n_tokens == STEPS * 512


def small_training(name: str, data: Planted, n_steps: int = 40) -> Training:
    config = TrainingConfig(n_tokens=n_steps * 64, batch_tokens=64, learning_rate=1e-2)
    return Training(made(name, 32), config, data, *sites_of(name))


@every_architecture
def test_decoder_rows_are_unit_after_every_step(name: str, small: Planted) -> None:
    training = small_training(name, small)
    for _ in training.run():
        norms = training.trainee.W_dec.detach().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


@every_architecture
@settings(max_examples=10, deadline=None)
@given(stop=st.integers(0, 39))
def test_a_resumed_run_is_the_same_run_bit_for_bit(
    name: str, small: Planted, tmp_path_factory: pytest.TempPathFactory, stop: int
) -> None:
    whole = small_training(name, small)
    told = list(whole.run())
    first = small_training(name, small)
    for _ in range(stop):
        first.advance()
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    path.write_bytes(first.save())
    second = small_training(name, small)
    second.restore(path)
    assert list(second.run()) == told[stop:]
    for key, tensor in whole.trainee.state_dict().items():
        assert torch.equal(tensor, second.trainee.state_dict()[key]), key
    assert (whole.threshold, whole.floor) == (second.threshold, second.floor)
    assert torch.equal(whole.tokens_since_fired, second.tokens_since_fired)


def checkpoint(folder: Path, data: Planted) -> Path:
    training = small_training("topk", data)
    training.advance()
    path = folder / "checkpoint.safetensors"
    path.write_bytes(training.save())
    return path


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, small: Planted) -> None:
    path = checkpoint(tmp_path, small)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*checkpoint\.safetensors.*delete it"):
        small_training("topk", small).restore(path)


@pytest.mark.parametrize("name", ["weight.W_dec", "adam.b_enc.exp_avg", "adam.W_dec.step", "tokens_since_fired"])
def test_a_checkpoint_without_a_tensor_is_refused_by_name(name: str, tmp_path: Path, small: Planted) -> None:
    path = checkpoint(tmp_path, small)
    tensors = load_file(path)
    del tensors[name]
    state = {"step": 1, "floor": 0.0, "threshold": 0.0, "variance": 1.0, "site_scales": [1.0] * 4, "position": {}}
    save_file(tensors, path, metadata={"state": json.dumps(state)})
    with pytest.raises(CheckpointError, match=name):
        small_training("topk", small).restore(path)


def test_a_checkpoint_of_another_width_is_refused_and_changes_nothing(tmp_path: Path, small: Planted) -> None:
    path = checkpoint(tmp_path, small)
    training = Training(made("topk", 40), TrainingConfig(n_tokens=640, batch_tokens=64), small)
    before = training.trainee.W_dec.detach().clone()
    with pytest.raises(CheckpointError, match=r"\(32,.*\(40,.* is wanted"):
        training.restore(path)
    assert torch.equal(training.trainee.W_dec, before) and training.step == 0


def test_scale_makes_the_mean_square_norm_the_width(small: Planted) -> None:
    training = small_training("topk", small)
    scaled = small.sample()[0] * training.site_scales[0]
    assert scaled.square().sum(dim=1).mean().item() == pytest.approx(8, rel=1e-5)
    away = scaled - scaled.mean(dim=0)
    assert training.variance == pytest.approx(away.square().sum(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["step", "tanh"])
def test_jumprelu_recovers_planted_features_under_its_other_losses(loss: str, planted: Planted) -> None:
    config = TrainingConfig(n_tokens=STEPS * 512, batch_tokens=512, learning_rate=6e-3)
    training = Training(recipe("jumprelu", n_features=512, k=6, loss=loss), config, planted)
    progress = list(training.run())
    best = planted.best_cosine_per_direction(training.trainee.W_dec.detach(), n_epochs=STEPS / 128)
    assert best.mean() >= 0.9 and progress[-1].dead_share <= 0.05
    assert progress[-1].l0 < progress[0].l0, "the penalty lowers L0"


def test_the_target_loss_drives_l0_to_its_target(planted: Planted) -> None:
    config = TrainingConfig(n_tokens=STEPS * 512, batch_tokens=512, learning_rate=6e-3)
    progress = list(Training(made("jumprelu", 512), config, planted).run())
    assert progress[0].l0 == pytest.approx(12, rel=0.1), "thresholds start at twice the target"
    assert progress[-1].l0 == pytest.approx(6, rel=0.1)


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_features_without_a_k_start_sparse(name: str, planted: Planted) -> None:
    training = Training(made(name, 512), TrainingConfig(n_tokens=512, batch_tokens=512), planted)
    assert training.advance().l0 == pytest.approx(12, rel=0.1)


def test_k_starts_larger_and_comes_down(small: Planted) -> None:
    config = TrainingConfig(n_tokens=40 * 64, batch_tokens=64, start_k_multiple=3.0, sparsity_warmup_share=0.5)
    l0 = [progress.l0 for progress in Training(recipe("batchtopk", n_features=32, k=4), config, small).run()]
    assert l0[0] > 10 and l0[30:] == [4.0] * 10
    assert all(later <= earlier for earlier, later in zip(l0, l0[1:], strict=False))


def test_b_dec_may_start_from_the_geometric_median(small: Planted) -> None:
    far = Planted(n_features=24, d=8, l0=2.0, n_tokens=1024)
    far.sites[0][:10] += 1e4
    centers = {}
    for center in ("mean", "geometric_median"):
        config = TrainingConfig(n_tokens=640, batch_tokens=64, center=center)
        training = Training(made("topk", 32), config, far)
        centers[center] = training.trainee.b_dec.detach() / training.site_scales[0]
    usual = small.sample()[0].mean(dim=0)
    assert (centers["geometric_median"] - usual).norm() < 1 < (centers["mean"] - usual).norm()


def test_dead_features_are_resampled_along_the_errors(small: Planted) -> None:
    config = TrainingConfig(n_tokens=40 * 64, batch_tokens=64, resample_every_steps=10, dead_after_tokens=200)
    training = Training(recipe("topk", n_features=32, k=3, auxk_weight=0.0), config, small)
    for _ in range(9):
        training.advance()
    training.tokens_since_fired[[3, 17]] = 10**6
    before = training.trainee.W_dec.detach().clone()
    training.advance()
    changed = (training.trainee.W_dec.detach() - before).norm(dim=1)
    assert changed[[3, 17]].min() > 0.3
    assert training.tokens_since_fired[[3, 17]].tolist() == [0, 0]
    norms = training.trainee.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
    alive = training.trainee.encoder_rows.detach().norm(dim=1)
    assert alive[3] == pytest.approx(0.2 * alive.median().item(), rel=0.5)
    moments = training.optimizer.state[training.trainee.encoder_rows]["exp_avg"]
    assert not moments[[3, 17]].any() and moments.any()


class Counted(Planted):
    """Says how often it was read."""

    reads: list[int]

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        self.reads.append(step)
        return super().batch(step)


def test_trainings_that_go_together_read_each_batch_once_and_end_as_alone() -> None:
    data = Counted(n_features=24, d=8, l0=2.0, n_tokens=1024)
    data.batch_tokens, data.reads = 64, []
    names = ["topk", "standard", "transcoder", "crosscoder"]
    together = [small_training(name, data) for name in names]
    together[1].plan = together[1].plan._replace(n_steps=25)
    told: dict[int, list[int]] = {}
    for which, progress in train_together(together):
        told.setdefault(which, []).append(progress.step)
    assert data.reads == list(range(40))
    assert told == {0: list(range(40)), 1: list(range(25)), 2: list(range(40)), 3: list(range(40))}
    alone = small_training("crosscoder", data)
    list(alone.run())
    for key, tensor in alone.trainee.state_dict().items():
        assert torch.equal(tensor, together[3].trainee.state_dict()[key]), key


def test_one_that_was_resumed_further_on_waits(small: Planted) -> None:
    first, second = small_training("topk", small), small_training("topk", small)
    for _ in range(7):
        second.advance()
    order = [(which, progress.step) for which, progress in train_together([first, second])]
    assert order[:8] == [*((0, step) for step in range(7)), (0, 7)] and order[8] == (1, 7)


def test_trainings_over_different_batches_do_not_go_together(small: Planted, planted: Planted) -> None:
    with pytest.raises(ConfigError, match="go together over one object of batches"):
        next(train_together([small_training("topk", small), small_training("topk", planted)]))


def test_learning_rate_warms_up_stays_and_decays() -> None:
    plan = TrainingPlan.resolve(TrainingConfig(n_tokens=10_000, batch_tokens=10, learning_rate=1.0), 64)
    rates = [plan.rate(step) for step in range(plan.n_steps)]
    assert rates[0] == pytest.approx(1 / 51) and rates[50:800] == [1.0] * 750
    assert all(later < earlier for earlier, later in zip(rates[800:], rates[801:], strict=False))
    assert 0 < rates[-1] < 0.01


def test_dead_window_is_never_longer_than_a_tenth_of_the_run() -> None:
    plan = TrainingPlan.resolve(TrainingConfig(n_tokens=1_000_000), 64)
    assert plan.dead_after_tokens == 100_000
    assert TrainingPlan.resolve(TrainingConfig(n_tokens=10**9), 64).dead_after_tokens == 10_000_000


def test_fewer_tokens_than_a_batch_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"100 tokens in batches of 4096 .*raise n_tokens or lower batch_tokens"):
        TrainingPlan.resolve(TrainingConfig(n_tokens=100, batch_tokens=4096), 64)


def test_activations_without_a_finite_norm_are_refused(small: Planted) -> None:
    silent = Planted(n_features=24, d=8, l0=2.0, n_tokens=128)
    for value in (0.0, float("nan")):
        silent.sites = [torch.full_like(site, value) for site in silent.sites]
        with pytest.raises(ConfigError, match="mean square norm"):
            small_training("topk", silent)


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown architecture 'batch_topk'.*Did you mean 'batchtopk'"):
        recipe("batch_topk", n_features=64)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting of standard 'l1_wieght'.*Did you mean 'l1_weight'"):
        recipe("standard", n_features=64, l1_wieght=1.0)


def test_a_recipe_without_a_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs n_features"):
        recipe("topk", k=3)


@every_architecture
def test_every_recipe_has_a_source_and_an_objective_of_named_terms(name: str) -> None:
    source = ARCHITECTURES[name].__doc__ or ""
    assert "et al." in source
    names = [term.name for term in made(name, 64).objective]
    assert len(set(names)) == len(names) and names[0] == "reconstruction"


def test_a_k_that_starts_wider_than_the_sae_is_refused(small: Planted) -> None:
    config = TrainingConfig(n_tokens=640, batch_tokens=64, start_k_multiple=12.0)
    with pytest.raises(ConfigError, match="keeps k=36 features a token but the SAE has n_features=32"):
        Training(recipe("batchtopk", n_features=32, k=3), config, small)


@pytest.mark.parametrize(("n_tokens", "batch"), [(1000, 512), (1_000_000, 512), (4_100_000, 2048), (10**9, 4096)])
def test_a_short_run_has_smaller_batches_unless_told_otherwise(n_tokens: int, batch: int) -> None:
    assert TrainingConfig(n_tokens=n_tokens).batch_tokens == batch
    assert TrainingConfig(n_tokens=n_tokens, batch_tokens=300).batch_tokens == 300
