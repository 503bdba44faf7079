"""Two published SAEs → which feature of one is which of the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse
from torch import Tensor

from catalog import TABLES, Publication, Store, connect, current, publish
from catalog.guard import answering
from catalog.lookup import find_sae
from flows.artifact import Artifact, Draft, Work, every
from flows.errors import MatchError
from flows.place import Place, StepReport
from flows.rows.matches import Compared, match_rows
from flows.steps.loading import load_sae
from saelib.matching import (
    MatchConfig,
    Matches,
    correlated_candidates,
    correlations,
    cosine_candidates,
    cosines,
    jaccards,
    match_features,
)
from saelib.sae import SAE

__all__ = ["match"]

_SAE = """
select s.fingerprint, s.model_id, s.n_features, min(f.fingerprint) as described, min(f.dataset_id) as dataset_id
from sae s left join feature f using (sae_id) where s.sae_id = ? group by all
"""
_SHARED = """
with both_sampled as (
    select dataset_id, sequence_id from activation where sae_id = $sae_a
    intersect select dataset_id, sequence_id from activation where sae_id = $sae_b
),
shared as (
    select dataset_id, sequence_id, n_tokens,
           sum(n_tokens) over (order by dataset_id, sequence_id rows unbounded preceding) - n_tokens as start
    from sequence semi join both_sampled using (dataset_id, sequence_id)
    qualify start < $shared_tokens
)
"""
_N_SHARED = _SHARED + "select coalesce(sum(n_tokens), 0)::bigint from shared"
_FIRINGS = (
    _SHARED
    + """
select feature, (start + position)::bigint as place, act
from activation join shared using (dataset_id, sequence_id) where sae_id = $sae_id
"""
)
_TOP = "select feature, sequence_id, position from example where sae_id = $sae_id and bucket = 'top'"


class _Side(NamedTuple):
    """One of the two SAEs. `sae` is None where its weights are no longer in the store."""

    sae_id: str
    artifact: Artifact | None
    sae: SAE | None
    model_id: str | None
    n_features: int
    described: str | None
    dataset_id: str | None


def match(place: Place, old: str, new: str, config: MatchConfig | None = None) -> Artifact:
    """Compare two SAEs, and publish the rows with the second one; done already, nothing changes.

    Raises NotFound for an SAE that is not there, MatchError where nothing of the two can be compared.
    """
    store, config = place.store, config or MatchConfig()
    sae_a, sae_b = (find_sae(connect(store), name) for name in (old, new))
    if sae_a == sae_b:
        raise MatchError(f"{old!r} and {new!r} are the same SAE, {sae_a!r}; name two")
    a, b = _side(store, sae_a), _side(store, sae_b)
    plan = {
        "sae_a": [a.sae_id, a.artifact.fingerprint if a.artifact else None, a.described],
        "sae_b": [b.sae_id, b.artifact.fingerprint if b.artifact else None, b.described],
        "config": config.model_dump(mode="json"),
    }
    work = Work("match", 1, plan)

    def fill(draft: Draft, report: StepReport) -> None:
        report.read = tuple(side.artifact for side in (a, b) if side.artifact is not None)
        rows = match_rows(sae_a, sae_b, *_matched(store, a, b, config), work.fingerprint)
        pq.write_table(rows, draft.directory / "match.parquet", compression="zstd")
        draft.rows["match"] = rows.num_rows

    made = place.make("match", work, fill)
    _publish(store, sae_a, sae_b, pq.read_table(made.file("match.parquet")))
    return made


def _side(store: Store, sae_id: str) -> _Side:
    with answering(_SAE):
        row = connect(store).execute(_SAE, [sae_id]).fetchall()[0]
    fingerprint, model_id, n_features, described, dataset_id = row
    found = [made for made in every(store, "sae") if made.fingerprint == fingerprint and not made.is_evicted]
    sae = load_sae(found[0], "cpu") if found else None
    return _Side(sae_id, found[0] if found else None, sae, model_id, n_features, described, dataset_id)


def _matched(store: Store, a: _Side, b: _Side, config: MatchConfig) -> tuple[Matches, Compared]:
    """By decoder cosine where both write into the same space, else by activations."""
    connection = connect(store)
    f_a, f_b = _activations(connection, a, b, config)
    decoders, encoders = _directions(a, b, lambda sae: sae.W_dec), _directions(a, b, lambda sae: sae.W_enc.t())
    if decoders is None and not f_a.shape[1]:
        raise MatchError(_nothing_to_compare(a, b))
    if decoders is not None:
        found, related = cosine_candidates(*decoders, config.n_candidates), config.related_cosine
    else:
        found, related = correlated_candidates(f_a, f_b, config.n_candidates), config.related_correlation
    matches = match_features(*found, related, config.margin)
    pairs = matches.pairs
    is_one_corpus = a.dataset_id is not None and a.dataset_id == b.dataset_id
    nothing = np.full(matches.a.size, np.nan)
    correlation = matches.of_pairs(correlations(f_a, f_b, pairs)) if f_a.shape[1] else nothing
    compared = Compared(
        similarity="act_correlation" if decoders is None else "decoder_cosine",
        decoder_cosine=nothing if decoders is None else matches.score,
        encoder_cosine=nothing if encoders is None else matches.of_pairs(cosines(*encoders, pairs)),
        act_correlation=matches.score if decoders is None else correlation,
        top_jaccard=matches.of_pairs(jaccards(*_top_examples(connection, a, b), pairs)) if is_one_corpus else nothing,
    )
    return matches, compared


def _directions(a: _Side, b: _Side, of: Callable[[SAE], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Directions of both SAEs, where they are of one model and lie in spaces of one width."""
    if a.sae is None or b.sae is None or a.model_id != b.model_id or of(a.sae).shape[1] != of(b.sae).shape[1]:
        return None
    return of(a.sae), of(b.sae)


