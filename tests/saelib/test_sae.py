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
from saelib.nonlinearity import Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK
from saelib.sae import SAE, InputNorm
from saelib.sparse import ByFeature
from saelib.trainable import BatchTopK, LearnedGate, LearnedReLU, LearnedThreshold, LearnedTopK, Trainable
from saelib.trainee import Scales, Start, Trainee, decode_prefixes

KINDS = [
    ReLU(),
    TopK(k=5),
    GroupMax(k=6),
    JumpReLU(threshold=torch.rand(24)),
    Gated(r_mag=0.1 * torch.randn(24), b_mag=0.1 * torch.randn(24)),
]
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
    monkeypatch.setattr("saelib.preactivations.PIECE_TOKENS", 7)
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


def test_encode_sparse_holds_what_encode_holds() -> None:
    sae, x = random_sae(nonlinearity=TopK(k=5)), some_x()
    value, feature = sae.encode_sparse(x)
    assert value.shape == feature.shape == (50, 5)
    assert torch.equal(torch.zeros(50, 24).scatter_add(1, feature.long(), value), sae.encode(x))


@pytest.mark.parametrize("input_norm", ["layer_norm", "constant_norm", "layer_norm_in", "constant_norm_in"])
def test_an_input_norm_is_undone_on_the_output_unless_it_says_in(input_norm: InputNorm, tmp_path: Path) -> None:
    plain, x = random_sae(), some_x()
    sae = SAE(dict(plain.named_buffers()), plain.nonlinearity, ENDS, "standard", input_norm)
    layer = input_norm.startswith("layer_norm")
    shift = x.mean(dim=1, keepdim=True) if layer else torch.zeros(1)
    size = x.std(dim=1, keepdim=True) if layer else x.norm(dim=1, keepdim=True) / D_MODEL**0.5
    normed = (x - shift) / (size + (1e-5 if layer else 0.0))
    torch.testing.assert_close(sae.encode(x), plain.encode(normed))
    if input_norm.endswith("_in"):
        size, shift = torch.ones(1, 1), torch.zeros(1)
    torch.testing.assert_close(sae(x), plain(normed) * size + shift)
    torch.testing.assert_close(sae.gain(x), size)
    sae.save(tmp_path)
    assert torch.equal(SAE.load(tmp_path)(x), sae(x))


def test_a_skip_term_is_in_forward_and_not_in_decode(tmp_path: Path) -> None:
    plain, x = random_sae(), some_x()
    W_skip = torch.randn(D_MODEL, D_MODEL)
    sae = SAE(dict(plain.named_buffers()) | {"W_skip": W_skip}, plain.nonlinearity, ENDS, "skip_transcoder")
    torch.testing.assert_close(sae(x), plain(x) + x @ W_skip)
    torch.testing.assert_close(sae.decode(sae.encode(x)), plain(x))
    sae.save(tmp_path)
    assert torch.equal(SAE.load(tmp_path)(x), sae(x))


READ, WRITE = 0.37, 2.5
FORMS = [LearnedReLU(start_l0=4.0), LearnedTopK(k=5), LearnedThreshold(start_l0=4.0), LearnedGate(start_l0=4.0)]


def scaled_trainee(nonlinearity: Trainable, raw: torch.Tensor, tied: bool) -> Trainee:
    """Untied, it writes another site, and a linear map of what it reads beside it."""
    x = raw * READ
    y = x if tied else (raw @ torch.randn(D_MODEL, D_MODEL)) * WRITE
    trainee = Trainee(24, nonlinearity, Start(x, y, x.mean(dim=0), y.mean(dim=0), tied, skip=not tied), seed=0)
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return trainee


def in_scaled_space(trainee: Trainee, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f and ŷ as training has them."""
    found = trainee.nonlinearity.candidates(trainee.pre(x), trainee.vectors, 0.0)
    value = trainee.nonlinearity.activate(found, found.value, trainee.vectors)
    y_hat = decode_prefixes(trainee, value, found, ByFeature.of(found), (24,))[0] + trainee.b_dec
    if trainee.W_skip is not None:
        y_hat = y_hat + (x - trainee.center) @ trainee.W_skip
    return found._replace(value=value.detach()).dense(), y_hat.detach()


@pytest.mark.parametrize("nonlinearity", FORMS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("tied", [True, False], ids=["autoencoder", "skip transcoder"])
def test_published_sae_equals_the_trainee_in_scaled_space(nonlinearity: Trainable, tied: bool) -> None:
    raw, write = some_x(), READ if tied else WRITE
    trainee = scaled_trainee(nonlinearity, raw, tied)
    f, y_scaled = in_scaled_space(trainee, raw * READ)
    scales = Scales(torch.full((D_MODEL,), READ), torch.full((D_MODEL,), write))
    sae = trainee.published(scales, 0.0, ENDS, "standard")
    torch.testing.assert_close(sae.encode(raw), f / write, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae(raw), y_scaled / write, atol=1e-4, rtol=1e-4)


def test_several_written_sites_have_a_scale_each() -> None:
    raw, sizes = some_x(), torch.cat([torch.full((8,), 0.2), torch.full((8,), 3.0)])
    x = raw * sizes
    trainee = Trainee(24, BatchTopK(k=5), Start(x, x, x.mean(dim=0), x.mean(dim=0), tied=True))
    threshold = 0.4
    sae = trainee.published(Scales(sizes, sizes), threshold, ENDS, "crosscoder")
    pre = trainee.pre(x).dense()
    y_scaled = torch.where(pre > threshold, pre, 0.0) @ trainee.W_dec + trainee.b_dec
    torch.testing.assert_close(sae(raw), (y_scaled / sizes).detach(), atol=1e-5, rtol=1e-4)


def test_published_batchtopk_fires_where_the_scaled_pre_exceeds_the_threshold() -> None:
    raw, threshold = some_x(), 0.4
    trainee = scaled_trainee(BatchTopK(k=5), raw, tied=True)
    pre = trainee.pre(raw * READ).dense()
    wanted = torch.where(pre > threshold, pre, 0.0) / READ
    scales = Scales(torch.full((D_MODEL,), READ), torch.full((D_MODEL,), READ))
    sae = trainee.published(scales, threshold, ENDS, "batchtopk")
    torch.testing.assert_close(sae.encode(raw), wanted, atol=1e-5, rtol=1e-5)


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
