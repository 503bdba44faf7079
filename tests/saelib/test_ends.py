"""Transcoders, skip transcoders, crosscoders and SAEs with an input norm: evaluated, ablated, described and steered,
against plain loops over one sequence at a time."""

import numpy as np
import pytest
import torch
from tiny import activation_shard, random_sae, sentence, token_shard
from torch import Tensor

from saelib.base import Ends, Site
from saelib.effects import EffectsConfig, loss_effects
from saelib.errors import ConfigError
from saelib.evaluation import EvaluationConfig, evaluate
from saelib.geometry import logit_effects
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.metrics import fvu, l0
from saelib.sae import SAE, InputNorm
from saelib.steering import Edit, find_feature_activations, steering_hook
from saelib.summaries.rows import shard_firings
from saelib.text import TokenShard

MLP_IN, MLP = Site.parse("model.layers.1.mlp:in"), Site.parse("model.layers.1.mlp")
ZERO, ONE = Site.parse("model.layers.0"), Site.parse("model.layers.1")
ENDS = {
    "sae": Ends.at(ZERO),
    "transcoder": Ends(read=(MLP_IN,), write=(MLP,)),
    "skip transcoder": Ends(read=(MLP_IN,), write=(MLP,)),
    "crosscoder": Ends(read=(ZERO, ONE), write=(ZERO, ONE)),
    "across layers": Ends(read=(ZERO,), write=(MLP, ONE)),
}
NORMS: dict[str, InputNorm] = {"sae": "layer_norm", "transcoder": "constant_norm"}


def made(kind: str) -> SAE:
    """Random weights of the right widths."""
    generator, ends = torch.Generator().manual_seed(3), ENDS[kind]
    d_in, d_out = 16 * len(ends.read), 16 * len(ends.write)
    base = random_sae(d_in)
    weights = {"W_enc": base.W_enc, "b_enc": base.b_enc, "b_dec": 0.1 * torch.randn(d_out, generator=generator)}
    weights["W_dec"] = torch.nn.functional.normalize(torch.randn(24, d_out, generator=generator), dim=1)
    if kind == "skip transcoder":
        weights["W_skip"] = 0.3 * torch.randn(d_in, d_out, generator=generator)
    return SAE(weights, base.nonlinearity, ends, "any", NORMS.get(kind, "none"))


def some_tokens() -> TokenShard:
    random = np.random.default_rng(5)
    documents = [[0, *random.integers(3, 43, length).tolist()] for length in (11, 6, 9, 3)]
    documents[0][5] = 1
    return token_shard(documents)


class Sequence:
    """One sequence by itself: its ids, which positions hold text, and what is read and written there."""

    def __init__(self, lm: LanguageModel, sae: SAE, ids: list[int], max_norm: float | None = None) -> None:
        self.lm, self.sae = lm, sae
        self.ids = torch.tensor([ids])
        sites = [*{*sae.ends.read, *sae.ends.write}]
        self.seen = read_sites(lm, self.ids, torch.ones_like(self.ids), sites)
        self.text = self.ids[0] > 2
        for x in self.seen.values():
            self.text = self.text & (x[0].norm(dim=-1) <= (max_norm or torch.inf))
        self.x = torch.cat([self.seen[site][0] for site in sae.ends.read], dim=1)
        self.y = torch.cat([self.seen[site][0] for site in sae.ends.write], dim=1)

    def loss(self, new: Tensor | None = None, is_held: bool = False) -> float:
        """Summed cross-entropy with the written sites set to `new`, [position, d_out], where there is text; elsewhere
        what comes passes, or is held at the clean value."""
        patches = {}
        for index, site in enumerate(self.sae.ends.write if new is not None else ()):
            assert new is not None

            def patch(x: Tensor, part: Tensor = new[:, 16 * index : 16 * index + 16], site: Site = site) -> Tensor:
                rest = self.seen[site] if is_held else x
                return torch.where(self.text.unsqueeze(1), part, rest[0]).unsqueeze(0)

            patches[site] = patch
        with torch.no_grad(), patch_sites(self.lm, patches):
            logits = self.lm.model(input_ids=self.ids).logits[0, :-1].double().log_softmax(-1)
        return -logits.gather(1, self.ids[0, 1:, None]).sum().item()


def sequences(lm: LanguageModel, sae: SAE, max_norm: float | None = None) -> list[Sequence]:
    tokens = some_tokens()
    pairs = zip(tokens.sequence_starts[:-1], tokens.sequence_starts[1:], strict=True)
    return [Sequence(lm, sae, tokens.token_ids[first:last].tolist(), max_norm) for first, last in pairs]


