"""What must hold between columns and between tables before anything is published."""

from collections.abc import Callable, Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import SchemaError
from catalog.files import read_parquet
from catalog.schema import Table

__all__ = ["check_examples", "checks_for"]

N_QUANTILES = 11
FEATURE_COLUMNS = ("feature", "nearest_feature")


def checks_for(n_features: int | None) -> Callable[[Table, pa.Table], None]:
    """The check of one table's rows, for an SAE of that many features (None: rows of no particular SAE)."""

    def check(table: Table, rows: pa.Table) -> None:
        if n_features is not None:
            _check_features(table, rows, n_features)
        if "act_quantiles" in table.names:
            _check_quantiles(table, rows["act_quantiles"])
        for left, right, extra in _PAIRED.get(table.name, ()):
            _check_lengths(table, rows, (left, right), extra)

    return check


#: columns of one table whose lists run side by side: (left, right, how many more the left one has)
_PAIRED = {
    "histogram": (("edges", "counts", 1),),
    "example": (("fire_positions", "fire_acts", 0),),
    "sequence": (("token_ids", "tokens", 0), ("token_ids", "token_chars", 0), ("document_ids", "document_starts", 0)),
    "feature": (("top_tokens", "top_logits", 0), ("bottom_tokens", "bottom_logits", 0)),
}


def _check_features(table: Table, rows: pa.Table, n_features: int) -> None:
    for name in FEATURE_COLUMNS:
        if name not in table.names:
            continue
        found = pc.min_max(rows[name]).as_py()
        if found["min"] is not None and (found["min"] < 0 or found["max"] >= n_features):
            raise SchemaError(
                f"column {table.name}.{name} runs from {found['min']} to {found['max']}, "
                f"but the SAE has the features 0 to {n_features - 1}; leave the others out"
            )


def _check_quantiles(table: Table, column: pa.ChunkedArray) -> None:
    lists = column.combine_chunks().drop_null() if column.num_chunks else column
    if len(lists) == 0:
        return
    lengths = pc.list_value_length(lists)
    if not pc.all(pc.equal(lengths, N_QUANTILES)).as_py():
        raise SchemaError(
            f"column {table.name}.act_quantiles must hold {N_QUANTILES} numbers or null; got {lengths[0]}"
        )
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(-1, N_QUANTILES)
    falling = np.flatnonzero((np.diff(values, axis=1) < 0).any(axis=1))
    if len(falling):
        raise SchemaError(
            f"column {table.name}.act_quantiles must not fall, got {values[falling[0]].tolist()}; give q0, q.1 … q1"
        )


def _check_lengths(table: Table, rows: pa.Table, names: tuple[str, str], extra: int) -> None:
    left, right = (pc.list_value_length(rows[name]) for name in names)
    wrong = pc.not_equal(left, pc.add(right, extra))
    if pc.any(wrong, min_count=0).as_py():
        at = pc.index(wrong, True).as_py()
        wanted = f"{extra} more than" if extra else "as many as"
        raise SchemaError(
            f"table {table.name!r}: {names[0]} must have {wanted} {names[1]}, got {left[at]} and {right[at]}"
        )


def check_examples(examples: Iterable[Path], sequences: Iterable[Path]) -> None:
    """Every example's sequence must be in the catalog. Raises SchemaError with the first that is not."""
    examples, sequences = list(examples), list(sequences)
    if not examples:
        return
    connection = duckdb.connect(":memory:", config={"threads": 2})
    try:
        if not sequences:
            raise SchemaError("there are examples but no sequences they could point into; publish the corpus with them")
        missing = connection.execute(
            f"select e.dataset_id, e.sequence_id from {read_parquet(examples)} as e "
            f"anti join {read_parquet(sequences)} as s using (dataset_id, sequence_id) limit 1"
        ).fetchall()
    finally:
        connection.close()
    if missing:
        dataset_id, sequence_id = missing[0]
        raise SchemaError(
            f"an example points to sequence {sequence_id} of data set {dataset_id!r}, which is not in the catalog; "
            "publish the whole corpus that the examples were drawn from"
        )
