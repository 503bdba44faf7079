"""Rows of `feature`, `feature_stat` and `histogram`, sorted by feature."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.config import DescribeConfig
from flows.rows.described import Described, or_null, rectangle, same
from saelib.geometry import encoder_decoder_cosine
from saelib.nonlinearity import JumpReLU
from saelib.summaries.moments import BINS, Core, bin_centre, bin_edge, quantiles

__all__ = ["feature_stats", "features", "histograms"]

N_LINEAR_BINS = 50
N_LOG_BINS = 60


def _measured(core: Core) -> dict[str, np.ndarray]:
    n_tokens, n_sequences = int(core.n_tokens[0]), int(core.n_sequences[0])
    n = core.n_fires.size
    return {
        "n_tokens": np.full(n, n_tokens),
        "n_fires": core.n_fires,
        "density": core.n_fires / max(1, n_tokens),
        "n_sequences": np.full(n, n_sequences),
        "n_sequences_fired": core.n_sequences_fired,
        "sequence_density": core.n_sequences_fired / max(1, n_sequences),
    }


def _deciles(core: Core) -> pa.Array:
    """11 quantiles, null for a feature that never fires."""
    values = rectangle(np.maximum.accumulate(quantiles(core, np.linspace(0, 1, 11)), axis=1), pa.float32())
    mask = pa.array(core.n_fires == 0)
    return pc.if_else(mask, pa.scalar(None, values.type), values)


def feature_stats(found: Described) -> pa.Table:
    """`feature_stat`: the core numbers, kept for every data set and run."""
    core, fired = found.core, found.core.n_fires > 0
    columns = found.keys(np.arange(found.n_features)) | _measured(core)
    columns |= {
        "dataset_id": same(found.dataset_id, found.n_features),
        "act_mean": or_null(core.mean, fired),
        "act_max": core.maximum.astype(np.float32),
        "act_quantiles": _deciles(core),
    }
    return pa.table(columns)


def _status(core: Core, config: DescribeConfig) -> np.ndarray:
    density = core.n_fires / max(1, int(core.n_tokens[0]))
    names = np.array(["alive", "dense", "rare", "dead"], dtype=object)
    index = np.zeros(density.size, dtype=int)
    index[density > config.dense_density] = 1
    index[density < config.rare_density] = 2
    index[core.n_fires == 0] = 3
    chosen: np.ndarray = names[index]
    return chosen


def features(found: Described, config: DescribeConfig) -> pa.Table:
    """`feature`: one row a feature, dead ones too."""
    core, fired = found.core, found.core.n_fires > 0
    n = np.maximum(core.n_fires, 1)
    deviation = np.sqrt(core.m2 / n)
    spread = fired & (deviation > 1e-12)
    safe = np.where(spread, deviation, 1)
    columns = found.keys(np.arange(found.n_features)) | _measured(core)
    columns |= {
        "dataset_id": same(found.dataset_id, found.n_features),
        "status": _status(core, config),
        "act_max": core.maximum.astype(np.float32),
        "act_mean": or_null(core.mean, fired),
        "act_std": or_null(deviation, fired),
        "act_skew": or_null(core.m3 / n / safe**3, spread),
        "act_kurtosis": or_null(core.m4 / n / safe**4 - 3, spread),
        "act_quantiles": _deciles(core),
        "n_distinct_tokens": found.tokens.n_distinct().astype(np.int32),
        "token_entropy": or_null(found.tokens.entropy(), fired),
        "position_mean": or_null(core.position_sum / n, fired),
        "first_position_share": or_null(core.n_first_position / n, fired),
        "run_length_mean": or_null(core.n_fires / np.maximum(core.n_runs, 1), fired),
        "reconstructive": or_null(core.gain_sum / max(core.total_variance, 1e-300)),
        "delta_ce_linear": or_null(found.effects.linear),
        "delta_ce_linear_tokens": _tokens_behind(found.effects.linear, found.effects.linear_tokens),
        "delta_ce": or_null(found.effects.ablated),
        "delta_ce_tokens": _tokens_behind(found.effects.ablated, found.effects.ablation_tokens),
        "nearest_feature": found.nearest.other[:, 0].astype(np.int32),
        "nearest_cosine": found.nearest.cosine[:, 0].astype(np.float32),
    }
    return pa.table(columns | _top_token(found) | _weights(found) | _logit_columns(found))


def _tokens_behind(values: np.ndarray, n: int) -> pa.Array:
    """Null where there is no value."""
    return pa.array(np.full(values.size, n, dtype=np.int64), mask=~np.isfinite(values))


def _top_token(found: Described) -> dict[str, pa.Array]:
    top = found.tokens.top("at", 1)
    token = np.full(found.n_features, None, dtype=object)
    share = np.full(found.n_features, np.nan)
    token[top.feature] = found.words[top.token_id]
    share[top.feature] = top.n_fires / np.maximum(found.core.n_fires[top.feature], 1)
    return {"top_token": pa.array(token, pa.string()), "top_token_share": or_null(share)}


def _weights(found: Described) -> dict[str, pa.Array]:
    sae, cosine = found.sae, encoder_decoder_cosine(found.sae)
    none = np.full(found.n_features, np.nan)
    threshold = sae.nonlinearity.threshold.cpu().numpy() if isinstance(sae.nonlinearity, JumpReLU) else none
    return {
        "encoder_norm": or_null(sae.W_enc.norm(dim=0).cpu().numpy()),
        "decoder_norm": or_null(sae.W_dec.norm(dim=1).cpu().numpy()),
        "encoder_decoder_cosine": or_null(none if cosine is None else cosine),
        "threshold": or_null(threshold),
    }


def _logit_columns(found: Described) -> dict[str, pa.Array]:
    logits = found.logits
    if logits is None:
        kinds = {"logit_skew": pa.float32(), "logit_kurtosis": pa.float32(), "top_tokens": pa.list_(pa.string()),
                 "top_logits": pa.list_(pa.float32()), "bottom_tokens": pa.list_(pa.string()),
                 "bottom_logits": pa.list_(pa.float32())}  # fmt: skip
        return {name: pa.nulls(found.n_features, kind) for name, kind in kinds.items()}
    return {
        "logit_skew": or_null(logits.skew),
        "logit_kurtosis": or_null(logits.kurtosis),
        "top_tokens": rectangle(found.words[logits.top], pa.string()),
        "top_logits": rectangle(logits.top_logit, pa.float32()),
        "bottom_tokens": rectangle(found.words[logits.bottom], pa.string()),
        "bottom_logits": rectangle(logits.bottom_logit, pa.float32()),
    }


def histograms(found: Described) -> pa.Table:
    """`histogram`: activations on linear and on log bins (from the fixed fine ones), and logit effects."""
    fired = np.flatnonzero(found.core.n_fires)
    index, counts = np.arange(BINS), found.core.histogram
    edges: dict[str, list[np.ndarray]] = {"act": [], "log_act": []}
    sums: dict[str, list[np.ndarray]] = {"act": [], "log_act": []}
    for feature in fired:
        there = np.flatnonzero(counts[feature])
        high = float(found.core.maximum[feature])
        linear = np.linspace(0, high, N_LINEAR_BINS + 1)
        place = np.minimum((bin_centre(there) / high * N_LINEAR_BINS).astype(int), N_LINEAR_BINS - 1)
        step = -(-(there[-1] + 1 - there[0]) // N_LOG_BINS)
        n_log = -(-(there[-1] + 1 - there[0]) // step)
        starts = there[0] + step * index[: n_log + 1]
        for kind, some, where, n in (
            ("act", linear, place, N_LINEAR_BINS),
            ("log_act", bin_edge(starts), (there - there[0]) // step, n_log),
        ):
            edges[kind].append(some)
            sums[kind].append(np.bincount(where, weights=counts[feature, there], minlength=n).astype(np.int64))
    parts = [_histogram(found, fired, kind, edges[kind], sums[kind]) for kind in ("act", "log_act")]
    if found.logits is not None:
        everyone = np.arange(found.n_features)
        parts.append(_histogram(found, everyone, "logit", list(found.logits.edges), list(found.logits.counts)))
    return pa.concat_tables(parts).sort_by([("feature", "ascending"), ("kind", "ascending")])


def _histogram(
    found: Described, feature: np.ndarray, kind: str, edges: list[np.ndarray], counts: list[np.ndarray]
) -> pa.Table:
    columns = found.keys(feature) | {
        "dataset_id": same(found.dataset_id, feature.size),
        "kind": pa.repeat(kind, feature.size),
        "edges": _ragged(edges, pa.float32()),
        "counts": _ragged(counts, pa.int64()),
    }
    return pa.table(columns)


def _ragged(parts: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([part.size for part in parts], out=offsets[1:])
    values = np.concatenate(parts) if parts else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(kind.to_pandas_dtype()), kind))
