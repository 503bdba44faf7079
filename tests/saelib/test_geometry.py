"""What the weights say, against brute force and explicit formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import BLOCKS, ENDS, random_sae

from saelib.base import Ends, Site
from saelib.geometry import decoder_neighbors, encoder_decoder_cosine, logit_effects
from saelib.lm import LanguageModel, LMConfig, load_lm
from saelib.nonlinearity import ReLU
from saelib.sae import SAE

FINAL_NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}


def test_decoder_neighbors_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelib.geometry._BLOCK", 7)
    sae = random_sae()
    found = decoder_neighbors(sae, 5)
    rows = sae.W_dec.double().numpy()
    for feature, row in enumerate(rows):
        cosine = rows @ row / np.linalg.norm(rows, axis=1) / np.linalg.norm(row)
        cosine[feature] = -np.inf
        assert np.array_equal(found.other[feature], np.argsort(-cosine)[:5])
        assert np.allclose(found.cosine[feature], np.sort(cosine)[::-1][:5], atol=1e-6)


def test_decoder_neighbors_are_at_most_all_others() -> None:
    assert decoder_neighbors(random_sae(n_features=4), 10).other.shape == (4, 3)


def test_encoder_decoder_cosine_is_that_of_column_and_row() -> None:
    sae = random_sae()
    found = encoder_decoder_cosine(sae)
    assert found is not None
    for feature in range(sae.n_features):
        encoder, decoder = sae.W_enc[:, feature], sae.W_dec[feature]
        assert found[feature] == pytest.approx((encoder @ decoder / encoder.norm() / decoder.norm()).item(), abs=1e-6)


def test_a_transcoder_has_no_encoder_decoder_cosine() -> None:
    sae = random_sae()
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    ends = Ends(read=ENDS.read, write=(Site(path="model.layers.1"),))
    assert encoder_decoder_cosine(SAE(weights, ReLU(), ends, "transcoder")) is None


def model_with_a_gain(folder: Path, kind: str) -> LanguageModel:
    """Fresh models have a gain of one everywhere, which would test nothing."""
    lm = load_lm(LMConfig(model=str(folder), device="cpu"))
    norm = lm.module(FINAL_NORM[kind])
    norm.weight.copy_(1 + 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(1)))
    if kind != "llama":
        norm.bias.copy_(torch.randn(16, generator=torch.Generator().manual_seed(2)))
    return lm


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_logit_effects_are_row_times_gain_times_unembedding(kind: str, tiny_lm_folders: dict[str, Path]) -> None:
    lm, sae = model_with_a_gain(tiny_lm_folders[kind], kind), random_sae()
    found = logit_effects(lm, sae, 6)
    rows = sae.W_dec.double()
    if kind != "llama":
        rows = rows - rows.mean(dim=1, keepdim=True)
    logits = (rows * lm.module(FINAL_NORM[kind]).weight.double()) @ lm.unembedding.double().t()
    for feature, row in enumerate(logits.numpy()):
        order = np.argsort(-row)
        assert np.array_equal(found.top[feature], order[:6])
        assert np.array_equal(found.bottom[feature], order[::-1][:6])
        assert np.allclose(found.top_logit[feature], row[order[:6]], rtol=1e-3, atol=1e-4)
        assert np.allclose(found.bottom_logit[feature], row[order[::-1][:6]], rtol=1e-3, atol=1e-4)
        assert found.skew[feature] == pytest.approx(stats.skew(row), abs=1e-3)
        assert found.kurtosis[feature] == pytest.approx(stats.kurtosis(row), abs=1e-3)
        assert found.counts[feature].sum() == lm.n_vocab
        assert found.edges[feature, 0] == pytest.approx(row.min(), abs=1e-3)
        assert found.edges[feature, -1] == pytest.approx(row.max(), abs=1e-3)


def test_logit_effects_predict_what_a_small_step_along_the_row_does(tiny_lm_folders: dict[str, Path]) -> None:
    """At the last site, up to the norm's own scale: the direct effect is the derivative for a token at rest."""
    lm, sae = model_with_a_gain(tiny_lm_folders["llama"], "llama"), random_sae()
    norm, x = lm.module("model.norm"), 100 * torch.randn(16, generator=torch.Generator().manual_seed(4))
    row = sae.W_dec[3] - x * (sae.W_dec[3] @ x) / x.square().sum()  # the part that leaves the scale alone
    step = (norm(x + 0.01 * row) - norm(x - 0.01 * row)) / 0.02 * x.square().mean().sqrt()
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "b_dec")}
    found = logit_effects(lm, SAE({**weights, "W_dec": row.repeat(24, 1)}, ReLU(), ENDS, "standard"), 3)
    wanted = (step @ lm.unembedding.t()).topk(3)
    assert found.top[0].tolist() == wanted.indices.tolist()
    assert np.allclose(found.top_logit[0], wanted.values.numpy(), rtol=0.02, atol=0.02)
