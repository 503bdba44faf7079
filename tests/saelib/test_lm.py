"""Loading language models, reading and patching their sites."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lm_zoo import save_zoo_lm, zoo_model
from tiny import BLOCKS, CONTEXT, WORDS, sentence, tiny_model, tiny_tokenizer
from transformers import BertConfig, BertLMHeadModel, T5Config

from saelib.activations import HarvestConfig, Harvester
from saelib.base import Site
from saelib.batches import batches_of
from saelib.errors import ModelError, SiteNotFound
from saelib.evaluation import next_token_loss
from saelib.hooks import hooked
from saelib.lm import (
    LanguageModel,
    LMConfig,
    load_lm,
    model_fingerprint,
    patch_sites,
    read_sites,
    site_width,
    token_texts,
)
from saelib.model_files import load_model
from saelib.sites import resolve_sites
from saelib.text import CorpusConfig, Source, tokenize

KINDS = sorted(BLOCKS)


def loaded(folder: Path) -> LanguageModel:
    return load_lm(LMConfig(model=str(folder), device="cpu"))


def some_ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Three sequences, the last two padded."""
    ids = torch.randint(3, 3 + len(WORDS), (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 4:] = 0
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
def test_read_sites_equals_the_hidden_states_of_transformers(kind: str, tiny_lm_folders: dict[str, Path]) -> None:
    lm = loaded(tiny_lm_folders[kind])
    ids, mask = some_ids()
    hidden = lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    first, second = (Site(path=f"{BLOCKS[kind]}.{layer}") for layer in range(2))
    read = read_sites(lm, ids, mask, [first, second])
    assert torch.equal(read[first], hidden[1])
    assert torch.equal(read_sites(lm, ids, mask, [Site(path=second.path, side="in")]).popitem()[1], hidden[1])
    assert torch.equal(read_sites(lm, ids, mask, [Site(path=first.path, side="in")]).popitem()[1], hidden[0])
    last_norm = {"llama": "model.norm", "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}[kind]
    assert torch.equal(lm.module(last_norm)(read[second]), hidden[2]), "hidden_states[-1] is after the final norm"


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_stops_after_the_last_site_that_it_needs(kind: str, tiny_lm_folders: dict[str, Path]) -> None:
    lm = loaded(tiny_lm_folders[kind])
    reached = []
    for path, module in lm.model.named_modules():
        if path:
            module.register_forward_hook(lambda *_, path=path: reached.append(path))
    read_sites(lm, *some_ids(), [Site(path=f"{BLOCKS[kind]}.0")])
    assert reached[-1] == f"{BLOCKS[kind]}.0"
    assert not any(path.startswith(f"{BLOCKS[kind]}.1") or "norm" in path.split(".")[1] for path in reached)


def test_reading_a_site_twice_reads_it_once(tiny_lm: LanguageModel) -> None:
    site = Site(path="model.layers.0")
    assert list(read_sites(tiny_lm, *some_ids(), [site, site])) == [site]


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("kind", KINDS)
def test_patch_sites_replaces_what_later_modules_see(kind: str, side: str, tiny_lm_folders: dict[str, Path]) -> None:
    lm = loaded(tiny_lm_folders[kind])
    ids, mask = some_ids()
    site, after = Site(path=f"{BLOCKS[kind]}.1", side=side), Site(path=f"{BLOCKS[kind]}.1")
    clean, clean_after = lm.model(input_ids=ids, attention_mask=mask).logits, read_sites(lm, ids, mask, [after])[after]
    with patch_sites(lm, {site: lambda x: x.clone()}):
        assert torch.equal(lm.model(input_ids=ids, attention_mask=mask).logits, clean)
    with patch_sites(lm, {site: lambda x: x + 1.0 * torch.arange(x.shape[-1])}):
        moved = lm.model(input_ids=ids, attention_mask=mask).logits
        moved_after = read_sites(lm, ids, mask, [after])[after]
    assert (moved - clean).abs().max() > 0.1
    if side == "out":
        torch.testing.assert_close(moved_after, clean_after + 1.0 * torch.arange(clean_after.shape[-1]))
    assert torch.equal(lm.model(input_ids=ids, attention_mask=mask).logits, clean), "closed: nothing is left behind"


def test_patch_sites_leaves_no_hook_behind_an_error(tiny_lm: LanguageModel) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), patch_sites(tiny_lm, {Site(path="model.layers.0"): broken}):
        tiny_lm.model(input_ids=some_ids()[0])
    assert not any(module._forward_hooks for module in tiny_lm.model.modules())


def test_site_width_is_that_of_the_module(tiny_lm: LanguageModel) -> None:
    assert site_width(tiny_lm, Site(path="model.layers.1")) == 16
    assert site_width(tiny_lm, Site(path="model.layers.1.mlp.down_proj", side="in")) == 32


def test_an_unknown_site_names_the_nearest_paths(tiny_lm: LanguageModel) -> None:
    with pytest.raises(SiteNotFound, match=r"no module 'model\.layer\.1'; the nearest are .*'model\.layers\.1'"):
        read_sites(tiny_lm, *some_ids(), [Site(path="model.layer.1")])


def test_a_site_without_a_tensor_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(SiteNotFound, match=r"the site model holds a \w+; one that holds a tensor is wanted"):
        read_sites(tiny_lm, *some_ids(), [Site(path="model")])


def test_a_site_that_the_pass_never_reaches_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(SiteNotFound, match=r"never reached model\.layers\b"):
        read_sites(tiny_lm, *some_ids(), [Site(path="model.layers")])


def test_bos_is_what_the_tokenizer_puts_first_by_itself(tiny_lm_folders: dict[str, Path]) -> None:
    assert {kind: loaded(folder).bos_id for kind, folder in tiny_lm_folders.items()} == {
        "gpt2": None, "llama": 0, "neox": None,
    }  # fmt: skip


def test_a_language_model_knows_its_measures(tiny_lm: LanguageModel) -> None:
    measures = (tiny_lm.n_layers, tiny_lm.d_model, tiny_lm.n_vocab, tiny_lm.context_tokens, tiny_lm.special_ids)
    assert measures == (2, 16, 43, CONTEXT, (0, 1, 2))
    assert tiny_lm.unembedding.shape == (43, 16)
    assert token_texts(tiny_lm.tokenizer, [0, 3]) == ["<bos>", "w0"]
    assert not any(parameter.requires_grad for parameter in tiny_lm.model.parameters())


def copy_of(folder: Path, tmp_path: Path, *without: str) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*without))
    return copy


