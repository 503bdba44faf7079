"""A store with one published SAE: made once, copied for tests that change it."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_samples import published_store

from catalog import Store, connect


@pytest.fixture(scope="session", autouse=True)
def no_power_failure() -> Iterator[None]:
    """No test can cut the power, so none waits for the disk (kill -9 loses nothing that was written)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    gc.collect()  # DuckDB complains of connections that are still open when Python ends


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read it, do not change it."""
    return published_store(tmp_path_factory.mktemp("catalog") / "store")


@pytest.fixture
def store(shared_store: Store, tmp_path: Path) -> Store:
    """A copy of one's own, which has therefore moved."""
    with connect(shared_store):
        pass
    shutil.copytree(shared_store.root, tmp_path / "store")
    return Store.open(tmp_path / "store")
