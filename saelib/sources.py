"""Where text comes from: files, the interpreter's standard library, a data set by name."""

import glob
import gzip
import hashlib
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from saelib.base import Frozen, expand_path
from saelib.errors import ConfigError, CorpusError

__all__ = ["Source", "read_texts", "source_bytes"]

_SUFFIXES = (".jsonl", ".txt", ".md", ".rst", ".py")

_NO_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
_NO_LIBRARY |= {"ensurepip"}
"""Folders beside the standard library's modules that are not of it, or are tests."""


class Source(Frozen):
    """Where text comes from: files (a file, a folder, a glob), the standard library, or a data set by name."""

    kind: Literal["files", "stdlib", "dataset"] = "files"
    path: str = ""
    field: str = "text"
    split: str = "train"
    documents: str = ":"

    def slice(self) -> slice:
        """`documents` as Python writes a slice: `200:`, `:-100`."""
        found = re.fullmatch(r"(-?\d*):(-?\d*)", self.documents)
        if not found:
            raise ConfigError(f"documents = {self.documents!r} is no slice; write it as in '200:' or ':-100'")
        first, last = (int(part) if part not in ("", "-") else None for part in found.groups())
        return slice(first, last)


def read_texts(source: Source) -> Iterator[tuple[str, str]]:
    """(uri, text) of every document that the source and its slice name, in a fixed order."""
    readers = {"stdlib": lambda _: _stdlib(), "dataset": _dataset, "files": _files}
    items, part = readers[source.kind](source), source.slice()
    if (part.start or 0) < 0 or (part.stop or 0) < 0:
        return iter(list(items)[part])
    return islice(items, part.start, part.stop)


def source_bytes(source: Source) -> Iterator[bytes]:
    """What a source is, for a fingerprint: its settings, and its content where that can be read without a download."""
    yield source.model_dump_json(exclude={"path"}).encode()
    if source.kind == "dataset":
        yield source.path.encode()
    elif source.kind == "stdlib":
        for uri, text in _stdlib():
            yield f"{uri}\0{text}\0".encode("utf-8", "surrogatepass")
    else:
        for path in _paths(source):
            with path.open("rb") as file:
                yield path.name.encode() + hashlib.file_digest(file, "sha256").digest()


def _stdlib() -> Iterator[tuple[str, str]]:
    """Modules of the running interpreter's library, in the order of sha1(relative path): any cut is a fair sample."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path.relative_to(root) for path in root.rglob("*.py") if not _NO_LIBRARY & set(path.relative_to(root).parts)
    ]
    if not paths:
        raise CorpusError(f"the standard library's sources are not at {root}; install them or name your own files")
    for path in sorted(paths, key=lambda path: hashlib.sha1(path.as_posix().encode()).hexdigest()):
        yield f"stdlib:{path.as_posix()}", (root / path).read_text(encoding="utf-8", errors="replace")


def _dataset(source: Source) -> Iterator[tuple[str, str]]:
    """A data set by name (or a local one), streamed, so that a slice reads no more than it needs."""
    from datasets import load_dataset

    try:
        rows = load_dataset(expand_path(source.path), split=source.split, streaming=True)
    except Exception as error:  # datasets raises many kinds; all of them mean that it cannot be had
        raise CorpusError(f"cannot load the data set {source.path!r}: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows):
        if source.field not in row:
            raise CorpusError(f"rows of {source.path!r} have no field {source.field!r}; they have {sorted(row)}")
        yield f"{source.path}#{number}", str(row[source.field])


def _paths(source: Source) -> list[Path]:
    pattern = expand_path(source.path)
    if os.path.isdir(pattern):
        pattern = os.path.join(pattern, "**", "*")
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not paths:
        raise CorpusError(
            f"no file at {os.path.abspath(pattern)!r}; give a file, a folder or a glob of text or JSONL files"
        )
    readable = [path for path in paths if _kind(path) in _SUFFIXES]
    if not readable:
        raise CorpusError(
            f"no text in {str(paths[0])!r}{' and others' if len(paths) > 1 else ''}; "
            f"files that end in {', '.join(_SUFFIXES)} are read, and the same with .gz after it"
        )
    return readable


def _kind(path: Path) -> str:
    """The suffix that says how a file is read, without .gz."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _files(source: Source) -> Iterator[tuple[str, str]]:
    for path in _paths(source):
        try:
            yield from _file(path, source.field)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"cannot read {path}: {error}; restore it, or leave it out of the sources") from error


def _file(path: Path, field: str) -> Iterator[tuple[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        if _kind(path) != ".jsonl":
            yield path.name, file.read()
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path.name}#{number - 1}", _json_text(line, field, f"{path}:{number}")


def _json_text(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where} is not JSON ({error.msg}); one JSON object a line is wanted") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        has = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise CorpusError(f"{where} has no text in {field!r}; it has {has}: set `field` to the one that holds the text")
    return str(row[field])
