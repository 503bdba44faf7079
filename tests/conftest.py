"""Shapes are checked in every test: jaxtyping reads them from saelib's signatures, beartype holds calls to them."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).parent.parent
COMPILED = {"saelib.kernels", "saelib.summaries.kernels"}
"""Loops that numba compiles: it takes plain functions only."""

modules = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in REPOSITORY.glob("saelib/**/*.py")}
install_import_hook(sorted(modules - COMPILED - {"saelib.__init__"}), "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads on a busy machine are many times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def almanac_data() -> Path:
    """The folder of the test data; a test that needs it is skipped where there is none."""
    folder = Path(os.environ.get("ALMANAC_DATA", REPOSITORY / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set ALMANAC_DATA to its folder")
    return folder
