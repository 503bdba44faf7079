"""Writing to a disk that may be full, slow, or not ours: pieces that are whole or absent, and errors in our words."""

import errno
import os
import shutil
import uuid
from pathlib import Path

from flows.errors import DiskError

__all__ = ["check_room", "disk_error", "write_piece"]


def disk_error(error: OSError, where: Path) -> Exception:
    """A full or read-only disk in our words; anything else as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(where if where.exists() else where.parent).free
        return DiskError(
            f"the disk of {where.parent} is full ({free >> 20} MiB free); make room and run again: it resumes"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return DiskError(
            f"cannot write to {error.filename or where}: {error.strerror}; give a store that you may write to"
        )
    return error


def write_piece(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all: aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_room(directory: Path, n_bytes: int, what: str) -> None:
    """Raises DiskError before a step starts that could not finish."""
    free = shutil.disk_usage(directory).free
    if n_bytes > free:
        raise DiskError(
            f"{what} needs {n_bytes / 1e9:.2f} GB in {directory} but {free / 1e9:.2f} GB are free; "
            "make room, name another store, or lower corpus.max_tokens"
        )
