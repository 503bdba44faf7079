"""Artifacts: finished, immutable directories, named by what they were made from.

    fingerprint = sha256(kind, step version, plan, fingerprints of the parents)

A step writes into a partial directory beside the finished ones, the manifest last, then renames: an artifact is
finished or absent. The partial directory keeps its name, so a killed step finds the pieces that it had finished
(`keep_piece`, `kept_piece`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from catalog.errors import LockedError
from catalog.files import sha256_of, sync_file, sync_folder
from catalog.locks import exclusive
from catalog.store import Store
from flows.disk import SEAL, disk_error, keep_piece, kept_piece, sealed_as, write_piece
from flows.errors import ArtifactError

__all__ = [
    "Artifact",
    "Draft",
    "Work",
    "code_version",
    "every",
    "find",
    "finished",
    "keep_piece",
    "kept_piece",
    "lock_file",
    "making",
    "mark_evicted",
    "verify_artifacts",
    "write_piece",
]

LOCK_SECONDS = 24 * 3600.0
"""How long a second build of the same thing waits for the first."""


def code_version() -> str:
    """Version of this program, for manifests and the table `run`."""
    try:
        return version("sae-almanac")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Artifact:
    """A finished directory and its manifest. `facts` are numbers that later steps need: counts, thresholds."""

    kind: str
    fingerprint: str
    directory: Path
    manifest: Mapping[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step found out."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    @property
    def is_evicted(self) -> bool:
        """Whether its files were removed to make room. What it was made from and found out stays true."""
        return "evicted" in self.manifest

    @property
    def n_bytes(self) -> int:
        """Size of its files, as they were written."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """One of its files, checked against the manifest. Raises ArtifactError where it is not what was written."""
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.directory} has no {name!r}; it has {sorted(self.manifest['files'])}")
        if self.is_evicted:
            raise ArtifactError(
                f"the files of {self.directory} were removed on {self.manifest['evicted']['at'][:10]} to make room; "
                "`almanac build` makes them again where a step reads them"
            )
        path = self.directory / name
        problem = file_problem(path, self.manifest["files"][name])
        if problem:
            raise ArtifactError(
                f"{path} is damaged: {problem}; delete the folder {self.directory} and build again: "
                "what hangs on it is made anew, labels stay"
            )
        return path

    def files(self, prefix: str) -> list[Path]:
        """Its files whose name starts so, in order, checked."""
        return [self.file(name) for name in sorted(self.manifest["files"]) if name.startswith(prefix)]


@dataclass(frozen=True)
class Work:
    """What is to be made: the plan is complete before anything runs, and names the result."""

    kind: str
    step_version: int
    plan: Mapping[str, Any]
    parents: tuple[Artifact, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Name of the artifact."""
        content = [self.kind, self.step_version, self.plan, [parent.fingerprint for parent in self.parents]]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def directory(self, store: Store) -> Path:
        """Where the finished artifact lies."""
        return store.artifacts / self.kind / self.fingerprint

    def partial(self, store: Store) -> Path:
        """Where it lies while it is made."""
        return self.directory(store).with_name(f".partial-{self.fingerprint}")


@dataclass
class Draft:
    """An artifact in the making."""

    directory: Path
    facts: dict[str, Any]
    rows: dict[str, int]


def find(store: Store, work: Work) -> Artifact | None:
    """The finished artifact, if there is one. The manifest decides, nothing else."""
    directory = work.directory(store)
    path = directory / "manifest.json"
    if not path.is_file():
        return None
    return Artifact(work.kind, work.fingerprint, directory, _read_manifest(path))


def every(store: Store, kind: str = "*") -> Iterator[Artifact]:
    """Every finished artifact, evicted or not. Raises ArtifactError for a manifest that is damaged."""
    for path in sorted(store.artifacts.glob(f"{kind}/*/manifest.json")):
        if not path.parent.name.startswith("."):
            yield Artifact(path.parent.parent.name, path.parent.name, path.parent, _read_manifest(path))


def mark_evicted(artifact: Artifact, rule: str) -> None:
    """From now on its files count for nothing, and may be removed. `rule` says why, for people."""
    evicted = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "rule": rule}
    _write_manifest(artifact.directory, {**artifact.manifest, "evicted": evicted})
    sync_folder(artifact.directory)


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest as it was written. Raises ArtifactError where a byte of it changed."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_whole = manifest.get("sha256", _digest(manifest)) == _digest(manifest)
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete {path.parent} and build again") from error
    if not is_whole:
        raise ArtifactError(
            f"{path} is damaged: its content is not what was written (sha256 differs); "
            f"delete {path.parent} and build again"
        )
    return manifest


