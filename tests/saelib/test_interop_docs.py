"""The Python of docs/checkpoints.md runs, and its table of formats is the table of the code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from saelib.base import Ends, Site
from saelib.interop import recognise, write
from saelib.interop.formats import FORMATS
from saelib.nonlinearity import TopK
from saelib.sae import SAE

PAGE = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"W_enc": torch.rand(6, 20), "b_enc": torch.rand(20), "W_dec": torch.rand(20, 6), "b_dec": torch.rand(6)}
    write(SAE(weights, TopK(k=3), Ends.at(Site(path="blocks.1")), "topk"), tmp_path / "sae_folder")
    arrays = {name.lower(): tensor.numpy() for name, tensor in weights.items()} | {"threshold": np.ones(20, np.float32)}
    (tmp_path / "gemma_scope_folder").mkdir()
    np.savez(tmp_path / "gemma_scope_folder/params.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {})
    assert capsys.readouterr().out == "saelens topk None blocks.1 20\n"
    assert recognise(tmp_path / "for_sae_lens").site == Site(path="model.layers.2")


def test_every_format_is_on_the_page() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    files = {form.name: {form.settings, form.weights} if form.needs_settings else {form.weights} for form in FORMATS}
    assert {
        name: files[name] <= set(re.findall(r"`([\w.]+)`", cell)) for name, cell in table.items() if name in files
    } == (dict.fromkeys(files, True))
