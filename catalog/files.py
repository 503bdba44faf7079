"""Writing files so that they are there whole or not at all, even when the power fails."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["read_parquet", "replacing", "sha256_of", "sync_file", "sync_folder", "write_json"]


def read_parquet(paths: Iterable[Path]) -> str:
    """SQL that reads exactly these files as one table."""
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"


def sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(target: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside `target` to write to; afterwards it takes the target's place in one step.

    What can be made again at any time need not be `durable`: then a power failure may leave it empty.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield aside
        if durable:
            sync_file(aside)
        os.replace(aside, target)
        if durable:
            sync_folder(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(target: Path, content: dict[str, Any], durable: bool = True) -> None:
    with replacing(target, durable) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
