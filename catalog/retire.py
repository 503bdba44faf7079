"""Taking a version of an SAE out of the current snapshot, and putting it back. Labels stay where they are."""

from dataclasses import replace

from catalog.errors import NotFound, nearest
from catalog.locks import exclusive
from catalog.schema import TABLES
from catalog.snapshot import Part, PublishedSAE, Snapshot, commit, current, last_with
from catalog.store import Store
from catalog.view_file import refresh_view_file

__all__ = ["bring_back", "retire"]

LOCK_SECONDS = 600.0


def retire(store: Store, sae_id: str) -> Snapshot:
    """The next snapshot, without that version: its tables are gone from every view; what is said of it by people, and
    its number in the family, stay. Its files stay too, as the snapshots before name them. Raises NotFound."""
    with exclusive(store.locks / "catalog.lock", f"retiring {sae_id}", LOCK_SECONDS):
        store.refuse_old_schema()
        before = current(store)
        sae = _find(before.saes, sae_id, "published")
        return _commit(
            store,
            replace(
                before,
                number=before.number + 1,
                parts=tuple(part for part in before.parts if not _is_of(part, sae_id)),
                saes=tuple(other for other in before.saes if other != sae),
                retired=(*before.retired, sae),
            ),
        )


def bring_back(store: Store, sae_id: str) -> Snapshot:
    """The next snapshot, with a retired version as it was when it was last published. Raises NotFound."""
    with exclusive(store.locks / "catalog.lock", f"bringing back {sae_id}", LOCK_SECONDS):
        store.refuse_old_schema()
        before = current(store)
        sae = _find(before.retired, sae_id, "retired")
        last = last_with(store, sae_id)
        parts = () if last is None else tuple(part for part in last.parts if _is_of(part, sae_id))
        if not parts or not all((store.catalog / part.path).exists() for part in parts):
            raise NotFound(f"the files of {sae_id!r} are gone from the store; build or import it again")
        return _commit(
            store,
            replace(
                before,
                number=before.number + 1,
                parts=(*before.parts, *(part for part in parts if part not in before.parts)),
                saes=tuple(sorted((*before.saes, sae), key=lambda each: (each.family, each.version))),
                retired=tuple(other for other in before.retired if other != sae),
            ),
        )


def _is_of(part: Part, sae_id: str) -> bool:
    return part.partition == sae_id and TABLES[part.table].partition.startswith("sae")


def _find(saes: tuple[PublishedSAE, ...], sae_id: str, state: str) -> PublishedSAE:
    for sae in saes:
        if sae.sae_id == sae_id:
            return sae
    raise NotFound(f"no {state} SAE {sae_id!r} in this store; {nearest(sae_id, [sae.sae_id for sae in saes])}")


def _commit(store: Store, after: Snapshot) -> Snapshot:
    commit(store, after)
    refresh_view_file(store, after)
    return after
