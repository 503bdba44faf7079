"""Putting rows into the catalog: a whole version of an SAE at once (`publish`), or one more part (`append`).

Both hold the catalog lock and go the same way: parts written aside, checked, synced and renamed; then the snapshot
that lists them; then the pointer; then the view file. Killed anywhere, the old snapshot stays whole, and what was
left behind is collected by the next publish.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.checks import check_examples, checks_for
from catalog.conform import as_table
from catalog.errors import SchemaError, StoreError
from catalog.locks import exclusive
from catalog.parts import Rows, Staging
from catalog.schema import TABLES, table_named
from catalog.snapshot import Part, PublishedSAE, Snapshot, commit, current, recorded
from catalog.store import Store
from catalog.view_file import refresh_view_file

__all__ = ["Publication", "Published", "append", "publish"]

LOCK_SECONDS = 600.0
MANY_PARTS = 64


@dataclass(frozen=True)
class Publication:
    """One SAE with all that is known of it.

    `fingerprint` is the train artifact's: it decides whether this is a new version. `tables` (and `appended`) are
    per-SAE tables without sae_id; a table may be a Parquet file, which is streamed. `shared` tables are replaced by
    their own first key: model, dataset, document, sequence; they carry the fingerprint of their own artifact.
    """

    family: str
    fingerprint: str
    tables: Mapping[str, Rows]
    shared: Mapping[str, Rows] = field(default_factory=dict)
    appended: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """What became current: `is_new` is False where the very same rows were published already (if a file of theirs was
    damaged since, it is whole again)."""

    sae_id: str
    version: int
    snapshot: int
    is_new: bool


def publish(store: Store, publication: Publication, timeout_seconds: float = LOCK_SECONDS) -> Published:
    """Make the publication part of the current snapshot. Raises SchemaError, LockedError; then nothing has changed."""
    n_features = _n_features(publication)
    with _writing(store, f"publishing {publication.family}", timeout_seconds, n_features) as (before, staging):
        sae = _version(before, publication, n_features)
        _stage(staging, publication, sae, _parent(before, sae))
        after = _following(before, sae, _without_repeats(before, staging.parts))
        if after.same_files(before):
            _mend(store, staging, before)
            return Published(sae.sae_id, sae.version, before.number, is_new=False)
        _check_references(store, staging, before, after)
        staging.place(store.catalog)
        commit(store, after)
        refresh_view_file(store, after)
        _collect(store)
    return Published(sae.sae_id, sae.version, after.number, is_new=True)


def append(store: Store, table: str, columns: Rows, fingerprint: str, timeout_seconds: float = LOCK_SECONDS) -> None:
    """Add one immutable part to an appended table; `fingerprint` is that of the artifact the rows came from.

    Rows of this fingerprint that are there already stay as they are: doing it twice adds nothing. (Volatile tables
    take several parts of one fingerprint, the same rows once.)
    """
    if table_named(table).writing != "appended":
        raise SchemaError(
            f"table {table!r} is {table_named(table).writing}, not appended; use publish or the label store"
        )
    with _writing(store, f"appending to {table}", timeout_seconds, None) as (before, staging):
        staging.add(table, columns, {"fingerprint": fingerprint})
        added = _without_repeats(before, staging.parts)
        if not added:
            _mend(store, staging, before)
            return
        kept = before.parts
        small = [store.catalog / part.path for part in before.parts_of(table)]
        if TABLES[table].volatile and len(small) >= MANY_PARTS and _merge(staging, table, small):
            kept, added = tuple(part for part in before.parts if part.table != table), staging.parts
        staging.place(store.catalog)
        after = replace(before, number=before.number + 1, parts=(*kept, *added))
        commit(store, after)
        refresh_view_file(store, after)


def _mend(store: Store, staging: Staging, snapshot: Snapshot) -> None:
    """Nothing is new: but parts of the snapshot that were lost or damaged, and come once more, are put back."""
    is_mended = staging.place(store.catalog, only={part.path for part in snapshot.parts})
    refresh_view_file(store, snapshot, anew=is_mended)


def _merge(staging: Staging, table: str, paths: list[Path]) -> bool:
    """Every run adds a few rows; many small parts become one. Their files stay for the readers that have them.

    A damaged part is left for `verify` to name: then nothing is merged.
    """
    try:
        rows = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
    except (OSError, pa.ArrowException):
        return False
    keys = rows.select(list(TABLES[table].key)).append_column("row", pa.array(range(rows.num_rows)))
    first = keys.group_by(list(TABLES[table].key)).aggregate([("row", "min")])["row_min"]
    staging.add(table, rows.take(first), {})
    return True


@contextlib.contextmanager
def _writing(
    store: Store, purpose: str, timeout_seconds: float, n_features: int | None
) -> Iterator[tuple[Snapshot, Staging]]:
    """The lock, the snapshot to build on, and a folder aside on the same file system."""
    try:
        with exclusive(store.locks / "catalog.lock", purpose, timeout_seconds):
            store.refuse_old_schema()
            folder = store.catalog / ".staging" / uuid.uuid4().hex
            folder.mkdir(parents=True)
            staging = Staging(folder, checks_for(n_features))
            try:
                yield current(store), staging
            finally:
                staging.remove()
    except OSError as error:
        raise StoreError(
            f"{purpose} failed in {store.root}: {error.strerror or error}; nothing was published. "
            "Make room or allow writing there, and try again"
        ) from error


def _n_features(publication: Publication) -> int:
    for group, writing in ((publication.tables, "replaced"), (publication.appended, "appended")):
        for name in group:
            if table_named(name).writing != writing or not table_named(name).partition.startswith("sae"):
                raise SchemaError(
                    f"table {name!r} is not {writing} by SAE; it belongs in another part of the Publication"
                )
    for name in publication.shared:
        if TABLES[table_named(name).name].partition not in ("model_id", "dataset_id"):
            raise SchemaError(f"table {name!r} is not shared between SAEs; give it under tables or appended")
    rows = publication.tables.get("sae")
    if rows is None or isinstance(rows, Path):
        raise SchemaError("a Publication needs the table 'sae' with one row, not as a file; give it under tables")
    sae = as_table("sae", rows)
    if sae.num_rows != 1 or "n_features" not in sae.column_names or sae["n_features"][0].as_py() is None:
        raise SchemaError(f"table 'sae' of a Publication needs one row with n_features; got {sae.num_rows} rows")
    return int(sae["n_features"][0].as_py())


def _version(before: Snapshot, publication: Publication, n_features: int) -> PublishedSAE:
    """The version of the family with this fingerprint, else the next one."""
    if not publication.family or "@" in publication.family or "=" in publication.family:
        raise SchemaError(f"family must be a name without '@' and '=', got {publication.family!r}")
    family = [sae for sae in (*before.saes, *before.retired) if sae.family == publication.family]
    for sae in family:
        if sae.fingerprint == publication.fingerprint:
            return sae
    version = max((sae.version for sae in family), default=0) + 1
    sae_id = f"{publication.family}@{version}"
    return PublishedSAE(sae_id, publication.family, version, publication.fingerprint, n_features)


def _parent(before: Snapshot, sae: PublishedSAE) -> str | None:
    older = [other for other in before.saes if other.family == sae.family and other.version < sae.version]
    return max(older, key=lambda other: other.version).sae_id if older else None


def _stage(staging: Staging, publication: Publication, sae: PublishedSAE, parent: str | None) -> None:
    own = {"sae_id": sae.sae_id, "sae_b": sae.sae_id, "other_sae_id": sae.sae_id, "fingerprint": sae.fingerprint}
    identity: dict[str, str | int] = {
        **own,
        "family": sae.family,
        "version": sae.version,
        **({"parent_sae_id": parent} if parent else {}),
    }
    for name, rows in publication.tables.items():
        staging.add(name, rows, identity if name == "sae" else own)
    for name, rows in publication.appended.items():
        staging.add(name, rows, own)
    for name, rows in publication.shared.items():
        staging.add(name, rows, {})
    strangers = {p.partition for p in staging.parts if TABLES[p.table].partition.startswith("sae")} - {sae.sae_id}
    if strangers:
        raise SchemaError(
            f"rows name another SAE {min(strangers)!r} than {sae.sae_id!r}; leave sae_id out, publish sets it"
        )
    described = [part.rows for part in staging.parts if part.table == "feature"]
    if "feature" in publication.tables and described != [sae.n_features]:
        raise SchemaError(
            f"table 'feature' must have one row for each of {sae.n_features} features, got {sum(described)}"
        )


def _without_repeats(before: Snapshot, parts: list[Part]) -> list[Part]:
    """Parts that add something: appended rows of a fingerprint that is there already do not."""
    paths = {part.path for part in before.parts}
    known = {(p.table, p.partition, p.fingerprint) for p in before.parts if TABLES[p.table].writing == "appended"}
    known = {key for key in known if not TABLES[key[0]].volatile}
    return [
        part
        for part in parts
        if TABLES[part.table].writing == "replaced"
        or (part.path not in paths and (part.table, part.partition, part.fingerprint) not in known)
    ]


def _following(before: Snapshot, sae: PublishedSAE, parts: list[Part]) -> Snapshot:
    """The next snapshot: replaced tables of this SAE, and shared ones by their key, give way to the new parts."""
    shared = {(part.table, part.partition) for part in parts if not TABLES[part.table].partition.startswith("sae")}

    def gives_way(part: Part) -> bool:
        is_own = part.partition == sae.sae_id and TABLES[part.table].writing == "replaced"
        return is_own or (part.table, part.partition) in shared

    kept = tuple(part for part in before.parts if not gives_way(part))
    saes = (*(other for other in before.saes if other.sae_id != sae.sae_id), sae)
    return Snapshot(
        number=before.number + 1,
        parts=(*kept, *parts),
        saes=tuple(sorted(saes, key=lambda s: (s.family, s.version))),
        retired=tuple(other for other in before.retired if other.sae_id != sae.sae_id),
    )


def _check_references(store: Store, staging: Staging, before: Snapshot, after: Snapshot) -> None:
    """Examples of this SAE, and of any other whose corpus changes, must find their sequences."""
    aside = {staged.part.path: staged.aside for staged in staging.staged}

    def files(table: str) -> list[Path]:
        return [aside.get(part.path, store.catalog / part.path) for part in after.parts_of(table)]

    corpus_changes = {p.path for p in before.parts_of("sequence")} - {p.path for p in after.parts_of("sequence")}
    check_examples(files("example") if corpus_changes else staging.files_of("example"), files("sequence"))


def _collect(store: Store) -> None:
    """Remove what a killed publisher left: staged files, and parts that no snapshot names (one that is damaged names
    none). The lock is held."""
    shutil.rmtree(store.catalog / ".staging", ignore_errors=True)
    named = set().union(*(paths for paths in recorded(store).values() if paths is not None))
    for path in list(store.catalog.glob("*/**/part-0.parquet")):
        if str(path.relative_to(store.catalog)) not in named:
            shutil.rmtree(path.parent, ignore_errors=True)
    for leftover in (*store.root.glob(".catalog.duckdb.*"), *store.catalog.glob("**/.*.tmp")):
        leftover.unlink(missing_ok=True)
