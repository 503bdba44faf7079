"""`Shared` on disk: Neuronpedia's bulk files (JSON lines, gzip) and SAEDashboard's (one JSON a batch of features).

    neuronpedia     features/batch-N.jsonl.gz  activations/batch-N.jsonl.gz  explanations/batch-N.jsonl.gz
    saedashboard    batch-N.json  run_settings.json  skipped_indexes.json

SAEDashboard's files know no explanations.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from catalog.errors import SchemaError
from catalog.exchange import Row, Shared
from catalog.files import replacing

__all__ = ["SharedFormat", "read_shared", "write_shared"]

SharedFormat = Literal["neuronpedia", "saedashboard"]
BATCH = {"neuronpedia": 1024, "saedashboard": 128}
KINDS = ("features", "activations", "explanations")
#: Neuronpedia's key -> SAEDashboard's, where they are not the same
FEATURE_KEYS = {
    "index": "feature_index", "maxActApprox": "max_act_approx", "topkCosSimIndices": "topk_cos_sim_indices",
    "topkCosSimValues": "topk_cos_sim_values", "hasVector": "has_vector",
}  # fmt: skip
ACTIVATION_KEYS = {
    "binMin": "bin_min", "binMax": "bin_max", "binContains": "bin_contains", "tokens": "tokens", "values": "values",
    "qualifyingTokenIndex": "qualifying_token_index",
}  # fmt: skip


def write_shared(given: Shared, folder: Path, form: SharedFormat) -> list[Path]:
    """Write the files of that format into `folder`; returns them. Raises SchemaError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return list((_write_neuronpedia if form == "neuronpedia" else _write_saedashboard)(given, folder))
    except OSError as error:
        raise SchemaError(f"{folder} cannot be written: {error.strerror or error}; name another folder") from error


def read_shared(path: Path) -> Shared:
    """The files in a folder (or one file) of either format, told apart by what is in them. Raises SchemaError."""
    batches = sorted(path.glob("batch-*.json")) if path.is_dir() else [path] if path.suffix == ".json" else []
    if batches:
        return _read_saedashboard(batches)
    if path.is_dir():
        rows = {kind: [row for file in _files(path / kind) for row in _lines(file)] for kind in KINDS}
    else:
        rows = {"features": list(_lines(path)), "activations": [], "explanations": []}
    if not any(rows.values()):
        raise SchemaError(
            f"{path} holds neither features/*.jsonl, activations/*.jsonl, explanations/*.jsonl (Neuronpedia) nor "
            "batch-*.json (SAEDashboard); name the folder with these"
        )
    first = next(row for kind in KINDS for row in rows[kind])
    return Shared(str(first.get("modelId") or ""), str(first.get("layer") or path.name), *(rows[k] for k in KINDS))


def _write_neuronpedia(given: Shared, folder: Path) -> Iterator[Path]:
    for kind, rows in zip(KINDS, (given.features, given.activations, given.explanations), strict=True):
        (folder / kind).mkdir(exist_ok=True)
        by_batch: dict[int, list[Row]] = {}
        for row in rows:
            by_batch.setdefault(int(row["index"]) // BATCH["neuronpedia"], []).append(row)
        for number, batch in sorted(by_batch.items()):
            path = folder / kind / f"batch-{number}.jsonl.gz"
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch)
            with replacing(path) as aside:
                aside.write_bytes(gzip.compress(lines.encode(), mtime=0))
            yield path


def _write_saedashboard(given: Shared, folder: Path) -> Iterator[Path]:
    examples: dict[str, list[Row]] = {}
    for row in given.activations:
        examples.setdefault(row["index"], []).append({new: row[old] for old, new in ACTIVATION_KEYS.items()})
    own = {"model_id": given.model_id, "layer": given.layer, "sae_set": given.layer, "sae_id_suffix": None}
    by_batch: dict[int, list[Row]] = {}
    for row in given.features:
        named = {FEATURE_KEYS.get(k, k): v for k, v in row.items() if k not in ("modelId", "layer")}
        entry = {**named, "feature_index": int(row["index"]), "activations": examples.get(row["index"], [])}
        by_batch.setdefault(int(row["index"]) // BATCH["saedashboard"], []).append(entry)
    for number, batch in sorted(by_batch.items()):
        yield _json(folder / f"batch-{number}.json", {**own, "features": batch})
    skipped = [row["index"] for row in given.features if not row["frac_nonzero"]]
    yield _json(folder / "skipped_indexes.json", {**own, "skipped_indexes": skipped})
    yield _json(folder / "run_settings.json", {**own, "n_features_at_a_time": BATCH["saedashboard"]})


def _json(path: Path, content: Row) -> Path:
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _read_saedashboard(paths: Sequence[Path]) -> Shared:
    features, activations, head = [], [], dict[str, Any]()
    for path in paths:
        try:
            head = json.loads(path.read_text(encoding="utf-8"))
            batch = head["features"]
            for entry in batch:
                row = {old: entry[FEATURE_KEYS.get(old, old)] for old in _np_keys(entry)}
                examples = entry.get("activations") or []
                activations += [
                    {"index": row["index"], **{old: each.get(new) for old, new in ACTIVATION_KEYS.items()}}
                    for each in examples
                ]
                if "maxActApprox" not in row:
                    row["maxActApprox"] = max((max(e["values"], default=0.0) for e in examples), default=0.0)
                features.append(row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"{path} cannot be read as SAEDashboard's JSON: {error!r}; name its folder") from error
    return Shared(str(head.get("model_id") or ""), str(head.get("layer") or ""), features, activations, [])


def _np_keys(entry: Row) -> Iterator[str]:
    names = {new: old for old, new in FEATURE_KEYS.items()}
    return (names.get(name, name) for name in entry if name != "activations")


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])


def _lines(path: Path) -> Iterator[Row]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} cannot be read: {error}; give JSON lines in UTF-8, gzip or plain") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SchemaError(f"{path}, line {number} is not JSON: {error}; mend or remove it") from error
            if not isinstance(row, dict):
                raise SchemaError(f"{path}, line {number} is not an object but {type(row).__name__}; remove it")
            yield row
