"""SQL that somebody typed: one question, no more, and an answer or an error that shows where it went wrong."""

import contextlib
import re
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from catalog.errors import DamagedError, QueryError, QueryTimeout

__all__ = ["answering", "guarded"]

EXPLAIN = re.compile(r"explain\s+(?!analy[sz]e\b)", re.IGNORECASE)
DAMAGE = re.compile(r"\.parquet|decompress|zstd|thrift|magic bytes", re.IGNORECASE)
DAMAGE_KINDS = ("IOException", "InvalidInputException", "SerializationException", "Error", "InternalException")
LINE = re.compile(r"^LINE (\d+): ", re.MULTILINE)
ADVICE = {
    "MULTI": "a PIVOT needs its values spelled out: on column in ('a', 'b')",
    "EXPLAIN": "write explain before the question, without analyze",
}


def guarded(connection: duckdb.DuckDBPyConnection, sql: str, limit: int) -> pa.Table:
    """The first `limit` rows of one SELECT (or the plan of one, with `explain`). Raises QueryError.

    The question runs as a subquery, where DuckDB refuses everything that writes, also inside a WITH; both forms must
    parse as one SELECT, so that no bracket or comment breaks out. Time and memory: see `catalog.console`.
    """
    text = sql.strip().rstrip(";").strip()
    is_plan = EXPLAIN.match(text)
    text = text[is_plan.end() :] if is_plan else text
    wrapped = f"select * from (\n{text}\n) as answer limit {int(limit)}"
    with answering(text):
        _refuse_all_but_select(connection, text)
    with answering(text, lines_before=1):
        _refuse_all_but_select(connection, wrapped)
        try:
            return connection.sql(f"explain {wrapped}" if is_plan else wrapped).to_arrow_table()
        except (duckdb.BinderException, duckdb.CatalogException):
            connection.execute(f"explain\n{text}").fetchall()  # says the same, and marks the line
            raise


@contextlib.contextmanager
def answering(sql: str, lines_before: int = 0) -> Iterator[None]:
    """Turns what DuckDB raises into our errors, with the line of `sql` that it marks."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise QueryTimeout("the question was stopped before it was answered; ask for less at once") from error
    except duckdb.OutOfMemoryException as error:
        raise QueryTimeout(
            f"the question needs more memory than it was given; ask for less at once ({error})"
        ) from error
    except duckdb.Error as error:
        if type(error).__name__ in DAMAGE_KINDS and DAMAGE.search(str(error)):
            raise DamagedError(
                f"a file of the catalog is missing or damaged: {error}\nRun `almanac verify` to see which files, "
                "and publish again or restore them from a backup"
            ) from error
        raise QueryError(_marked(str(error), sql, lines_before)) from error


def _refuse_all_but_select(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    kinds = [statement.type.name for statement in connection.extract_statements(text)]
    if kinds == ["SELECT"]:
        return
    if not kinds:
        raise QueryError("there is no question in this SQL; write one SELECT")
    advice = next((ADVICE[kind] for kind in kinds if kind in ADVICE), "only questions are answered here")
    raise QueryError(f"expected one SELECT, got {len(kinds)} statement(s): {', '.join(kinds)}; {advice}")


def _marked(message: str, sql: str, lines_before: int) -> str:
    """DuckDB's message with line numbers as the person wrote them."""
    n_lines = sql.count("\n") + 1

    def renumbered(match: re.Match[str]) -> str:
        number = min(max(int(match.group(1)) - lines_before, 1), n_lines)
        return f"LINE {number}: " + " " * (len(match.group(1)) - len(str(number)))

    return LINE.sub(renumbered, message)
