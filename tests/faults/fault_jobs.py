"""What the children of the fork server do: build, look at a store, compare, label. Arguments and answers are JSON."""

import errno
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
from catalog_samples import publication
from tiny_run import Record, tiny

from catalog import TABLES, CatalogError, Event, Labels, Reader, Store, connect, current, publish, verify
from flows.artifact import verify_artifacts
from flows.config import RunConfig
from flows.path import path
from flows.place import Place

MACHINE_MADE = [name for name, table in TABLES.items() if table.writing != "event" and not table.volatile]
PER_SAE = [name for name in MACHINE_MADE if TABLES[name].partition == "sae_id" and name != "sae"]


def build(
    store: str,
    corpus: str,
    changes: dict[str, Any] | None = None,
    die_before: str | None = None,
    full_from: int | None = None,
) -> dict[str, Any]:
    """The whole path. `die_before`: kill -9 in front of the first change of a file's name that reads so; `full_from`:
    from that fsync on, the disk is full."""
    config = _config(corpus, changes or {})
    place = Place(Store.create(store), Record(), 1)
    _dying(die_before)
    syncs = _counting_syncs(full_from)
    path(config, place)
    return {
        "syncs": syncs[0],
        "lines": place.watch.lines,
        "states": {report.step: report.state for report in place.reports},
        "seconds": {report.step: report.seconds for report in place.reports},
    }


def _config(corpus: str, changes: dict[str, Any]) -> RunConfig:
    """The tiny run with changes."""
    config: RunConfig = tiny(Path(corpus), **{name: change for name, change in changes.items() if name != "corpus"})
    return config.model_copy(update={"corpus": config.corpus.model_copy(update=changes.get("corpus", {}))})


def _dying(die_before: str | None) -> None:
    """Watch every change of a file's name, as `replace TARGET`, `unlink FILE` …"""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*paths: Any, **more: Any) -> Any:
            if die_before is not None and re.search(die_before, f"{name} {paths[-1]}"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*paths, **more)

        return change

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, watched(name, getattr(os, name)))


def _counting_syncs(full_from: int | None) -> list[int]:
    """Every fsync from here on; from number `full_from` on, each says that there is no room."""
    count, real = [0], os.fsync

    def fsync(descriptor: int) -> None:
        count[0] += 1
        if full_from is not None and count[0] > full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = fsync
    return count


def almanac(words: list[str]) -> None:
    """The command line."""
    sys.argv = ["almanac", *words]
    from flows.cli import main

    main()


def damages(store: str) -> list[str]:
    """What verify says, before anything repairs anything."""
    opened, found = Store.open(store), []
    verify_artifacts(opened, lambda where, problem: found.append(f"{where}: {problem}"))
    return [*found, *(f"{damage.path}: {damage.problem}" for damage in verify(opened))]


def inspect(store: str, new_label: str | None = None) -> dict[str, Any]:
    """What anybody sees of a store: damage, artifacts without a manifest, every SAE with the rows of its tables. Then
    somebody may write a label."""
    found = {"damages": damages(store), "half_made": half_made(Path(store))}
    connection = connect(store)
    inside = counts(connection)
    view_file = Path(store) / "catalog.duckdb"
    with duckdb.connect(str(view_file), read_only=True) as outsider:
        outside = counts(outsider)
    labels = connection.execute("select event_id from label_event order by created_at").fetchall()
    if new_label is not None:
        label(store, new_label)
    return found | {"inside": inside, "outside": outside, "labels": [event_id for (event_id,) in labels]}


def half_made(store: Path) -> list[str]:
    """Artifacts that are there without a manifest."""
    finished = [path for path in store.glob("artifacts/*/*") if not path.name.startswith(".")]
    return [str(path) for path in finished if not (path / "manifest.json").is_file()]


def counts(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """Rows of every table, SAE by SAE."""
    tables = ", ".join(f"(select count(*) from {name} t where t.sae_id = s.sae_id) as {name}" for name in PER_SAE)
    rows = connection.execute(f"select s.sae_id, {tables} from sae s").fetchall()
    return {row[0]: dict(zip(PER_SAE, row[1:], strict=True)) for row in rows}


def read_on(store: str, until: str, expected: dict[str, int]) -> dict[str, Any]:
    """Read in a loop until a file appears: versions seen, errors, and versions that are not whole or of two origins."""
    os.nice(10)  # eight of these must not keep the publisher from publishing
    reader, errors, torn, n_read = Reader(store), [], [], 0
    seen: set[str] = set()
    tables = ["sae", *(name for name in PER_SAE if "fingerprint" in TABLES[name].names)]
    origins = " union ".join(f"select sae_id, fingerprint from {name}" for name in tables)
    while not (n_read or errors) or not Path(until).exists():
        try:
            cursor = reader.cursor()
            found = counts(cursor)
            origin = cursor.execute(
                f"select sae_id from ({origins}) group by sae_id having count(distinct fingerprint) <> 1"
            ).fetchall()
        except (duckdb.Error, CatalogError, OSError) as error:
            errors.append(f"{type(error).__name__}: {error}")
            continue
        n_read += 1
        seen |= found.keys()
        torn += [f"{sae_id}: {rows}" for sae_id, rows in found.items() if rows != expected]
        torn += [f"{sae_id} has rows of several fingerprints" for (sae_id,) in origin]
    reader.close()
    return {"n_read": n_read, "errors": errors[:5], "torn": torn[:5], "n_seen": len(seen)}


def publish_on(store: str, train: int, acknowledged: str) -> None:
    """Publish one version after the other until killed, with a line for each that is done."""
    for number in itertools.count(train):
        published = publish(Store.open(store), publication(8, train=number, content=number))
        with open(acknowledged, "a") as file:
            file.write(published.sae_id + "\n")


def compare(store: str, other: str) -> list[str]:
    """How two stores differ in what machines made: rows, parts, artifacts. Times and run ids may differ."""
    stores = [Store.open(store), Store.open(other)]
    different = []
    for name in MACHINE_MADE:
        keys = ", ".join(f'"{key}"' for key in TABLES[name].key) or "all"
        one, two = (repr(connect(each).execute(f"from {name} order by {keys}").fetchall()) for each in stores)
        if one != two:
            different.append(f"rows of {name}")
    parts = [{(p.path, p.sha256) for p in current(each).parts if p.table in MACHINE_MADE} for each in stores]
    different += [f"part {path}" for path, _ in parts[0] ^ parts[1]]
    files = [_files(each.artifacts) for each in stores]
    return different + [f"file {name}" for name, _ in files[0] ^ files[1]]


def _files(folder: Path) -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(folder)), sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def label(store: str, event_id: str, acknowledged: str | None = None, times: int = 1) -> None:
    """Label `times` times; each event is acknowledged, as a line, after it was recorded."""
    with Labels(Store.open(store)) as labels:
        for i in range(times):
            name = event_id if times == 1 else f"{event_id}-{i}"
            values = {"sae_id": "any@1", "feature": i % 100, "text": f"label {name}"}
            labels.append([Event("label_event", "ada", "write", values, event_id=name)])
            if acknowledged:
                with open(acknowledged, "a") as file:
                    file.write(name + "\n")


def ask(store: str, sql: str) -> list[list[Any]]:
    """SQL on the current snapshot."""
    return [list(row) for row in connect(store).execute(sql).fetchall()]


def season(store: str) -> list[str]:
    """A label, and everything derived as it should be; then what verify says."""
    label(store, "kept")
    connect(store)
    return damages(store)
