"""Decoder directions without torch: straight from the safetensors file that an SAE was published with, mapped."""

import json
from pathlib import Path

import duckdb
import numpy as np

from catalog.errors import DamagedError, NotFound
from catalog.store import Store

__all__ = ["decoder", "direction", "nearest_to"]

DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
ROWS = 16_384  # directions compared at once: a few megabytes


def decoder(connection: duckdb.DuckDBPyConnection, store: Store, sae_id: str) -> np.ndarray:
    """W_dec, [n_features, d_out], mapped and not read. Raises NotFound, DamagedError."""
    found = connection.execute("select weights_uri from sae where sae_id = $id", {"id": sae_id}).fetchall()
    if not found or not found[0][0]:
        raise NotFound(f"{sae_id!r} was published without weights, so its decoder directions are not known here")
    path = store.root / found[0][0]
    try:
        return _mapped(path)
    except FileNotFoundError:
        raise NotFound(f"the weights of {sae_id!r} are not at {path}; bring that file back, or build again") from None
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f"{path} cannot be read as safetensors with W_dec: {error}; run `almanac verify`") from error


def direction(w_dec: np.ndarray, feature: int) -> np.ndarray:
    """The unit vector of one feature, [d_out]; zeros where the feature writes nothing."""
    vector = np.asarray(w_dec[feature], dtype=np.float32)
    return np.asarray(vector / (np.linalg.norm(vector) or 1.0))


def nearest_to(vector: np.ndarray, w_dec: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n rows with the largest cosine to a unit vector: their numbers and cosines, the largest first."""
    cosines = np.empty(len(w_dec), dtype=np.float32)
    for start in range(0, len(w_dec), ROWS):
        rows = np.asarray(w_dec[start : start + ROWS], dtype=np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        cosines[start : start + ROWS] = rows @ vector / np.where(norms > 0, norms, 1)
    n = min(n, len(cosines))
    found = np.argpartition(-cosines, n - 1)[:n] if n else np.empty(0, dtype=np.int64)
    found = found[np.lexsort((found, -cosines[found]))]
    return found, cosines[found]


def _mapped(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        n_head = int.from_bytes(file.read(8), "little")
        if n_head > path.stat().st_size:
            raise ValueError("its head is longer than the file")
        tensor = json.loads(file.read(n_head))["W_dec"]
    start, end = tensor["data_offsets"]
    if 8 + n_head + end > path.stat().st_size:
        raise ValueError("it is cut off")
    shape = tuple(tensor["shape"])
    return np.memmap(path, DTYPES[tensor["dtype"]], mode="r", offset=8 + n_head + start, shape=shape)
