"""A truncated and a bit-flipped file of every kind: named by `almanac verify`, refused by whoever reads it, and nothing
else is lost. What is unfinished or can be made again is made again, never trusted.

That verify names a damaged part, pointer, snapshot, view file, schema part, copy of the labels and label store, by any
of four damages, is shown in tests/catalog/test_verify.py; here it is what the commands and the steps do with them.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from fault_store import ForkServer, Whole, appearing, copied, kill_after
from tiny_run import toml_file

NO_TRACE = "Traceback (most recent call last)"


def truncate(path: Path, _: bytes) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


def flip(path: Path, at: bytes) -> bytes:
    """One bit, in the middle or within the first place that reads `at`."""
    content = path.read_bytes()
    place = content.index(at) + len(at) // 2 if at else len(content) // 2
    return content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :]


DAMAGES = {"truncated": truncate, "flipped": flip}


def damage(path: Path, how: str, at: bytes = b"") -> None:
    """Replace the file by a damaged one (it may be a link to a file of the undamaged store)."""
    content = DAMAGES[how](path, at)
    path.unlink()
    path.write_bytes(content)


def slowly(case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


def cases(kinds: Iterable[str], usual: str) -> list[Any]:
    """Every kind with every damage; those that are not `usual` run with the slow tests."""
    return [
        pytest.param(kind, how, marks=() if how == usual else pytest.mark.slow, id=f"{kind}-{how}")
        for kind in kinds
        for how in sorted(DAMAGES)
    ]


def one(store: Path, pattern: str) -> Path:
    return min(store.glob(pattern))


@pytest.fixture
def store(server: ForkServer, whole: Whole, tmp_path: Path) -> Path:
    """A copy of the finished store, with a label in it."""
    folder = copied(whole.store, tmp_path / "store")
    assert server.run("season", store=folder).made == []
    return folder


def asked(server: ForkServer, store: Path, sql: str) -> list[list[object]]:
    rows: list[list[object]] = server.run("ask", store=store, sql=sql).made
    return rows


def said(server: ForkServer, *words: str) -> tuple[int, str]:
    """What a command of ours says, with its exit code; never a stack trace."""
    done = server.run("almanac", words=list(words))
    assert NO_TRACE not in done.log, done.log
    return done.status, done.log


LICENCE = {"corpus": {"licence": "MIT"}}
READ_BY = {
    "token shard": ("artifacts/tokens/*/shard-00000.safetensors", {"harvest": {"sink_norm_multiple": 9.0}}),
    "document table": ("artifacts/tokens/*/document.parquet", LICENCE),
    "sequence table": ("artifacts/tokens/*/sequence.parquet", LICENCE),
    "activation shard": ("artifacts/activations/*/shard-00001.site-0.safetensors", {"training": {"seed": 1}}),
    "weights": ("artifacts/sae/*/sae.safetensors", {"evaluation": {"max_tokens": 1_000}}),
    "record of the weights": ("artifacts/sae/*/sae.json", {"evaluation": {"max_tokens": 1_000}}),
    "feature table": ("artifacts/features/*/feature.parquet", LICENCE),
    "example table": ("artifacts/features/*/example.parquet", LICENCE),
    "manifest of the tokens": ("artifacts/tokens/*/manifest.json", {}),
    "manifest of the weights": ("artifacts/sae/*/manifest.json", {}),
    "manifest of the publication": ("artifacts/publication/*/manifest.json", {}),
}
"""A file of an artifact, and a change of the run that makes a step read it."""


@pytest.mark.parametrize(("kind", "how"), cases(READ_BY, "flipped"))
def test_damaged_file_of_an_artifact_is_named_by_verify_and_by_the_step_that_reads_it(
    kind: str, how: str, server: ForkServer, store: Path, text: Path
) -> None:
    pattern, changes = READ_BY[kind]
    path = one(store, pattern)
    damage(path, how)
    status, output = said(server, "verify", "--store", str(store))
    assert status == 1 and str(path) in output and "delete its folder and build again" in output
    refused = server.run("build", store=store, corpus=text, changes=changes)
    assert refused.error == "ArtifactError" and str(path) in refused.message and "build again" in refused.message
    assert asked(server, store, "select event_id, (select count(*) from feature) from label_event") == [["kept", 128]]


def test_bit_in_the_facts_of_a_manifest_is_noticed(server: ForkServer, store: Path, text: Path) -> None:
    """A number that a later step would believe."""
    path = one(store, "artifacts/activations/*/manifest.json")
    damage(path, "flipped", b'"n_rows": [')
    refused = server.run("build", store=store, corpus=text)
    assert refused.error == "ArtifactError" and str(path) in refused.message


@pytest.mark.parametrize("kind", ["tokens", *map(slowly, ["activations", "sae", "metrics"]), "features", "publication"])
def test_deleted_artifact_is_made_again_byte_for_byte_and_labels_stay(
    kind: str, server: ForkServer, store: Path, text: Path, whole: Whole
) -> None:
    """What verify advises. Left without its manifest, the folder counts for nothing."""
    folder = one(store, f"artifacts/{kind}/*")
    if kind in ("tokens", "sae"):
        (folder / "manifest.json").unlink()
    else:
        shutil.rmtree(folder)
    built = server.run("build", store=store, corpus=text).made
    assert sorted(built["states"].values()).count("finished") == 1
    assert server.run("compare", store=store, other=whole.store).made == []
    assert not server.run("damages", store=store).made
    assert asked(server, store, "select event_id from label_event") == [["kept"]]


IN_THE_CATALOG: dict[str, tuple[str, bytes, Callable[[str], list[str]]]] = {
    "part": ("catalog/feature/*/*/part-0.parquet", b"", lambda s: ["sql", "from feature", "--store", s]),
    "pointer": ("catalog/current", b"", lambda s: ["sql", "from feature", "--store", s]),
    "snapshot": ("catalog/snapshots/LAST", b"", lambda s: ["features", "--store", s]),
    "marker": ("almanac.json", b"almanac", lambda s: ["features", "--store", s]),
    "label store": ("labels/events.sqlite", b"label kept", lambda s: ["verify", "--store", s]),
}


@pytest.mark.parametrize("how", sorted(DAMAGES))
@pytest.mark.parametrize("kind", sorted(IN_THE_CATALOG))
def test_damaged_file_of_the_catalog_is_one_message_that_names_it(
    kind: str, how: str, server: ForkServer, store: Path, text: Path
) -> None:
    pattern, at, command = IN_THE_CATALOG[kind]
    last = max(path.name for path in (store / "catalog/snapshots").glob("*.json"))
    path = one(store, pattern.replace("LAST", last))
    path.chmod(0o644)
    damage(path, how, at)
    status, output = said(server, "verify", "--store", str(store))
    assert status == 1 and str(store) in output and path.name in output
    status, output = said(server, *command(str(store)))
    if kind != "part" or how == "truncated":  # a flipped bit of a part may be read as another number: verify finds it
        assert status == 1 and ("verify" in output or path.name in output)
    if kind in ("pointer", "snapshot", "marker"):
        refused = server.run("build", store=store, corpus=text, changes=LICENCE)
        assert refused.is_named_error and path.name in refused.message
    elif kind == "part":
        assert asked(server, store, "select event_id, (select count(*) from example) > 0 from label_event") == [
            ["kept", True]
        ]


@pytest.mark.parametrize(("table", "command"), [("run", ["plan"]), ("feature", ["build", "--local"])])
def test_build_of_what_is_done_on_a_damaged_part_is_one_message(
    table: str, command: list[str], server: ForkServer, store: Path, text: Path, tmp_path: Path
) -> None:
    """`almanac build` asks for rates before it begins, and shows features when it ends."""
    for path in store.glob(f"catalog/{table}/**/part-0.parquet"):
        path.chmod(0o644)
        damage(path, "truncated")
    run = toml_file(tmp_path / "tiny.toml", text)
    status, output = said(server, *command, str(run), "--store", str(store))
    assert status == 1 and "Run `almanac verify` to see which files" in output


@pytest.mark.parametrize("how", sorted(DAMAGES))
@pytest.mark.parametrize("name", ["catalog.duckdb", "catalog/view_file.json"])
def test_damaged_view_file_is_made_again_by_the_next_command(
    name: str, how: str, server: ForkServer, store: Path
) -> None:
    damage(store / name, how, b"sha256" if name.endswith(".json") else b"")
    assert said(server, "sql", "select count(*) from feature", "--store", str(store))[0] == 0
    assert said(server, "verify", "--store", str(store))[0] == 0
    assert len(server.run("inspect", store=store).made["outside"]) == 1


PIECES = {
    "activation shard": ("activations", "shard-00002.rows.safetensors", "shard-00000.site-0.safetensors"),
    "training checkpoint": ("sae", "checkpoint.safetensors", "checkpoint.safetensors"),
    "summary": ("features", "pieces/sample-00002.safetensors", "pieces/summary-00000.safetensors"),
    "sample": ("features", "pieces/sample-00002.safetensors", "pieces/sample-00001.safetensors"),
    "seal of a piece": ("sae", "checkpoint.safetensors", ".checkpoint.safetensors.sha256"),
}
"""Kind of artifact, the piece after which the build is killed, the piece that is damaged."""


@pytest.mark.parametrize(("piece", "how"), cases(PIECES, "flipped"))
def test_damaged_piece_of_an_unfinished_artifact_is_made_again(
    piece: str, how: str, server: ForkServer, whole: Whole, text: Path, tmp_path: Path
) -> None:
    kind, marker, damaged = PIECES[piece]
    store = copied(whole.store, tmp_path / "store")
    shutil.rmtree(store / "artifacts" / kind)
    with appearing(store, f"artifacts/{kind}/.partial-*/{marker}") as appeared:
        assert kill_after(server.start("build", store=store, corpus=text), appeared, 0.0).status == -9
    damage(one(store, f"artifacts/{kind}/.partial-*/{damaged}"), how)
    built = server.run("build", store=store, corpus=text).made
    if kind == "sae":
        assert "train: the checkpoint is damaged, so training starts anew" in built["lines"]
    assert server.run("compare", store=store, other=whole.store).made == []
