"""Tiny language models made from a configuration, with a tokenizer of whole words: tests run offline and fast."""

from pathlib import Path

import pytest
import torch
from tiny import WORDS, save_tiny_lm

from saelib.lm import LanguageModel, LMConfig, load_lm

__all__ = ["WORDS"]


@pytest.fixture(scope="session")
def tiny_lm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each kind of model."""
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_lm(root / kind, kind) for kind in ("llama", "gpt2", "neox")}


@pytest.fixture(scope="session")
def tiny_lm_folder(tiny_lm_folders: dict[str, Path]) -> Path:
    """A Llama of 2 layers of width 16."""
    return tiny_lm_folders["llama"]


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_folder: Path) -> LanguageModel:
    """The Llama, loaded in float32 on the CPU."""
    return load_lm(LMConfig(model=str(tiny_lm_folder), device="cpu"))


@pytest.fixture
def seeded() -> torch.Generator:
    """Random numbers of a test's own."""
    return torch.Generator().manual_seed(0)
