"""SAEs that other tools wrote: the activations and the output that those tools computed, from the files alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelib.base import Ends, Site
from saelib.errors import CheckpointError, ConfigError
from saelib.interop import read, recognise
from saelib.nonlinearity import Gated, GroupMax, JumpReLU, ReLU, TopK
from saelib.sae import SAE

VARIANTS = {
    "saelens/batchtopk_inference": ("jumprelu", JumpReLU),
    "saelens/gated": ("gated", Gated),
    "saelens/jumprelu": ("jumprelu", JumpReLU),
    "saelens/jumprelu_transcoder": ("jumprelu_transcoder", JumpReLU),
    "saelens/legacy_v4_standard_topkfn": ("topk", TopK),
    "saelens/matryoshka_batchtopk_inference": ("jumprelu", JumpReLU),
    "saelens/skip_transcoder": ("skip_transcoder", ReLU),
    "saelens/standard": ("standard", ReLU),
    "saelens/standard_bf16": ("standard", ReLU),
    "saelens/standard_constant_norm_rescale": ("standard", ReLU),
    "saelens/standard_expected_average_folded": ("standard", ReLU),
    "saelens/standard_layer_norm": ("standard", ReLU),
    "saelens/standard_no_bdec_in": ("standard", ReLU),
    "saelens/topk": ("topk", TopK),
    "saelens/topk_rescale": ("topk", TopK),
    "saelens/topk_rescale_inference": ("topk", TopK),
    "saelens/transcoder": ("transcoder", ReLU),
    "sparsify/topk": ("topk", TopK),
    "sparsify/topk_unnormalized": ("topk", TopK),
    "sparsify/transcoder_skip": ("skip_transcoder", TopK),
    "dictionary_learning/batch_topk": ("batchtopk", JumpReLU),
    "dictionary_learning/gated": ("gated", Gated),
    "dictionary_learning/jumprelu": ("jumprelu", JumpReLU),
    "dictionary_learning/topk": ("topk", TopK),
}


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """1e-5 in float32; where the tool computed in bfloat16, 1e-2 of the largest entry."""
    if theirs.dtype == torch.bfloat16:
        assert float((ours - theirs.float()).abs().max()) <= 1e-2 * float(theirs.float().abs().max())
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_tools_activations_and_output_are_reproduced(variant: str, almanac_data: Path) -> None:
    kept = load_file(almanac_data / variant / "io.safetensors")
    sae = read(almanac_data / variant)
    assert (sae.architecture, type(sae.nonlinearity)) == VARIANTS[variant]
    assert sae.W_enc.dtype == torch.float32
    assert_near(sae.encode(kept["x"]), kept["acts"])
    assert_near(sae(kept["x"]), kept["out"])
    if "recon" in kept and sae.input_norm == "none":  # with a norm their `recon` is undone, and our `decode` is not
        assert_near(sae.decode(sae.encode(kept["x"])), kept["recon"])


def test_every_fixture_has_a_test(almanac_data: Path) -> None:
    there = {str(path.parent.relative_to(almanac_data)) for path in almanac_data.glob("*/*/io.safetensors")}
    assert there - set(VARIANTS) == {"saelens/batchtopk_training"}  # below: its own activations depend on the batch


def test_a_batchtopk_training_checkpoint_is_its_inference_form(almanac_data: Path) -> None:
    kept = load_file(almanac_data / "saelens/batchtopk_inference/io.safetensors")
    sae = read(almanac_data / "saelens/batchtopk_training")
    assert sae.architecture == "batchtopk"
    assert_near(sae.encode(kept["x"]), kept["acts"])
    assert_near(sae(kept["x"]), kept["out"])


def test_a_batchtopk_training_checkpoint_has_the_values_of_what_its_batch_kept(almanac_data: Path) -> None:
    kept = load_file(almanac_data / "saelens/batchtopk_training/io.safetensors")
    f = read(almanac_data / "saelens/batchtopk_training").encode(kept["x"])
    both = (f > 0) & (kept["acts"] > 0)
    assert int(both.sum()) > 0.9 * int((kept["acts"] > 0).sum())
    assert_near(f[both], kept["acts"][both])


def test_sae_lens_own_references_are_read(almanac_data: Path) -> None:
    for name, kind in (("batchtopk", JumpReLU), ("standard", ReLU), ("topk", TopK)):
        sae = read(almanac_data / "reference" / name)
        assert isinstance(sae.nonlinearity, kind)
        assert (sae.d_in, sae.n_features, sae.d_out) == (64, 1024, 64)


def test_what_a_checkpoint_is_can_be_told_without_its_weights(almanac_data: Path) -> None:
    found = recognise(almanac_data / "saelens/topk/cfg.json")
    assert (found.format, found.architecture, found.model_name) == ("saelens", "topk", "stories260K")
    assert found.site == Site(path="blocks.2.hook_resid_post")
    assert found.config["metadata"]["context_size"] == 512
    assert [path.name for path in found.files] == ["cfg.json", "sae_weights.safetensors"]
    assert recognise(almanac_data / "saelens/legacy_v4_standard_topkfn").model_name == "stories260K"
    assert recognise(almanac_data / "sparsify/topk").site == Site(path="layers.2")
    transcoder = recognise(almanac_data / "sparsify/transcoder_skip").ends
    assert transcoder == Ends(read=(Site(path="layers.2", side="in"),), write=(Site(path="layers.2"),))
    assert recognise(almanac_data / "dictionary_learning/gated").site == Site(path="resid_post_layer_2")


def test_ends_that_are_given_replace_those_of_the_file(almanac_data: Path) -> None:
    ends = Ends.at(Site(path="model.layers.2"))
    assert read(almanac_data / "saelens/topk", ends).ends == ends


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def gemma_tensors(d_in: int = 6, n_features: int = 20, d_out: int = 6) -> dict[str, torch.Tensor]:
    return {
        "w_enc": numbers(d_in, n_features),
        "b_enc": numbers(n_features, seed=1),
        "w_dec": numbers(n_features, d_out, seed=2),
        "b_dec": 3 * numbers(d_out, seed=3),
        "threshold": numbers(n_features, seed=4).abs(),
    }


def gemma_f(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    z = x @ tensors["w_enc"] + tensors["b_enc"]
    return torch.relu(z) * (z > tensors["threshold"])


def write_gemma_scope(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    import numpy as np

    folder.mkdir()
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    return folder


def test_gemma_scope_does_not_subtract_b_dec_unless_told(tmp_path: Path) -> None:
    tensors, x = gemma_tensors(), numbers(40, 6, seed=9)
    folder = write_gemma_scope(tmp_path / "average_l0_82", tensors)
    sae, f = read(folder), gemma_f(tensors, x)
    assert (recognise(folder).format, sae.architecture) == ("gemma_scope", "jumprelu")
    assert_near(sae.encode(x), f)
    assert_near(sae(x), f @ tensors["w_dec"] + tensors["b_dec"])
    assert_near(read(folder, b_dec_in=True).encode(x), gemma_f(tensors, x - tensors["b_dec"]))


def test_gemma_scope_2_reads_its_sites_and_its_skip_term_as_it_is(tmp_path: Path) -> None:
    tensors, x = gemma_tensors(d_out=5) | {"affine_skip_connection": numbers(6, 5, seed=5)}, numbers(40, 6, seed=9)
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
        "affine_connection": True,
    }
    save_file(tensors, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae, f = read(tmp_path), gemma_f(tensors, x)
    assert sae.architecture == "jumprelu_skip_transcoder"
    assert str(sae.ends.read[0]) == "model.layers.3.pre_feedforward_layernorm"
    assert str(sae.ends.write[0]) == "model.layers.3.post_feedforward_layernorm"
    assert_near(sae.encode(x), f)
    assert_near(sae(x), f @ tensors["w_dec"] + tensors["b_dec"] + x @ tensors["affine_skip_connection"])


def test_gemma_scope_2_names_the_side_of_a_module(tmp_path: Path) -> None:
    save_file(gemma_tensors(), tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert recognise(tmp_path).site == Site(path="model.layers.3.self_attn.o_proj", side="in")


def test_our_own_folder_is_read(tmp_path: Path) -> None:
    weights = {"W_enc": numbers(6, 20), "b_enc": numbers(20), "W_dec": numbers(20, 6), "b_dec": numbers(6)}
    sae = SAE(weights, GroupMax(k=4), Ends.at(Site(path="model.layers.1")), "groupmax", "layer_norm")
    sae.save(tmp_path)
    again = read(tmp_path)
    assert recognise(tmp_path).format == "almanac"
    assert (again.ends, again.architecture, again.input_norm) == (sae.ends, "groupmax", "layer_norm")
    assert torch.equal(again(numbers(9, 6)), sae(numbers(9, 6)))


@pytest.mark.parametrize("path", ["", "layers.2", "layers.2/cfg.json", "layers.2/sae.safetensors", "run"])
def test_a_path_may_be_a_folder_a_file_in_it_or_a_run_that_holds_one(path: str, tmp_path: Path) -> None:
    folder = tmp_path / ("run/deeper/layers.2" if path == "run" else "layers.2")
    write_sparsify(folder)
    assert recognise(tmp_path / path).folder == folder


def write_sparsify(folder: Path, **changes: Any) -> Path:
    tensors = {
        "encoder.weight": numbers(20, 6),
        "encoder.bias": numbers(20),
        "W_dec": numbers(20, 6, seed=2),
        "b_dec": numbers(6),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae.safetensors")
    config = {"activation": "topk", "k": 4, "num_latents": 20, "d_in": 6, "transcode": False, "skip_connection": False}
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


def test_a_run_of_several_is_an_error_that_lists_them(tmp_path: Path) -> None:
    write_sparsify(tmp_path / "run/layers.1")
    write_sparsify(tmp_path / "run/layers.2")
    with pytest.raises(CheckpointError, match=r"several.*layers\.1.*layers\.2"):
        read(tmp_path / "run")


def test_sparsify_width_follows_from_the_expansion_factor(tmp_path: Path) -> None:
    folder = write_sparsify(tmp_path / "layers.2", num_latents=0, expansion_factor=3)
    with pytest.raises(CheckpointError, match=r"encoder\.weight.*num_latents=18"):
        read(folder)


def test_sparsify_groupmax_keeps_the_largest_of_each_group(tmp_path: Path) -> None:
    sae, x = read(write_sparsify(tmp_path / "h.3.mlp", activation="groupmax", k=5)), numbers(30, 6, seed=9)
    kept = load_file(tmp_path / "h.3.mlp/sae.safetensors")
    z = torch.relu((x - kept["b_dec"]) @ kept["encoder.weight"].T + kept["encoder.bias"])
    groups = z.view(-1, 5, 4)
    largest = groups * (torch.arange(4) == groups.argmax(dim=2, keepdim=True))
    assert isinstance(sae.nonlinearity, GroupMax)
    assert_near(sae.encode(x), largest.view(-1, 20))


def test_a_topk_of_all_features_is_a_relu(tmp_path: Path) -> None:
    sae, x = read(write_sparsify(tmp_path / "layers.2", k=20)), numbers(30, 6, seed=9)
    kept = load_file(tmp_path / "layers.2/sae.safetensors")
    assert_near(sae.encode(x), torch.relu((x - kept["b_dec"]) @ kept["encoder.weight"].T + kept["encoder.bias"]))


def test_b_dec_in_against_what_the_file_says_is_an_error(tmp_path: Path) -> None:
    folder = write_sparsify(tmp_path / "layers.2")
    assert read(folder, b_dec_in=True).n_features == 20
    with pytest.raises(ConfigError, match="b_dec_in=False"):
        read(folder, b_dec_in=False)


def test_a_state_dict_of_any_name_is_read_beside_its_settings(almanac_data: Path, tmp_path: Path) -> None:
    source = almanac_data / "dictionary_learning/topk"
    (tmp_path / "trainer_0/checkpoints").mkdir(parents=True)
    (tmp_path / "trainer_0/checkpoints/ae_100.pt").write_bytes((source / "ae.pt").read_bytes())
    (tmp_path / "trainer_0/config.json").write_bytes((source / "config.json").read_bytes())
    sae = read(tmp_path / "trainer_0/checkpoints/ae_100.pt")
    x = numbers(10, 64)
    assert torch.equal(sae(x), read(source)(x))