@pytest.mark.parametrize("max_norm", [None, 9.0])
@pytest.mark.parametrize("kind", sorted(ENDS))
def test_evaluation_replaces_every_written_site_by_what_the_clean_pass_gives(
    kind: str, max_norm: float | None, tiny_lm: LanguageModel
) -> None:
    sae = made(kind)
    each = sequences(tiny_lm, sae, max_norm)
    x, y = (torch.cat([getattr(one, end)[one.text] for one in each]) for end in "xy")
    mean, n = y.mean(dim=0), sum(one.ids.shape[1] - 1 for one in each)
    found = evaluate(tiny_lm, sae, [some_tokens()], max_norm, EvaluationConfig()).metrics
    assert found["fvu"].n == x.shape[0] > 5
    assert found["fvu"].value == pytest.approx(fvu(y, sae(x)), rel=1e-4)
    assert found["l0"].value == pytest.approx(l0(sae.encode(x)), abs=1e-6)
    wanted = {
        "clean": sum(one.loss() for one in each),
        "spliced": sum(one.loss(sae(one.x)) for one in each),
        "mean": sum(one.loss(mean.expand_as(one.y)) for one in each),
        "zero": sum(one.loss(torch.zeros_like(one.y)) for one in each),
    }
    for run, loss in wanted.items():
        assert found[f"ce_{run}"].value == pytest.approx(loss / n, abs=1e-5), run
    assert abs(wanted["spliced"] - wanted["clean"]) > 0.1


def test_each_site_has_a_sink_limit_of_its_own(tiny_lm: LanguageModel) -> None:
    sae = made("crosscoder")
    (longest, *_) = sequences(tiny_lm, sae)
    limit = longest.seen[ONE][0][longest.text].norm(dim=1).median().item()
    limits = {ZERO: None, ONE: limit}
    found = evaluate(tiny_lm, sae, [some_tokens()], limits, EvaluationConfig())
    wanted = sum(int((one.text & (one.seen[ONE][0].norm(dim=1) <= limit)).sum()) for one in sequences(tiny_lm, sae))
    assert found.n_tokens == wanted


@pytest.mark.parametrize("kind", sorted(ENDS))
def test_delta_ce_is_the_loss_with_every_written_site_less_the_feature(kind: str, tiny_lm: LanguageModel) -> None:
    sae = made(kind)
    config = EffectsConfig(ablated_features=24, ablation_tokens=10_000)
    found = loss_effects(tiny_lm, sae, [some_tokens()], None, config)
    each = sequences(tiny_lm, sae)
    sampled = np.flatnonzero(np.isfinite(found.ablated))
    assert sampled.size > 8
    for feature in sampled[:6]:
        change = 0.0
        for one in each:
            f = sae.encode(one.x)
            without = f.clone()
            without[:, feature] = 0
            change += one.loss(one.y + sae.rebuild(one.x, without) - sae.rebuild(one.x, f), True) - one.loss()
        assert found.ablated[feature] == pytest.approx(change / found.ablation_tokens, abs=2e-6), feature


@pytest.mark.parametrize("kind", sorted(ENDS))
def test_linear_effect_is_the_slope_of_the_true_one(kind: str, tiny_lm: LanguageModel) -> None:
    """By a small step of each feature, in float64."""
    sae = made(kind)
    found = loss_effects(tiny_lm, sae, [some_tokens()], None, EffectsConfig(ablated_features=0))
    feature, step = int(np.abs(found.linear).argmax()), 1e-2
    slope = 0.0
    for one in sequences(tiny_lm, sae):
        f = sae.encode(one.x)
        taken = f[:, feature, None] * sae.W_dec[feature] * sae.gain(one.x)
        slope += (one.loss(one.y - step * taken, True) - one.loss(one.y + step * taken, True)) / (2 * step)
    assert found.linear[feature] == pytest.approx(slope / found.linear_tokens, rel=0.02)
    assert abs(found.linear[feature]) > 1e-3


