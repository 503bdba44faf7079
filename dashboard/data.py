"""What the pages ask of the catalog, and what they keep of the answers.

Every answer is kept under the version it belongs to: a new snapshot or a new label is a new key, so nothing shown is
older than the last run of a page. One cursor per question: cursors of one connection must not be shared by threads.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from catalog import Labels, NotFound, Reader, Store, StoreError, Version, current, query
from catalog.store import MARKER
from dashboard.settings import settings

__all__ = ["Row", "ask", "labels", "n_features", "place", "reader", "rows", "saes", "sizes", "store", "version"]

Row = dict[str, Any]
Place = tuple[str, int, int]
"""Folder, device, inode: another store moved to the same path is another place."""


def store() -> Store:
    """The store, as it is now. Raises StoreError where it is gone, which is asked at every run of a page."""
    return Store.open(settings().store)


def reader() -> Reader:
    """The one reader of this process."""
    return _reader(place())


def labels() -> Labels:
    """The one label store of this process. Raises StoreError where nobody may write."""
    return _labels(place())


def version() -> Version:
    """What is shown now."""
    return reader().version()


def ask(name: str, **parameters: Any) -> pa.Table:
    """The answer to a query of the catalog at the current version."""
    now = version()
    return _ask(place(), now.snapshot, now.labels, name, parameters)


def rows(name: str, **parameters: Any) -> list[Row]:
    """The same as a list of dictionaries."""
    return _rows(ask(name, **parameters))


def saes() -> list[Row]:
    """Every SAE with its quality and its labels, current versions first."""
    return sorted(rows("saes"), key=lambda sae: (not sae["is_current"], sae["family"], -sae["version"]))


def sizes() -> dict[str, int]:
    """sae_id -> number of features, the current versions first."""
    return _sizes(place(), version().snapshot)


def n_features(sae_id: str) -> int:
    """How many features an SAE has. Raises NotFound."""
    known = sizes()
    if sae_id in known:
        return known[sae_id]
    if not known:
        raise NotFound("there is no SAE in this store yet; make one with `almanac build RUN.toml`")
    raise NotFound(f"there is no SAE {sae_id!r} in this store; it has {', '.join(map(repr, known))}")


def place() -> Place:
    """Where the store lies now."""
    root = store().root
    found = (root / MARKER).stat()
    return str(root), found.st_dev, found.st_ino


@st.cache_resource(show_spinner=False, max_entries=2, on_release=Reader.close)
def _reader(place: Place) -> Reader:
    return Reader(place[0])


@st.cache_resource(show_spinner=False, max_entries=2, on_release=Labels.close)
def _labels(place: Place) -> Labels:
    try:
        return Labels(Store.open(Path(place[0])))
    except OSError as error:
        raise StoreError(
            f"labels cannot be written in {place[0]}: {error.strerror}; allow writing there, or label another store"
        ) from error


@st.cache_data(show_spinner=False, max_entries=8)
def _sizes(place: Place, snapshot: int) -> dict[str, int]:  # noqa: ARG001
    saes = current(Store.open(place[0])).saes
    newest = {sae.family: max(other.version for other in saes if other.family == sae.family) for sae in saes}
    ordered = sorted(saes, key=lambda sae: (sae.version != newest[sae.family], sae.family, -sae.version))
    return {sae.sae_id: sae.n_features for sae in ordered}


@st.cache_data(show_spinner=False, max_entries=200)
def _ask(place: Place, snapshot: int, n_events: int, name: str, parameters: dict[str, Any]) -> pa.Table:  # noqa: ARG001
    return query(_reader(place).cursor(), name, **parameters)


def _rows(table: pa.Table) -> list[Row]:
    found: list[Row] = table.to_pylist()
    return found
