"""Everything that the catalog refuses, as one tree.

    CatalogError (ValueError)
    ├── SchemaError     rows that do not fit their table
    ├── NotFound        a table, query, SAE or feature that is not there
    ├── StoreError      a folder that cannot be used as a store
    │   └── LockedError another process holds it
    ├── DamagedError    a file of the store is missing or not what was published
    ├── QueryError      SQL that is wrong or not allowed
    │   └── QueryTimeout  SQL that was stopped
    └── LabelError      an event of a person that cannot be recorded

Every message says what went wrong, what was got, what was wanted and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CatalogError",
    "DamagedError",
    "LabelError",
    "LockedError",
    "NotFound",
    "QueryError",
    "QueryTimeout",
    "SchemaError",
    "StoreError",
    "nearest",
]


class CatalogError(ValueError):
    """The root of what `catalog` raises on purpose."""


class SchemaError(CatalogError):
    """Rows do not fit their table."""


class NotFound(CatalogError):
    """A table, query, SAE or feature of this name is not in the catalog."""


class StoreError(CatalogError):
    """A folder cannot be used as a store."""


class LockedError(StoreError):
    """Another process holds the store and did not let go in time."""


class DamagedError(CatalogError):
    """A file of the store is missing or is not what was published."""


class QueryError(CatalogError):
    """SQL is wrong, or does what a question may not do."""


class QueryTimeout(QueryError):
    """SQL took longer, or more memory, than it was given."""


class LabelError(CatalogError):
    """An event of a person cannot be recorded as it is."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, else some of them."""
    known = sorted(known)
    if not known:
        return "there are none yet"
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(known[:12])}{' …' if len(known) > 12 else ''}"
