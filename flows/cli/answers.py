"""An answer (an Arrow table) as a person or a program wants it: a table on the terminal, CSV, JSON (lines), Parquet."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from catalog import QueryError
from catalog.files import replacing
from flows.cli.common import out, safe, text

__all__ = ["Format", "as_csv", "as_jsonl", "show_answer"]

Format = Literal["table", "csv", "json", "jsonl", "parquet"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}
PLAN_COLUMNS = ["explain_key", "explain_value"]
LONGEST_CELL = 200
READABLE_WIDTH = 20  # a longer text may be folded


def show_answer(answer: pa.Table, form: Format | None, output: Path | None, limit: int | None = None) -> None:
    """Print the answer, or write it to a file. The answer may have one row more than `limit`: then it was cut."""
    form = form or (SUFFIXES.get(output.suffix, "table") if output else "table")
    is_cut = limit is not None and answer.num_rows > limit
    answer = _with_unique_names(answer.slice(0, limit) if is_cut else answer)
    if output is not None:
        _write(answer, form, output)
    elif form == "table":
        _print_table(answer)
    elif form == "parquet":
        if sys.stdout.isatty():
            raise QueryError("Parquet is not for a terminal; name a file with --output")
        pq.write_table(answer, sys.stdout.buffer, compression="zstd")
    else:
        # not through `typer.echo`, which takes escape sequences out of data
        content = as_csv(answer, safe_for_terminal=sys.stdout.isatty()) if form == "csv" else AS_TEXT[form](answer)
        sys.stdout.write(content)
    if is_cut:
        Console(stderr=True).print(text(f"the first {limit} rows; ask for more with --limit", style="dim"))


def as_csv(answer: pa.Table, safe_for_terminal: bool = False) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(answer.column_names)
    for row in answer.to_pylist():
        cells = [_as_cell(value) for value in row.values()]
        writer.writerow([safe(cell) if safe_for_terminal else cell for cell in cells])
    return file.getvalue()


def as_json(answer: pa.Table) -> str:
    """One array of objects, one row a line."""
    return "[" + ",\n ".join(_json_rows(answer)) + "]\n"


def as_jsonl(answer: pa.Table) -> str:
    """One object a line."""
    return "".join(row + "\n" for row in _json_rows(answer))


def _json_rows(answer: pa.Table) -> list[str]:
    rows = [json.dumps(_plain(row), ensure_ascii=False, default=str) for row in answer.to_pylist()]
    return [_without_controls(row) for row in rows]


def _without_controls(content: str) -> str:
    return re.sub(r"[\x7f-\x9f\u061c\u200e-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", _escaped, content)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"


def _with_unique_names(answer: pa.Table) -> pa.Table:
    """Two columns of one name stay two columns."""
    names: list[str] = []
    for name in answer.column_names:
        n, unique = 1, name
        while unique in names:
            n, unique = n + 1, f"{name}_{n}"
        names.append(unique)
    return answer.rename_columns(names)


def _write(answer: pa.Table, form: Format, output: Path) -> None:
    try:
        with replacing(output.resolve()) as aside:
            if form == "parquet":
                pq.write_table(answer, aside, compression="zstd")
            else:
                aside.write_text(AS_TEXT[form](answer), encoding="utf-8", newline="")
    except OSError as error:
        raise QueryError(f"{output} cannot be written: {error.strerror or error}; name another file") from error


def _as_text(answer: pa.Table) -> str:
    file = io.StringIO()
    Console(file=file, width=400, highlight=False).print(_table(answer))
    return file.getvalue()


AS_TEXT: dict[str, Callable[[pa.Table], str]] = {
    "csv": as_csv, "json": as_json, "jsonl": as_jsonl, "table": _as_text,
}  # fmt: skip


def _print_table(answer: pa.Table) -> None:
    console = out()
    if answer.num_rows == 0:
        console.print(text(f"no rows ({', '.join(answer.column_names)})", style="dim"))
        return
    if answer.column_names == PLAN_COLUMNS:
        for line in answer[1][0].as_py().split("\n"):
            console.print(text(line), soft_wrap=True)
        return
    fits = sum(_width(answer, name) for name in answer.column_names) <= console.width
    console.print(_table(answer) if fits else _records(answer))


def _width(answer: pa.Table, name: str) -> int:
    cells = (len(_as_short_cell(value)) for value in answer[name].to_pylist())
    return max(len(name), min(max(cells), READABLE_WIDTH)) + 1


def _records(answer: pa.Table) -> Table:
    """One line per value, for answers too wide for the terminal."""
    table = Table.grid(padding=(0, 2))
    for row in answer.to_pylist():
        for name, value in row.items():
            table.add_row(text(name, "bold"), text(_as_short_cell(value), "dim" if value is None else ""))
        table.add_row()
    return table


def _table(answer: pa.Table) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in answer.schema:
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        table.add_column(
            text(column.name), justify="right" if is_number else "left", overflow="fold", no_wrap=is_number
        )
    for row in answer.to_pylist():
        table.add_row(*(text(_as_short_cell(value), "dim" if value is None else "") for value in row.values()))
    return table


def _as_short_cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    is_words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    cell = "  ".join(value) if is_words else _as_cell(value)
    return cell if len(cell) <= LONGEST_CELL else cell[: LONGEST_CELL - 1] + "…"


def _as_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, dict, tuple)):
        return json.dumps(_plain(value), ensure_ascii=False, default=str)
    return str(value)


def _plain(value: Any) -> Any:
    """JSON knows no infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.hex() if isinstance(value, bytes) else value
