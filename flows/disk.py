"""Writing to a disk that may be full, slow, or not ours: pieces that are whole or absent, and errors in our words."""

import errno
import hashlib
import os
import shutil
import uuid
from pathlib import Path

from catalog.files import sha256_of
from flows.errors import DiskError

__all__ = ["SEAL", "check_room", "disk_error", "keep_piece", "kept_piece", "sealed_as", "write_piece"]

SEAL = ".sha256"
"""Ending of the hidden file beside a piece that says what the piece must hold."""


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


def write_piece(path: Path, *content: bytes | memoryview) -> None:
    """A file that is there whole or not at all: aside, synced, renamed. `content` is written one after another."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def keep_piece(path: Path, *content: bytes | memoryview) -> None:
    """A piece that a later run goes on from, with a seal: what it holds, and what it held before.

    The seal comes first: killed in between, the piece that is still there is known by it.
    """
    seal = _seal(path)
    before = seal.read_bytes().split()[-1:] if seal.exists() else []
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    write_piece(seal, b"\n".join([*before, digest.hexdigest().encode()]))
    write_piece(path, *content)


def kept_piece(path: Path) -> bool:
    """Is there a piece to go on from, as it was written? One that is damaged is removed, and made anew."""
    seal = _seal(path)
    if path.is_file() and seal.is_file():
        digest = sha256_of(path).encode()
        if digest in seal.read_bytes().split():
            write_piece(seal, digest)
            return True
    path.unlink(missing_ok=True)
    return False


def sealed_as(path: Path) -> str | None:
    """sha256 of what was kept as this piece, if it was written once; then nobody has to read it again to know."""
    seal = _seal(path)
    digests = set(seal.read_bytes().split()) if seal.is_file() else set()
    return digests.pop().decode() if len(digests) == 1 else None


def _seal(piece: Path) -> Path:
    return piece.with_name(f".{piece.name}{SEAL}")


def check_room(directory: Path, n_bytes: int, what: str) -> None:
    """Raises DiskError before a step starts that could not finish."""
    free = shutil.disk_usage(directory).free
    if n_bytes > free:
        raise DiskError(
            f"{what} needs {n_bytes / 1e9:.2f} GB in {directory} but {free / 1e9:.2f} GB are free; "
            "make room, name another store, or lower harvest.max_bytes"
        )
