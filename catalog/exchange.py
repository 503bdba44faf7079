"""Features, examples and explanations out of the catalog and into it, in the words of Neuronpedia's bulk files.

`Shared` holds what such files hold of one SAE, as plain rows with their keys; `catalog.exchange_files` writes and
reads them, as Neuronpedia's JSON lines or SAEDashboard's JSON.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from catalog.errors import SchemaError
from catalog.publish import Publication
from catalog.query import query

__all__ = ["Shared", "as_explanations", "as_publication", "content_of", "shared"]

Row = dict[str, Any]
AT_ONCE = 128  # features asked for at once
SHOWN = ("top", "q1", "q2", "q3", "q4", "q5")  # the buckets that the other formats know
QUANTILE_SHARE = 0.2


@dataclass(frozen=True)
class Shared:
    """What is passed on of one SAE: one row a feature, an example, an explanation. `layer` is Neuronpedia's source."""

    model_id: str
    layer: str
    features: list[Row]
    activations: list[Row]
    explanations: list[Row]


def shared(connection: duckdb.DuckDBPyConnection, sae_id: str, features: Sequence[int] | None = None) -> Shared:
    """An SAE, or some of its features, as others read it. People's labels go along as explanations of type `human`."""
    model_id, source, n_features = connection.execute(
        "select model_id, coalesce(neuronpedia_source, family), n_features from sae where sae_id = $id", {"id": sae_id}
    ).fetchall()[0]
    wanted = sorted(set(features)) if features is not None else list(range(n_features))
    answer = Shared(model_id or "", source, [], [], [])
    for start in range(0, len(wanted), AT_ONCE):
        _collect(connection, sae_id, wanted[start : start + AT_ONCE], answer)
    return answer


def _collect(connection: duckdb.DuckDBPyConnection, sae_id: str, wanted: list[int], answer: Shared) -> None:
    asked = {"sae_id": sae_id, "features": ",".join(map(str, wanted))}
    own = {"modelId": answer.model_id, "layer": answer.layer}

    def lists(name: str, **more: Any) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in query(connection, name, **asked, **more).to_pylist():
            found.setdefault(row["feature"], []).append(row)
        return found

    acts, logit_bins = (lists("histograms_of_features", kind=kind) for kind in ("act", "logit"))
    logits, near = lists("logits_of_features", n=10_000), lists("neighbors_of_features", n=10_000)
    for row in query(connection, "statistics_of_features", **asked).to_pylist():
        at = row["feature"]
        facts = (acts.get(at, []), logit_bins.get(at, []), logits.get(at, []), near.get(at, []))
        answer.features.append({**own, "index": str(at), **_feature(row, sae_id, *facts)})
    for examples in lists("examples_of_features").values():
        shown = [{**own, "index": str(e["feature"]), **_activation(e)} for e in examples if e["bucket"] in SHOWN]
        answer.activations.extend(shown)
    said = query(connection, "said_of_features", **asked).to_pylist()
    answer.explanations.extend({**own, "index": str(row.pop("feature")), **row} for row in said)


def _feature(  # noqa: PLR0913 (one list per table)
    row: Row, sae_id: str, acts: list[Row], logit_bins: list[Row], logits: list[Row], near: list[Row]
) -> Row:
    promoted, suppressed = ([each for each in logits if each["sign"] == sign] for sign in (1, -1))
    own = [each for each in near if each["other_sae_id"] == sae_id]
    cosine, pearson = ([n for n in own if n["kind"] == kind] for kind in ("decoder_cosine", "correlation"))
    return {
        "maxActApprox": row["act_max"] or 0.0,
        "frac_nonzero": row["density"] or 0.0,
        "pos_str": [each["token"] for each in promoted],
        "pos_values": [each["logit"] for each in promoted],
        "neg_str": [each["token"] for each in suppressed],
        "neg_values": [each["logit"] for each in suppressed],
        **_bars("freq_hist_data_bar", acts),
        **_bars("logits_hist_data_bar", logit_bins),
        "correlated_features_indices": [each["other_feature"] for each in pearson],
        "correlated_features_pearson": [each["score"] for each in pearson],
        "topkCosSimIndices": [each["other_feature"] for each in cosine],
        "topkCosSimValues": [each["score"] for each in cosine],
        "hasVector": False,
    }


