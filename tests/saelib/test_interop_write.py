"""What is written for other tools, and what comes back from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from saelib.base import Ends, Site
from saelib.errors import ConfigError
from saelib.interop import read, recognise, write
from saelib.nonlinearity import Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK, tensors_of
from saelib.sae import SAE

D, F = 8, 40
ONE = Ends.at(Site(path="model.layers.2"))
ACROSS = Ends(read=(Site(path="model.layers.2.mlp", side="in"),), write=(Site(path="model.layers.2.mlp"),))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 * seed + sum(shape)))


X = 3 * numbers(60, D, seed=9) + 2
KINDS: dict[str, Nonlinearity] = {
    "ReLU": ReLU(),
    "TopK": TopK(k=5),
    "GroupMax": GroupMax(k=8),
    "JumpReLU": JumpReLU(threshold=2 * numbers(F, seed=4).abs()),
    "Gated": Gated(r_mag=0.3 * numbers(F, seed=5), b_mag=numbers(F, seed=6)),
}


def some_sae(kind: str, ends: Ends = ONE, d_out: int = D, seed: int = 0, **changes: Any) -> SAE:
    weights = {
        "W_enc": numbers(D, F, seed=seed),
        "b_enc": numbers(F, seed=seed + 1),
        "W_dec": numbers(F, d_out, seed=seed + 2),
        "b_dec": 2 * numbers(d_out, seed=seed + 3),
    }
    if changes.pop("skip", False):
        weights["W_skip"] = numbers(D, d_out, seed=seed + 7)
    return SAE(weights, KINDS[kind], ends, "made", **changes)


def tensors(sae: SAE) -> dict[str, Tensor]:
    return dict(sae.named_buffers()) | tensors_of(sae.nonlinearity)


def assert_bit_equal(again: SAE, sae: SAE) -> None:
    assert (type(again.nonlinearity), again.ends, again.input_norm) == (
        type(sae.nonlinearity),
        sae.ends,
        sae.input_norm,
    )
    assert tensors(again).keys() == tensors(sae).keys()
    for name, tensor in tensors(sae).items():
        assert torch.equal(tensors(again)[name], tensor), name
    torch.testing.assert_close(again(X), sae(X), rtol=1e-6, atol=1e-6)


def assert_same_function(again: SAE, sae: SAE) -> None:
    assert type(again.nonlinearity) is type(sae.nonlinearity)
    torch.testing.assert_close(again.encode(X), sae.encode(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(X), sae(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_our_own_form_comes_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    sae = some_sae(kind)
    sae.save(tmp_path)
    assert_bit_equal(read(tmp_path), sae)
    assert read(tmp_path).architecture == "made"


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("kind", ["ReLU", "TopK", "JumpReLU"])
def test_a_sae_lens_folder_comes_back_bit_by_bit(kind: str, norm: str, tmp_path: Path) -> None:
    sae = some_sae(kind, input_norm=norm)
    write(sae, tmp_path / "sae")
    assert_bit_equal(read(tmp_path / "sae"), sae)


def test_a_gated_sae_lens_folder_comes_back_as_the_same_function(tmp_path: Path) -> None:
    write(some_sae("Gated"), tmp_path / "sae")
    assert_same_function(read(tmp_path / "sae"), some_sae("Gated"))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["ReLU", "JumpReLU"])
def test_a_sae_lens_transcoder_comes_back_bit_by_bit(kind: str, skip: bool, tmp_path: Path) -> None:
    sae = some_sae(kind, ACROSS, d_out=5, skip=skip)
    write(sae, tmp_path / "sae")
    assert_bit_equal(read(tmp_path / "sae"), sae)
    name = ("jumprelu_" if kind == "JumpReLU" else "") + ("skip_" if skip else "") + "transcoder"
    assert recognise(tmp_path / "sae").architecture == name


@pytest.mark.parametrize("kind", ["TopK", "GroupMax"])
def test_a_sparsify_sae_comes_back_as_the_same_function(kind: str, tmp_path: Path) -> None:
    sae = some_sae(kind)
    write(sae, tmp_path / "sae", "sparsify")
    assert_same_function(read(tmp_path / "sae"), sae)
    assert read(tmp_path / "sae").ends == sae.ends


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["TopK", "GroupMax"])
def test_a_sparsify_transcoder_comes_back_bit_by_bit(kind: str, skip: bool, tmp_path: Path) -> None:
    sae = some_sae(kind, ACROSS, skip=skip)
    write(sae, tmp_path / "sae", "sparsify")
    assert_bit_equal(read(tmp_path / "sae"), sae)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["ReLU", "TopK", "JumpReLU"]), seed=st.integers(0, 10_000))
def test_any_sae_comes_back_bit_by_bit(kind: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, sae = tmp_path_factory.mktemp("sae") / "written", some_sae(kind, seed=seed)
    write(sae, folder, "saelens")
    assert_bit_equal(read(folder), sae)


def test_what_sae_lens_needs_is_in_its_settings(tmp_path: Path) -> None:
    files = write(some_sae("JumpReLU"), tmp_path / "sae", "saelens", model_name="stories260K")
    assert sorted(path.name for path in files) == ["cfg.json", "sae_weights.safetensors"]
    cfg = json.loads((tmp_path / "sae/cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == ("jumprelu", D, F, "float32")
    assert cfg["metadata"]["sae_lens_version"] >= "6.0.0"
    assert (cfg["metadata"]["model_name"], cfg["metadata"]["hook_name"]) == ("stories260K", "model.layers.2")
    assert load_file(tmp_path / "sae/sae_weights.safetensors").keys() == {
        "W_enc",
        "b_enc",
        "W_dec",
        "b_dec",
        "threshold",
    }
    assert recognise(tmp_path / "sae").model_name == "stories260K"


def test_an_imported_sae_is_written_back_with_the_numbers_it_had(tmp_path: Path, almanac_data: Path) -> None:
    source = almanac_data / "saelens/topk"
    write(read(source), tmp_path / "sae")
    before, after = (load_file(folder / "sae_weights.safetensors") for folder in (source, tmp_path / "sae"))
    for name in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(before[name], after[name])
    kept = load_file(source / "io.safetensors")
    torch.testing.assert_close(read(tmp_path / "sae").encode(kept["x"]), kept["acts"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "format", "message"),
    [
        ("GroupMax", {}, "saelens", "no GroupMax SAE"),
        ("TopK", {"ends": ACROSS}, "saelens", "no topk transcoder"),
        ("Gated", {"ends": ACROSS}, "saelens", "no gated transcoder"),
        ("ReLU", {"ends": ACROSS, "input_norm": "layer_norm"}, "saelens", "input_norm"),
        ("ReLU", {"ends": Ends(read=ACROSS.read + ONE.read, write=ONE.write)}, "saelens", "crosscoder"),
        ("ReLU", {}, "sparsify", "ReLU SAE"),
        ("JumpReLU", {}, "sparsify", "JumpReLU SAE"),
        ("TopK", {"ends": ACROSS, "d_out": 5}, "sparsify", "5 wide"),
        ("TopK", {"input_norm": "layer_norm"}, "sparsify", "input norm"),
        ("ReLU", {}, "pickle", "'pickle' is not written; saelens, sparsify are"),
    ],
)
def test_what_a_format_has_no_form_for_is_refused(
    kind: str, changes: dict[str, Any], format: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write(some_sae(kind, **changes), tmp_path / "sae", format)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(some_sae("ReLU"), tmp_path / "empty")
    before = (tmp_path / "empty/cfg.json").read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        write(some_sae("TopK"), tmp_path / "empty")
    assert (tmp_path / "empty/cfg.json").read_bytes() == before
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match="not overwritten"):
        write(some_sae("TopK"), tmp_path / "file")


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saelib.interop.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(some_sae("ReLU"), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []
