"""Files that are damaged, incomplete, dangerous or of no known kind: each is an error that names what is at fault."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saelib.base import Ends, Site
from saelib.errors import CheckpointError
from saelib.interop import read, recognise
from saelib.nonlinearity import JumpReLU
from saelib.sae import SAE

D, F = 6, 20


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Tensors = dict[str, torch.Tensor]
Settings = dict[str, Any]


def saelens(folder: Path, tensors: Tensors, settings: Settings) -> None:
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))


def sparsify(folder: Path, tensors: Tensors, settings: Settings) -> None:
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))


def dictionary_learning(folder: Path, tensors: Tensors, settings: Settings) -> None:
    torch.save(tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {}}))


def gemma_scope(folder: Path, tensors: Tensors, settings: Settings) -> None:  # noqa: ARG001
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})


def gemma_scope_2(folder: Path, tensors: Tensors, settings: Settings) -> None:
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))


MATRICES = {"W_enc": numbers(D, F), "b_enc": numbers(F), "W_dec": numbers(F, D), "b_dec": numbers(D)}
LINEAR = {"encoder.weight": numbers(F, D), "encoder.bias": numbers(F)}
GEMMA = {
    "w_enc": numbers(D, F),
    "b_enc": numbers(F),
    "w_dec": numbers(F, D),
    "b_dec": numbers(D),
    "threshold": numbers(F),
}
GOOD: dict[str, tuple[Callable[[Path, Tensors, Settings], None], Tensors, Settings, str]] = {
    "saelens": (
        saelens,
        MATRICES | {"threshold": numbers(F)},
        {"architecture": "jumprelu", "d_in": D, "d_sae": F, "metadata": {"sae_lens_version": "6.0.0"}},
        "sae_weights.safetensors",
    ),
    "sparsify": (
        sparsify,
        LINEAR | {"W_dec": numbers(F, D), "b_dec": numbers(D)},
        {"activation": "topk", "k": 4, "num_latents": F, "d_in": D},
        "sae.safetensors",
    ),
    "dictionary_learning": (
        dictionary_learning,
        LINEAR | {"decoder.weight": numbers(D, F), "bias": numbers(D)},
        {"dict_class": "AutoEncoder", "activation_dim": D, "dict_size": F},
        "ae.pt",
    ),
    "gemma_scope": (gemma_scope, GEMMA, {}, "params.npz"),
    "gemma_scope_2": (gemma_scope_2, GEMMA, {"architecture": "jump_relu"}, "params.safetensors"),
}  # fmt: skip

by_format = pytest.mark.parametrize("name", sorted(GOOD))
by_tensor = pytest.mark.parametrize(
    ("name", "tensor"), [(name, tensor) for name, (_, tensors, _, _) in GOOD.items() for tensor in tensors]
)


def make(folder: Path, name: str, tensors: Tensors | None = None, **settings: Any) -> Path:
    """A sound checkpoint, but for what is given."""
    write, good, said, _ = GOOD[name]
    folder.mkdir(exist_ok=True)
    write(folder, good if tensors is None else tensors, said | settings)
    return folder


@by_format
def test_a_sound_checkpoint_is_read(name: str, tmp_path: Path) -> None:
    assert recognise(make(tmp_path, name)).format == name
    assert read(tmp_path).n_features == F


@by_tensor
def test_a_missing_tensor_is_named(name: str, tensor: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in GOOD[name][1].items() if key != tensor}
    with pytest.raises(CheckpointError, match=rf"lacks the tensor {tensor}"):
        read(make(tmp_path, name, tensors))


@by_format
def test_an_extra_tensor_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has the tensor feature_density"):
        read(make(tmp_path, name, GOOD[name][1] | {"feature_density": numbers(F)}))


@by_tensor
def test_a_wrong_shape_is_named(name: str, tensor: str, tmp_path: Path) -> None:
    tensors = GOOD[name][1] | {tensor: torch.cat([GOOD[name][1][tensor], GOOD[name][1][tensor][:1]])}
    with pytest.raises(CheckpointError, match=r"has shape \("):
        read(make(tmp_path, name, tensors))


@by_tensor
def test_a_transposed_or_flat_tensor_is_a_wrong_shape(name: str, tensor: str, tmp_path: Path) -> None:
    good = GOOD[name][1][tensor]
    with pytest.raises(CheckpointError, match=r"shape \("):
        read(make(tmp_path, name, GOOD[name][1] | {tensor: good.t().contiguous() if good.dim() == 2 else good[None]}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@by_tensor
def test_a_weight_that_is_no_number_is_named(name: str, tensor: str, value: float, tmp_path: Path) -> None:
    bad = GOOD[name][1][tensor].clone()
    bad.view(-1)[3] = value
    with pytest.raises(CheckpointError, match=rf"{tensor} holds NaN or Inf"):
        read(make(tmp_path, name, GOOD[name][1] | {tensor: bad}))


@by_format
def test_whole_numbers_as_weights_are_refused(name: str, tmp_path: Path) -> None:
    tensor = next(iter(GOOD[name][1]))
    with pytest.raises(CheckpointError, match=rf"{tensor} is of torch.int8"):
        read(make(tmp_path, name, GOOD[name][1] | {tensor: GOOD[name][1][tensor].to(torch.int8)}))


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
@by_format
def test_a_truncated_file_is_named(name: str, kept: float, tmp_path: Path) -> None:
    weights = make(tmp_path, name) / GOOD[name][3]
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(CheckpointError, match=weights.name):
        read(tmp_path)


@by_format
def test_a_missing_weights_file_is_an_error_that_says_what_is_read(name: str, tmp_path: Path) -> None:
    (make(tmp_path, name) / GOOD[name][3]).unlink()
    with pytest.raises(CheckpointError, match=GOOD[name][3]):
        read(tmp_path)


@pytest.mark.parametrize("name", ["saelens", "dictionary_learning"])
def test_missing_settings_are_named(name: str, tmp_path: Path) -> None:
    settings = next(make(tmp_path, name).glob("*.json"))
    settings.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {settings.name}"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\x00\x01", "[" * 100_000])
def test_settings_that_are_no_json_object_are_named(content: str, tmp_path: Path) -> None:
    (make(tmp_path, "saelens") / "cfg.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cfg\.json"):
        read(tmp_path)


class Payload:
    """What a pickle can do: run a command of its author's choice."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def assert_not_run(folder: Path, trace: Path) -> None:
    with pytest.raises(CheckpointError, match="not executed|no safetensors file"):
        read(folder)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_state_dict_is_never_run(zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = make(tmp_path / "sae", "dictionary_learning")
    state = GOOD["dictionary_learning"][1] | {"bias": Payload(trace)}
    torch.save(state, folder / "ae.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds code.*system.*not executed"):
        read(folder)
    assert_not_run(folder, trace)


def test_code_in_an_npz_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = make(tmp_path / "sae", "gemma_scope")
    np.savez(folder / "params.npz", w_enc=np.array([Payload(trace)], dtype=object))
    assert_not_run(folder, trace)


@by_format
def test_a_pickle_under_another_name_is_never_run(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = make(tmp_path / "sae", name)
    torch.save({"w": Payload(trace)}, folder / GOOD[name][3], _use_new_zipfile_serialization=False)
    assert_not_run(folder, trace)


def test_a_state_dict_of_something_else_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, "dictionary_learning")
    torch.save([1, 2], folder / "ae.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read(folder)
    torch.save(GOOD["dictionary_learning"][1] | {"bias": "text"}, folder / "ae.pt")
    with pytest.raises(CheckpointError, match="bias is no tensor"):
        read(folder)


def test_a_backup_of_a_run_is_told_from_an_sae(tmp_path: Path) -> None:
    folder = make(tmp_path, "dictionary_learning")
    torch.save({"step": 7, "ae": GOOD["dictionary_learning"][1], "optimizer": {}, "config": {}}, folder / "ae.pt")
    with pytest.raises(CheckpointError, match="backup of a training run"):
        read(folder)


@pytest.mark.parametrize("name", ["abstopk", "temporal", "matching_pursuit"])
def test_what_is_no_sae_of_ours_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"architecture '{name}' cannot be read"):
        read(make(tmp_path, "saelens", architecture=name))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("saelens", "architecture"),
        ("sparsify", "activation"),
        ("dictionary_learning", "dict_class"),
        ("gemma_scope_2", "architecture"),
    ],
)
def test_an_unknown_architecture_is_named(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"'{key}' is 'hyperbolic', which is unknown; known are \["):
        read(make(tmp_path, name, **{key: "hyperbolic"}))