def _bars(name: str, histograms: list[Row]) -> Row:
    """A bar's value is the middle of its bin."""
    if not histograms:
        return {f"{name}_heights": [], f"{name}_values": []}
    edges = np.array(histograms[0]["edges"], dtype=np.float64)
    return {f"{name}_heights": histograms[0]["counts"], f"{name}_values": ((edges[1:] + edges[:-1]) / 2).tolist()}


def _activation(example: Row) -> Row:
    acts = dict(zip(example["fire_positions"] or [], example["fire_acts"] or [], strict=True))
    tokens = example["tokens"] or []
    values = [acts.get(example["window_start"] + at, 0.0) for at in range(len(tokens))]
    is_top = example["bucket"] == "top"
    return {
        "tokens": tokens,
        "values": values,
        "maxValue": max(values, default=0.0),
        "maxValueTokenIndex": int(np.argmax(values)) if values else 0,
        "minValue": min(values, default=0.0),
        "binMin": -1.0 if is_top else example["bucket_low"],
        "binMax": example["bucket_high"],
        "binContains": -1.0 if is_top else QUANTILE_SHARE,
        "qualifyingTokenIndex": example["position"] - example["window_start"],
        "dataSource": example["uri"],
    }


def as_publication(given: Shared, family: str, n_features: int | None = None) -> Publication:
    """What others wrote, as one SAE of the catalog. A feature that they left out becomes a row that says `dead`.

    Its fingerprint is a hash of the rows: the same files are the same version. Raises SchemaError.
    """
    indices = [_index(row) for row in given.features]
    if not indices:
        raise SchemaError("there are no features in these files; give the files with the features")
    n = n_features or max(indices) + 1
    fingerprint = content_of(given)
    dataset = f"{family}-examples"
    sequences = _sequences(given.activations)
    tables: dict[str, Any] = {
        "sae": {"n_features": [n], "model_id": [given.model_id or None], "neuronpedia_source": [given.layer],
                "origin": ["neuronpedia or saedashboard"]},
        "feature": _table(_feature_rows(given.features, n, dataset)),
        "feature_logit": _table([row for each in given.features for row in _logit_rows(each)]),
        "histogram": _table([row for each in given.features for row in _histogram_rows(each, dataset)]),
        "neighbor": _table([row for each in given.features for row in _neighbor_rows(each)]),
        "example": _table(_example_rows(given.activations, sequences, dataset)),
    }  # fmt: skip
    own = {"dataset_id": [dataset], "fingerprint": [fingerprint]}
    corpus: dict[str, Any] = {"dataset": {**own, "role": ["general"], "n_sequences": [len(sequences)]}}
    if sequences:
        corpus["document"] = {**own, "document_id": [0], "uri": [f"examples of {given.layer}"]}
        rows = [{"dataset_id": dataset, "fingerprint": fingerprint, "sequence_id": at, "document_id": 0,
                 "start_token": 0, "n_tokens": len(tokens), "tokens": list(tokens), "document_ids": [0],
                 "document_starts": [0]} for tokens, at in sequences.items()]  # fmt: skip
        corpus["sequence"] = _table(rows)
    return Publication(family, fingerprint, {name: rows for name, rows in tables.items() if rows}, corpus)


def content_of(given: Shared) -> str:
    """A hash of everything in it, sha256: the fingerprint of what is made of it."""
    content = [given.layer, given.features, given.activations, given.explanations]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def as_explanations(given: Shared, sae_id: str) -> Mapping[str, list[Any]]:
    """The rows of `explanation` for what others said of the features; empty where they said nothing."""
    rows = []
    for row in given.explanations:
        text = str(row.get("description") or "").strip()
        if text:
            own = {"sae_id": sae_id, "feature": _index(row), "text": text, "source": "import",
                   "method": row.get("typeName"), "model": row.get("explanationModelName")}  # fmt: skip
            rows.append({"explanation_id": hashlib.sha256(json.dumps(own).encode()).hexdigest()[:32], **own})
    return _table(list({row["explanation_id"]: row for row in rows}.values()))


def _index(row: Row) -> int:
    try:
        return int(row["index"])
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"a row names no feature: its index is {row.get('index')!r}; expected a number") from error


def _table(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]} if rows else {}


