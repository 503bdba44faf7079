"""Where text comes from: files, conversations, a package's or the interpreter's own sources, a data set by name."""

import glob
import hashlib
import os
import re
import sysconfig
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal

from saelib.base import Frozen, expand_path
from saelib.errors import ConfigError, CorpusError
from saelib.readers import FORMATS, Item, body_of, format_of, read_file

__all__ = ["Source", "read_items", "source_bytes"]

_NO_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
_NO_LIBRARY |= {"ensurepip"}
"""Folders beside the standard library's modules that are not of it, or are tests."""
_NO_PACKAGE = {"__pycache__", "test", "tests"}


class Source(Frozen):
    """Where text comes from.

    `path` is a file, a folder or a glob (files, chat), a package's name (package), or a data set's name or folder
    (dataset, with its `subset`, `revision` and `split`). `field` holds the text, or a conversation.
    """

    kind: Literal["files", "chat", "stdlib", "package", "dataset"] = "files"
    path: str = ""
    field: str = "text"
    split: str = "train"
    documents: str = ":"
    subset: str | None = None
    revision: str | None = None

    def slice(self) -> slice:
        """`documents` as Python writes a slice: `200:`, `:-100`."""
        found = re.fullmatch(r"(-?\d*):(-?\d*)", self.documents)
        if not found:
            raise ConfigError(f"documents = {self.documents!r} is no slice; write it as in '200:' or ':-100'")
        first, last = (int(part) if part not in ("", "-") else None for part in found.groups())
        return slice(first, last)

    @property
    def text_field(self) -> str:
        """`field`, or `messages` where conversations are read and nothing else is said."""
        return "messages" if self.kind == "chat" and self.field == "text" else self.field


def read_items(source: Source) -> Iterator[Item]:
    """Every document that the source and its slice name, in a fixed order, one at a time."""
    readers = {"stdlib": _stdlib, "package": _package, "dataset": _dataset, "files": _files, "chat": _files}
    return _sliced(readers[source.kind](source), source.slice())


def _sliced(items: Iterator[Item], part: slice) -> Iterator[Item]:
    """items[part], holding no more of them than a negative end names."""
    first, last = part.start or 0, part.stop
    if first < 0:
        tail: deque[tuple[int, Item]] = deque(maxlen=-first)
        n = 0
        for n, item in enumerate(items, 1):
            tail.append((n - 1, item))
        stop = n if last is None else last if last >= 0 else n + last
        yield from (item for index, item in tail if index < stop)
    elif last is not None and last < 0:
        held: deque[Item] = deque()
        for item in islice(items, first, None):
            held.append(item)
            if len(held) > -last:
                yield held.popleft()
    else:
        yield from islice(items, first, last)


def source_bytes(source: Source) -> Iterator[bytes]:
    """What a source is, for a fingerprint: its settings, and its content where that can be read without a download."""
    yield source.model_dump_json(exclude={"path"}).encode()
    if source.kind == "dataset":
        folder = Path(expand_path(source.path))
        if not folder.is_dir():
            yield source.path.encode()
            return
        paths = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    elif source.kind in ("stdlib", "package"):
        paths = _modules(*_library(source))
    else:
        paths = _paths(source)
    for uri, path in paths:
        with path.open("rb") as file:
            yield uri.encode("utf-8", "surrogateescape") + hashlib.file_digest(file, "sha256").digest()


def _stdlib(source: Source) -> Iterator[Item]:
    """Modules of the running interpreter's library."""
    for uri, path in _modules(*_library(source)):
        yield from read_file(path, f"stdlib:{uri}", "")


def _package(source: Source) -> Iterator[Item]:
    """Modules of an installed package, which is found without importing it."""
    for uri, path in _modules(*_library(source)):
        yield from read_file(path, f"package:{source.path.split('.')[0]}/{uri}", "")


def _library(source: Source) -> tuple[Path, Path, set[str]]:
    """The folder that names are relative to, the folder or module to read, and folders to leave out."""
    if source.kind == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        return root, root, _NO_LIBRARY
    first, *rest = source.path.split(".")
    try:
        spec = find_spec(first) if first else None  # of a dotted name it would import the first part
    except (ValueError, ImportError):
        spec = None
    if spec is None or not (spec.submodule_search_locations or (spec.origin or "").endswith(".py")):
        raise CorpusError(f"no package {source.path!r} with Python sources; install it, or name its folder as files")
    if not spec.submodule_search_locations:
        module = Path(str(spec.origin))
        return module.parent, module, _NO_PACKAGE
    root = Path(next(iter(spec.submodule_search_locations)))
    inside = root.joinpath(*rest)
    return root, inside if inside.is_dir() else inside.with_suffix(".py"), _NO_PACKAGE


def _modules(root: Path, inside: Path, left_out: set[str]) -> list[tuple[str, Path]]:
    """(relative path, path) in the order of sha1(relative path): any cut is a fair sample."""
    found = [inside] if inside.is_file() else inside.rglob("*.py")
    names = [path.relative_to(root) for path in found]
    names = [name for name in names if not left_out & set(name.parts)]
    if not names:
        raise CorpusError(f"there are no Python sources at {inside}; install them or name your own files")
    names.sort(key=lambda name: hashlib.sha1(name.as_posix().encode()).hexdigest())
    return [(name.as_posix(), root / name) for name in names]


def _dataset(source: Source) -> Iterator[Item]:
    """A data set by name (or a local one), streamed: a slice reads no more than it needs. No code of it is run."""
    for number, row in enumerate(_dataset_rows(source)):
        if source.field not in row:
            raise CorpusError(f"rows of {source.path!r} have no field {source.field!r}; they have {sorted(row)}")
        uri = f"{source.path}#{number}"
        yield Item(uri, uri, body_of(row, source.field, uri))


def _dataset_rows(source: Source) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    path, known = expand_path(source.path), {"split": source.split, "revision": source.revision}
    try:
        yield from load_dataset(path, source.subset, streaming=True, **known)
    except Exception as error:  # datasets raises many kinds; all of them mean that it cannot be had
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"cannot load the data set {source.path!r}: {why}") from error


def _files(source: Source) -> Iterator[Item]:
    for uri, path in _paths(source):
        yield from read_file(path, uri, source.text_field)


def _paths(source: Source) -> list[tuple[str, Path]]:
    """(name, path) of the files that are read: sorted, and named from the folder, or the fixed part of the glob, on."""
    pattern = expand_path(source.path)
    folder, found = Path(pattern).parent, [pattern]
    if os.path.isdir(pattern):
        folder, found = Path(pattern), glob.glob(os.path.join(glob.escape(pattern), "**", "*"), recursive=True)
    elif not os.path.isfile(pattern):
        folder = Path(*takewhile(lambda part: not glob.has_magic(part), folder.parts))
        found = glob.glob(pattern, recursive=True)
    paths = [Path(path) for path in sorted(found) if os.path.isfile(path)]
    if not source.path or not paths:
        raise CorpusError(f"no file at {os.path.abspath(pattern)!r}; give a file, a folder or a glob of text files")
    readable = [path for path in paths if format_of(path)]
    if not readable:
        raise CorpusError(
            f"no text in {str(paths[0])!r}{' and others' if len(paths) > 1 else ''}; "
            f"files that end in {', '.join(FORMATS)} are read, and the same (but Parquet) with .gz or .zst after it"
        )
    return [(path.relative_to(folder).as_posix(), path) for path in readable]
