"""Rows of what goes with a feature: tokens, logits, neighbours, and its activations on the sample."""

import numpy as np
import pyarrow as pa

from flows.rows.described import Described, same
from saelib.summaries.tokens import ROLES

__all__ = ["activations", "feature_logits", "feature_tokens", "neighbors"]


def feature_logits(found: Described) -> pa.Table:
    """`feature_logit`: both ends of the direct logit effect; no row where no next token is predicted."""
    logits, n = found.logits, found.n_features
    ends = (logits.top, logits.bottom, logits.top_logit, logits.bottom_logit) if logits else [np.zeros((n, 0), int)] * 4
    width = ends[0].shape[1]
    feature = np.repeat(np.arange(n), 2 * width)
    ids, effect = (np.concatenate(pair, axis=1).ravel() for pair in (ends[:2], ends[2:]))
    columns = found.keys(feature) | {
        "sign": np.tile(np.repeat(np.array([1, -1], dtype=np.int8), width), n),
        "rank": np.tile(np.arange(width, dtype=np.int32), 2 * n),
        "token_id": ids.astype(np.int32),
        "token": pa.array(found.words[ids], pa.string()),
        "logit": effect.astype(np.float32),
    }
    return pa.table(columns)


def feature_tokens(found: Described, n: int) -> pa.Table:
    """`feature_token`: which tokens stand where the feature fires, before, and after, with their lift."""
    parts = []
    for role in ROLES:
        top = found.tokens.top(role, n)
        total = found.tokens.totals[role]
        in_role = np.asarray(found.tokens.counts[role].sum(axis=1)).ravel()[top.feature]
        p_token = top.n_fires / np.maximum(in_role, 1)
        share = total[top.token_id] / max(1, int(total.sum()))
        columns = found.keys(top.feature) | {
            "role": pa.repeat(role, top.feature.size),
            "rank": top.rank.astype(np.int32),
            "token_id": top.token_id.astype(np.int32),
            "token": pa.array(found.words[top.token_id], pa.string()),
            "n_fires": top.n_fires,
            "n_token": total[top.token_id],
            "p_token_given_fire": p_token.astype(np.float32),
            "p_fire_given_token": (top.n_fires / np.maximum(total[top.token_id], 1)).astype(np.float32),
            "lift": (p_token / np.maximum(share, 1e-12)).astype(np.float32),
            "act_mean": (top.act_sum / np.maximum(top.n_fires, 1)).astype(np.float32),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).sort_by([("feature", "ascending"), ("role", "ascending"), ("rank", "ascending")])


def neighbors(found: Described) -> pa.Table:
    """`neighbor`: by decoder cosine, co-activation and correlation."""
    kinds = (
        ("coactivation", found.coactivation.other, found.coactivation.score),
        ("correlation", found.correlation.other, found.correlation.score),
        ("decoder_cosine", found.nearest.other, found.nearest.cosine),
    )
    parts = []
    for kind, other, score in kinds:
        feature, rank = np.nonzero(other >= 0)
        columns = found.keys(feature) | {
            "kind": pa.repeat(kind, feature.size),
            "rank": rank.astype(np.int32),
            "other_feature": other[feature, rank].astype(np.int32),
            "score": score[feature, rank].astype(np.float32),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).sort_by([("feature", "ascending"), ("kind", "ascending"), ("rank", "ascending")])


def activations(found: Described) -> pa.Table:
    """`activation`: every firing on the sampled sequences."""
    f = found.sample.f
    feature = np.repeat(np.arange(f.shape[1]), np.diff(f.indptr))
    columns = found.keys(feature) | {
        "dataset_id": same(found.dataset_id, feature.size),
        "sequence_id": found.sample.sequence_id[f.indices],
        "position": found.sample.position[f.indices].astype(np.int32),
        "act": f.data.astype(np.float32),
    }
    return pa.table(columns)
