"""What a table and a column are, and the few types and units that all tables share."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Writing = Literal["replaced", "appended", "event"]

STR, BOOL = pa.string(), pa.bool_()
I8, I32, I64 = pa.int8(), pa.int32(), pa.int64()
F32, F64 = pa.float32(), pa.float64()
TIME = pa.timestamp("us")
STRS, I32S, I64S, F32S, F64S = (pa.list_(kind) for kind in (STR, I32, I64, F32, F64))
NUMBERS = pa.map_(STR, F64)

ID = "identifier"
TEXT = "text"
WORD = "one of"
COUNT = "count"
TOKENS = "tokens"
SHARE = "share, 0 to 1"
ACT = "f, in the SAE's own unit"
LOGIT = "logit"
COSINE = "cosine, -1 to 1"
POSITION = "token position"
SHA = "sha256, hex"
UTC = "UTC"
JSON = "JSON"
SECONDS = "s"
BYTES = "bytes"
CHARS = "characters"
NATS = "nats per token"
YES = "true or false"
NONE = "none"


@dataclass(frozen=True)
class Column:
    """One column: `unit` says how to read the number, `one_of` lists the only values a text may take."""

    name: str
    type: Any  # a pyarrow DataType; pyarrow carries no types of its own
    unit: str
    meaning: str
    nullable: bool = True
    one_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table: what a row is, how it is written, how it lies on disk.

    `partition` names the column by which files are kept and replaced (empty: one run of parts);
    `key` is unique and never null; `volatile` rows differ from run to run and are left out of comparisons.
    """

    name: str
    group: str
    meaning: str
    writing: Writing
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    sort: tuple[str, ...] = ()
    partition: str = ""
    volatile: bool = False
    row_group_rows: int = 122_880

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


def identifier(name: str, meaning: str) -> Column:
    return Column(name, STR, ID, meaning, nullable=False)


def word(name: str, meaning: str, one_of: tuple[str, ...], nullable: bool = True) -> Column:
    return Column(name, STR, WORD, meaning, nullable, one_of)


SAE_ID = identifier("sae_id", "the SAE: family@version")
FEATURE = Column("feature", I32, "index", "the feature, 0 to n_features - 1", nullable=False)
FINGERPRINT = Column("fingerprint", STR, SHA, "the artifact these rows came from", nullable=False)
DATASET_ID = identifier("dataset_id", "the data set")
