"""A published SAE: what it computes, how it is kept, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import D_MODEL, ENDS, random_sae

from saelib.base import Ends, Site
from saelib.errors import CheckpointError, ShapeError
from saelib.nonlinearity import BatchTopK, JumpReLU, Nonlinearity, ReLU, TopK
from saelib.sae import SAE
from saelib.trainee import Trainee, decode_firings, encode_firings

KINDS = [ReLU(), TopK(k=5), JumpReLU(threshold=torch.rand(24))]
by_kind = pytest.mark.parametrize("nonlinearity", KINDS, ids=lambda value: type(value).__name__)


def some_x(n: int = 50, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed))


@by_kind
def test_forward_is_decode_of_encode(nonlinearity: Nonlinearity) -> None:
    sae, x = random_sae(nonlinearity=nonlinearity), some_x()
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))
    assert torch.equal(sae(x), sae.decode(sae.fire(x)))


@by_kind
def test_encode_in_pieces_is_encode_at_once(nonlinearity: Nonlinearity, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = random_sae(nonlinearity=nonlinearity), some_x()
    whole = sae.encode(x)
    monkeypatch.setattr("saelib.sae._CHUNK_BYTES", 7 * 4 * sae.n_features)
    torch.testing.assert_close(sae.encode(x), whole)


@by_kind
def test_load_of_save_is_the_same_sae(nonlinearity: Nonlinearity, tmp_path: Path) -> None:
    sae = random_sae(nonlinearity=nonlinearity)
    assert sorted(path.name for path in sae.save(tmp_path)) == ["sae.json", "sae.safetensors"]
    loaded = SAE.load(tmp_path)
    assert (loaded.ends, loaded.architecture) == (sae.ends, sae.architecture)
    assert type(loaded.nonlinearity) is type(sae.nonlinearity)
    assert torch.equal(loaded.encode(some_x()), sae.encode(some_x()))
    assert torch.equal(loaded(some_x()), sae(some_x()))


def scaled_trainee(nonlinearity: Nonlinearity, x: torch.Tensor) -> Trainee:
    trainee = Trainee(24, x.mean(dim=0), nonlinearity, seed=0)
    with torch.no_grad():
        trainee.b_enc.copy_(0.1 * torch.randn(24, generator=torch.Generator().manual_seed(5)))
    return trainee


@pytest.mark.parametrize("nonlinearity", [ReLU(), TopK(k=5)], ids=lambda value: type(value).__name__)
def test_published_sae_equals_the_trainee_in_scaled_space(nonlinearity: Nonlinearity) -> None:
    scale, raw = 0.37, some_x()
    trainee = scaled_trainee(nonlinearity, raw * scale)
    firings = nonlinearity.fire(trainee.pre(raw * scale))
    value, by = encode_firings(trainee, raw * scale, firings)
    y_scaled = decode_firings(trainee, value, firings, by) + trainee.b_dec
    sae = trainee.published(scale, 0.0, ENDS, "standard")
    torch.testing.assert_close(sae.encode(raw), firings.dense() / scale, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(raw), (y_scaled / scale).detach(), atol=1e-5, rtol=1e-5)


def test_published_batchtopk_fires_where_the_scaled_pre_exceeds_the_threshold() -> None:
    scale, raw, threshold = 0.37, some_x(), 0.4
    trainee = scaled_trainee(BatchTopK(k=5), raw * scale)
    pre = trainee.pre(raw * scale)
    wanted = torch.where(pre > threshold, pre, 0.0) / scale
    torch.testing.assert_close(
        trainee.published(scale, threshold, ENDS, "batchtopk").encode(raw), wanted, atol=1e-5, rtol=1e-5
    )


def test_sae_refuses_vectors_of_another_width_and_names_its_site() -> None:
    with pytest.raises(ShapeError, match=r"d_in=16 but got 15; read the site model\.layers\.0"):
        random_sae()(torch.zeros(3, 15))


@pytest.mark.parametrize(("name", "shape"), [("b_enc", (23,)), ("b_dec", (15,)), ("W_dec", (23, 16)), ("W_enc", (16,))])
def test_weights_that_do_not_fit_each_other_are_refused(name: str, shape: tuple[int, ...]) -> None:
    weights = {key: getattr(random_sae(), key) for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    with pytest.raises(ShapeError, match="shape"):
        SAE(weights | {name: torch.zeros(shape)}, ReLU(), ENDS, "standard")


def damaged_truncated(folder: Path) -> None:
    file = folder / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damaged_without(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "sae.safetensors")
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "sae.safetensors")

    return damage


def damaged_record(folder: Path) -> None:
    record = json.loads((folder / "sae.json").read_text())
    del record["ends"]
    (folder / "sae.json").write_text(json.dumps(record))


def damaged_gone(folder: Path) -> None:
    (folder / "sae.json").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damaged_truncated, "cannot read the SAE"),
        (damaged_without("W_dec"), "lacks W_dec"),
        (damaged_without("threshold"), "lacks threshold"),
        (damaged_record, "ends"),
        (damaged_gone, "sae.json"),
    ],
    ids=["truncated", "no W_dec", "no threshold", "no ends", "no record"],
)
def test_a_damaged_folder_is_refused_by_name(damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    random_sae().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=named) as refused:
        SAE.load(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_thresholds_go_where_the_weights_go() -> None:
    moved = random_sae().to("meta")
    assert isinstance(moved.nonlinearity, JumpReLU)
    assert moved.nonlinearity.threshold.device == moved.W_enc.device


def test_site_and_ends_are_written_as_they_are_read() -> None:
    for text in ("model.layers.2", "transformer.h.0.mlp:in"):
        assert str(Site.parse(text)) == text
    assert Ends.at(Site.parse("a")) == Ends(read=(Site(path="a"),), write=(Site(path="a", side="out"),))
