"""Rows as given -> rows as their table has them, or a SchemaError that says which column is wrong and how.

`conform` casts, reorders and fills; it refuses unknown columns, missing or null keys, doubled keys, values that are
not one of the allowed ones, shares outside 0 to 1, and numbers that are not finite.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import SchemaError, nearest
from catalog.schema import Column, Table, arrow_schema, table_named
from catalog.schema.base import JSON, SHARE

__all__ = ["as_table", "conform", "refuse_doubled_keys"]

TOLERANCE = 1e-6  # shares that were summed in floating point
Columns: TypeAlias = Mapping[str, Any] | pa.Table


def conform(table_name: str, rows: pa.Table) -> pa.Table:
    """`rows` with exactly the columns, order and types of the table. Raises SchemaError."""
    table = table_named(table_name)
    _refuse_unknown(table, rows.column_names)
    columns = [_conform_column(table, column, rows) for column in table.columns]
    result = pa.Table.from_arrays(columns, schema=arrow_schema(table_name))
    refuse_doubled_keys(table, result)
    return result


def as_table(table_name: str, columns: Columns) -> pa.Table:
    """Sequences, NumPy arrays or Arrow arrays by column name -> an Arrow table, in the types of the table."""
    if isinstance(columns, pa.Table):
        return columns
    table = table_named(table_name)
    _refuse_unknown(table, columns)
    arrays = {name: _array(table, table.column(name), values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise SchemaError(
            f"columns of one table {table_name!r} differ in length: {lengths}; give each row every column"
        )
    return pa.table(arrays)


def refuse_doubled_keys(table: Table, rows: pa.Table) -> None:
    """Raises SchemaError with the first key that occurs twice."""
    if not table.key or rows.num_rows < 2:
        return
    if not _may_double(table, rows):
        return
    counted = rows.select(list(table.key)).group_by(list(table.key), use_threads=False).aggregate([([], "count_all")])
    if counted.num_rows == rows.num_rows:
        return
    doubled = counted.filter(pc.greater(counted["count_all"], 1)).slice(0, 1).to_pylist()[0]
    times = doubled.pop("count_all")
    raise SchemaError(f"table {table.name!r} has {times} rows with the key {doubled}; the key must be unique")


def _may_double(table: Table, rows: pa.Table) -> bool:
    """Whether a full count is needed: rows in the order of their keys hold a key twice only side by side."""
    by = [name for name in table.sort if name in table.key]
    constant = [name for name in table.key if name not in by]
    if any(pc.count_distinct(rows[name]).as_py() > 1 for name in constant):
        return True
    less = None
    for name in reversed(by):  # lexicographic: (a, b) < (a', b') if a < a', or a == a' and b < b'
        column = rows[name].combine_chunks()
        before, after = column.slice(0, len(column) - 1), column.slice(1)
        equal, smaller = pc.equal(before, after), pc.less(before, after)
        less = smaller if less is None else pc.or_(smaller, pc.and_(equal, less))
    return less is None or not pc.all(less).as_py()


def _refuse_unknown(table: Table, names: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in table.names:
            raise SchemaError(f"table {table.name!r} has no column {name!r}; {nearest(name, table.names)}")


def _array(table: Table, column: Column, values: Any) -> Any:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if getattr(values, "ndim", 1) == 2:  # a NumPy matrix: one list per row
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]).cast(pa.list_(flat.type))
    try:
        return pa.array(values, type=column.type)
    except (pa.ArrowException, OverflowError, TypeError):
        pass  # NumPy arrays of another width: convert as they are, cast below
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise _wrong_type(table, column, type(values).__name__, error) from error


def _wrong_type(table: Table, column: Column, got: Any, error: Exception) -> SchemaError:
    return SchemaError(
        f"column {table.name}.{column.name} must hold {column.type} ({column.meaning}), "
        f"got {got} that does not fit: {error}"
    )


def _conform_column(table: Table, column: Column, rows: pa.Table) -> Any:
    if column.name not in rows.column_names:
        if not column.nullable:
            raise SchemaError(f"table {table.name!r} lacks the column {column.name!r} ({column.meaning}); give it")
        return pa.nulls(rows.num_rows, column.type)
    values = _cast(table, column, rows[column.name])
    if not column.nullable and values.null_count:
        raise SchemaError(f"column {table.name}.{column.name} has {values.null_count} nulls; it must always be given")
    _check_values(table, column, values)
    return values


def _cast(table: Table, column: Column, values: Any) -> Any:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.ChunkedArray):  # combine_chunks of nothing
        values = pa.array([], values.type)
    if values.type.equals(column.type):
        return values
    try:
        if pa.types.is_timestamp(values.type):
            return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(column.type)
        return values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise _wrong_type(table, column, values.type, error) from error


def _check_values(table: Table, column: Column, values: Any) -> None:
    flat = _numbers(values)
    if flat is not None:
        finite = pc.is_finite(flat)
        if not pc.all(finite, min_count=0).as_py():
            bad = pc.filter(flat, pc.invert(finite))
            raise SchemaError(
                f"column {table.name}.{column.name} has {len(bad)} values that are not finite, the first is {bad[0]}; "
                "use null for what could not be measured"
            )
    if column.unit == SHARE and len(values):
        _refuse_outside(table, column, values, (0.0, 1.0))
    if column.one_of:
        known = pc.or_kleene(pc.is_in(values, pa.array(column.one_of, pa.string())), pc.is_null(values))
        if not pc.all(known, min_count=0).as_py():
            bad = pc.filter(values, pc.invert(known))[0].as_py()
            raise SchemaError(
                f"column {table.name}.{column.name} is {bad!r}; it must be one of {', '.join(column.one_of)}"
            )
    if column.unit == JSON:
        _refuse_broken_json(table, column, values)


def _numbers(values: Any) -> Any | None:
    """The floating-point numbers in a column or in its lists; None where there are none."""
    kind = values.type
    if pa.types.is_list(kind):
        return _numbers(values.flatten())
    if pa.types.is_map(kind):
        return _numbers(values.items)
    return values if pa.types.is_floating(kind) else None


def _refuse_outside(table: Table, column: Column, values: Any, bounds: tuple[float, float]) -> None:
    low, high = bounds
    found = pc.min_max(values).as_py()
    if found["min"] is None:
        return
    if found["min"] < low - TOLERANCE or found["max"] > high + TOLERANCE:
        raise SchemaError(
            f"column {table.name}.{column.name} ({column.unit}) runs from {found['min']:g} to {found['max']:g}; "
            f"it must stay within {low:g} and {high:g}"
        )


def _refuse_broken_json(table: Table, column: Column, values: Any) -> None:
    for text in pc.unique(values).drop_null().to_pylist():
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise SchemaError(
                f"column {table.name}.{column.name} must hold JSON, got {text[:80]!r}: {error}"
            ) from error
