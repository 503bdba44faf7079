"""What is moved between the weights leaves f and the output as they are: each tool's formula, in float64, on raw x."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saelib.errors import CheckpointError
from saelib.interop import read
from saelib.sae import SAE

D, F, D_OUT, K = 8, 40, 5, 6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 * seed + sum(shape)))


X = 3 * numbers(60, D, seed=9) + 2


def tensors_of_saelens(architecture: str, d_out: int = D) -> dict[str, Tensor]:
    tensors = {"W_enc": numbers(D, F), "W_dec": numbers(F, d_out, seed=2), "b_dec": 2 * numbers(d_out, seed=3)}
    if architecture == "gated":
        return tensors | {name: 0.3 * numbers(F, seed=i) for i, name in enumerate(("b_gate", "b_mag", "r_mag"), 4)}
    tensors["b_enc"] = numbers(F, seed=1)
    if "jumprelu" in architecture:
        tensors["threshold"] = 2 * numbers(F, seed=7).abs()
    if "batchtopk" in architecture:
        tensors["topk_threshold"] = torch.tensor(3.5, dtype=torch.float64)
    if "skip" in architecture:
        tensors["W_skip"] = numbers(d_out, D, seed=8)
    return tensors


def saelens_settings(architecture: str, **changes: Any) -> dict[str, Any]:
    settings = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True}
    settings |= {"normalize_activations": "none", "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1"}}
    if "topk" in architecture:
        settings |= {"k": K, "rescale_acts_by_decoder_norm": False}
    return settings | changes


def write_saelens(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def normalised(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the SAE reads, and the factor and shift that undo it."""
    if name == "layer_norm":
        mean, size = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        return (x - mean) / (size + 1e-5), size, mean
    if name == "constant_norm_rescale":
        size = x.norm(dim=1, keepdim=True) / D**0.5
        return x / size, size, torch.zeros(1)
    return x, torch.ones(1), torch.zeros(1)


def saelens_computes(settings: dict[str, Any], tensors: dict[str, Tensor], raw: Tensor) -> tuple[Tensor, Tensor]:
    """f and the output by sae_formats §2.5, written down once more."""
    t, raw = {name: tensor.double() for name, tensor in tensors.items()}, raw.double()
    x, factor, shift = normalised(settings["normalize_activations"], raw)
    inside = x - t["b_dec"] if settings["apply_b_dec_to_input"] else x
    norms = t["W_dec"].norm(dim=1) if settings.get("rescale_acts_by_decoder_norm") else torch.ones(1)
    if "b_gate" in t:
        magnitude = inside @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]
        f = (inside @ t["W_enc"] + t["b_gate"] > 0) * torch.relu(magnitude)
    else:
        z = (inside @ t["W_enc"] + t["b_enc"]) * norms
        f = torch.relu(z)
        if "topk_threshold" in t or "threshold" in t:
            f = f * (z > t.get("threshold", t.get("topk_threshold", torch.zeros(1))))
        elif "k" in settings:
            f = f * (z >= z.topk(K, dim=1).values[:, -1:])
    y = ((f / norms) @ t["W_dec"] + t["b_dec"]) * factor + shift
    return f, y + raw @ t["W_skip"].T if "W_skip" in t else y


def assert_same(sae: SAE, f: Tensor, y: Tensor, x: Tensor = X) -> None:
    assert int((f > 0).sum()) > 0
    torch.testing.assert_close(sae.encode(x), f.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), y.float(), rtol=1e-5, atol=2e-5)


ARCHITECTURES = ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_b_dec_changes_nothing(architecture: str, subtracts: bool, norm: str, tmp_path: Path) -> None:
    settings = saelens_settings(architecture, apply_b_dec_to_input=subtracts, normalize_activations=norm)
    tensors = tensors_of_saelens(architecture)
    assert_same(read(write_saelens(tmp_path, settings, tensors)), *saelens_computes(settings, tensors, X))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_decoder_norms_move_into_the_encoder_where_they_scale_f(architecture: str, tmp_path: Path) -> None:
    settings, tensors = (
        saelens_settings(architecture, rescale_acts_by_decoder_norm=True),
        tensors_of_saelens(architecture),
    )
    sae = read(write_saelens(tmp_path, settings, tensors))
    assert_same(sae, *saelens_computes(settings, tensors, X))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


