"""The only place where tables are defined: every table and column with its type, unit and meaning.

DDL, validation, the reference page and tests are made from `TABLES`. A change of a published table is a new
`SCHEMA_VERSION`, and a step in `catalog.migrate` where old rows need more than nulls in new columns.
"""

import pyarrow as pa

from catalog.errors import NotFound, nearest
from catalog.schema import applications, features, interpretation, people, provenance
from catalog.schema.base import Column, Table, Writing

__all__ = ["SCHEMA_VERSION", "TABLES", "Column", "Table", "Writing", "arrow_schema", "table_named"]

SCHEMA_VERSION = 2

TABLES: dict[str, Table] = {
    table.name: table
    for module in (provenance, features, interpretation, people, applications)
    for table in module.TABLES
}


def table_named(name: str) -> Table:
    """The table called `name`. Raises NotFound with the nearest names."""
    try:
        return TABLES[name]
    except KeyError:
        raise NotFound(f"no table {name!r} in the catalog; {nearest(name, TABLES)}") from None


def arrow_schema(table: str) -> pa.Schema:
    """Column names, types and nullability of a table, as its Parquet files have them."""
    return pa.schema([pa.field(c.name, c.type, c.nullable) for c in table_named(table).columns])
