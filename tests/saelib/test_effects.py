"""What taking a feature out costs the model, against explicit ablation."""

import numpy as np
import pytest
import torch
from tiny import SITE, random_sae, token_shard

from saelib.effects import EffectsConfig, loss_effects
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.nonlinearity import JumpReLU
from saelib.sae import SAE
from saelib.text import TokenShard


def some_tokens() -> TokenShard:
    random = np.random.default_rng(5)
    documents = [[0, *random.integers(3, 43, length).tolist()] for length in (11, 6, 9, 3)]
    documents[0][5] = 1
    return token_shard(documents)


def ablated_one_by_one(lm: LanguageModel, sae: SAE, max_norm: float | None = None) -> np.ndarray:
    """Mean change of the loss, each sequence by itself and each feature subtracted by hand."""
    tokens, change, n = some_tokens(), np.zeros(sae.n_features), 0

    def loss(ids: torch.Tensor) -> float:
        logits = lm.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        return -logits.gather(1, ids[0, 1:, None]).sum().item()

    for first, last in zip(tokens.sequence_starts[:-1], tokens.sequence_starts[1:], strict=True):
        ids = torch.tensor([tokens.token_ids[first:last].tolist()])
        x = read_sites(lm, ids, torch.ones_like(ids), [SITE])[SITE][0]
        text = ids[0] > 2
        if max_norm is not None:
            text = text & (x.norm(dim=-1) <= max_norm)
        f = sae.encode(x) * text.unsqueeze(-1)
        n += ids.shape[1] - 1
        for feature in range(sae.n_features):
            taken = f[:, feature, None] * sae.W_dec[feature]
            with patch_sites(lm, {SITE: lambda x, taken=taken: x - taken}):
                change[feature] += loss(ids)
            change[feature] -= loss(ids)
    return change / n


@pytest.mark.parametrize("max_norm", [None, 6.0])
def test_delta_ce_is_the_mean_loss_without_the_feature_less_that_with_it(
    tiny_lm: LanguageModel, max_norm: float | None
) -> None:
    sae = random_sae()
    config = EffectsConfig(ablated_features=24, ablation_tokens=10_000)
    found = loss_effects(tiny_lm, sae, [some_tokens()], max_norm, config)
    wanted, sampled = ablated_one_by_one(tiny_lm, sae, max_norm), np.isfinite(found.ablated)
    assert sampled.sum() > 10
    assert np.allclose(found.ablated[sampled], wanted[sampled], atol=1e-6)
    assert np.abs(wanted[sampled]).max() > 1e-3
    assert np.allclose(wanted[~sampled], 0, atol=1e-12), "only features that never fire are left out"
    assert found.linear_tokens == found.ablation_tokens == 29


def test_linear_effect_approaches_the_true_one_for_tiny_activations(tiny_lm: LanguageModel) -> None:
    whole = random_sae()
    tiny = {"W_enc": whole.W_enc * 1e-3, "b_enc": whole.b_enc * 1e-3, "W_dec": whole.W_dec, "b_dec": whole.b_dec}
    sae = SAE(tiny, JumpReLU(threshold=torch.full((24,), 5e-4)), whole.ends, "batchtopk")
    found = loss_effects(tiny_lm, sae, [some_tokens()], None, EffectsConfig(ablated_features=24))
    wanted = ablated_one_by_one(tiny_lm, sae)
    assert np.abs(wanted).max() > 1e-5
    assert np.allclose(found.linear, wanted, atol=0.01 * np.abs(wanted).max())
    assert found.rank_correlation is not None and found.rank_correlation > 0.95


def test_a_sample_of_features_is_chosen_by_seed(tiny_lm: LanguageModel) -> None:
    def chosen(seed: int) -> list[int]:
        config = EffectsConfig(ablated_features=5, seed=seed)
        return np.flatnonzero(
            np.isfinite(loss_effects(tiny_lm, random_sae(), [some_tokens()], None, config).ablated)
        ).tolist()

    assert len(chosen(0)) == 5 and chosen(0) == chosen(0) != chosen(1)


def test_no_rank_correlation_of_fewer_than_three_features(tiny_lm: LanguageModel) -> None:
    found = loss_effects(tiny_lm, random_sae(), [some_tokens()], None, EffectsConfig(ablated_features=2))
    assert found.rank_correlation is None