def test_a_folder_without_a_tokenizer_is_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"copy holds no tokenizer \(tokenizer\.json"):
        loaded(copy_of(tiny_lm_folder, tmp_path, "tokenizer*"))


def test_a_folder_without_weights_is_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"copy holds no weights; at least one \.safetensors file is wanted"):
        loaded(copy_of(tiny_lm_folder, tmp_path, "*.safetensors"))


def test_a_folder_of_pickles_is_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_lm_folder, tmp_path, "*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"only as a pickle \(pytorch_model\.bin\).*save_pretrained"):
        loaded(folder)


def test_a_folder_without_a_configuration_is_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        loaded(copy_of(tiny_lm_folder, tmp_path, "config.json"))


def test_a_missing_folder_is_refused_with_its_whole_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no folder {tmp_path}/nothing; .*'demo_lm'"):
        loaded(tmp_path / "nothing")


def test_truncated_weights_are_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_lm_folder, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ModelError, match="cannot load the language model"):
        loaded(folder)


def test_weights_that_lack_a_tensor_are_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_lm_folder, tmp_path)
    model = tiny_model("llama")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "model.layers.1.mlp.up_proj.weight"}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelError, match=r"lack 1 tensors \('model\.layers\.1\.mlp\.up_proj\.weight'"):
        loaded(folder)


def test_an_unknown_dtype_is_refused(tiny_lm_folder: Path) -> None:
    with pytest.raises(ModelError, match="float8.*float32"):
        load_lm(LMConfig(model=str(tiny_lm_folder), dtype="float8", device="cpu"))


def test_dtype_is_what_is_asked_for(tiny_lm_folder: Path) -> None:
    assert load_lm(LMConfig(model=str(tiny_lm_folder), dtype="bfloat16", device="cpu")).dtype == torch.bfloat16


