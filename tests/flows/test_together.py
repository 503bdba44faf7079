"""Recipes with ends, sweeps, several SAEs in one pass, streaming: the path end to end on the demo model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_builds import tiny

from catalog import Store, connect, verify
from flows import steps
from flows.artifact import verify_artifacts
from flows.config import RunConfig
from flows.errors import RecipeError
from flows.naming import with_module_paths
from flows.path import path
from flows.place import Place
from saelib.sae import SAE
from saelib.shuffled import ShuffledRows
from saelib.training import Training

Built = tuple[RunConfig, Place]

SITES = {"sites": [{"path": "model.layers.0"}, {"path": "model.layers.1"}]}
RECIPES: list[dict[str, Any]] = [
    {"architecture": "batchtopk", "n_features": 96, "k": [4, 8], "site": "model.layers.1"},
    {"architecture": "transcoder", "n_features": 64, "k": 6, "read": "model.layers.1.mlp:in",
     "write": "model.layers.1.mlp"},
    {"architecture": "skip_transcoder", "n_features": 64, "read": "model.layers.1.mlp:in",
     "write": "model.layers.1.mlp", "k": 6, "training": {"n_tokens": 20_480}},
    {"architecture": "crosscoder", "n_features": 80, "k": 5},
    {"architecture": "standard", "n_features": 128, "site": "model.layers.0", "seed": 3, "learning_rate": 5e-3},
]  # fmt: skip
SHORT = {"n_tokens": 30_720}


def rows(place: Place, sql: str) -> list[tuple[Any, ...]]:
    return connect(place.store).execute(sql).fetchall()


@pytest.fixture(scope="module")
def several(begin: Callable[..., Built], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One run of six SAEs. Treat the store as read-only."""
    store = Store.create(tmp_path_factory.mktemp("several") / "store")
    config, place = begin(store, harvest=SITES, recipes=RECIPES, training=SHORT)
    path(config, place)
    return config, place


@pytest.fixture
def train(begin: Callable[..., Built]) -> Callable[..., Place]:
    """The path up to the SAEs only, in a store, with changes."""

    def run(store: Store, **changes: object) -> Place:
        config, place = begin(store, **changes)
        tokens = steps.tokenize(config, place)
        steps.train(config, tokens, steps.harvest(config, tokens, place), place)
        return place

    return run


def manifests(store: Store, kind: str = "sae") -> dict[str, str]:
    """Fingerprint -> sha256 that the manifest gives itself."""
    found = (json.loads(file.read_text()) for file in store.artifacts.glob(f"{kind}/*/manifest.json"))
    return {manifest["fingerprint"]: manifest["sha256"] for manifest in found}


def test_every_sae_of_the_run_is_published_under_a_name_of_its_own(several: Built) -> None:
    names = {name.split("/", 1)[1] for (name,) in rows(several[1], "select sae_id from sae")}
    assert names == {
        "model.layers.1/batchtopk-96-k4@1",
        "model.layers.1/batchtopk-96-k8@1",
        "model.layers.1.mlp:in..model.layers.1.mlp/transcoder-64@1",
        "model.layers.1.mlp:in..model.layers.1.mlp/skip_transcoder-64@1",
        "model.layers.0+model.layers.1/crosscoder-80@1",
        "model.layers.0/standard-128@1",
    }
    store, damages = several[1].store, []
    verify_artifacts(store, lambda where, problem: damages.append((where, problem)))
    assert [*damages, *verify(store)] == []


def test_sae_rows_say_what_is_read_and_written_and_how(several: Built) -> None:
    sql = """select architecture, sites_read, sites_written, d_in, d_out, k, has_skip, input_norm, nonlinearity, seed,
             sparsity_weight, len(activation_scale), train_tokens from sae order by architecture, k"""
    mlp_in, mlp, zero, one = ["model.layers.1.mlp:in"], ["model.layers.1.mlp"], ["model.layers.0"], ["model.layers.1"]
    assert rows(several[1], sql) == [
        ("batchtopk", one, one, 256, 256, 4, False, "none", "JumpReLU", 0, None, 1, 30_720),
        ("batchtopk", one, one, 256, 256, 8, False, "none", "JumpReLU", 0, None, 1, 30_720),
        ("crosscoder", zero + one, zero + one, 512, 512, 5, False, "none", "JumpReLU", 0, None, 2, 30_720),
        ("skip_transcoder", mlp_in, mlp, 256, 256, 6, True, "none", "TopK", 0, None, 2, 20_480),
        ("standard", zero, zero, 256, 256, None, False, "none", "ReLU", 3, 5.0, 1, 30_720),
        ("transcoder", mlp_in, mlp, 256, 256, 6, False, "none", "TopK", 0, None, 2, 30_720),
    ]


