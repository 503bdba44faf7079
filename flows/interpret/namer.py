"""Every feature that fires -> its first name, with evidence: rows of `explanation`."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from catalog.guard import answering
from flows.interpret.choose import Chooser, Criterion, Firings, Found
from flows.interpret.patterns import Pattern, as_json
from flows.interpret.text import Text, load_text

__all__ = ["METHOD", "NO_PATTERN", "names"]

METHOD = "offline namer 1"
NO_PATTERN = "no clear pattern"
FEATURES_AT_ONCE = 512

FEW_FIRINGS = 10
"""With fewer on the sample, the firings shown in the examples count as well."""

PROMOTED = 4
SILENT = ("near_miss", "negative")

_FEATURES = """
select feature, coalesce(top_tokens[1:$n], []) as promoted
from feature where sae_id = $sae_id and status <> 'dead' order by feature
"""
_FIRINGS = """
select feature, sequence_id, position, act from activation
where sae_id = $sae_id and feature between $first and $last
order by feature, sequence_id, position
"""
_EXAMPLES = """
select feature, bucket, sequence_id, position, fire_positions, fire_acts from example
where sae_id = $sae_id and feature between $first and $last order by feature, bucket, rank
"""


class _Tokens(NamedTuple):
    """Tokens that go with features, sorted by feature: rows of the text, and how strongly the feature fires there."""

    feature: np.ndarray
    rows: np.ndarray
    acts: np.ndarray

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and activations of one feature."""
        start, stop = np.searchsorted(self.feature, [feature, feature + 1])
        return self.rows[start:stop], self.acts[start:stop]


def names(
    connection: duckdb.DuckDBPyConnection, sae_id: str, criterion: Criterion, tick: Callable[[int], None]
) -> pa.Table:
    """feature, text, evidence (JSON) of every feature that fires; the same tables give the same bytes."""
    text = load_text(connection, sae_id)
    chooser = Chooser(text, criterion)
    asked = _ask(connection, _FEATURES, sae_id=sae_id, n=PROMOTED)
    features = list(zip(asked["feature"].to_pylist(), asked["promoted"].to_pylist(), strict=True))
    rows: list[tuple[int, str, str]] = []
    for start in range(0, len(features), FEATURES_AT_ONCE):
        block = features[start : start + FEATURES_AT_ONCE]
        rows.extend(_block(connection, sae_id, text, chooser, block))
        tick(len(block))
    feature, texts, evidence = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"feature": pa.array(feature, pa.int32()), "text": pa.array(texts, pa.string())}
    return pa.table(columns | {"evidence": pa.array(evidence, pa.string())})


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, **parameters: Any) -> pa.Table:
    with answering(sql):
        return connection.sql(sql, params=parameters).to_arrow_table()


def _block(  # noqa: PLR0913 (a stretch of features, and what is the same for all)
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    text: Text,
    chooser: Chooser,
    block: Sequence[tuple[int, Sequence[str]]],
) -> Iterator[tuple[int, str, str]]:
    """The names of neighbouring features: their firings are read at once, so that memory stays bounded."""
    bounds = {"sae_id": sae_id, "first": block[0][0], "last": block[-1][0]}
    sampled = _tokens(text, _ask(connection, _FIRINGS, **bounds))
    examples = _ask(connection, _EXAMPLES, **bounds)
    shown, windows = _shown(text, examples), _windows(text, examples)
    for feature, promoted in block:
        rows, acts = sampled.of(feature)
        is_rare = rows.size < FEW_FIRINGS
        if is_rare:
            rows, acts = _joined((rows, acts), windows.of(feature))
        found = chooser.best(Firings.of(rows, acts), tuple(promoted))
        is_clear = found is not None and found.f >= chooser.criterion.clear_f
        evidence: dict[str, Any] = {"is_clear": is_clear, "n_firings": int(rows.size)}
        if found is not None:
            evidence |= _evidence(found, int(rows.size)) | {"measured_on": "examples" if is_rare else "sample"}
            evidence["examples"] = _on_examples(text, found.pattern, *shown.of(feature))
        name = found.pattern.words() if found is not None and is_clear else NO_PATTERN
        yield feature, name, json.dumps(evidence, ensure_ascii=True, sort_keys=True)


def _tokens(text: Text, asked: pa.Table) -> _Tokens:
    feature, sequence, position, acts = (
        asked[name].to_numpy() for name in ("feature", "sequence_id", "position", "act")
    )
    return _Tokens(feature, text.rows(sequence, position), acts)


def _shown(text: Text, examples: pa.Table) -> _Tokens:
    """The token that each example is about; 0 where the feature is silent there."""
    feature, sequence, position = (examples[name].to_numpy() for name in ("feature", "sequence_id", "position"))
    fires = ~np.isin(examples["bucket"].to_numpy(zero_copy_only=False), SILENT)
    return _Tokens(feature, text.rows(sequence, position), fires.astype(np.float32))


def _windows(text: Text, examples: pa.Table) -> _Tokens:
    """Every firing in the examples' windows."""
    positions = examples["fire_positions"].combine_chunks()
    of = np.repeat(np.arange(examples.num_rows), np.diff(positions.offsets.to_numpy()))
    rows = text.rows(examples["sequence_id"].to_numpy()[of], positions.flatten().to_numpy())
    return _Tokens(
        examples["feature"].to_numpy()[of], rows, examples["fire_acts"].combine_chunks().flatten().to_numpy()
    )


def _joined(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each row once."""
    rows, acts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    unique, first = np.unique(rows, return_index=True)
    return unique, acts[first]


def _evidence(found: Found, n_firings: int) -> dict[str, Any]:
    plain = _rates(found.n_hit, found.n_matching, n_firings)
    weighted = {"precision": found.precision, "recall": found.recall, "f": found.f, "score": found.score}
    return {"pattern": as_json(found.pattern), "words": found.pattern.words(), **_rounded(weighted), "counts": plain}


def _on_examples(text: Text, pattern: Pattern, rows: np.ndarray, fires: np.ndarray) -> dict[str, float]:
    """On the tokens that the examples are about: those that fire, near misses and negatives."""
    rows, first = np.unique(rows, return_index=True)
    fires = fires[first] > 0
    held = text.holds(pattern, rows)
    rates = _rates(int((held & fires).sum()), int(held.sum()), int(fires.sum()))
    return {**rates, "n_positive": int(fires.sum()), "n_negative": int((~fires).sum())}


def _rates(n_hit: int, n_matching: int, n_firings: int) -> dict[str, float]:
    precision, recall = n_hit / max(1, n_matching), n_hit / max(1, n_firings)
    return _rounded({"precision": precision, "recall": recall, "f": 2 * n_hit / max(1, n_matching + n_firings)})


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}
