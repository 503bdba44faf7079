"""Files to items: plain text, JSON lines, Parquet, CSV, each also under gzip or zstd. One document is held at a time.

Bytes that are no UTF-8 come through as lone surrogates (PEP 383), so that the reader of a format need not know what is
to be done with them; a place that cannot be read as asked is an item too, with its reason.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from saelib.errors import CorpusError

__all__ = ["FORMATS", "Bad", "Body", "Item", "body_of", "format_of", "read_file"]

_COMPRESSIONS = (".gz", ".zst")
_BATCH_ROWS = 64
"""Rows of a Parquet file that are held at a time."""


class Bad(NamedTuple):
    """What cannot be read as asked: why in one countable word, the whole story, and what was found."""

    reason: str
    detail: str
    raw: str


Body = str | list[Any] | Bad
"""Text, or a conversation (a list of messages with `role` and `content`), or why there is none."""


class Item(NamedTuple):
    """One place of a source. `uri` names it in tables, `place` (file and line) in messages."""

    uri: str
    place: str
    body: Body


def format_of(path: Path) -> str:
    """The suffix that says how a file is read, without .gz or .zst; empty where it is not read at all."""
    packed = path.suffix in _COMPRESSIONS
    suffix = (path.with_suffix("") if packed else path).suffix
    return suffix if suffix in FORMATS and not (packed and suffix == ".parquet") else ""


def read_file(path: Path, uri: str, field: str) -> Iterator[Item]:
    """Every document of a file. Raises CorpusError that names a file which is damaged."""
    try:
        yield from FORMATS[format_of(path)](path, uri, field)
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise CorpusError(f"cannot read {path}: {error}; restore it, or leave it out of the sources") from error


def body_of(row: object, field: str, place: str, raw: str = "") -> Body:
    """What a row holds in `field`."""
    value = row.get(field) if isinstance(row, Mapping) else None
    if isinstance(value, str) or (isinstance(value, list) and _is_conversation(value)):
        return value
    has = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    but = "" if value is None else f" (there is a {type(value).__name__})"
    return Bad(
        "no_text",
        f"{place} has no text in {field!r}{but}; it has {has}: set `field` to the one that holds the text, "
        "or a list of messages with role and content",
        raw or repr(row),
    )


def _is_conversation(messages: list[Any]) -> bool:
    return bool(messages) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message
        for message in messages
    )


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _decoded(raw: bytes, is_first: bool) -> str:
    """Text, without the byte order mark that may stand first in a file."""
    return raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff" if is_first else "")


def _text(path: Path, uri: str, _: str) -> Iterator[Item]:
    with _opened(path) as file:
        yield Item(uri, str(path), _decoded(file.read(), True))


def _json_lines(path: Path, uri: str, field: str) -> Iterator[Item]:
    with _opened(path) as file:
        for number, raw in enumerate(file, 1):
            line = _decoded(raw, number == 1)
            if line.strip():
                place = f"{path}:{number}"
                yield Item(f"{uri}#{number - 1}", place, _json_body(line, field, place))


def _json_body(line: str, field: str, place: str) -> Body:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError too
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return Bad("not_json", f"{place} is not JSON ({why}); one JSON object a line is wanted", line)
    return body_of(row, field, place, line)


def _table(delimiter: str) -> Callable[[Path, str, str], Iterator[Item]]:
    def rows(path: Path, uri: str, field: str) -> Iterator[Item]:
        csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # 131,072 by default: shorter than documents are
        with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_column(field, reader.fieldnames or (), path)
            try:
                for number, row in enumerate(reader):
                    place = f"{path}:{reader.line_num}"
                    yield Item(f"{uri}#{number}", place, body_of(row, field, place))
            except csv.Error as error:
                raise csv.Error(f"line {reader.line_num}: {error}") from error

    return rows


def _parquet(path: Path, uri: str, field: str) -> Iterator[Item]:
    with pq.ParquetFile(path) as file:
        _check_column(field, file.schema_arrow.names, path)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
            column = batch.column(0)
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column = column.cast(pa.large_binary())
            for value in column:
                place = f"{path} row {number}"
                yield Item(f"{uri}#{number}", place, _parquet_body(value, field, place))
                number += 1


def _parquet_body(value: Any, field: str, place: str) -> Body:
    try:
        plain = value.as_py()
    except UnicodeDecodeError as error:
        return Bad("not_utf8", f"{place} is no valid UTF-8 ({error})", place)
    return body_of({field: _decoded(plain, False) if isinstance(plain, bytes) else plain}, field, place)


def _check_column(field: str, columns: Any, path: Path) -> None:
    if field not in columns:
        raise CorpusError(
            f"{path} has no column {field!r}; it has {sorted(map(str, columns))}: set `field` to the one with the text"
        )


FORMATS: dict[str, Callable[[Path, str, str], Iterator[Item]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
    ".py": _text,
}
"""How a file is read, by its suffix."""