def test_every_sae_has_metrics_features_and_a_curve(several: Built) -> None:
    sql = """select s.sae_id, (select count(*) from feature f where f.sae_id = s.sae_id) = s.n_features,
             (select value from sae_metric m where m.sae_id = s.sae_id and metric = 'fvu'),
             (select value from sae_metric m where m.sae_id = s.sae_id and metric = 'ce_spliced'),
             (select value from sae_metric m where m.sae_id = s.sae_id and metric = 'ce_zero'),
             (select count(*) from train_progress p where p.fingerprint = s.fingerprint),
             (select max(n_tokens) from train_progress p where p.fingerprint = s.fingerprint) = s.train_tokens
             from sae s"""
    for sae_id, is_described, fvu, spliced, zero, n_points, is_whole in rows(several[1], sql):
        assert is_described and is_whole, sae_id
        assert 0 < fvu < 1, (sae_id, fvu)
        assert 0 < spliced < zero or "standard" in sae_id, sae_id
        assert n_points >= 40, sae_id


def test_batches_are_read_once_for_all(
    tmp_path: Path, train: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = ShuffledRows.batch

    def counted(self: ShuffledRows, step: int) -> Any:
        read.append(step)
        return real(self, step)

    monkeypatch.setattr(ShuffledRows, "batch", counted)
    recipe = {"architecture": "topk", "n_features": 64, "k": [2, 4], "seed": [0, 1]}
    place = train(Store.create(tmp_path / "store"), recipes=[recipe], training={"n_tokens": 5_120})
    assert read == list(range(10)) and len(manifests(place.store)) == 4


@pytest.mark.parametrize("number", [0, 2, 3])
def test_an_sae_trained_among_others_is_byte_for_byte_the_one_trained_alone(
    several: Built, number: int, tmp_path: Path, train: Callable[..., Place]
) -> None:
    config, place = several
    alone = {**RECIPES[number], **({"k": 4} if number == 0 else {})}
    store = Store.create(tmp_path / "store")
    sites = {"sites": [site.model_dump() for site in config.resolved_harvest().sites]}
    if number == 3:
        alone |= {"read": ["model.layers.0", "model.layers.1"]}
    train(store, harvest=sites, recipes=[alone], training=SHORT)
    (made,) = manifests(store).items()
    assert made in manifests(place.store).items()


def test_a_wider_sweep_trains_only_what_is_missing(tmp_path: Path, train: Callable[..., Place]) -> None:
    store = Store.create(tmp_path / "store")
    recipe = {"architecture": "topk", "n_features": 64, "k": [2, 4]}
    train(store, recipes=[recipe], training={"n_tokens": 5_120})
    place = train(store, recipes=[recipe | {"k": [2, 3, 4]}], training={"n_tokens": 5_120})
    states = [report.state for report in place.reports if report.step == "train"]
    assert sorted(states) == ["finished", "reused", "reused"]


def facts(store: Store, kind: str) -> list[dict[str, Any]]:
    """Of every artifact of a kind."""
    return [json.loads(file.read_text())["facts"] for file in store.artifacts.glob(f"{kind}/*/manifest.json")]


class Killed(Exception):
    pass


def test_a_killed_sweep_resumes_each_exactly(
    tmp_path: Path, train: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice, once between the checkpoints of the first and the second SAE."""
    recipes = [{"architecture": "topk", "n_features": 64, "k": [2, 4, 8]},
               {"architecture": "batchtopk", "n_features": 32, "k": 4, "training": {"n_tokens": 5_120}}]  # fmt: skip
    changes: dict[str, Any] = {"recipes": recipes, "training": {"n_tokens": 15_360, "checkpoint_every_steps": 5}}
    whole, killed = (Store.create(tmp_path / name) for name in ("whole", "killed"))
    train(whole, **changes)
    for count in (5, 60):
        with monkeypatch.context() as patched:
            _dying_at(patched, count)
            with pytest.raises(Killed):
                train(killed, **changes)
    place = train(killed, **changes)
    assert any("train: resumed at step" in line for line in place.watch.lines)  # type: ignore[attr-defined]
    assert manifests(killed) == manifests(whole) and len(manifests(killed)) == 4


def _dying_at(patched: pytest.MonkeyPatch, count: int) -> None:
    """Die in the place of a checkpoint (`count` odd) or of a step."""
    done, real = [0], Training.save if count % 2 else Training.advance

    def dying(self: Training) -> Any:
        done[0] += 1
        if done[0] > count:
            raise Killed
        return real(self)

    patched.setattr(Training, "save" if count % 2 else "advance", dying)


def test_a_stream_trains_the_same_sae_as_the_shards_on_disk_and_keeps_few_of_them(
    built: Built, tmp_path: Path, rebuild: Callable[..., Built], train: Callable[..., Place]
) -> None:
    store = Store.create(tmp_path / "store")
    config, place = rebuild(store, training={"stream": True}, harvest={"max_tokens": 1_000})
    (weights,) = store.artifacts.glob("sae/*/sae.safetensors")
    (on_disk,) = built[1].store.artifacts.glob("sae/*/sae.safetensors")
    assert weights.read_bytes() == on_disk.read_bytes()
    (activations,), (tokens,) = (facts(store, kind) for kind in ("activations", "tokens"))
    n_learned_from = tokens["held_out"].count(False)
    assert n_learned_from > 1 and activations["held_out"].count(False) == 1
    assert activations["held_out"].count(True) == tokens["held_out"].count(True)
    assert activations["shards"] == [0, *range(n_learned_from, len(tokens["held_out"]))]
    assert len(list(store.artifacts.glob("activations/*/shard-*.rows.*"))) == len(activations["shards"])
    assert rows(place, "select n_tokens from dataset") == [(sum(activations["n_rows"]),)]
    assert rows(place, "select max(n_tokens) from feature") == [(sum(activations["n_rows"]),)]
    again = train(store, training={"stream": True}, harvest={"max_tokens": 100_000})
    states = {report.step: report.state for report in again.reports}
    assert states["harvest"] == "finished" and states["train"] == "reused", "the stream does not hang on the disk"


def test_a_killed_stream_resumes_exactly(
    built: Built, tmp_path: Path, train: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "store")
    with monkeypatch.context() as patched:
        _dying_at(patched, 38)
        with pytest.raises(Killed):
            train(store, training={"stream": True})
    train(store, training={"stream": True})
    (weights,) = store.artifacts.glob("sae/*/sae.safetensors")
    (on_disk,) = built[1].store.artifacts.glob("sae/*/sae.safetensors")
    assert weights.read_bytes() == on_disk.read_bytes()


def test_curves_are_seen_while_training_goes_on(
    train: Callable[..., Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = [0.0], list[int]()
    real = Training.advance

    def slow(self: Training) -> Any:
        clock[0] += 3.0
        if self.step == 9:
            (count,) = connect(store).execute("select count(*) from train_progress").fetchall()
            seen.append(count[0])
        return real(self)

    monkeypatch.setattr("flows.steps.curves.monotonic", lambda: clock[0])
    monkeypatch.setattr(Training, "advance", slow)
    store = Store.create(tmp_path / "store")
    place = train(store, training={"n_tokens": 5_120, "checkpoint_every_steps": 1_000})
    assert seen and seen[0] >= 8
    sql = "select step, tokens_per_second, l0, fvu, dead_share, learning_rate, loss from train_progress order by 1"
    points = rows(place, sql)
    assert [point[0] for point in points] == list(range(1, 11))
    assert points[1][1] == pytest.approx(512 / 3.0)
    assert all(value is not None for point in points for value in point)


def test_features_of_a_transcoder_are_those_of_its_weights(several: Built) -> None:
    """The share in the reconstruction sums the real change of the error, here by brute force for one feature."""
    _, place = several
    sql = "select weights_uri, sae_id from sae where architecture = 'skip_transcoder'"
    uri, sae_id = rows(place, sql)[0]
    sae = SAE.load((place.store.root / uri).parent)
    feature, reconstructive, norm, cosine = rows(
        place,
        f"""select feature, reconstructive, decoder_norm, encoder_decoder_cosine from feature
            where sae_id = '{sae_id}' order by n_fires desc limit 1""",
    )[0]
    assert norm == pytest.approx(sae.W_dec[feature].norm().item(), rel=1e-5) and cosine is None
    x, y = _harvested(place, ("model.layers.1.mlp:in", "model.layers.1.mlp"))
    f = sae.encode(x)
    without = f.clone()
    without[:, feature] = 0
    change = (y - sae.rebuild(x, without)).square().sum() - (y - sae.rebuild(x, f)).square().sum()
    assert reconstructive == pytest.approx((change / (y - y.mean(dim=0)).square().sum()).item(), rel=1e-3)


def _harvested(place: Place, sites: tuple[str, ...]) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    (manifest,) = place.store.artifacts.glob("activations/*/manifest.json")
    places = [json.loads(manifest.read_text())["facts"]["sites"].index(site) for site in sites]
    files = [sorted(manifest.parent.glob(f"shard-*.site-{each}.safetensors")) for each in places]
    return [torch.cat([load_file(file)["activations"] for file in each]) for each in files]


def test_short_names_and_wildcards_of_sites_are_module_paths_in_the_plan(corpus: Path) -> None:
    recipe = {"architecture": "transcoder", "n_features": 64, "k": 6, "read": "mlp_out.0", "write": "resid_post.1"}
    config = tiny(corpus, harvest={"sites": [{"path": "resid_post.1"}]}, recipes=[recipe, RECIPES[3]])
    named = with_module_paths(config)
    assert [str(site) for site in named.resolved_harvest().sites] == ["model.layers.1", "model.layers.0.mlp"]
    assert with_module_paths(tiny(corpus)) == tiny(corpus)
    every = with_module_paths(tiny(corpus, harvest={"sites": [{"path": "model.layers.*.mlp"}]}))
    assert len(every.harvest.sites) == 4 and len(every.choices()) == 4
    with pytest.raises(RecipeError, match="unknown site.*layer"):
        with_module_paths(tiny(corpus, harvest={"sites": [{"path": "resid_post.99"}]}))


def test_a_build_says_what_was_kept_of_the_text(built: Built) -> None:
    lines = [line for line in built[1].watch.lines if line.startswith("tokenize: ")]
    assert any("documents kept" in line for line in lines)
    manifest = next((built[1].store.root / "artifacts/tokens").glob("*/manifest.json"))
    facts = json.loads(manifest.read_text())["facts"]
    assert facts["counts"]["n_read"] == facts["n_documents"] > 0