def test_a_fingerprint_follows_the_content_not_the_place(tiny_lm_folder: Path, tmp_path: Path) -> None:
    copy = copy_of(tiny_lm_folder, tmp_path)
    before = model_fingerprint(LMConfig(model=str(tiny_lm_folder)))
    assert model_fingerprint(LMConfig(model=str(copy))) == before
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert model_fingerprint(LMConfig(model=str(copy))) != before


def test_the_model_path_may_name_an_environment_variable(tiny_lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_MODELS", str(tiny_lm_folder.parent))
    config = LMConfig(model="${SOME_MODELS}/llama")
    assert config.model_id == "llama"
    assert load_lm(config).d_model == 16


def test_tiny_tokenizer_keeps_one_word_one_token() -> None:
    assert len(tiny_tokenizer()(sentence(0, 7))["input_ids"]) == 8


def test_a_device_that_is_not_there_is_refused(tiny_lm_folder: Path) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ModelError, match=rf"device '{device}' is not there .*; give 'cpu', 'cuda'"):
            load_lm(LMConfig(model=str(tiny_lm_folder), device=device))


def test_a_name_that_no_one_knows_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no language model 'nobody/nothing': it is no folder here.*'demo_lm'"):
        load_lm(LMConfig(model="nobody/nothing", device="cpu"))
    with pytest.raises(ModelError, match=r"no folder /.*/some/where/nothing; give a model folder"):
        load_lm(LMConfig(model="some/where/nothing", device="cpu"))


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


class Returns(torch.nn.Module):
    """Gives what it takes as something else; takes it by any name."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, states: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
        return self.make(states)


class Around(torch.nn.Module):
    """A model of one module, which it calls with keywords in another order."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner = Returns(make)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = input_ids.unsqueeze(-1).float() * torch.ones(4)
        return self.inner(scale=torch.ones(1), states=x)


