"""The catalog: tables of a store, published whole, read by anyone, labelled by people. No torch in here.

publish, append        put rows into the store          (catalog.publish)
connect, Reader        read them with SQL               (catalog.connection)
Labels                 what people say of features      (catalog.mirror, catalog.labels)
verify                 is every file what it was?       (catalog.verify)
"""

from catalog.conform import conform
from catalog.connection import Limits, Reader, Version, connect
from catalog.errors import (
    CatalogError,
    DamagedError,
    LabelError,
    LockedError,
    NotFound,
    QueryError,
    QueryTimeout,
    SchemaError,
    StoreError,
)
from catalog.events import Event, new_event_id
from catalog.guard import guarded
from catalog.labels import LabelStore
from catalog.mirror import Labels
from catalog.publish import Publication, Published, append, publish
from catalog.query import QUERIES, query
from catalog.schema import SCHEMA_VERSION, TABLES, Column, Table, arrow_schema
from catalog.snapshot import current
from catalog.sqlite_labels import SQLiteLabels
from catalog.store import Store
from catalog.verify import Damage, verify

__all__ = [
    "QUERIES",
    "SCHEMA_VERSION",
    "TABLES",
    "CatalogError",
    "Column",
    "Damage",
    "DamagedError",
    "Event",
    "LabelError",
    "LabelStore",
    "Labels",
    "Limits",
    "LockedError",
    "NotFound",
    "Publication",
    "Published",
    "QueryError",
    "QueryTimeout",
    "Reader",
    "SQLiteLabels",
    "SchemaError",
    "Store",
    "StoreError",
    "Table",
    "Version",
    "append",
    "arrow_schema",
    "conform",
    "connect",
    "current",
    "guarded",
    "new_event_id",
    "publish",
    "query",
    "verify",
]
