"""Metrics by their formulas, and SAEs whose worth is known."""

import math

import numpy as np
import pytest
import torch
from tiny import SITE, identity_sae, random_sae, silent_sae, token_shard

from saelib.batches import batches_of
from saelib.errors import ShapeError
from saelib.evaluation import Evaluation, EvaluationConfig, chosen_batches, evaluate, next_token_loss
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.metrics import fvu, l0, loss_recovered, mean_interval, ratio_interval
from saelib.rng import mix
from saelib.sae import SAE
from saelib.text import TokenShard


def test_fvu_is_the_squared_error_over_the_squared_distance_from_the_mean() -> None:
    y, y_hat = torch.randn(40, 5), torch.randn(40, 5)
    numerator = denominator = 0.0
    mean = y.double().mean(dim=0)
    for row, guess in zip(y.double(), y_hat.double(), strict=True):
        numerator += float(((row - guess) ** 2).sum())
        denominator += float(((row - mean) ** 2).sum())
    assert fvu(y, y_hat) == pytest.approx(numerator / denominator, rel=1e-12)


def test_fvu_of_the_mean_is_one_and_of_a_copy_zero() -> None:
    y = torch.randn(40, 5)
    assert fvu(y, y.mean(dim=0).expand_as(y)) == pytest.approx(1.0, abs=1e-6)
    assert fvu(y, y) == 0.0
    assert fvu(y, y + 1.0) > fvu(y, y), "a mean error counts"


def test_fvu_may_take_the_mean_of_a_whole_data_set() -> None:
    y, mean = torch.randn(40, 5), torch.full((5,), 3.0)
    assert fvu(y, torch.zeros_like(y), mean) == pytest.approx(
        (y.square().sum() / (y - 3).square().sum()).item(), rel=1e-5
    )


def test_fvu_without_variance_is_refused() -> None:
    with pytest.raises(ShapeError, match="without variance"):
        fvu(torch.ones(4, 3), torch.zeros(4, 3))


def test_l0_counts_positive_entries_per_token() -> None:
    assert l0(torch.tensor([[0.0, 2.0], [1.0, 3.0]])) == 1.5


def test_loss_recovered_is_one_for_the_model_and_zero_for_the_ablation() -> None:
    assert loss_recovered(2.0, 2.0, 6.0) == 1.0
    assert loss_recovered(2.0, 6.0, 6.0) == 0.0
    assert loss_recovered(2.0, 3.0, 6.0) == 0.75
    assert math.isnan(loss_recovered(2.0, 3.0, 2.0)), "nothing to recover"


def test_a_ratio_interval_holds_the_ratio_and_narrows_with_documents() -> None:
    random = np.random.default_rng(0)
    widths = []
    for n in (50, 5000):
        denominator = random.uniform(1, 2, n)
        numerator = denominator * random.normal(0.5, 0.1, n)
        interval = ratio_interval(numerator, denominator, 123)
        assert interval.value == pytest.approx(numerator.sum() / denominator.sum())
        assert interval.lower < interval.value < interval.upper and interval.n == 123
        widths.append(interval.upper - interval.lower)
    assert widths[1] < widths[0] / 5


def test_a_ratio_of_negative_sums_has_an_interval_around_it() -> None:
    interval = ratio_interval(-np.arange(1.0, 50.0), -np.arange(2.0, 51.0), 1)
    assert 0.8 < interval.lower <= interval.value <= interval.upper <= 1.0


def test_a_ratio_without_a_denominator_is_not_a_number() -> None:
    assert math.isnan(ratio_interval(np.zeros(3), np.zeros(3), 0).value)


def test_a_mean_interval_is_a_sum_over_a_count() -> None:
    assert mean_interval(np.array([3.0, 5.0]), np.array([2.0, 2.0])).value == 2.0


def held_out_tokens() -> TokenShard:
    random = np.random.default_rng(3)
    documents = [[0, *random.integers(3, 43, length).tolist()] for length in (11, 11, 6, 9, 11, 3, 10, 8)]
    documents[2][3] = 1
    return token_shard(documents)


def evaluated(lm: LanguageModel, sae: SAE, max_norm: float | None = None) -> Evaluation:
    return evaluate(lm, sae, [held_out_tokens()], max_norm, EvaluationConfig())


def site_rows(lm: LanguageModel) -> torch.Tensor:
    """Unmasked activations, one sequence at a time."""
    tokens, rows = held_out_tokens(), []
    for first, last in zip(tokens.sequence_starts[:-1], tokens.sequence_starts[1:], strict=True):
        ids = torch.tensor([tokens.token_ids[first:last].tolist()])
        rows.append(read_sites(lm, ids, torch.ones_like(ids), [SITE])[SITE][0][ids[0] > 2])
    return torch.cat(rows)


def test_an_sae_that_reconstructs_everything_costs_nothing(tiny_lm: LanguageModel) -> None:
    metrics = evaluated(tiny_lm, identity_sae()).metrics
    for name, wanted in {"fvu": 0, "explained_variance": 1, "delta_ce": 0, "kl": 0, "l0": 16}.items():
        assert metrics[name].value == pytest.approx(wanted, abs=1e-6), name
    assert metrics["loss_recovered_mean"].value == pytest.approx(1, abs=1e-5)
    assert metrics["loss_recovered_zero"].value == pytest.approx(1, abs=1e-5)
    assert metrics["ce_clean"].value == pytest.approx(metrics["ce_spliced"].value, abs=1e-6)


