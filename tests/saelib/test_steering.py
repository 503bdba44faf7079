"""Finding where a feature fires, and changing how strongly."""

import pytest
import torch
from tiny import SITE, random_sae, sentence
from transformers.cache_utils import DynamicCache

from saelib.errors import ConfigError
from saelib.lm import LanguageModel, read_sites
from saelib.sae import SAE
from saelib.steering import Edit, find_feature_activations, steering_hook


def busy_feature(sae: SAE, lm: LanguageModel, texts: list[str]) -> int:
    return max(range(sae.n_features), key=lambda feature: len(find_feature_activations(sae, lm, texts, feature)))


def test_find_feature_activations_lists_every_firing_strongest_first(tiny_lm: LanguageModel) -> None:
    sae, texts = random_sae(), [sentence(seed, 8) for seed in range(4)] + ["", "<eos> w3"]
    for feature in range(0, sae.n_features, 5):
        wanted = []
        for text in texts:
            ids = tiny_lm.tokenizer(text, return_tensors="pt")["input_ids"]
            x = read_sites(tiny_lm, ids, torch.ones_like(ids), [SITE])[SITE][0]
            for token, f in zip(ids[0].tolist(), sae.encode(x)[:, feature].tolist(), strict=True):
                if f > 0 and token > 2:
                    wanted.append((text, tiny_lm.token_text(token), f))
        found = find_feature_activations(sae, tiny_lm, texts, feature)
        wanted.sort(key=lambda firing: -firing[2])
        assert [(o.text, o.token) for o in found] == [firing[:2] for firing in wanted]
        assert [o.activation for o in found] == pytest.approx([firing[2] for firing in wanted])


@pytest.mark.parametrize("feature", [-1, 24])
def test_a_feature_that_is_not_there_is_refused_with_the_range(tiny_lm: LanguageModel, feature: int) -> None:
    with pytest.raises(ConfigError, match=f"no feature {feature}; the SAE has features 0…23"):
        find_feature_activations(random_sae(), tiny_lm, ["w1"], feature)
    with (
        pytest.raises(ConfigError, match="features 0…23"),
        steering_hook(tiny_lm, random_sae(), [Edit(feature=feature)]),
    ):
        pass


def test_edits_change_f_as_their_names_say() -> None:
    f = torch.tensor([0.0, 2.0, 5.0])

    def edited(**settings: object) -> list[float]:
        return (f + Edit.model_validate({"feature": 0, "unit": 4.0, **settings}).change(f)).tolist()

    assert edited(op="add", strength=1.5) == [6.0, 8.0, 11.0]
    assert edited(op="scale", strength=3.0) == [0.0, 6.0, 15.0]
    assert edited(op="clamp", strength=0.5) == [2.0, 2.0, 2.0]
    assert edited(op="ablate") == [0.0, 0.0, 0.0]


def prompts(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Two prompts of different lengths, padded at the left as generation wants it."""
    lm.tokenizer.padding_side = "left"
    return dict(
        lm.tokenizer([sentence(1, 5), sentence(2, 3)], return_tensors="pt", padding=True, return_token_type_ids=False)
    )


EDITS = [Edit(feature=3, strength=2.0, unit=1.5), Edit(feature=7, op="ablate"), Edit(feature=3, op="scale", strength=2)]


def test_steered_generation_is_the_same_with_and_without_a_cache(tiny_lm: LanguageModel) -> None:
    sae = random_sae()
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    plain = tiny_lm.model.generate(**prompts(tiny_lm), **settings)
    with steering_hook(tiny_lm, sae, EDITS):
        cached = tiny_lm.model.generate(**prompts(tiny_lm), use_cache=True, **settings)
        uncached = tiny_lm.model.generate(**prompts(tiny_lm), use_cache=False, **settings)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain), "the edits are strong enough to be seen"
    assert torch.equal(tiny_lm.model.generate(**prompts(tiny_lm), **settings), plain), "closed: nothing is left behind"


def test_steered_logits_with_a_cache_equal_those_without(tiny_lm: LanguageModel) -> None:
    ids = tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    with steering_hook(tiny_lm, random_sae(), EDITS), torch.no_grad():
        whole = tiny_lm.model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=tiny_lm.model.config)
        steps = [
            tiny_lm.model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits
            for i in range(ids.shape[1])
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


def steered_site(lm: LanguageModel, sae: SAE, ids: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
    with steering_hook(lm, sae, edits):
        return read_sites(lm, ids, torch.ones_like(ids), [SITE])[SITE][0]


def test_steering_adds_the_difference_and_leaves_the_reconstruction_error_alone(tiny_lm: LanguageModel) -> None:
    sae = random_sae()
    ids = tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    x = steered_site(tiny_lm, sae, ids, [])
    torch.testing.assert_close(x, read_sites(tiny_lm, ids, torch.ones_like(ids), [SITE])[SITE][0])
    f = sae.encode(x)
    edited = f.clone()
    edited[:, 3] = f[:, 3] + 2.0 * 1.5 + f[:, 3] * (2 - 1)
    edited[:, 7] = 0
    wanted = x + sae.decode(edited) - sae.decode(f)
    wanted[0] = x[0]  # BOS passes through untouched
    torch.testing.assert_close(steered_site(tiny_lm, sae, ids, EDITS), wanted, atol=1e-5, rtol=1e-5)


def test_strength_is_in_units_of_the_feature_maximum(tiny_lm: LanguageModel) -> None:
    sae, ids = random_sae(), tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    x = steered_site(tiny_lm, sae, ids, [])
    for strength, unit in ((2.0, 3.0), (-1.0, 0.5)):
        moved = steered_site(tiny_lm, sae, ids, [Edit(feature=5, strength=strength, unit=unit)]) - x
        assert torch.allclose(moved[1:], (strength * unit * sae.W_dec[5]).expand_as(moved[1:]), atol=1e-5)


def test_ablating_a_feature_silences_it(tiny_lm: LanguageModel) -> None:
    """Where its decoder row alone writes what its encoder column reads."""
    sae, ids = random_sae(), tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    sae.W_enc.copy_(sae.W_dec.t())
    feature = int(sae.encode(steered_site(tiny_lm, sae, ids, []))[1:].sum(dim=0).argmax())
    after = sae.encode(steered_site(tiny_lm, sae, ids, [Edit(feature=feature, op="ablate")]))[1:, feature]
    assert after.max() <= max(0.0, sae.b_enc[feature].item()) + 1e-5


def test_special_tokens_and_padding_pass_untouched(tiny_lm: LanguageModel) -> None:
    ids = torch.tensor([[2, 2, 0, 7, 1, 9]])
    sae = random_sae()
    moved = steered_site(tiny_lm, sae, ids, [Edit(feature=5, strength=3.0)]) - steered_site(tiny_lm, sae, ids, [])
    assert moved.abs().amax(dim=1).gt(0.1).tolist() == [False, False, False, True, False, True]