def _feature_rows(features: Sequence[Row], n: int, dataset: str) -> list[Row]:
    given = {_index(row): row for row in features}
    rows = []
    for feature in range(n):
        row = given.get(feature, {})
        density = row.get("frac_nonzero")
        status = "dead" if not density else "dense" if density > 0.1 else "alive"
        rows.append({"feature": feature, "dataset_id": dataset, "status": status, "density": density,
                     "act_max": row.get("maxActApprox") or None,
                     "top_tokens": row.get("pos_str"), "top_logits": row.get("pos_values"),
                     "bottom_tokens": row.get("neg_str"), "bottom_logits": row.get("neg_values")})  # fmt: skip
    return rows


def _logit_rows(row: Row) -> Iterator[Row]:
    for sign, name in ((1, "pos"), (-1, "neg")):
        pairs = zip(row.get(f"{name}_str") or [], row.get(f"{name}_values") or [], strict=False)
        for rank, (token, logit) in enumerate(pairs):
            yield {"feature": _index(row), "sign": sign, "rank": rank, "token": token, "logit": logit}


def _histogram_rows(row: Row, dataset: str) -> Iterator[Row]:
    for kind, name in (("act", "freq_hist_data_bar"), ("logit", "logits_hist_data_bar")):
        middles, counts = row.get(f"{name}_values") or [], row.get(f"{name}_heights") or []
        if len(middles) > 1 and len(middles) == len(counts):
            half = (middles[-1] - middles[0]) / (len(middles) - 1) / 2
            edges = [*(middle - half for middle in middles), middles[-1] + half]
            yield {"feature": _index(row), "dataset_id": dataset, "kind": kind, "edges": edges,
                   "counts": [round(count) for count in counts]}  # fmt: skip


def _neighbor_rows(row: Row) -> Iterator[Row]:
    for kind, others, scores in (
        ("decoder_cosine", "topkCosSimIndices", "topkCosSimValues"),
        ("correlation", "correlated_features_indices", "correlated_features_pearson"),
    ):
        pairs = zip(row.get(others) or [], row.get(scores) or [], strict=False)
        for rank, (other, score) in enumerate(pairs):
            yield {"feature": _index(row), "kind": kind, "rank": rank, "other_feature": other, "score": score}


def _sequences(activations: Sequence[Row]) -> dict[tuple[str, ...], int]:
    """Every different stretch of tokens -> its number."""
    found: dict[tuple[str, ...], int] = {}
    for row in activations:
        found.setdefault(tuple(row.get("tokens") or ()), len(found))
    return found


def _example_rows(activations: Sequence[Row], sequences: Mapping[tuple[str, ...], int], dataset: str) -> list[Row]:
    rows, ranks, buckets = [], dict[tuple[int, str], int](), _buckets(activations)
    for number, given in enumerate(activations):
        feature, tokens, values = _index(given), given.get("tokens") or [], given.get("values") or []
        bucket = buckets.get((feature, given.get("binMin"), given.get("binMax")), "top")
        bucket = "top" if given.get("binContains") in (-1, None) else bucket
        rank = ranks[feature, bucket] = ranks.get((feature, bucket), -1) + 1
        top = given.get("qualifyingTokenIndex")
        at = top if isinstance(top, int) and 0 <= top < len(tokens) else int(np.argmax(values)) if values else 0
        fired = [(position, value) for position, value in enumerate(values) if value > 0]
        rows.append({
            "feature": feature, "example_id": number, "dataset_id": dataset, "sequence_id": sequences[tuple(tokens)],
            "bucket": bucket, "rank": rank, "position": at, "act": values[at] if values else None,
            "bucket_low": given.get("binMin") if bucket != "top" else None, "bucket_high": given.get("binMax"),
            "window_start": 0, "window_end": len(tokens),
            "fire_positions": [position for position, _ in fired], "fire_acts": [value for _, value in fired],
            "left_text": "".join(tokens[:at]), "token": tokens[at] if tokens else "",
            "right_text": "".join(tokens[at + 1 :]),
        })  # fmt: skip
    return rows


def _buckets(activations: Sequence[Row]) -> dict[tuple[int, Any, Any], str]:
    """The intervals of each feature, low to high, as q1 to q5 (more of them are taken together)."""
    intervals: dict[int, set[tuple[Any, Any]]] = {}
    for row in activations:
        if row.get("binContains") not in (-1, None):
            intervals.setdefault(_index(row), set()).add((row.get("binMin"), row.get("binMax")))
    return {
        (feature, *interval): f"q{1 + at * 5 // max(len(found), 5)}"
        for feature, found in intervals.items()
        for at, interval in enumerate(sorted(found))
    }