def test_a_silent_sae_at_the_mean_equals_the_mean_ablation(tiny_lm: LanguageModel) -> None:
    metrics = evaluated(tiny_lm, silent_sae(site_rows(tiny_lm).mean(dim=0))).metrics
    assert metrics["ce_spliced"].value == pytest.approx(metrics["ce_mean"].value, abs=1e-6)
    assert metrics["loss_recovered_mean"].value == pytest.approx(0, abs=1e-4)
    assert metrics["fvu"].value == pytest.approx(1, abs=1e-5)
    assert metrics["l0"].value == 0 and metrics["dead_share"].value == 1


def test_a_silent_sae_at_zero_equals_the_zero_ablation(tiny_lm: LanguageModel) -> None:
    metrics = evaluated(tiny_lm, silent_sae(torch.zeros(16))).metrics
    assert metrics["ce_spliced"].value == pytest.approx(metrics["ce_zero"].value, abs=1e-6)
    assert metrics["loss_recovered_zero"].value == pytest.approx(0, abs=1e-5)


def test_evaluation_equals_the_formulas_over_all_rows(tiny_lm: LanguageModel) -> None:
    sae, rows = random_sae(), site_rows(tiny_lm)
    found = evaluated(tiny_lm, sae)
    assert found.n_tokens == rows.shape[0]
    assert found.metrics["fvu"].value == pytest.approx(fvu(rows, sae(rows)), rel=1e-4)
    assert found.metrics["l0"].value == pytest.approx(l0(sae.encode(rows)), abs=1e-6)
    assert np.array_equal(found.fires, (sae.encode(rows) > 0).sum(dim=0).numpy())


def test_evaluation_equals_a_splice_of_one_sequence_at_a_time(tiny_lm: LanguageModel) -> None:
    sae, tokens, total, n = random_sae(), held_out_tokens(), {"clean": 0.0, "spliced": 0.0, "kl": 0.0}, 0
    for first, last in zip(tokens.sequence_starts[:-1], tokens.sequence_starts[1:], strict=True):
        ids = torch.tensor([tokens.token_ids[first:last].tolist()])
        text = ids[0] > 2

        def splice(x: torch.Tensor, text: torch.Tensor = text) -> torch.Tensor:
            return torch.where(text.unsqueeze(-1), sae(x[0]), x[0]).unsqueeze(0)

        clean = tiny_lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        with patch_sites(tiny_lm, {SITE: splice}):
            spliced = tiny_lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        for position, target in enumerate(ids[0, 1:].tolist()):
            total["clean"] -= clean[position, target].item()
            total["spliced"] -= spliced[position, target].item()
        total["kl"] += (clean.exp() * (clean - spliced)).sum().item()
        n += ids.shape[1] - 1
    metrics = evaluated(tiny_lm, sae).metrics
    assert metrics["ce_clean"].value == pytest.approx(total["clean"] / n, abs=1e-5)
    assert metrics["ce_spliced"].value == pytest.approx(total["spliced"] / n, abs=1e-5)
    assert metrics["delta_ce"].value == pytest.approx((total["spliced"] - total["clean"]) / n, abs=1e-5)
    assert metrics["kl"].value == pytest.approx(total["kl"] / n, abs=1e-5)


def test_attention_sinks_pass_untouched_and_uncounted(tiny_lm: LanguageModel) -> None:
    rows = site_rows(tiny_lm)
    limit = rows.norm(dim=1).median().item()
    kept = rows[rows.norm(dim=1) <= limit]
    found = evaluated(tiny_lm, random_sae(), limit)
    assert found.n_tokens == kept.shape[0]
    assert found.metrics["fvu"].value == pytest.approx(fvu(kept, random_sae()(kept)), rel=1e-4)
    untouched = evaluated(tiny_lm, random_sae(), rows.norm(dim=1).min().item() / 2).metrics
    assert untouched["delta_ce"].value == 0 and untouched["kl"].value == 0
    assert untouched["ce_zero"].value == untouched["ce_mean"].value == untouched["ce_clean"].value
    assert math.isnan(untouched["fvu"].value) and math.isnan(untouched["loss_recovered_mean"].value)


def test_next_token_loss_is_zero_at_padding(tiny_lm: LanguageModel) -> None:
    (batch,) = batches_of(held_out_tokens(), 8 * 12, 2)
    logits = tiny_lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = next_token_loss(logits, batch)
    assert not loss[batch.attention_mask[:, 1:] == 0].any()
    assert (loss[batch.attention_mask[:, 1:] == 1] > 0).all()


@pytest.mark.parametrize("max_tokens", [1, 12, 13, 40, 10_000])
def test_a_token_budget_takes_whole_sequences_by_hash_until_it_is_reached(
    tiny_lm: LanguageModel, max_tokens: int
) -> None:
    shard = held_out_tokens()
    wanted, left = [], max_tokens
    for index in np.argsort(mix(0, shard.sequence_id)).tolist():
        if left > 0:
            wanted.append(int(shard.sequence_id[index]))
            left -= int(shard.lengths[index])
    chosen = chosen_batches(tiny_lm, [shard], max_tokens)
    found = [part.sequence_id[batch.sequences] for part, batch in chosen]
    assert sorted(np.concatenate(found).tolist()) == sorted(wanted)
    for part, batch in chosen:
        for row, sequence in enumerate(batch.sequences):
            whole = shard.token_ids[
                slice(*shard.sequence_starts[[part.sequence_id[sequence], part.sequence_id[sequence] + 1]])
            ]
            assert batch.input_ids[row, batch.attention_mask[row] == 1].tolist() == whole.tolist()