def test_decoder_norms_stay_where_they_do_not_scale_f(tmp_path: Path) -> None:
    tensors = tensors_of_saelens("topk")
    assert torch.equal(read(write_saelens(tmp_path, saelens_settings("topk"), tensors)).W_dec, tensors["W_dec"])


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_a_transcoder_never_subtracts_b_dec(architecture: str, tmp_path: Path) -> None:
    settings = saelens_settings(architecture, d_out=D_OUT, apply_b_dec_to_input=False)
    tensors = tensors_of_saelens(architecture, D_OUT)
    sae = read(write_saelens(tmp_path, settings, tensors))
    assert sae.ends.read != sae.ends.write
    assert_same(sae, *saelens_computes(settings, tensors, X))


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scale_of_a_training_checkpoint_is_folded(architecture: str, subtracts: bool, tmp_path: Path) -> None:
    """The SAE reads 0.25 x and its output is divided by 0.25."""
    settings, tensors = saelens_settings(architecture, apply_b_dec_to_input=subtracts), tensors_of_saelens(architecture)
    f, y = saelens_computes(settings, tensors, 0.25 * X)
    folder = write_saelens(tmp_path, settings | {"normalize_activations": "expected_average_only_in"}, tensors)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    assert_same(read(folder), f, y / 0.25)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_scale_and_decoder_norms_are_folded_as_sae_lens_does(architecture: str, tmp_path: Path) -> None:
    """The scale first, so that f is in the unit of unit rows for x: 1 / 0.25 of what it was for 0.25 x."""
    settings = saelens_settings(architecture, rescale_acts_by_decoder_norm=True)
    tensors = tensors_of_saelens(architecture)
    f, y = saelens_computes(settings, tensors, 0.25 * X)
    folder = write_saelens(tmp_path, settings | {"normalize_activations": "expected_average_only_in"}, tensors)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    assert_same(read(folder), f / 0.25, y / 0.25)


@pytest.mark.parametrize("rescales", [True, False])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whitening_is_folded(architecture: str, subtracts: bool, rescales: bool, tmp_path: Path) -> None:
    changes = {"rescale_acts_by_decoder_norm": True} if rescales and "topk" in architecture else {}
    settings = saelens_settings(architecture, apply_b_dec_to_input=subtracts, **changes)
    tensors = tensors_of_saelens(architecture)
    mean, matrix = numbers(D, seed=11).double(), (numbers(D, D, seed=12) + 4 * torch.eye(D)).double()
    inverse = torch.linalg.inv(matrix)
    f, y = saelens_computes(settings, tensors, ((X.double() - mean) @ matrix).float())
    folder = write_saelens(tmp_path, settings | {"normalize_activations": "covariance_whitening"}, tensors)
    kept = {"mean": mean, "matrix": matrix.contiguous(), "inverse_matrix": inverse.contiguous()}
    save_file(kept, folder / "activation_whitening.safetensors")
    sae, scale = read(folder), float(f.max())
    torch.testing.assert_close(sae.encode(X) / scale, (f / scale).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(X), (y @ inverse + mean).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "file"),
    [
        ("expected_average_only_in", "activation_scaler.json"),
        ("covariance_whitening", "activation_whitening.safetensors"),
    ],
)
def test_a_norm_whose_numbers_are_missing_is_refused(norm: str, file: str, tmp_path: Path) -> None:
    settings = saelens_settings("standard", normalize_activations=norm)
    with pytest.raises(CheckpointError, match=file):
        read(write_saelens(tmp_path, settings, tensors_of_saelens("standard")))


LEGACY = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "hook_point": "blocks.0.hook_resid_pre",
}


def test_an_old_log_threshold_is_exponentiated(tmp_path: Path) -> None:
    tensors = tensors_of_saelens("jumprelu")
    old = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
    settings = saelens_settings("jumprelu")
    sae = read(write_saelens(tmp_path, settings, old | {"log_threshold": tensors["threshold"].log()}))
    assert_same(sae, *saelens_computes(settings, tensors, X))


def test_an_old_finetuning_factor_scales_the_rows_and_not_f(tmp_path: Path) -> None:
    tensors, factor = tensors_of_saelens("standard"), 0.5 + numbers(F, seed=5).abs()
    settings = saelens_settings("standard")
    f, _ = saelens_computes(settings, tensors, X)
    legacy = LEGACY | {"finetuning_scaling_factor": True}
    sae = read(write_saelens(tmp_path, legacy, tensors | {"scaling_factor": factor}))
    assert_same(sae, f, (f * factor) @ tensors["W_dec"].double() + tensors["b_dec"].double())
    assert sae.ends.read[0].path == "blocks.0.hook_resid_pre"