def _write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    manifest = {**content, "sha256": _digest(content)}
    write_piece(directory / "manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def _digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content, its own entry `sha256` left out."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished(store: Store, work: Work) -> Artifact:
    """The finished artifact. Raises ArtifactError where it is gone."""
    found = find(store, work)
    if found is None:
        raise ArtifactError(f"{work.directory(store)} is gone while it was needed; build again")
    return found


def lock_file(store: Store, kind: str, fingerprint: str) -> Path:
    """Held by whoever makes this artifact, or removes it."""
    return store.locks / f"{kind}-{fingerprint[:16]}.lock"


@contextmanager
def _alone(store: Store, work: Work, say: Callable[[str], None]) -> Iterator[None]:
    """The artifact's own lock. Says who holds it before waiting for long."""
    path, purpose = lock_file(store, work.kind, work.fingerprint), f"making {work.kind}"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, purpose, timeout_seconds=0.5))
        except LockedError as error:
            say(f"waiting: another build makes the same thing. {error}")
            stack.enter_context(exclusive(path, purpose, LOCK_SECONDS))
        yield


@contextmanager
def making(store: Store, work: Work, say: Callable[[str], None], is_read: bool = True) -> Iterator[Draft | None]:
    """The draft to fill, under the artifact's own lock; finished when the block ends. None: it is finished already.

    One that was evicted is made again, unless nobody reads its files. A second process that wants the same artifact
    waits here for the first. Raises DiskError when the disk fills up.
    """
    target, partial = work.directory(store), work.partial(store)
    try:
        with _alone(store, work, say):
            found = find(store, work)
            if found is not None and not (found.is_evicted and is_read):
                yield None
                return
            partial.mkdir(parents=True, exist_ok=True)
            _sweep(partial)
            draft = Draft(partial, {}, {})
            yield draft
            _finish(work, draft, target)
    except OSError as error:
        raise disk_error(error, partial) from error


def _sweep(partial: Path) -> None:
    """Remove the halves of files that a kill left; seals of finished pieces stay."""
    for path in partial.rglob(".*"):
        if path.suffix != SEAL:
            path.unlink()


def _finish(work: Work, draft: Draft, target: Path) -> None:
    files = {}
    pieces = (path for path in draft.directory.rglob("[!.]*") if path.is_file() and path.name != "manifest.json")
    for path in sorted(pieces):
        sync_file(path)
        name = path.relative_to(draft.directory).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sealed_as(path) or sha256_of(path)}
    for hidden in draft.directory.rglob(".*"):
        hidden.unlink()
    manifest = {
        "format": "sae-almanac artifact",
        "kind": work.kind,
        "fingerprint": work.fingerprint,
        "step_version": work.step_version,
        "code_version": code_version(),
        "plan": work.plan,
        "parents": [{"kind": parent.kind, "fingerprint": parent.fingerprint} for parent in work.parents],
        "files": files,
        "rows": draft.rows,
        "facts": draft.facts,
    }
    _write_manifest(draft.directory, manifest)
    if target.exists():  # evicted, or without a manifest because somebody took it away: nothing of it counts
        shutil.rmtree(target)
    os.rename(draft.directory, target)
    sync_folder(target.parent)


def verify_artifacts(store: Store, damage: Callable[[Path, str], None]) -> None:
    """Every manifest of the store against its files: present, size, sha256; of those evicted, the manifest alone."""
    for path in sorted(store.artifacts.glob("*/*/manifest.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            manifest = _read_manifest(path)
            files = {} if "evicted" in manifest else manifest["files"]
        except (ArtifactError, KeyError) as error:
            damage(path, f"the manifest cannot be read: {error}")
            continue
        for name, entry in files.items():
            problem = file_problem(path.parent / name, entry)
            if problem:
                damage(path.parent / name, problem)


def file_problem(path: Path, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, by its entry in the manifest."""
    if not path.is_file():
        return "the file is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"it has {path.stat().st_size} bytes, {entry['bytes']} were written"
    if sha256_of(path) != entry["sha256"]:
        return "its content is not what was written (sha256 differs)"
    return None
