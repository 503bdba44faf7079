"""A snapshot: the exact files of the catalog at one moment, and the pointer to the current one.

`catalog/snapshots/<n>.json` lists the files and never changes; `catalog/current` names one of them and its hash.
Replacing that pointer is the only act that changes what a new reader sees.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from catalog.errors import DamagedError
from catalog.files import write_json
from catalog.store import Store

__all__ = ["Part", "PublishedSAE", "Snapshot", "commit", "current", "current_number", "last_with", "recorded"]

KEPT = 16  # the last snapshots are always kept; older ones as long as they name a file that the current one does not


@dataclass(frozen=True)
class Part:
    """One Parquet file. `path` is relative to the catalog folder; `partition` is its sae_id, dataset_id or model_id."""

    table: str
    path: str
    partition: str
    fingerprint: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PublishedSAE:
    """One version of a family, and the train artifact it came from."""

    sae_id: str
    family: str
    version: int
    fingerprint: str
    n_features: int


@dataclass(frozen=True)
class Snapshot:
    number: int = 0
    parts: tuple[Part, ...] = ()
    saes: tuple[PublishedSAE, ...] = ()
    retired: tuple[PublishedSAE, ...] = ()
    """Versions that were taken out: their numbers are never given to another training."""

    def parts_of(self, table: str, partition: str | None = None) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if p.table == table and partition in (None, p.partition))

    def same_files(self, other: "Snapshot") -> bool:
        return {p.path for p in self.parts} == {p.path for p in other.parts} and self.saes == other.saes


def current(store: Store) -> Snapshot:
    """The current snapshot; number 0, with no files, where nothing was published. Raises DamagedError."""
    for _ in range(20):  # a superseded snapshot may be collected between the two reads: then the pointer has moved on
        pointer = _pointer(store)
        if pointer is None:
            return Snapshot()
        number, sha256 = pointer
        path = _path(store, number)
        try:
            return _parse(path, path.read_bytes(), sha256)
        except FileNotFoundError:
            if _pointer(store) == pointer:
                raise DamagedError(
                    f"{path} is missing, though {store.catalog / 'current'} points to it; restore it from a backup"
                ) from None
    raise DamagedError(f"{store.catalog / 'current'} moved 20 times while it was read; try again")


def current_number(store: Store) -> int:
    pointer = _pointer(store)
    return 0 if pointer is None else pointer[0]


def commit(store: Store, snapshot: Snapshot) -> None:
    """Make `snapshot` the current one. The caller holds the catalog lock; every file of it is on disk."""
    path = _path(store, snapshot.number)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(snapshot))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(store.catalog / "current", {"snapshot": snapshot.number, "sha256": sha256})
    _forget_superseded(store, snapshot)


def recorded(store: Store) -> dict[Path, set[str] | None]:
    """Every snapshot file that is kept -> the part files that it names; None where it is damaged."""
    return {path: _paths_named(path) for path in sorted((store.catalog / "snapshots").glob("*.json"))}


def last_with(store: Store, sae_id: str) -> Snapshot | None:
    """The last kept snapshot in which that version was published; None where there is none that can be read."""
    for path in sorted((store.catalog / "snapshots").glob("*.json"), reverse=True):
        try:
            content = path.read_bytes()
            found = _parse(path, content, hashlib.sha256(content).hexdigest())
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or collected just now: an earlier one may do
        if any(sae.sae_id == sae_id for sae in found.saes):
            return found
    return None


def _forget_superseded(store: Store, snapshot: Snapshot) -> None:
    """An old snapshot all of whose files are in the current one (rows were only added) holds nothing back."""
    old = _path(store, snapshot.number - KEPT)
    named = _paths_named(old)
    if named is not None and named <= {part.path for part in snapshot.parts}:
        old.unlink(missing_ok=True)


def _paths_named(path: Path) -> set[str] | None:
    """None where that cannot be read: of an old snapshot, which only readers that began long ago need."""
    try:
        return {str(part["path"]) for part in json.loads(path.read_bytes())["parts"]}
    except FileNotFoundError:
        return set()  # collected just now
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(store: Store, number: int) -> Path:
    return store.catalog / "snapshots" / f"{number:08d}.json"


def _pointer(store: Store) -> tuple[int, str] | None:
    path = store.catalog / "current"
    try:
        pointer = json.loads(path.read_bytes())
        return int(pointer["snapshot"]), str(pointer["sha256"])
    except FileNotFoundError:
        if any((store.catalog / "snapshots").glob("*.json")):
            return _lost_pointer(path)
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged ({error}); restore it from a backup") from error


def _lost_pointer(path: Path) -> tuple[int, str] | None:
    if len(list((path.parent / "snapshots").glob("*.json"))) == 1:
        return None  # killed between the first snapshot and the first pointer: nothing was published yet
    raise DamagedError(f"{path} is missing, though there are snapshots; restore it from a backup")


def _parse(path: Path, content: bytes, sha256: str) -> Snapshot:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(
            f"{path} is not what {path.parent.parent / 'current'} points to (its sha256 differs), so one of the two is "
            "damaged; restore it from a backup"
        )
    data = json.loads(content)
    return Snapshot(
        number=data["number"],
        parts=tuple(Part(**part) for part in data["parts"]),
        saes=tuple(PublishedSAE(**sae) for sae in data["saes"]),
        retired=tuple(PublishedSAE(**sae) for sae in data.get("retired", ())),
    )