MAKES: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, 1),
    "list": lambda x: [x, 1],
    "named": lambda x: Pair(x, 1),
    "folded": lambda x: x.flatten(0, 1),
}


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("make", sorted(MAKES))
def test_whatever_a_module_takes_and_returns_is_read_and_patched(make: str, side: str) -> None:
    model, (ids, mask), site = Around(MAKES[make]), some_ids(), Site(path="inner", side=side)
    x, seen = ids.unsqueeze(-1).float() * torch.ones(4), []

    def patch(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return value + 1

    with hooked(model, [(site, model.inner, patch)]):
        got = model(ids, mask)
    assert torch.equal(seen[0], x)
    wanted = MAKES[make](x + 1)
    assert type(got) is type(wanted)
    assert torch.equal(
        got if isinstance(got, torch.Tensor) else got[0], x.flatten(0, 1) + 1 if make == "folded" else x + 1
    )
    assert isinstance(got, torch.Tensor) or got[1] == 1


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return loaded(save_zoo_lm(tmp_path_factory.mktemp("bert") / "bert", "bert"))


def test_an_encoder_is_harvested(encoder: LanguageModel, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": sentence(seed, 20)}) for seed in range(8)))
    tokenized = tokenize(encoder, CorpusConfig(sources=(Source(path=str(corpus)),), held_out_share=0.0))
    sites = resolve_sites(encoder, ["resid_post.1", "mlp_out.0"])
    shard = Harvester(encoder, HarvestConfig(sites=sites), (None, None))(tokenized.shards[0], "shard 0")
    assert [tuple(rows.shape) for rows in shard.sites] == [(160, 16), (160, 16)]
    assert (shard.position > 0).all() and encoder.bos_id == 0, "CLS stands first, and is left out"


def test_an_encoder_has_no_next_token(encoder: LanguageModel) -> None:
    assert not encoder.predicts_next_token and encoder.n_vocab == 43 and encoder.context_tokens == CONTEXT
    with pytest.raises(ModelError, match=r"bert' \(BertForMaskedLM\) is an encoder.* has no effect of a direction on"):
        _ = encoder.unembedding
    with pytest.raises(ModelError, match="has no next-token loss; give a causal language model, or leave that out"):
        encoder.check_predicts()


def test_positions_that_roberta_skips_are_no_context(tmp_path: Path) -> None:
    roberta = loaded(save_zoo_lm(tmp_path / "roberta", "roberta"))
    assert roberta.context_tokens == CONTEXT - 3
    full = torch.full((1, roberta.context_tokens), 5)
    assert read_sites(roberta, full, torch.ones_like(full), resolve_sites(roberta, ["resid_post.2"]))


@pytest.mark.parametrize(
    ("kind", "bare", "blocks"), [("llama", "LlamaModel", "layers"), ("bert", "BertModel", "encoder.layer")]
)
def test_a_model_without_its_output_layer_has_sites_all_the_same(
    kind: str, bare: str, blocks: str, tmp_path: Path
) -> None:
    whole = loaded(save_zoo_lm(tmp_path / kind, kind))
    folder = copy_of(tmp_path / kind, tmp_path)
    whole.model.base_model.save_pretrained(folder)
    lm = loaded(folder)
    assert type(lm.model).__name__ == bare and not lm.predicts_next_token
    assert resolve_sites(lm, ["resid_post.1"]) == (Site(path=f"{blocks}.1"),)
    theirs, mine = (read_sites(each, *some_ids(), resolve_sites(each, ["resid_post.1"])) for each in (whole, lm))
    assert torch.equal(theirs.popitem()[1], mine.popitem()[1])


def test_a_bert_that_is_a_decoder_predicts_the_next_token(tmp_path: Path) -> None:
    folder = save_zoo_lm(tmp_path / "bert", "bert")
    config = BertConfig.from_pretrained(folder, is_decoder=True)
    BertLMHeadModel(config).save_pretrained(folder)
    assert loaded(folder).predicts_next_token


def test_an_encoder_with_a_decoder_is_refused(tiny_lm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_lm_folder, tmp_path)
    T5Config(vocab_size=43, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"copy' is an encoder with a decoder \(t5\), which takes two texts"):
        loaded(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_auto_takes_saved_half_precision_to_float32_on_a_cpu(dtype: str, tmp_path: Path) -> None:
    folder = save_zoo_lm(tmp_path / "llama", "llama")
    zoo_model("llama").to(getattr(torch, dtype)).save_pretrained(folder)
    assert loaded(folder).dtype == torch.float32
    assert load_model(str(folder), None, None).model.dtype == getattr(torch, dtype), "as saved, on a GPU"


@pytest.fixture(scope="module")
def stories(almanac_data: Path) -> LanguageModel:
    return loaded(almanac_data / "models/stories260K")


@pytest.fixture(scope="module")
def known(almanac_data: Path) -> dict:
    return json.loads((almanac_data / "models/stories260K/known_answers.json").read_text())


def test_stories260k_gives_the_known_logits_and_norms(stories: LanguageModel, known: dict) -> None:
    ids = torch.tensor([known["prompt_ids"]])
    logits = stories.model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(logits[:8], torch.tensor(known["last_logits_first8"]), atol=1e-4, rtol=0)
    assert int(logits.argmax()) == known["argmax_next"]
    blocks = resolve_sites(stories, ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2", "resid_post.3"])
    read = read_sites(stories, ids, torch.ones_like(ids), blocks)
    norms = [read[site][0, -1].norm().item() for site in blocks]
    assert norms == pytest.approx(known["resid_norm_per_layer_last_token"][:5], abs=1e-3)


def test_stories260k_continues_bos_with_the_known_text(stories: LanguageModel, known: dict) -> None:
    bos = torch.tensor([[stories.bos_id]])
    text = stories.model.generate(
        bos, attention_mask=torch.ones_like(bos), max_new_tokens=200, do_sample=False, pad_token_id=2
    )
    assert stories.tokenizer.decode(text[0], skip_special_tokens=True).strip() == known["greedy_200_from_bos"]


def test_stories260k_has_the_known_loss_on_real_stories(
    stories: LanguageModel, known: dict, almanac_data: Path
) -> None:
    source = Source(path=str(almanac_data / "corpora/tinystories_v1_1000.jsonl"), documents=":100")
    corpus = tokenize(stories, CorpusConfig(sources=(source,), held_out_share=0.0, long_documents="cut"))
    total, n = 0.0, 0
    for shard in corpus.shards:
        for batch in batches_of(shard, 8192, 2):
            logits = stories.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            total += next_token_loss(logits, batch).double().sum().item()
            n += int(batch.attention_mask[:, 1:].sum())
    loss, n_known = known["ce_tinystories_v1_first100"]
    assert n == n_known
    assert total / n == pytest.approx(loss, abs=5e-3)
