"""The questions that come with the catalog: one file of SQL each, in catalog/queries.

A file begins with a comment that says what is asked, `params:` (name, type, default) and `grain:` (what one row is).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from catalog.errors import NotFound, QueryError, nearest
from catalog.guard import answering

__all__ = ["QUERIES", "Parameter", "Query", "query"]

FOLDER = Path(__file__).parent / "queries"
PARAMETER = re.compile(r"^(?P<name>\w+) (?P<type>text|int|float|bool)(?: = (?P<default>.*))?$")
TYPES: dict[str, type] = {"text": str, "int": int, "float": float}
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Parameter:
    """One `$name` of a query. `default` None with `is_required` False stands for null."""

    name: str
    type: str
    default: Any
    is_required: bool

    def __str__(self) -> str:
        return f"{self.name} {self.type}" + ("" if self.is_required else f" = {self.default!r}")


@dataclass(frozen=True)
class Query:
    """A question, what it needs to know, and what one row of the answer is."""

    name: str
    question: str
    parameters: tuple[Parameter, ...]
    grain: str
    sql: str


def query(connection: duckdb.DuckDBPyConnection, name: str, /, **parameters: Any) -> pa.Table:
    """The answer to the question of that name. Raises NotFound, QueryError."""
    if name not in QUERIES:
        raise NotFound(f"no query {name!r}; {nearest(name, QUERIES)}")
    asked = QUERIES[name]
    values = _values(asked, parameters)
    with answering(asked.sql):
        return connection.sql(asked.sql, params=values).to_arrow_table()


def _values(asked: Query, given: Mapping[str, Any]) -> dict[str, Any]:
    names = [parameter.name for parameter in asked.parameters]
    for name in given:
        if name not in names:
            raise QueryError(f"query {asked.name!r} has no parameter {name!r}; {nearest(name, names)}")
    return {
        p.name: _converted(asked, p, given[p.name]) if p.name in given else _default(asked, p) for p in asked.parameters
    }


def _default(asked: Query, parameter: Parameter) -> Any:
    if parameter.is_required:
        raise QueryError(f"query {asked.name!r} needs the parameter {parameter.name} ({parameter.type}); give it")
    return parameter.default


def _converted(asked: Query, parameter: Parameter, value: Any) -> Any:
    """Text, as it comes from a command line or a URL, in the type of the parameter."""
    if not isinstance(value, str) or parameter.type == "text":
        return value
    try:
        return _parsed(parameter.type, value)
    except ValueError:
        raise QueryError(
            f"parameter {parameter.name} of query {asked.name!r} must be {parameter.type}, got {value!r}"
        ) from None


def _parsed(kind: str, text: str) -> Any:
    if text.strip().lower() == "null":
        return None
    if kind == "bool":
        if text.strip().lower() not in TRUE + FALSE:
            raise ValueError(text)
        return text.strip().lower() in TRUE
    return TYPES[kind](text)


def _read(path: Path) -> Query:
    sql = path.read_text(encoding="utf-8")
    header = [line.removeprefix("--").strip() for line in sql.splitlines() if line.startswith("--")]
    question = " ".join(line for line in header if not line.startswith(("params:", "grain:")))
    fields = dict(line.split(":", 1) for line in header if line.startswith(("params:", "grain:")))
    declared = [part.strip() for part in fields.get("params", "").split(",") if part.strip() not in ("", "none")]
    return Query(path.stem, question, tuple(map(_parameter, declared)), fields["grain"].strip(), sql)


def _parameter(declared: str) -> Parameter:
    found = PARAMETER.match(declared)
    assert found, f"a parameter is `name type` or `name type = default`, not {declared!r}"
    default = found["default"]
    value = None if default is None else _parsed(found["type"], default.strip("'"))
    return Parameter(found["name"], found["type"], value, is_required=default is None)


QUERIES: dict[str, Query] = {path.stem: _read(path) for path in sorted(FOLDER.glob("*.sql"))}
