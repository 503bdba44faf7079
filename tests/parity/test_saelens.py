"""Against sae-lens itself: what it saves is read, and what is written it loads, with the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rival import assert_same, installed, numbers
from torch import Tensor

from saelib.base import Ends, Site
from saelib.interop import read, write
from saelib.nonlinearity import Gated, JumpReLU, ReLU, TopK
from saelib.sae import SAE

sae_lens = installed("sae_lens")
pytestmark = pytest.mark.filterwarnings("ignore")

D, F, D_OUT, K = 8, 40, 5, 6
X = 3 * numbers(60, D, seed=9) + 2
METADATA = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
NORMS = ["none", "layer_norm", "constant_norm_rescale"]
INFERENCE = ["standard", "gated", "topk", "jumprelu"]
TRANSCODERS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
TRAINING = ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]
SIZES = {"r_mag": 0.3, "W_dec": 0.2}


def filled(sae: Any) -> Any:
    """Random weights, b_dec far from 0, decoder rows of any norm."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(sae.named_parameters())):
            value = numbers(*parameter.shape, seed=i)
            parameter.copy_(2 * value.abs() if name == "threshold" else SIZES.get(name, 1.0) * value)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(3.5)
    return sae


def built(classes: tuple[Any, Any], **settings: Any) -> Any:
    made, config = classes
    if "k" in config.__dataclass_fields__:
        settings["k"] = K
    if "matryoshka_widths" in config.__dataclass_fields__:
        settings["matryoshka_widths"] = [10, F]
    settings = {key: value for key, value in settings.items() if key in config.__dataclass_fields__}
    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    return filled(made(config(d_in=D, d_sae=F, metadata=metadata, **settings)))


def assert_read(folder: Path, theirs: Any) -> SAE:
    ours = read(folder)
    assert_same(ours.encode(X), theirs.encode(X))
    assert_same(ours(X), theirs(X))
    return ours


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_what_sae_lens_saves_is_read(
    architecture: str, subtracts: bool, norm: str, rescales: bool, tmp_path: Path
) -> None:
    theirs = built(
        sae_lens.registry.get_sae_class(architecture),
        apply_b_dec_to_input=subtracts,
        normalize_activations=norm,
        rescale_acts_by_decoder_norm=rescales,
    )
    theirs.save_model(tmp_path)
    assert assert_read(tmp_path, theirs).ends.read[0].path == METADATA["hook_name"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_that_sae_lens_saves_is_read(architecture: str, norm: str, tmp_path: Path) -> None:
    theirs = built(
        sae_lens.registry.get_sae_class(architecture),
        d_out=D_OUT,
        apply_b_dec_to_input=False,
        normalize_activations=norm,
    )
    theirs.save_model(tmp_path)
    assert_read(tmp_path, theirs)


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("norm", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_a_training_checkpoint_is_what_sae_lens_makes_of_it_for_inference(
    architecture: str, subtracts: bool, norm: str, rescales: bool, tmp_path: Path
) -> None:
    theirs = built(
        sae_lens.registry.get_sae_training_class(architecture),
        apply_b_dec_to_input=subtracts,
        normalize_activations=norm,
        rescale_acts_by_decoder_norm=rescales,
    )
    theirs.save_model(tmp_path / "checkpoint")
    scaler = sae_lens.training.activation_scaler.ActivationScaler()
    if norm == "expected_average_only_in":
        scaler.scaling_factor = 0.25
    if norm == "covariance_whitening":
        scaler.estimate_whitening(D, iter([X] * 3), n_batches_for_norm_estimate=3)
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    if scaler.scaling_factor is not None:
        theirs.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        white = scaler.whitening
        theirs.fold_activation_whitening(white.mean, white.matrix, white.inverse_matrix)
    theirs.save_inference_model(tmp_path / "inference")
    assert_read(tmp_path / "checkpoint", sae_lens.SAE.load_from_disk(tmp_path / "inference"))


@pytest.mark.parametrize("architecture", INFERENCE)
def test_heads_side_by_side_are_a_flat_vector(architecture: str, tmp_path: Path) -> None:
    theirs = built(sae_lens.registry.get_sae_class(architecture), reshape_activations="none")
    theirs.save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg |= {"reshape_activations": "hook_z", "metadata": cfg["metadata"] | {"hook_name": "blocks.1.attn.hook_z"}}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    heads = X.view(-1, 2, D // 2)
    assert_same(read(tmp_path).encode(X), loaded.encode(heads))
    assert_same(read(tmp_path)(X), loaded(heads).reshape(-1, D))


LEGACY: list[dict[str, Any]] = [
    {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    {"architecture": "standard", "activation_fn_str": "relu", "normalize_activations": "layer_norm"},
    {"architecture": "standard", "activation_fn": "relu", "apply_b_dec_to_input": False},
    {"architecture": "gated", "activation_fn_str": "relu", "normalize_activations": False},
    {"architecture": "jumprelu", "activation_fn_str": "relu"},
    {"activation_fn_str": "relu"},
]


@pytest.mark.parametrize("settings", LEGACY)
def test_a_version_4_folder_is_read_as_sae_lens_reads_it(settings: dict[str, Any], tmp_path: Path) -> None:
    built(sae_lens.registry.get_sae_class(settings.get("architecture", "standard"))).save_model(tmp_path)
    flat = {"d_in": D, "d_sae": F, "dtype": "float32", "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}
    (tmp_path / "cfg.json").write_text(json.dumps(flat | {"sae_lens_training_version": "4.4.5"} | settings))
    assert_read(tmp_path, sae_lens.SAE.load_from_disk(tmp_path))


KINDS = {
    "standard": ReLU(),
    "topk": TopK(k=K),
    "jumprelu": JumpReLU(threshold=2 * numbers(F, seed=4).abs()),
    "gated": Gated(r_mag=0.3 * numbers(F, seed=5), b_mag=numbers(F, seed=6)),
}
ONE = Ends.at(Site(path="model.layers.2"))
ACROSS = Ends(read=(Site(path="model.layers.2.mlp", side="in"),), write=(Site(path="model.layers.2.mlp"),))


def some_sae(kind: str, ends: Ends = ONE, d_out: int = D, skip: bool = False, **changes: Any) -> SAE:
    weights: dict[str, Tensor] = {
        "W_enc": numbers(D, F, seed=1),
        "b_enc": numbers(F, seed=2),
        "W_dec": numbers(F, d_out, seed=3),
        "b_dec": 2 * numbers(d_out, seed=4),
    }
    return SAE(weights | ({"W_skip": numbers(D, d_out)} if skip else {}), KINDS[kind], ends, kind, **changes)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_written_loads_in_sae_lens(kind: str, norm: str, tmp_path: Path) -> None:
    ours = some_sae(kind, input_norm=norm)
    write(ours, tmp_path / "sae", model_name="gpt2")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    assert theirs.cfg.architecture() == kind
    assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.model_name) == ("model.layers.2", "gpt2")
    assert_same(ours.encode(X), theirs.encode(X))
    assert_same(ours(X), theirs(X))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_a_transcoder_that_is_written_loads_in_sae_lens(kind: str, skip: bool, tmp_path: Path) -> None:
    ours = some_sae(kind, ACROSS, D_OUT, skip)
    write(ours, tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    assert_same(ours.encode(X), theirs.encode(X))
    assert_same(ours(X), theirs(X))