@pytest.mark.parametrize("value", ["64", 0, -1, 6.5, None, True])
@pytest.mark.parametrize(
    ("name", "key"), [("saelens", "d_sae"), ("saelens", "d_in"), ("sparsify", "k"), ("sparsify", "d_in")]
)
def test_a_size_that_is_no_whole_number_is_named(name: str, key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}' is "):
        read(make(tmp_path, name, **{key: value}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("saelens", {"d_sae": F + 1}, r"W_enc.*d_sae=21"),
        ("saelens", {"d_in": D + 1}, r"W_enc.*d_in=7"),
        ("saelens", {"normalize_activations": "batch_norm"}, "normalize_activations.*batch_norm"),
        ("saelens", {"reshape_activations": "hook_q"}, "reshape_activations.*hook_q"),
        ("saelens", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
        ("saelens", {"metadata": "6.0.0"}, "metadata"),
        ("saelens", {"architecture": "topk"}, "'k' is None|threshold"),
        ("sparsify", {"k": F + 1}, "k=21"),
        ("sparsify", {"activation": "groupmax", "k": 3}, "k=3"),
        ("sparsify", {"signed": True}, "signed"),
        ("sparsify", {"skip_connection": True}, "W_skip"),
        ("dictionary_learning", {"dict_size": F + 1}, r"encoder\.weight.*F=21"),
        ("gemma_scope_2", {"affine_connection": True}, "affine_skip_connection"),
    ],
)
def test_settings_that_do_not_fit_are_named(name: str, changes: Settings, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(make(tmp_path, name, **changes))


@pytest.mark.parametrize("norm", ["expected_average_only_in", "covariance_whitening"])
def test_a_transcoder_with_a_folded_norm_is_refused(norm: str, tmp_path: Path) -> None:
    changes = {"architecture": "jumprelu_transcoder", "d_out": D, "normalize_activations": norm}
    with pytest.raises(CheckpointError, match="normalize_activations.*transcoder"):
        read(make(tmp_path, "saelens", **changes))


@pytest.mark.parametrize("path", ["nothing", "empty", "notes.txt", "sae/notes.txt"])
def test_what_is_no_checkpoint_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "sae", "sparsify")
    for notes in (tmp_path / "notes.txt", tmp_path / "sae/notes.txt"):
        notes.write_text("text")
    with pytest.raises(CheckpointError, match="nothing at|holds no SAE|no file of an SAE"):
        read(tmp_path / path)


def own(folder: Path) -> Path:
    weights = {"W_enc": numbers(D, F), "b_enc": numbers(F), "W_dec": numbers(F, D), "b_dec": numbers(D)}
    folder.mkdir()
    SAE(weights, JumpReLU(threshold=torch.ones(F)), Ends.at(Site(path="h.1")), "jumprelu").save(folder)
    return folder


@pytest.mark.parametrize("tensor", ["W_enc", "b_dec", "threshold"])
def test_our_own_folder_is_checked_as_well(tensor: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = own(tmp_path / "sae") / "sae.safetensors"
    good = load_file(path)
    save_file({name: value for name, value in good.items() if name != tensor}, path)
    with pytest.raises(CheckpointError, match=tensor):
        read(path.parent)
    save_file(good | {tensor: good[tensor] * float("nan")}, path)
    with pytest.raises(CheckpointError, match=f"{tensor} holds NaN"):
        read(path.parent)
    save_file(good | {"another": good["b_dec"].clone()}, path)
    with pytest.raises(CheckpointError, match="another"):
        read(path.parent)
