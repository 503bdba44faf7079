"""A store: one folder with the artifacts of the flows, the catalog's tables, and people's labels.

almanac.json       marks the folder as a store: format and schema version
artifacts/         finished work of the flows
catalog/           tables as Parquet parts, snapshots/<n>.json, the pointer `current`
catalog.duckdb     views over the current snapshot, for the duckdb CLI and notebooks
labels/            what people did, and its copy as Parquet
locks/             lock files
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.errors import StoreError
from catalog.files import write_json
from catalog.schema import SCHEMA_VERSION

__all__ = ["FORMAT", "MARKER", "Store"]

MARKER = "almanac.json"
FORMAT = "sae-almanac store"


@dataclass(frozen=True)
class Store:
    """A folder that `open` or `create` found to be a store. Paths are absolute, links resolved.

    A store of an older schema version is read as it is, and written to only after `catalog.migrate`.
    """

    root: Path

    @classmethod
    def open(cls, path: "Path | str | Store") -> "Store":
        """The store in an existing folder. Raises StoreError: missing, not a store, of a newer schema.

        Folders that a killed `create` did not come to are made, where one may write.
        """
        if isinstance(path, Store):
            return path
        root = Path(path).expanduser().resolve()
        if not root.exists():
            raise StoreError(f"there is no store at {root}; make one with `almanac build RUN.toml --store {root}`")
        marker = _read_marker(root)
        version = marker.get("schema_version")
        if not isinstance(version, int) or version < 1:
            raise StoreError(
                f"{root / MARKER} says schema_version {version!r}; expected a number from 1; restore that file"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the store at {root} has schema version {version}, this program knows up to {SCHEMA_VERSION}; "
                "install a newer sae-almanac, or use another store"
            )
        store = cls(root)
        with contextlib.suppress(OSError):
            store._make_folders()
        return store

    @classmethod
    def create(cls, path: Path | str) -> "Store":
        """The store in a folder, to write to: made if it is absent or empty. Raises StoreError: of another schema."""
        root = Path(path).expanduser().resolve()
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file, not a folder; name a folder for the store")
        try:
            if not (root / MARKER).exists():
                _mark(root)
            store = cls.open(root)
            store.refuse_old_schema()
            store._make_folders()
        except OSError as error:
            raise StoreError(
                f"cannot make a store at {root}: {error.strerror}; name a folder you may write to"
            ) from error
        return store

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def view_file(self) -> Path:
        return self.root / "catalog.duckdb"

    @property
    def is_writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    @property
    def schema_version(self) -> int:
        return int(_read_marker(self.root)["schema_version"])

    def refuse_old_schema(self) -> None:
        """Raises StoreError where the tables of the store are of an older schema than this program writes."""
        if self.schema_version < SCHEMA_VERSION:
            raise StoreError(
                f"the store at {self.root} has schema version {self.schema_version}, this program writes "
                f"{SCHEMA_VERSION}; bring it forward with `almanac migrate --store {self.root}` (reading needs no more)"
            )

    def mark_as_present(self) -> None:
        """Say that every table is as this program writes it."""
        write_json(self.root / MARKER, {"format": FORMAT, "schema_version": SCHEMA_VERSION})

    def _make_folders(self) -> None:
        for folder in (self.artifacts, self.catalog, self.labels, self.locks):
            folder.mkdir(exist_ok=True)


def _mark(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    found = [path.name for path in root.iterdir() if not path.name.startswith(f".{MARKER}.")]
    if found and MARKER not in found:
        raise StoreError(f"{root} is not empty and not a store (no {MARKER}); name an empty or a new folder")
    write_json(root / MARKER, {"format": FORMAT, "schema_version": SCHEMA_VERSION})


def _read_marker(root: Path) -> dict[str, Any]:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{root} is not a store: it has no {MARKER}; name the folder of a store") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{root / MARKER} cannot be read: {error}; restore that file") from error
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        raise StoreError(f"{root} is not a store: {MARKER} does not say format {FORMAT!r}; name the folder of a store")
    return marker
