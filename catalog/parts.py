"""Rows -> immutable Parquet parts, written aside with memory bounded by a row group, then moved into place.

Rows lie sorted by the table's `sort` columns, row groups end where a feature ends, and the same rows always give
the same bytes, however they came in chunks.
"""

import os
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.conform import as_table, conform
from catalog.errors import SchemaError
from catalog.files import sha256_of, sync_file, sync_folder
from catalog.schema import Table, arrow_schema, table_named
from catalog.snapshot import Part

__all__ = ["Rows", "Staging", "write_empty"]

Rows: TypeAlias = Mapping[str, Any] | pa.Table | Path
Check = Callable[[Table, pa.Table], None]


@dataclass(frozen=True)
class Staged:
    """A finished part that still lies aside."""

    part: Part
    aside: Path


@dataclass
class Staging:
    """Parts on their way into the catalog: `add` writes them into `folder`, `place` moves them to where they belong."""

    folder: Path
    check: Check
    staged: list[Staged] = field(default_factory=list)

    def add(self, table_name: str, rows: Rows, fill: Mapping[str, str | int]) -> None:
        """Write `rows`, with the constant columns of `fill` where they lack them; no rows, no part."""
        table = table_named(table_name)
        writers: dict[str, _PartWriter] = {}
        for chunk in _complete_chunks(table, rows, fill):
            conformed = conform(table.name, chunk)
            self.check(table, conformed)
            for partition, own in _split(table, conformed):
                if partition not in writers:
                    writers[partition] = _PartWriter(table, self.folder / f"{len(self.staged) + len(writers)}.parquet")
                writers[partition].add(own)
        for partition, writer in writers.items():
            writer.close()
            self.staged.append(_staged(table, partition, writer, fill))

    def place(self, catalog: Path, only: Container[str] | None = None) -> bool:
        """Move every part (or those of the paths `only`) to its final path; one that is there already, whole, is left.
        True where anything was moved."""
        touched = {catalog}
        for staged in self.staged:
            target = catalog / staged.part.path
            if (only is not None and staged.part.path not in only) or _is_same_file(target, staged.part):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged.aside, target)
            touched.update(catalog / folder for folder in Path(staged.part.path).parents)
        for folder in sorted(touched, reverse=True):
            sync_folder(folder)
        return len(touched) > 1

    @property
    def parts(self) -> list[Part]:
        return [staged.part for staged in self.staged]

    def files_of(self, table: str) -> list[Path]:
        return [staged.aside for staged in self.staged if staged.part.table == table]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def write_empty(table_name: str, path: Path) -> None:
    """A Parquet file with the table's columns and no rows."""
    pq.write_table(arrow_schema(table_name).empty_table(), path, compression="zstd")


def _is_same_file(target: Path, part: Part) -> bool:
    return target.exists() and target.stat().st_size == part.bytes and sha256_of(target) == part.sha256


class _PartWriter:
    """One Parquet file, written in row groups that end where the leading sort column changes."""

    def __init__(self, table: Table, path: Path) -> None:
        self.path, self.rows = path, 0
        self.fingerprints: set[str] = set()
        self._limit, self._lead = table.row_group_rows, table.sort[0]
        self._buffer: pa.Table = arrow_schema(table.name).empty_table()
        self._writer = pq.ParquetWriter(path, arrow_schema(table.name), compression="zstd", write_statistics=True)

    def add(self, rows: pa.Table) -> None:
        if "fingerprint" in rows.column_names:
            self.fingerprints.update(v for v in pc.unique(rows["fingerprint"]).to_pylist() if v is not None)
        self._buffer = pa.concat_tables([self._buffer, rows])
        while self._buffer.num_rows > self._limit:
            lead = self._buffer[self._lead]
            cut = pc.index(lead.slice(0, self._limit + 1), lead[self._limit]).as_py() or self._limit
            self._write(self._buffer.slice(0, cut))
            self._buffer = self._buffer.slice(cut)

    def close(self) -> None:
        if self._buffer.num_rows:
            self._write(self._buffer)
        self._writer.close()
        os.chmod(self.path, 0o444)
        sync_file(self.path)

    def _write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows.combine_chunks(), row_group_size=rows.num_rows)
        self.rows += rows.num_rows


