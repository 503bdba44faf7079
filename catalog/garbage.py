"""What lies in the catalog that nobody needs: history that no reader can still hold, parts that no snapshot names.

Kept are the current snapshot, those that were current not long ago (a reader may have them open), and for each SAE that
a person has said something of, the newest one that holds it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from catalog.errors import StoreError
from catalog.events import EVENT_TABLES
from catalog.locks import exclusive
from catalog.schema import TABLES
from catalog.snapshot import current, current_number, recorded
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import Store

__all__ = ["Waste", "collect_catalog", "needed_fingerprints", "size_of", "waste_of_catalog"]

LOCK_SECONDS = 60.0

WITH_A_PUBLICATION = ("feature_stat", "sae_metric")
"""Appended tables that a publication brings along: rows of one that was replaced since stay, as history."""


class Waste(NamedTuple):
    """A file or folder that may go."""

    path: Path
    n_bytes: int
    why: str


def waste_of_catalog(store: Store, before: datetime) -> list[Waste]:
    """Snapshots that stopped being current before that moment (UTC), and what only they name. Nothing is changed."""
    kept = _kept(store, before)
    named = {path for snapshot in kept for path in _parts(snapshot)}
    found = [
        Waste(path, size_of(path), "an earlier snapshot")
        for path, parts in recorded(store).items()
        if path not in kept and parts is not None
    ]
    for path in sorted(store.catalog.glob("*/**/part-0.parquet")):
        if path.relative_to(store.catalog).as_posix() not in named and not _is_staged(store, path):
            found.append(Waste(path.parent, size_of(path.parent), "rows that no snapshot names any more"))
    for path in (*store.catalog.glob(".staging/*"), *store.catalog.glob("**/.*.tmp")):
        if _changed(path) < before:
            found.append(Waste(path, size_of(path), "left by a publisher that was killed"))
    return found


def collect_catalog(store: Store, before: datetime) -> list[Waste]:
    """Remove it, and say what it was; snapshots go first, so that none names what is gone. Raises LockedError."""
    try:
        with exclusive(store.locks / "catalog.lock", "collecting garbage", LOCK_SECONDS):
            found = waste_of_catalog(store, before)
            for waste in found:
                shutil.rmtree(waste.path) if waste.path.is_dir() else waste.path.unlink(missing_ok=True)
                with suppress(OSError):  # the folder of a partition, unless something is left in it
                    waste.path.parent.rmdir()
    except OSError as error:
        raise StoreError(
            f"collecting garbage failed in {store.root}: {error.strerror or error}; what is left is still garbage. "
            "Allow writing there, and try again"
        ) from error
    return found


def needed_fingerprints(store: Store, before: datetime) -> set[str]:
    """Of every artifact that SAEs and rows of the kept snapshots came from, history left out."""
    needed = set()
    for path in _kept(store, before):
        content = _content(path)
        needed |= {str(sae["fingerprint"]) for sae in content["saes"]}
        needed |= {str(part["fingerprint"]) for part in content["parts"] if not _is_history(part["table"])}
    return needed


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _kept(store: Store, before: datetime) -> list[Path]:
    """Files of the snapshots that stay."""
    current(store)  # raises DamagedError: then nothing is garbage
    paths = [path for path, parts in recorded(store).items() if parts is not None]
    pointer, kept = current_number(store), set[Path]()
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        is_old = int(path.stem) < pointer and following is not None and _changed(following) < before
        if not is_old:
            kept.add(path)
    missing = _spoken_of(store) - {sae for path in kept for sae in _saes(path)}
    for path in sorted(paths, reverse=True):
        if found := missing & _saes(path):
            missing -= found
            kept.add(path)
    return sorted(kept)


def _spoken_of(store: Store) -> set[str]:
    """The SAEs that an event of a person names, undone or not."""
    if not (store.labels / "events.sqlite").exists():
        return set()
    named: set[str] = set()
    with SQLiteLabels(store.labels, read_only=True) as labels:
        for name in EVENT_TABLES:
            rows = labels.events(name)
            if "sae_id" in rows.column_names:
                named.update(value for value in pc.unique(rows["sae_id"]).to_pylist() if value)
    return named


def _is_history(table: str) -> bool:
    return TABLES[table].volatile or table in WITH_A_PUBLICATION


def _content(snapshot: Path) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads(snapshot.read_bytes())
    return content


def _parts(snapshot: Path) -> Iterator[str]:
    return (str(part["path"]) for part in _content(snapshot)["parts"])


def _saes(snapshot: Path) -> set[str]:
    return {str(sae["sae_id"]) for sae in _content(snapshot)["saes"]}


def _is_staged(store: Store, path: Path) -> bool:
    return store.catalog / ".staging" in path.parents


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
