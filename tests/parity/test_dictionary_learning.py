"""Against dictionary_learning itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rival import assert_same, installed, numbers

from saelib.interop import read

dictionary = installed("dictionary_learning.dictionary")
trainers = installed("dictionary_learning.trainers")
pytestmark = pytest.mark.filterwarnings("ignore")

D, F, K = 8, 40, 5
X = 3 * numbers(60, D, seed=9) + 2


def built(name: str) -> Any:
    matryoshka = installed("dictionary_learning.trainers.matryoshka_batch_top_k")
    made = {
        "AutoEncoder": lambda: dictionary.AutoEncoder(D, F),
        "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(D, F),
        "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": lambda: trainers.top_k.AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": lambda: trainers.batch_top_k.BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": lambda: matryoshka.MatryoshkaBatchTopKSAE(D, F, K, [10, 30]),
    }[name]()
    with torch.no_grad():
        for i, (key, parameter) in enumerate(sorted(made.named_parameters())):
            value = numbers(*parameter.shape, seed=i)
            parameter.copy_(2 * value.abs() if key == "threshold" else 0.3 * value if key == "r_mag" else value)
        if "k" in dict(made.named_buffers()):
            made.threshold.fill_(3.5)
    return made


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)
def test_what_dictionary_learning_saves_is_read(name: str, tmp_path: Path) -> None:
    theirs = built(name)
    torch.save({key: value.cpu() for key, value in theirs.state_dict().items()}, tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "k": K, "submodule_name": "resid_post"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    ours = read(tmp_path)
    with torch.no_grad():
        assert_same(ours.encode(X), theirs.encode(X))
        assert_same(ours(X), theirs(X))
