"""Everything that describe found out, and the few shapes that its rows are built from."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saelib.effects import LossEffects
from saelib.geometry import LogitEffects, Nearest
from saelib.sae import SAE
from saelib.summaries.examples import Silences
from saelib.summaries.moments import Core
from saelib.summaries.sample import Pairs, Sample
from saelib.summaries.tokens import TokenCounts

__all__ = ["Described", "or_null", "rectangle", "same"]


class Described(NamedTuple):
    """Everything that describe found out, before it takes the shape of rows."""

    sae: SAE
    core: Core
    tokens: TokenCounts
    sample: Sample
    silences: Silences
    nearest: Nearest
    logits: LogitEffects | None
    """None of a model that predicts no next token."""
    coactivation: Pairs
    correlation: Pairs
    effects: LossEffects
    words: np.ndarray
    """Text of every token id."""
    dataset_id: str
    fingerprint: str

    @property
    def n_features(self) -> int:
        """Width of the SAE."""
        return self.sae.n_features

    def keys(self, feature: np.ndarray) -> dict[str, pa.Array | np.ndarray]:
        """Columns that every table of features starts with."""
        return {"feature": feature.astype(np.int32), "fingerprint": same(self.fingerprint, feature.size)}


def same(text: str, n: int) -> pa.Array:
    """One text in every row, kept once: a fingerprint written out for millions of firings would be half a gigabyte."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, dtype=np.int8)), pa.array([text]))


def rectangle(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A list column from a rectangle."""
    n, width = values.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32)), pa.array(values.ravel(), kind)
    )


def or_null(values: np.ndarray, there: np.ndarray | None = None) -> pa.Array:
    """Floats, null where they are not there (or not finite)."""
    there = np.isfinite(values) if there is None else there & np.isfinite(values)
    return pa.array(np.where(there, values, 0).astype(np.float32), mask=~there)
