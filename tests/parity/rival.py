"""The tools themselves, where they are installed: `pip install sae-almanac[parity]`, or a venv for each of them.

tests/parity is run by a tool's own python as well, with this package on its path:
`PYTHONPATH=. <venv>/bin/python -m pytest tests/parity`.
"""

import importlib
import warnings
from types import ModuleType

import pytest
import torch

__all__ = ["assert_same", "installed", "numbers"]


def installed(name: str) -> ModuleType:
    """The tool's package; the tests of a module are skipped where it is not installed. Its own warnings are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed here ({error}); see tests/parity/rival.py", allow_module_level=True)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 * seed + sum(shape)))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert int((theirs != 0).sum()) > 0
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