def _staged(table: Table, partition: str, writer: _PartWriter, fill: Mapping[str, str | int]) -> Staged:
    sha256 = sha256_of(writer.path)
    fingerprint = min(writer.fingerprints) if len(writer.fingerprints) == 1 else str(fill.get("fingerprint", ""))
    folder = f"{quote(fingerprint[:16], safe='') or 'several'}-{sha256[:16]}"  # another content is another folder
    if table.partition:
        folder = f"{table.partition}={quote(partition, safe='')}/{folder}"
    path = f"{table.name}/{folder}/part-0.parquet"
    size = writer.path.stat().st_size
    return Staged(Part(table.name, path, partition, fingerprint, writer.rows, size, sha256), writer.path)


def _complete_chunks(table: Table, rows: Rows, fill: Mapping[str, str | int]) -> Iterator[pa.Table]:
    """Sorted chunks in which no value of the leading sort column is cut in two: keys can be checked chunk by chunk."""
    if not isinstance(rows, Path):
        whole = _filled(table, as_table(table.name, rows), fill)
        if whole.num_rows:
            yield _sorted(table, whole)
        return
    lead, pending = table.sort[0], None
    for batch in _read(table, rows):
        chunk = _filled(table, batch, fill)
        bounds = pc.min_max(chunk[lead]).as_py()
        if pending is not None:
            if bounds["min"] < pending[lead][0].as_py():
                raise SchemaError(
                    f"{rows} is not sorted: {table.name}.{lead} goes back from {pending[lead][0]} to {bounds['min']}; "
                    f"sort it by {', '.join(table.sort)}"
                )
            chunk = pa.concat_tables([pending, chunk])
        is_last = pc.equal(chunk[lead], pa.scalar(bounds["max"], chunk.schema.field(lead).type))
        complete, pending = chunk.filter(pc.invert(is_last)), chunk.filter(is_last)
        if complete.num_rows:
            yield _sorted(table, complete)
    if pending is not None:
        yield _sorted(table, pending)


def _read(table: Table, path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows and table.sort[0] not in file.schema_arrow.names:
                raise SchemaError(f"{path} lacks the column {table.sort[0]!r} of the table {table.name!r}; give it")
            for batch in file.iter_batches(batch_size=table.row_group_rows):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(
            f"{path} cannot be read as Parquet rows of {table.name!r}: {error}; write it again"
        ) from error


def _filled(table: Table, rows: pa.Table, fill: Mapping[str, str | int]) -> pa.Table:
    """Constant columns that the caller need not write; a null in one of them means the constant too.

    Dictionary columns become plain ones here, where a chunk is small: Arrow does not sort by them.
    """
    for at, each in enumerate(rows.schema):
        if pa.types.is_dictionary(each.type):
            rows = rows.set_column(at, each.name, rows.column(at).cast(each.type.value_type))
    for name, value in fill.items():
        if name not in table.names:
            continue
        if name not in rows.column_names:
            constant = pa.repeat(pa.scalar(value, table.column(name).type), rows.num_rows)
            rows = rows.append_column(name, constant)
        elif rows[name].null_count:
            at = rows.column_names.index(name)
            rows = rows.set_column(at, name, pc.fill_null(rows[name].cast(table.column(name).type), value))
    return rows


def _sorted(table: Table, rows: pa.Table) -> pa.Table:
    by = [(name, "ascending") for name in table.sort if name in rows.column_names]
    return rows.sort_by(by) if by else rows


def _split(table: Table, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    if not table.partition:
        yield "", rows
        return
    values = pc.unique(rows[table.partition]).to_pylist()
    for value in values:
        yield value, rows if len(values) == 1 else rows.filter(pc.equal(rows[table.partition], value))