def _nothing_to_compare(a: _Side, b: _Side) -> str:
    shapes = ", ".join(
        f"{side.sae_id} of {side.model_id!r} writes {side.sae.d_out if side.sae else 'an unknown number of'} numbers"
        for side in (a, b)
    )
    return (
        f"nothing of {a.sae_id} and {b.sae_id} can be compared: {shapes}, and they were not described on the same "
        f"tokens ({a.dataset_id!r}, {b.dataset_id!r}); describe both on one corpus, in one run or in two of the same "
        "[corpus] and [describe]"
    )


def _activations(
    connection: duckdb.DuckDBPyConnection, a: _Side, b: _Side, config: MatchConfig
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """[n_features, n_tokens] of both on the tokens that both were sampled on."""
    values: dict[str, Any] = {"sae_a": a.sae_id, "sae_b": b.sae_id, "shared_tokens": config.shared_tokens}
    with answering(_N_SHARED):
        n_tokens = int(connection.execute(_N_SHARED, values).fetchall()[0][0])
    matrices = []
    for side in (a, b):
        with answering(_FIRINGS):
            rows = connection.sql(_FIRINGS, params=values | {"sae_id": side.sae_id}).to_arrow_table()
        feature, where, act = (rows[name].to_numpy() for name in ("feature", "place", "act"))
        shape = (side.n_features, n_tokens)
        matrices.append(scipy.sparse.csr_matrix((act.astype(np.float64), (feature, where)), shape=shape))
    return matrices[0], matrices[1]


def _top_examples(
    connection: duckdb.DuckDBPyConnection, a: _Side, b: _Side
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """[n_features, n_places] 1 where a token is among a feature's top examples."""
    tops: list[tuple[np.ndarray, np.ndarray]] = []
    for side in (a, b):
        with answering(_TOP):
            top = connection.sql(_TOP, params={"sae_id": side.sae_id}).to_arrow_table()
        sequence, position = (top[name].to_numpy().astype(np.int64) for name in ("sequence_id", "position"))
        tops.append((top["feature"].to_numpy(), sequence << 32 | position))
    known = np.unique(np.concatenate([place for _, place in tops]))
    made = [
        scipy.sparse.csr_matrix(
            (np.ones(place.size), (feature, np.searchsorted(known, place))), shape=(side.n_features, known.size)
        )
        for side, (feature, place) in zip((a, b), tops, strict=True)
    ]
    return made[0], made[1]


def _publish(store: Store, sae_a: str, sae_b: str, rows: pa.Table) -> None:
    """The second SAE once more, with these rows for the first: a whole SAE at a time, the other tables as they are."""
    snapshot = current(store)
    sae = next(sae for sae in snapshot.saes if sae.sae_id == sae_b)
    files = {
        part.table: store.catalog / part.path
        for part in snapshot.parts
        if part.partition == sae_b and TABLES[part.table].writing == "replaced"
    }
    tables: dict[str, Any] = {**files, "sae": pq.read_table(files["sae"], partitioning=None)}
    if "match" in files:
        before = pq.read_table(files["match"], partitioning=None)
        others = before.filter(pc.not_equal(before["sae_a"], sae_a))
        rows = pa.concat_tables([others, rows.cast(others.schema)], promote_options="default")
    publish(store, Publication(sae.family, sae.fingerprint, {**tables, "match": rows}))
