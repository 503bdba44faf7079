"""Run files are strict: what is unknown or impossible is named, with what is wanted."""

from importlib.resources import files
from pathlib import Path

import pytest

from flows.config import RunConfig, load_run
from flows.errors import RunConfigError
from saelib.errors import ConfigError

SHIPPED = sorted(entry.name for entry in (files("flows") / "runs").iterdir() if entry.name.endswith(".toml"))


def write(folder: Path, text: str) -> Path:
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_run_loads_by_name(name: str) -> None:
    config = load_run(name)
    assert config.name == name.removesuffix(".toml")
    assert config.resolved_recipes()


def test_the_default_run_is_complete() -> None:
    assert RunConfig().resolved_recipes()[0].architecture == "batchtopk"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[training]\nbatch_token = 4", "unknown key 'training.batch_token'; did you mean 'batch_tokens'"),
        ("nme = 'x'", "unknown key 'nme'; did you mean 'name'"),
        (
            "[corpus]\nsources = [{ kind = 'stdlib', pth = 'x' }]",
            "unknown key 'corpus.sources.0.pth'; did you mean 'path'",
        ),
        ("[training]\nn_tokens = -1", "training.n_tokens = -1"),
        ("[harvest]\nsites = ['a.b:sideways']", "site 'a.b:sideways' is not understood"),
        ("name = ", "no valid TOML"),
    ],
)
def test_wrong_run_file_is_refused_by_name_of_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(RunConfigError, match=complaint.replace("[", r"\[").replace(".", r"\.")):
        load_run(write(tmp_path, text))


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("architecture = 'batchtop'\nn_features = 64", "unknown architecture 'batchtop'.*Did you mean 'batchtopk'"),
        ("architecture = 'topk'\nn_features = 64\nkk = 3", "unknown setting of topk 'kk'.*Did you mean 'k'"),
        ("architecture = 'topk'\nn_features = 64\nk = 64", "k=64 features a token but the SAE has n_features=64"),
        ("architecture = 'topk'\nk = 64", "needs n_features"),
    ],
)
def test_wrong_recipe_is_refused_before_anything_runs(tmp_path: Path, recipe: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_run(write(tmp_path, f"[[recipes]]\n{recipe}\n"))


def test_missing_run_file_names_those_that_come_along() -> None:
    with pytest.raises(RunConfigError, match="demo, gpt2_small, pythia_70m, stories260k"):
        load_run("nowhere.toml")


def test_a_site_may_name_its_side(tmp_path: Path) -> None:
    config = load_run(write(tmp_path, "[harvest]\nsites = ['model.layers.1.mlp:in', 'model.layers.0']"))
    assert [str(site) for site in config.harvest.sites] == ["model.layers.1.mlp:in", "model.layers.0"]
