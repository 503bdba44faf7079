"""Rows of `match`: the features of two SAEs side by side."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from flows.rows.described import or_null, same
from saelib.matching import Matches

__all__ = ["Compared", "match_rows"]


class Compared(NamedTuple):
    """What else is known of the pairs, NaN where it is not: one number for each row of the matches."""

    similarity: str
    """What the score of the matches is: decoder_cosine or act_correlation."""
    decoder_cosine: np.ndarray
    encoder_cosine: np.ndarray
    act_correlation: np.ndarray
    top_jaccard: np.ndarray


def match_rows(sae_a: str, sae_b: str, matches: Matches, compared: Compared, fingerprint: str) -> pa.Table:
    """`match`: one row a pair, and one for each feature that is gone or new."""
    n = matches.a.size
    is_by_cosine = compared.similarity == "decoder_cosine"
    columns = {
        "sae_a": same(sae_a, n),
        "feature_a": _index(matches.a),
        "sae_b": same(sae_b, n),
        "feature_b": _index(matches.b),
        "decoder_cosine": or_null(compared.decoder_cosine),
        "encoder_cosine": or_null(compared.encoder_cosine),
        "act_correlation": or_null(compared.act_correlation),
        "top_jaccard": or_null(compared.top_jaccard),
        "runner_up_cosine": or_null(matches.runner_up if is_by_cosine else np.full(n, np.nan)),
        "margin": or_null(matches.margin),
        "similarity": same(compared.similarity, n),
        "mutual_best": matches.is_mutual,
        "assigned": matches.is_assigned,
        "verdict": pa.array(matches.verdict.tolist(), pa.string()),
        "fingerprint": same(fingerprint, n),
    }
    return pa.table(columns)


def _index(feature: np.ndarray) -> pa.Array:
    return pa.array(feature.astype(np.int32), mask=feature < 0)
