"""Stores for the dashboard's tests: one that is shared and only read, copies to change."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from store import make_store
from streamlit.testing.v1 import AppTest

from catalog import Store


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """Streamlit leaves the last script that it ran as the main module, which a process started later would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session", autouse=True)
def no_power_failure() -> Iterator[None]:
    """No test can cut the power, so none waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read it, do not change it."""
    return make_store(tmp_path_factory.mktemp("dashboard") / "store")


@pytest.fixture
def served(shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The shared store is what the pages show."""
    monkeypatch.setenv("ALMANAC_STORE", str(shared_store.root))
    monkeypatch.setenv("ALMANAC_USER", "ada")
    return shared_store


@pytest.fixture
def own(shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy to change, shown by the pages."""
    shutil.copytree(shared_store.root, tmp_path / "store")
    monkeypatch.setenv("ALMANAC_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ALMANAC_USER", "ada")
    return Store.open(tmp_path / "store")


def _script(name: str) -> None:
    """What main.py does for one page: AppTest cannot follow st.navigation."""
    import importlib

    from dashboard.errors import guarded

    guarded(importlib.import_module(f"dashboard.pages.{name}").page)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """Draw a page with a query string."""

    monkeypatch.setattr(st, "get_option", {"server.address": "127.0.0.1"}.get)  # AppTest reads no configuration

    def draw(name: str, **query: str) -> AppTest:
        page = AppTest.from_function(_script, kwargs={"name": name}, default_timeout=30)
        page.query_params.update(query)
        return page.run()

    yield draw
    st.cache_data.clear()
    st.cache_resource.clear()
