"""What stays on disk of activations: after a run those that no rule keeps are evicted.

The manifest stays, marked *evicted*, so whatever hangs on it stays done; the files go. A build that reads them harvests
them again, byte for byte.
"""

import fcntl
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from catalog import LockedError, Store, connect
from catalog.guard import answering
from catalog.locks import exclusive
from flows.artifact import Artifact, every, lock_file, mark_evicted
from flows.config import KEEP_RULE, RunConfig
from flows.disk import disk_error
from flows.errors import RunConfigError
from flows.place import Place

__all__ = ["at_rest", "building", "evict", "evict_unwanted", "unwanted"]

Subject = tuple[str, str]
"""A model and a corpus."""


@contextmanager
def building(store: Store) -> Iterator[None]:
    """While open, nothing of the store is evicted or collected. Any number of builds at once. Raises DiskError."""
    path = store.locks / "builds.lock"
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed below: what the build raises is not of this)
    except OSError as error:
        raise disk_error(error, path) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def at_rest(store: Store, purpose: str) -> Iterator[None]:
    """While open, no build begins. Raises LockedError where one is running."""
    try:
        with exclusive(store.locks / "builds.lock", purpose, timeout_seconds=0):
            yield
    except LockedError as error:
        raise LockedError(
            f"{purpose}: a build is running in {store.root}, and what it reads must stay; try again when it has ended"
        ) from error


def evict_unwanted(config: RunConfig, activations: Artifact, place: Place) -> None:
    """After a run: its rule, on the activations of its own model and corpus. Another build running: left for later."""
    rule = config.keep_activations
    if rule == "all":
        return
    try:
        for gone in evict(place.store, rule, like=activations):
            place.watch.say(f"activations {gone.fingerprint[:12]}: evicted ({rule}), {gone.n_bytes / 1e6:,.1f} MB")
    except LockedError as error:
        place.watch.say(f"activations are kept for now. {error}")


def evict(store: Store, rule: str, like: Artifact | None = None) -> list[Artifact]:
    """Remove the files of the activations that `rule` does not keep; say which. Raises LockedError.

    Killed anywhere, an artifact is whole, or evicted with files left that the next time removes.
    """
    with at_rest(store, "evicting activations"):
        found = unwanted(store, rule, like)
        for artifact in found:
            with exclusive(lock_file(store, artifact.kind, artifact.fingerprint), "evicting", timeout_seconds=0):
                mark_evicted(artifact, rule)
        for artifact in every(store, "activations"):
            if artifact.is_evicted:
                _remove_files(artifact)
    return found


def _remove_files(artifact: Artifact) -> None:
    """All but the manifest: of a killed attempt, its half of a manifest too."""
    for path in artifact.directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "manifest.json":
            path.unlink()


def unwanted(store: Store, rule: str, like: Artifact | None = None) -> list[Artifact]:
    """Activations that are on disk and that `rule` does not keep: of every model and corpus, or of those of `like`.

    `last` keeps those of the most recent run of each model and corpus; `7 days` what a run used in that time.
    """
    if not re.match(KEEP_RULE, rule):
        raise RunConfigError(f"keep_activations = {rule!r}: give all, none, last, or as many days: '7 days'")
    groups: dict[Subject, list[Artifact]] = defaultdict(list)
    for artifact in every(store, "activations"):
        groups[_subject(store, artifact)].append(artifact)
    subjects = groups if like is None else [_subject(store, like)]
    now = datetime.now(UTC).replace(tzinfo=None)
    used = _last_used(store)

    def is_kept(artifact: Artifact, group: list[Artifact]) -> bool:
        at = used.get(artifact.fingerprint, now)
        if rule == "last":
            return at == max(used.get(other.fingerprint, now) for other in group)
        return rule == "all" or (rule != "none" and now - at < timedelta(days=int(rule.split()[0])))

    return [
        artifact
        for subject in subjects
        for artifact in groups[subject]
        if not artifact.is_evicted and not is_kept(artifact, groups[subject])
    ]


def _subject(store: Store, activations: Artifact) -> Subject:
    """The model, and the sources of the text: the same corpus in another state, or cut otherwise, is still it."""
    (tokens,) = (parent["fingerprint"] for parent in activations.manifest["parents"])
    try:
        manifest = json.loads((store.artifacts / "tokens" / tokens / "manifest.json").read_text(encoding="utf-8"))
        corpus = json.dumps(manifest["plan"]["corpus"]["sources"], sort_keys=True)
    except (OSError, ValueError, KeyError):
        corpus = tokens
    return activations.manifest["plan"]["model"], corpus


def _last_used(store: Store) -> dict[str, datetime]:
    """When each was last harvested, or found done, by a run."""
    sql = "select fingerprint, max(ended_at) from run where step = 'harvest' and fingerprint is not null group by 1"
    with answering(sql):
        return dict(connect(store).execute(sql).fetchall())
