"""What a store holds that nobody needs: artifacts that nothing published was made from, halves of killed steps."""

import os
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from catalog import LockedError, Store
from catalog.garbage import Waste, collect_catalog, needed_fingerprints, size_of, waste_of_catalog
from catalog.locks import exclusive
from flows.artifact import every, lock_file
from flows.disk import disk_error
from flows.retention import at_rest
from flows.steps.harvest import TOO_LARGE
from flows.steps.publish import is_current

__all__ = ["collect", "waste_of"]

GONE = ".gone-"
"""How the folder of an artifact begins that is being removed."""


def waste_of(store: Store, before: datetime) -> list[Waste]:
    """Everything that `collect` would remove, of what was last touched before that moment (UTC)."""
    return [*waste_of_catalog(store, before), *_waste_of_artifacts(store, before)]


def collect(store: Store, before: datetime) -> list[Waste]:
    """Remove it, and say what it was. Raises LockedError while a build is running.

    Killed anywhere, every artifact that is left is whole, and the next time removes the rest.
    """
    with at_rest(store, "collecting garbage"):
        artifacts = _waste_of_artifacts(store, before)
        try:
            gone = [waste for waste in artifacts if _is_removed(store, waste.path)]
        except OSError as error:
            raise disk_error(error, store.artifacts) from error
        return [*collect_catalog(store, before), *gone]


def _waste_of_artifacts(store: Store, before: datetime) -> list[Waste]:
    needed = _needed(store, before)
    found = [
        Waste(artifact.directory, size_of(artifact.directory), f"{artifact.kind} that nothing published was made from")
        for artifact in every(store)
        if artifact.fingerprint not in needed and _changed(artifact.directory) < before
    ]
    for path in sorted(store.artifacts.glob("*/.*")):
        if path.name.startswith(GONE) or (_changed(path) < before and not (path / TOO_LARGE).exists()):
            found.append(Waste(path, size_of(path), "left by a step that was killed"))
    return found


def _needed(store: Store, before: datetime) -> set[str]:
    """What is published, what it says of itself, and all that this was made from. Raises ArtifactError for a manifest
    that is damaged: what it was made from is not known then, and nothing may go."""
    artifacts = {artifact.fingerprint: artifact for artifact in every(store)}
    publications = (artifact for artifact in artifacts.values() if artifact.kind == "publication")
    needed = needed_fingerprints(store, before) | {one.fingerprint for one in publications if is_current(store, one)}
    pending = [name for name in needed if name in artifacts]
    while pending:
        parents = {str(parent["fingerprint"]) for parent in artifacts[pending.pop()].manifest["parents"]}
        pending += [name for name in parents - needed if name in artifacts]
        needed |= parents
    return needed


def _is_removed(store: Store, path: Path) -> bool:
    """Remove an artifact, or what is left of one, unless somebody is making it."""
    fingerprint = path.name.rpartition("-")[2]
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(lock_file(store, path.parent.name, fingerprint), "collecting garbage", 0))
        except LockedError:
            return False
        aside = path.with_name(f"{GONE}{fingerprint}")
        if aside != path:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        shutil.rmtree(aside)
    return True


def _changed(folder: Path) -> datetime:
    """When something in it was last written."""
    times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))]
    return datetime.fromtimestamp(max(times), UTC)