def test_an_old_factor_of_ones_is_dropped_and_another_needs_its_flag(tmp_path: Path) -> None:
    tensors = tensors_of_saelens("standard")
    sae = read(write_saelens(tmp_path, LEGACY, tensors | {"scaling_factor": torch.ones(F)}))
    assert torch.equal(sae.W_dec, tensors["W_dec"])
    with pytest.raises(CheckpointError, match="finetuning_scaling_factor"):
        read(write_saelens(tmp_path, LEGACY, tensors | {"scaling_factor": 2 * torch.ones(F)}))


def test_an_old_boolean_norm_is_the_expected_average(tmp_path: Path) -> None:
    tensors = tensors_of_saelens("standard")
    assert read(write_saelens(tmp_path, LEGACY | {"normalize_activations": False}, tensors)).input_norm == "none"
    with pytest.raises(CheckpointError, match=r"activation_scaler\.json"):
        read(write_saelens(tmp_path, LEGACY | {"normalize_activations": True}, tensors))


def test_an_old_activation_that_is_neither_relu_nor_topk_is_refused(tmp_path: Path) -> None:
    settings = LEGACY | {"activation_fn_str": "tanh-relu"}
    with pytest.raises(CheckpointError, match=r"activation_fn_str.*tanh-relu"):
        read(write_saelens(tmp_path, settings, tensors_of_saelens("standard")))


def write_dictionary(folder: Path, name: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "submodule_name": "resid"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    return folder


LINEAR = {"encoder.weight": numbers(F, D), "encoder.bias": numbers(F, seed=1), "decoder.weight": numbers(D, F, seed=2)}
BIAS = 2 * numbers(D, seed=3)
COUNTS = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(4.0)}


def linear_z(inside: Tensor) -> Tensor:
    return inside @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"]


def test_dictionary_autoencoder_shares_its_bias(tmp_path: Path) -> None:
    f = torch.relu(linear_z(X - BIAS))
    sae = read(write_dictionary(tmp_path, "AutoEncoder", LINEAR | {"bias": BIAS}))
    assert_same(sae, f, f @ LINEAR["decoder.weight"].T + BIAS)


def test_dictionary_new_autoencoder_does_not_subtract_its_bias(tmp_path: Path) -> None:
    f = torch.relu(linear_z(X))
    sae = read(write_dictionary(tmp_path, "AutoEncoderNew", LINEAR | {"decoder.bias": BIAS}))
    assert_same(sae, f, f @ LINEAR["decoder.weight"].T + BIAS)


def test_dictionary_matryoshka_has_one_threshold(tmp_path: Path) -> None:
    tensors = {"W_enc": numbers(D, F), "b_enc": numbers(F), "W_dec": numbers(F, D, seed=2), "b_dec": BIAS} | COUNTS
    z = (X - BIAS) @ tensors["W_enc"] + tensors["b_enc"]
    f = torch.relu(z) * (z > 4.0)
    folder = write_dictionary(
        tmp_path, "MatryoshkaBatchTopKSAE", tensors | {"group_sizes": torch.tensor([10, 30])}, k=K
    )
    sae = read(folder)
    assert sae.architecture == "matryoshka"
    assert_same(sae, f, f @ tensors["W_dec"] + BIAS)


def test_dictionary_jumprelu_subtracts_b_dec_only_where_it_is_told(tmp_path: Path) -> None:
    tensors = {"W_enc": numbers(D, F), "b_enc": numbers(F), "W_dec": numbers(F, D, seed=2), "b_dec": BIAS}
    folder = write_dictionary(tmp_path, "JumpReluAutoEncoder", tensors | {"threshold": torch.full((F,), 1.0)})
    for told, inside in ((None, X), (False, X), (True, X - BIAS)):
        z = inside @ tensors["W_enc"] + tensors["b_enc"]
        f = torch.relu(z * (z > 1.0))
        assert_same(read(folder, b_dec_in=told), f, f @ tensors["W_dec"] + BIAS)


def test_a_threshold_that_was_never_learned_is_refused(tmp_path: Path) -> None:
    tensors = LINEAR | COUNTS | {"b_dec": BIAS, "threshold": torch.tensor(-1.0)}
    assert read(write_dictionary(tmp_path, "AutoEncoderTopK", tensors, k=K)).n_features == F  # which does not use it
    with pytest.raises(CheckpointError, match=r"threshold is -1\.0.*never learned"):
        read(write_dictionary(tmp_path, "BatchTopKSAE", tensors, k=K))


def test_a_k_that_the_settings_contradict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"k is 6 but the key 'k'"):
        read(write_dictionary(tmp_path, "AutoEncoderTopK", LINEAR | COUNTS | {"b_dec": BIAS}, k=7))
