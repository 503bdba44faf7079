"""Against sparsify itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rival import assert_same, installed, numbers

from saelib.base import Ends, Site
from saelib.interop import read, write
from saelib.nonlinearity import GroupMax, Nonlinearity, TopK
from saelib.sae import SAE

sparsify = installed("sparsify")
pytestmark = pytest.mark.filterwarnings("ignore")

D, F, K = 8, 40, 5
X = 3 * numbers(60, D, seed=9) + 2


def dense(theirs: Any) -> torch.Tensor:
    """Their k values and indices as a matrix."""
    found = theirs.encode(X)
    return torch.zeros(X.shape[0], F).scatter(1, found.top_indices, found.top_acts)


def assert_both(ours: SAE, theirs: Any) -> None:
    with torch.no_grad():
        assert_same(ours.encode(X), dense(theirs))
        assert_same(ours(X), theirs(X).sae_out)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_what_sparsify_saves_is_read(activation: str, transcode: bool, skip: bool, tmp_path: Path) -> None:
    settings = {"activation": activation, "k": K, "transcode": transcode, "skip_connection": skip}
    theirs = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(expansion_factor=F // D, **settings))
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=i))
    theirs.save_to_disk(tmp_path / "layers.3")
    ours = read(tmp_path)
    assert ours.ends.write == (Site(path="layers.3"),)
    assert_both(ours, theirs)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("kind", [TopK(k=K), GroupMax(k=K)], ids=["topk", "groupmax"])
def test_what_is_written_loads_in_sparsify(kind: Nonlinearity, transcode: bool, skip: bool, tmp_path: Path) -> None:
    weights = {"W_enc": numbers(D, F), "b_enc": numbers(F), "W_dec": numbers(F, D, seed=1), "b_dec": 2 * numbers(D)}
    read_site, site = Site(path="model.layers.2.mlp", side="in"), Site(path="model.layers.2.mlp")
    ends = Ends(read=(read_site,), write=(site,)) if transcode else Ends.at(site)
    ours = SAE(weights | ({"W_skip": numbers(D, D, seed=3)} if skip else {}), kind, ends, "topk")
    write(ours, tmp_path / "sae", "sparsify")
    assert_both(ours, sparsify.SparseCoder.load_from_disk(tmp_path / "sae"))
