"""A published SAE → a first name for every feature that fires."""

from hashlib import sha256

import pyarrow.parquet as pq

from catalog import Store, append, connect
from catalog.guard import answering
from catalog.lookup import find_sae
from flows.artifact import Artifact, Draft, Work, every
from flows.interpret.choose import Criterion
from flows.interpret.namer import METHOD, names
from flows.place import Place, StepReport

__all__ = ["name_features"]


def name_features(place: Place, sae: str | None, criterion: Criterion | None = None) -> Artifact:
    """Names from the features' own tables into `explanation`; the same tables are named once.

    Raises NotFound where there is no such SAE.
    """
    store, criterion = place.store, criterion or Criterion()
    sae_id = find_sae(connect(store), sae)
    described = _described(store, sae_id)
    work = Work("names", 1, {"sae_id": sae_id, "method": METHOD, "features": described, "criterion": vars(criterion)})

    def fill(draft: Draft, report: StepReport) -> None:
        report.read = tuple(artifact for artifact in every(store, "features") if artifact.fingerprint == described)
        with place.watch.bar("name", _n_features(store, sae_id), "features") as tick:
            rows = names(connect(store), sae_id, criterion, tick)
        columns = {
            "explanation_id": [f"{work.fingerprint[:16]}-{feature}" for feature in rows["feature"].to_pylist()],
            "sae_id": [sae_id] * rows.num_rows,
            "source": ["heuristic"] * rows.num_rows,
            "method": [METHOD] * rows.num_rows,
            "examples_sha256": [described] * rows.num_rows,
        }
        for name, column in columns.items():
            rows = rows.append_column(name, [column])
        pq.write_table(rows, draft.directory / "explanation.parquet", compression="zstd")
        draft.rows["explanation"] = rows.num_rows

    made = place.make("name", work, fill)
    append(store, "explanation", made.file("explanation.parquet"), made.fingerprint)
    return made


def _described(store: Store, sae_id: str) -> str:
    """Fingerprint of what is read: the artifact that the features came from."""
    sql = "select distinct fingerprint from feature where sae_id = ? order by 1"
    with answering(sql):
        found = [row[0] for row in connect(store).execute(sql, [sae_id]).fetchall()]
    return found[0] if len(found) == 1 else sha256("".join(found).encode()).hexdigest()


def _n_features(store: Store, sae_id: str) -> int:
    sql = "select count(*) from feature where sae_id = ? and status <> 'dead'"
    with answering(sql):
        return int(connect(store).execute(sql, [sae_id]).fetchall()[0][0])