@pytest.mark.parametrize("kind", sorted(ENDS))
def test_firings_and_gains_of_a_shard_are_those_of_brute_force(kind: str) -> None:
    tokens, generator = some_tokens(), torch.Generator().manual_seed(1)
    sites = [torch.randn(int(tokens.token_ids.size), 16, generator=generator) for _ in range(4)]
    shards = [activation_shard(tokens, x) for x in sites]
    shard = shards[0]._replace(sites=[each.sites[0] for each in shards])
    sae = made(kind)
    order = [ZERO, ONE, MLP_IN, MLP]
    read, write = ([order.index(site) for site in end] for end in (sae.ends.read, sae.ends.write))
    found = shard_firings(sae, tokens, shard, read, seed=3, write=write)
    kept = np.flatnonzero(np.concatenate([np.arange(length) > 0 for length in tokens.lengths]))
    x, y = (torch.cat([sites[place][kept] for place in end], dim=1) for end in (read, write))
    f = sae.encode(x)
    error = (y - sae.rebuild(x, f)).double().square().sum(dim=1)
    for feature in range(24):
        rows = found.row[found.starts[feature] : found.starts[feature + 1]]
        assert np.array_equal(rows, np.flatnonzero(f[:, feature].numpy() > 0))
        without = f.clone()
        without[:, feature] = 0
        gain = (y - sae.rebuild(x, without)).double().square().sum(dim=1) - error
        assert found.gain[found.starts[feature] : found.starts[feature + 1]] == pytest.approx(
            gain.numpy()[rows], rel=1e-3, abs=1e-3
        )
    assert found.y_sum == pytest.approx(y.double().sum(dim=0).numpy())
    assert found.y_square_sum == pytest.approx(y.double().square().sum().item())


def test_logit_effects_are_those_of_the_last_written_site(tiny_lm: LanguageModel) -> None:
    sae = made("crosscoder")
    last = SAE(
        {"W_enc": sae.W_enc[:16], "b_enc": sae.b_enc, "W_dec": sae.W_dec[:, 16:].contiguous(), "b_dec": sae.b_dec[16:]},
        sae.nonlinearity,
        Ends.at(ONE),
        "any",
    )
    wanted = logit_effects(tiny_lm, last, 5)
    for widths in (None, [16, 16]):
        found = logit_effects(tiny_lm, sae, 5, widths)
        assert np.array_equal(found.top, wanted.top) and np.allclose(found.top_logit, wanted.top_logit)


@pytest.mark.parametrize("kind", sorted(ENDS))
def test_steering_adds_the_difference_of_two_reconstructions(kind: str, tiny_lm: LanguageModel) -> None:
    """At every site that is written once all is read: of a crosscoder at the last one."""
    sae, edits = made(kind), [Edit(feature=3, strength=2.0), Edit(feature=7, op="ablate")]
    ids = tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    one = Sequence(tiny_lm, sae, ids[0].tolist())
    f = sae.encode(one.x)
    edited = f.clone()
    edited[:, 3] += 2.0
    edited[:, 7] = 0
    change = (sae.rebuild(one.x, edited) - sae.rebuild(one.x, f)) * one.text.unsqueeze(1)
    columns = {site: change[:, 16 * index : 16 * index + 16] for index, site in enumerate(sae.ends.write)}
    if kind == "crosscoder":
        del columns[ZERO]
    with torch.no_grad():
        with patch_sites(tiny_lm, {site: lambda x, part=part: x + part for site, part in columns.items()}):
            wanted = tiny_lm.model(input_ids=ids, use_cache=False).logits
        with steering_hook(tiny_lm, sae, edits):
            found = tiny_lm.model(input_ids=ids, use_cache=False).logits
        plain = tiny_lm.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.05


def test_an_sae_that_writes_before_it_reads_cannot_be_steered(tiny_lm: LanguageModel) -> None:
    sae = made("sae")
    sae.ends = Ends(read=(ONE,), write=(ZERO,))
    ids = tiny_lm.tokenizer(sentence(3, 9), return_tensors="pt")["input_ids"]
    with pytest.raises(ConfigError, match="cannot be steered"), steering_hook(tiny_lm, sae, [Edit(feature=3)]):
        tiny_lm.model(input_ids=ids, use_cache=False)


def test_firings_in_texts_are_found_from_all_sites_that_are_read(tiny_lm: LanguageModel) -> None:
    sae, text = made("crosscoder"), sentence(4, 8)
    one = Sequence(tiny_lm, sae, tiny_lm.tokenizer(text)["input_ids"])
    f = sae.encode(one.x)[one.text]
    feature = int((f > 0).sum(dim=0).argmax())
    found = find_feature_activations(sae, tiny_lm, [text], feature)
    assert [each.activation for each in found] == pytest.approx(sorted(f[f[:, feature] > 0, feature].tolist())[::-1])
    assert found
