"""Sites by short name and wildcard, on tiny models of many architectures: what is read there, and what a patch does."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from lm_zoo import N_LAYERS, WIDTH, ZOO, save_zoo_lm, zoo_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedModel

from flows.cli.common import run_app
from flows.cli.sites import register
from saelib.base import Site
from saelib.errors import SAELibError, SiteNotFound
from saelib.lm import LanguageModel, LMConfig, load_lm, patch_sites, read_sites, site_width
from saelib.sites import SHORT_NAMES, list_sites, needs_model, resolve_sites

LMOf = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def lm_of(tmp_path_factory: pytest.TempPathFactory) -> LMOf:
    """Each architecture, saved once and loaded as any model is."""
    root, made = tmp_path_factory.mktemp("zoo"), dict[tuple[str, str], LanguageModel]()

    def load(name: str, dtype: str = "float32") -> LanguageModel:
        if (name, dtype) not in made:
            folder = root / name
            if not folder.is_dir():
                save_zoo_lm(folder, name)
            made[name, dtype] = load_lm(LMConfig(model=str(folder), device="cpu", dtype=dtype))
        return made[name, dtype]

    return load


@pytest.fixture(params=sorted(ZOO))
def lm(request: pytest.FixtureRequest, lm_of: LMOf) -> LanguageModel:
    return lm_of(request.param)


def kind_of(lm: LanguageModel) -> str:
    return Path(lm.name).name


def some_ids() -> tuple[Tensor, Tensor]:
    """Three sequences, the last two padded at the right."""
    ids = torch.randint(3, 43, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 4:] = 0
    return ids.masked_fill(mask == 0, 2), mask


def by_short_name(lm: LanguageModel) -> dict[str, Site]:
    return {row.short_name: row.site for row in list_sites(lm) if row.short_name}


def answer(lm: LanguageModel) -> Tensor:
    return lm.forward(*some_ids())[0].detach()


def test_short_names_are_these_module_paths(lm: LanguageModel) -> None:
    kind = ZOO[kind_of(lm)]
    for layer in range(N_LAYERS):
        block = f"{kind.blocks}.{layer}"
        assert resolve_sites(lm, [f"resid_pre.{layer}", f"resid_post.{layer}"]) == (
            Site(path=block, side="in"),
            Site(path=block),
        )
        for short, child in (("attn_out", kind.attention), ("mlp_out", kind.mlp)):
            if child is None:
                with pytest.raises(SiteNotFound, match=rf"no {short}\.{layer}: the block holds .*; no layer has one"):
                    resolve_sites(lm, [f"{short}.{layer}"])
            else:
                assert resolve_sites(lm, [f"{short}.{layer}"]) == (Site(path=f"{block}.{child}"),)


def test_every_short_name_is_listed_with_its_width(lm: LanguageModel) -> None:
    kinds = SHORT_NAMES if ZOO[kind_of(lm)].attention else ("resid_pre", "resid_post")
    rows = list_sites(lm)
    assert [row.short_name for row in rows] == [f"{kind}.{layer}" for layer in range(N_LAYERS) for kind in kinds]
    assert {row.width for row in rows} == {WIDTH} == {lm.d_model}
    assert lm.n_layers == N_LAYERS


def test_all_sites_are_listed_with_the_widths_that_are_read(lm: LanguageModel) -> None:
    rows = list_sites(lm, every=True)
    assert len({row.site for row in rows}) == len(rows) > 2 * N_LAYERS
    assert set(by_short_name(lm).values()) < {row.site for row in rows}
    read = read_sites(lm, *some_ids(), [row.site for row in rows])
    assert {site: x.shape[-1] for site, x in read.items()} == {row.site: row.width for row in rows}
    assert all(site_width(lm, row.site) == row.width for row in rows[:3])


def test_resid_sites_are_the_hidden_states_of_transformers(lm: LanguageModel) -> None:
    if kind_of(lm) == "mamba":
        return  # whose hidden states leave out the first; plain hooks are asked below
    ids, mask = some_ids()
    hidden = lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    sites = by_short_name(lm)
    read = read_sites(lm, ids, mask, list(sites.values()))
    for layer in range(N_LAYERS):
        assert torch.equal(read[sites[f"resid_pre.{layer}"]], hidden[layer])
        if layer < N_LAYERS - 1:  # the last hidden state may be after the final norm
            assert torch.equal(read[sites[f"resid_post.{layer}"]], hidden[layer + 1])


def hooked_by_hand(lm: LanguageModel, site: Site) -> Tensor:
    """What a plain hook sees, written without saelib."""
    caught: list[Tensor] = []

    def before(_: object, args: tuple, kwargs: dict) -> None:
        caught.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_: object, __: object, output: object) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output).clone())

    module = lm.model.get_submodule(site.path)
    is_in = site.side == "in"
    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if is_in else module.register_forward_hook(after)
    )
    ids, mask = some_ids()
    with torch.no_grad():
        lm.model(input_ids=ids, attention_mask=mask)
    handle.remove()
    return caught[0].reshape(*ids.shape, -1)


def test_several_sites_in_one_pass_equal_plain_hooks_one_by_one(lm: LanguageModel) -> None:
    sites = list(by_short_name(lm).values())
    read = read_sites(lm, *some_ids(), sites)
    assert list(read) == sites
    for site in sites:
        assert torch.equal(read[site], hooked_by_hand(lm, site)), site


def test_a_block_adds_what_its_attention_and_feed_forward_return(lm: LanguageModel) -> None:
    kind = ZOO[kind_of(lm)]
    if not (kind.adds and kind.attention):
        return
    sites = by_short_name(lm)
    read = read_sites(lm, *some_ids(), list(sites.values()))
    for layer in range(N_LAYERS):
        pre, attention, mlp, post = (read[sites[f"{short}.{layer}"]] for short in SHORT_NAMES)
        torch.testing.assert_close(pre + attention + mlp, post, atol=1e-5, rtol=1e-5)


def test_padding_at_the_right_changes_nothing(lm: LanguageModel) -> None:
    ids, mask = some_ids()
    sites = list(by_short_name(lm).values())
    together = read_sites(lm, ids, mask, sites)
    for row in range(3):
        n = int(mask[row].sum())
        alone = read_sites(lm, ids[row : row + 1, :n], mask[row : row + 1, :n], sites)
        batched = torch.cat([together[site][row, :n] for site in sites])
        torch.testing.assert_close(batched, torch.cat([alone[site][0] for site in sites]), atol=1e-5, rtol=1e-5)


def test_a_read_stops_after_its_last_site(lm: LanguageModel) -> None:
    blocks, reached = ZOO[kind_of(lm)].blocks, []
    modules = {path: module for path, module in lm.model.named_modules() if path}
    handles = [m.register_forward_pre_hook(lambda *_, path=path: reached.append(path)) for path, m in modules.items()]
    read_sites(lm, *some_ids(), resolve_sites(lm, ["resid_pre.0", "resid_post.1", "resid_pre.1"]))
    read_sites(lm, *some_ids(), resolve_sites(lm, ["resid_pre.2"]))
    for handle in handles:
        handle.remove()
    assert any(path.startswith(f"{blocks}.1.") for path in reached)
    later = (f"{blocks}.2.", "lm_head", "cls", "vocab_", "decoder.final", "embed_out", "head", "transformer.ln_f")
    assert [path for path in reached if path.startswith(later)] == []
    assert reached[-1] == f"{blocks}.2"


def test_an_identity_patch_leaves_the_logits_bit_equal(lm: LanguageModel) -> None:
    clean = answer(lm)
    with patch_sites(lm, {site: lambda x: x for site in by_short_name(lm).values()}):
        assert torch.equal(answer(lm), clean)


def moved(x: Tensor) -> Tensor:
    return x + torch.linspace(-2, 2, WIDTH)


def test_a_patch_at_each_site_changes_the_logits(lm: LanguageModel) -> None:
    clean = answer(lm)
    for name, site in by_short_name(lm).items():
        before = hooked_by_hand(lm, site)
        with patch_sites(lm, {site: moved}):
            assert (answer(lm) - clean).abs().max() > 1e-3, name
            torch.testing.assert_close(hooked_by_hand(lm, site), moved(before), msg=name)
    assert torch.equal(answer(lm), clean), "closed: nothing is left behind"


def test_gradients_reach_a_leaf_at_each_site(lm: LanguageModel) -> None:
    leaves: list[Tensor] = []

    def cut(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    for name, site in by_short_name(lm).items():
        with patch_sites(lm, {site: cut}):
            lm.forward(*some_ids())[0].square().sum().backward()
        assert leaves[-1].grad is not None and leaves[-1].grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_it_is(lm: LanguageModel, dtype: str, lm_of: LMOf) -> None:
    half = lm_of(kind_of(lm), dtype)
    assert half.dtype == getattr(torch, dtype)
    sites = resolve_sites(half, ["resid_pre.0", "resid_post.1"])
    read, exact = read_sites(half, *some_ids(), sites), read_sites(lm, *some_ids(), sites)
    mask = some_ids()[1] == 1
    for site in sites:
        in_full = getattr(half.model.config, "residual_in_fp32", False) and site.side == "out"  # Mamba's stream
        assert read[site].dtype == (torch.float32 if in_full else half.dtype)
        error = (read[site][mask].float() - exact[site][mask]).norm() / exact[site][mask].norm()
        assert error < 0.05


def test_wildcards_stand_for_one_part_of_a_path_and_for_every_layer(lm_of: LMOf) -> None:
    llama = lm_of("llama")
    mlps = tuple(Site(path=f"model.layers.{layer}.mlp") for layer in range(N_LAYERS))
    assert resolve_sites(llama, ["model.layers.*.mlp"]) == mlps == resolve_sites(llama, ["mlp_out.*"])
    assert resolve_sites(llama, ["model.layers.*:in"]) == resolve_sites(llama, ["resid_pre.*"])
    assert [site.path for site in resolve_sites(llama, ["model.layers.1.mlp.*_proj"])] == [
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]


def test_each_site_is_resolved_once_and_in_order(lm_of: LMOf) -> None:
    llama = lm_of("llama")
    given = [Site(path="resid_post.1"), "model.layers.1", "blocks.0.hook_resid_post", "resid_post.*", "model.norm:in"]
    layers = [Site(path=f"model.layers.{layer}") for layer in (1, 0, 2)]
    assert resolve_sites(llama, given) == (*layers, Site(path="model.norm", side="in"))
    assert [needs_model(text) for text in given] == [True, False, True, True, False]


def test_a_layer_out_of_range_is_refused_with_the_range(lm_of: LMOf) -> None:
    with pytest.raises(SiteNotFound, match=r"gpt2' has no resid_post\.3; its layers are 0…2"):
        resolve_sites(lm_of("gpt2"), ["resid_post.3"])


def test_an_unknown_site_names_the_nearest(lm_of: LMOf) -> None:
    with pytest.raises(SiteNotFound, match=r"no site 'resid_poste\.1'; the nearest are 'resid_post\.1'"):
        resolve_sites(lm_of("gpt2"), ["resid_poste.1"])
    with pytest.raises(
        SiteNotFound, match=r"no site 'transformer\.h\.1\.mpl'; the nearest are 'transformer\.h\.1\.mlp'"
    ):
        resolve_sites(lm_of("gpt2"), ["transformer.h.1.mpl"])


def test_a_wildcard_without_a_match_names_the_nearest(lm_of: LMOf) -> None:
    with pytest.raises(
        SiteNotFound, match=r"matches 'model\.layer\.\*\.mlp'; the nearest are 'model\.layers\.\*\.mlp'"
    ):
        resolve_sites(lm_of("llama"), ["model.layer.*.mlp"])


def test_a_short_name_has_its_side_already(lm_of: LMOf) -> None:
    with pytest.raises(SiteNotFound, match="a short name has its side already"):
        resolve_sites(lm_of("llama"), ["mlp_out.1:in"])


def test_a_tensor_of_another_shape_is_refused(lm_of: LMOf) -> None:
    site = Site(path="model.layers.0.self_attn.q_norm")
    with pytest.raises(SiteNotFound, match=r"q_norm holds a tensor of shape \[3, 9, 2, 8\]; one of \[batch, position"):
        read_sites(lm_of("qwen3"), *some_ids(), [site])
    assert site not in {row.site for row in list_sites(lm_of("qwen3"), every=True)}


def two_towers() -> PreTrainedModel:
    """A model of images and text, both of three layers."""
    size = {"hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": 43, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2, **size}
    image = {"image_size": 28, "patch_size": 14, **size}
    config = Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4)
    return AutoModelForCausalLM.from_config(config)


def test_short_names_mean_the_part_that_reads_text() -> None:
    assert resolve_sites(two_towers(), ["resid_post.2"]) == (Site(path="model.language_model.layers.2"),)


def test_a_layer_without_attention_is_left_out_of_a_wildcard() -> None:
    model = zoo_model("llama")
    del model.model.layers[1].self_attn
    assert [site.path for site in resolve_sites(model, ["attn_out.*"])] == [
        "model.layers.0.self_attn", "model.layers.2.self_attn",
    ]  # fmt: skip
    with pytest.raises(SiteNotFound, match=r"no attn_out\.1: the block holds mlp, .*; layers that have one: 0, 2"):
        resolve_sites(model, ["attn_out.1"])


@pytest.fixture
def almanac(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`almanac …` as a person at a terminal sees it: exit code, what is printed, what is complained of."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(lambda: None)
    register(app)
    monkeypatch.setenv("COLUMNS", "110")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["almanac", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(app, (SAELibError,))
        shown = capfd.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_the_command_lists_short_names_paths_and_widths(almanac: Callable, lm_of: LMOf) -> None:
    folder = lm_of("opt").name
    code, printed, _ = almanac("sites", folder)
    assert code == 0 and len(printed.splitlines()) == 1 + 4 * N_LAYERS
    assert re.search(r"mlp_out\.2 +model\.decoder\.layers\.2\.fc2 +out +16", printed)
    assert re.search(r"resid_pre\.0 +model\.decoder\.layers\.0:in +in +16", printed)


def test_the_command_lists_every_site_as_json(almanac: Callable, lm_of: LMOf) -> None:
    _, printed, _ = almanac("sites", lm_of("gpt2").name, "--all", "--format", "json")
    rows = {row["site"]: row for row in json.loads(printed)}
    assert rows["transformer.h.1"] == {
        "short_name": "resid_post.1",
        "site": "transformer.h.1",
        "side": "out",
        "width": 16,
    }
    assert rows["transformer.h.1.mlp.c_proj:in"]["width"] == 64


def test_the_command_refuses_in_our_words(almanac: Callable, tmp_path: Path) -> None:
    for given, said in (
        (tmp_path / "nothing", "no folder /"),
        ("nothing", "no language model 'nothing': it is no folder"),
    ):
        code, printed, complaint = almanac("sites", given)
        assert (code, printed) == (1, "") and said in complaint and "Traceback" not in complaint
