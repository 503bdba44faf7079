"""Matching two published SAEs: end to end on a tiny store, with weights and without."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from catalog import CatalogError, Publication, Store, connect, current, publish, verify
from flows.cli import match as match_commands
from flows.cli.common import run_app
from flows.config import RunConfig
from flows.errors import FlowError
from flows.path import path
from flows.place import Place

Built = tuple[RunConfig, Place]
Almanac = Callable[..., tuple[int, str, str]]

RECIPES: list[dict[str, Any]] = [
    {"architecture": "batchtopk", "n_features": 128, "k": 8, "seed": [0, 1]},
    {"architecture": "transcoder", "n_features": 64, "k": 6, "read": "model.layers.1.mlp:in",
     "write": "model.layers.1.mlp"},
]  # fmt: skip


@pytest.fixture(scope="module")
def seeds(begin: Callable[..., Built], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two SAEs that differ in their seed, and a transcoder. Treat the store as read-only."""
    store = Store.create(tmp_path_factory.mktemp("seeds") / "store")
    path(*begin(store, recipes=RECIPES))
    return store


@pytest.fixture
def store(seeds: Store, tmp_path: Path) -> Store:
    """A copy of one's own."""
    shutil.copytree(seeds.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def almanac(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: Store) -> Almanac:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    match_commands.register(app)
    app.command("other")(lambda: None)  # with one command only, its name would not be asked for
    monkeypatch.setenv("ALMANAC_STORE", str(store.root))
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["almanac", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(app, (CatalogError, FlowError))
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


def ask(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return connect(store).execute(sql).fetchall()


def artifact_of(store: Store, part: str) -> Path:
    ((uri,),) = ask(store, f"select weights_uri from sae where contains(sae_id, '{part}')")
    return (store.root / uri).parent


def test_two_seeds_are_matched_end_to_end(almanac: Almanac, store: Store) -> None:
    before = ask(store, "select count(*), sum(act_max) from feature")
    code, out, err = almanac("match", "seed0", "seed1")
    assert code == 0, err
    assert "same" in out and "gone" in out and "cosine" in out
    counts = dict(ask(store, "select verdict, count(*) from match group by verdict"))
    assert counts.get("same", 0) > 5, "seeds of one text share features"
    assert ask(store, "select count(distinct feature_a), count(distinct feature_b) from match") == [(128, 128)]
    assert ask(store, "from match where verdict = 'same' and (decoder_cosine < 0.7 or not mutual_best)") == []
    ((correlation, n),) = ask(
        store, "select median(act_correlation), count(act_correlation) from match where verdict = 'same'"
    )
    assert n > 0 and correlation > 0.3, "what points the same way fires on the same tokens"
    assert ask(
        store, "select count(*) from match where verdict in ('gone', 'new') and act_correlation is not null"
    ) == [(0,)]
    assert ask(store, "select count(*), sum(act_max) from feature") == before, "the other tables stay"
    assert verify(store) == []


def test_matching_twice_changes_nothing_and_two_pairs_stay_beside_each_other(almanac: Almanac, store: Store) -> None:
    def files() -> set[str]:
        return {part.path for part in current(store).parts if part.table not in ("run", "lineage")}

    almanac("match", "seed0", "seed1")
    once = files()
    almanac("match", "seed0", "seed1")
    assert files() == once
    code, _, err = almanac("match", "transcoder", "seed1")
    assert code == 0, err
    pairs = {tuple(row) for row in ask(store, "select distinct split_part(sae_a, '/', 3), similarity from match")}
    assert len(pairs) == 2


def test_without_weights_activations_on_shared_tokens_decide(almanac: Almanac, store: Store) -> None:
    shutil.rmtree(artifact_of(store, "seed0"))
    code, _, err = almanac("match", "seed0", "seed1")
    assert code == 0, err
    similarity = ask(store, "select distinct similarity, decoder_cosine is null, encoder_cosine is null from match")
    assert similarity == [("act_correlation", True, True)]
    assert ask(store, "select count(*) > 5 from match where verdict = 'same' and act_correlation >= 0.5") == [(True,)]


def test_an_sae_is_not_matched_with_itself(almanac: Almanac) -> None:
    code, _, err = almanac("match", "seed0", "seed0")
    assert code == 1 and "are the same SAE" in err


def test_where_nothing_can_be_compared_the_error_says_so(almanac: Almanac, store: Store) -> None:
    sae = {"n_features": [4], "model_id": ["elsewhere"]}
    model = {"model_id": ["elsewhere"], "fingerprint": ["0" * 64]}
    publish(store, Publication("elsewhere/tiny", "1" * 64, {"sae": sae}, {"model": model}))
    code, _, err = almanac("match", "elsewhere", "seed1")
    assert code == 1 and "can be compared" in err and "describe both on one corpus" in err
    assert "Traceback" not in err
