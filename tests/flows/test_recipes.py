"""Recipes of a run file: where they are trained, what a list makes of them, and what is refused."""

from pathlib import Path

import pytest

from flows.config import RunConfig, load_run
from flows.errors import RunConfigError
from saelib.errors import ConfigError


def run(folder: Path, *recipes: str, more: str = "") -> RunConfig:
    text = more + "\n" + "\n".join(f"[[recipes]]\n{recipe}\n" for recipe in recipes)
    (folder / "run.toml").write_text(text)
    return load_run(folder / "run.toml")


def sites(config: RunConfig) -> list[str]:
    return [str(site) for site in config.resolved_harvest().sites]


TOPK = "architecture = 'topk'\nn_features = 64\nk = 4\n"
TRANSCODER = "architecture = 'transcoder'\nn_features = 64\nk = 4\n"
CROSSCODER = "architecture = 'crosscoder'\nn_features = 64\nk = 4\n"


def test_a_recipe_without_sites_is_trained_at_each_listed_one(tmp_path: Path) -> None:
    config = run(tmp_path, TOPK, more="[harvest]\nsites = ['model.layers.0', 'model.layers.1']")
    assert [choice.name for choice in config.choices()] == ["model.layers.0/topk-64", "model.layers.1/topk-64"]


def test_sites_that_recipes_name_are_harvested_after_the_listed_ones(tmp_path: Path) -> None:
    transcoder = TRANSCODER + "read = 'model.layers.1.mlp:in'\nwrite = 'model.layers.1.mlp'"
    there = TOPK + "seed = 1\nsite = 'model.layers.0'"
    config = run(tmp_path, TOPK, transcoder, there, more="[harvest]\nsites = ['a']")
    assert sites(config) == ["a", "model.layers.1.mlp:in", "model.layers.1.mlp", "model.layers.0"]
    assert [choice.name for choice in config.choices()] == [
        "a/topk-64",
        "model.layers.1.mlp:in..model.layers.1.mlp/transcoder-64",
        "model.layers.0/topk-64",
    ]


def test_without_listed_sites_only_those_of_the_recipes_are_harvested(tmp_path: Path) -> None:
    assert sites(run(tmp_path, CROSSCODER + "read = ['x', 'y']", more="[harvest]\nseed = 1")) == ["x", "y"]
    assert sites(run(tmp_path, TOPK)) == ["model.layers.1"]


def test_a_crosscoder_spans_the_sites_it_reads_or_all_that_are_listed(tmp_path: Path) -> None:
    (choice,) = run(tmp_path, CROSSCODER + "read = ['x', 'y']").choices()
    assert [str(site) for site in choice.ends.write] == ["x", "y"]
    (choice,) = run(tmp_path, CROSSCODER, more="[harvest]\nsites = ['a', 'b', 'c']").choices()
    assert choice.name == "a+b+c/crosscoder-64"
    (choice,) = run(tmp_path, CROSSCODER + "read = 'x'\nwrite = ['x', 'y']").choices()
    assert choice.name == "x..x+y/crosscoder-64"


def test_lists_make_every_combination_in_order(tmp_path: Path) -> None:
    sweep = "architecture = 'batchtopk'\nn_features = [64, 128]\nk = [4, 8]\nseed = [0, 1]\nsite = 'x'"
    made = run(tmp_path, sweep).choices()
    assert [(c.recipe.n_features, c.settings["k"], c.training.seed) for c in made] == [
        (n, k, seed) for n in (64, 128) for k in (4, 8) for seed in (0, 1)
    ]
    assert made[0].name == "x/batchtopk-64-k4-seed0" and len({choice.name for choice in made}) == 8


def test_every_swept_key_may_be_a_list(tmp_path: Path) -> None:
    standard = "architecture = 'standard'\nn_features = 128\nl1_weight = [1.0, 2.0]\nlearning_rate = [1e-3, 2e-3]"
    made = run(tmp_path, standard).choices()
    assert [(c.settings["l1_weight"], c.training.learning_rate) for c in made] == [
        (1.0, 1e-3), (1.0, 2e-3), (2.0, 1e-3), (2.0, 2e-3)
    ]  # fmt: skip
    assert len(run(tmp_path, TOPK + "site = ['x', 'y']").choices()) == 2
    assert run(tmp_path, TOPK.replace("k = 4", "k = [4]")).choices()[0].name == "model.layers.1/topk-64"


def test_how_a_recipe_is_trained_otherwise_than_the_run(tmp_path: Path) -> None:
    own = TOPK + "seed = 7\nlearning_rate = 1e-3\ntraining = { n_tokens = 8_192, gradient_norm = 2.0 }"
    config = run(tmp_path, own, TOPK, more="[training]\nn_tokens = 40_960\nbatch_tokens = 512")
    mine, other = (choice.training for choice in config.choices())
    assert (mine.seed, mine.learning_rate, mine.n_tokens, mine.gradient_norm) == (7, 1e-3, 8_192, 2.0)
    assert mine.batch_tokens == 512 and other == config.training


REFUSED = {
    "a transcoder without ends": (TRANSCODER, "a transcoder reads one site and writes another; give both"),
    "a transcoder that writes what it reads": (TRANSCODER + "read = 'x'\nwrite = 'x'", "reads one site and writes"),
    "a transcoder that only reads": (TRANSCODER + "read = 'x'", "reads one site and writes another"),
    "a crosscoder at one site": (CROSSCODER + "read = ['x']", "a crosscoder spans two sites or more, got x"),
    "a crosscoder at one harvested site": (CROSSCODER, "a crosscoder spans two sites or more, got model.layers.1"),
    "only what is written": (TOPK + "write = 'x'", "must say what it reads; add `read`"),
    "site beside read": (TOPK + "site = 'x'\nread = 'y'", "either `site`, or `read` and `write`"),
    "a site twice": (CROSSCODER + "read = ['x', 'y', 'x']", "names a site twice"),
    "a side that is none": (TOPK + "site = 'x:up'", "site 'x:up' is not understood"),
    "an unknown key": (TOPK + "raed = 'x'", "unknown setting of topk 'raed'.*Did you mean 'read'"),
    "an unknown key of training": (
        TOPK + "training = { n_token = 5 }",
        "unknown key 'training.n_token'; did you mean 'n_tokens'",
    ),
    "an impossible value": (TOPK.replace("= 4", "= -4"), "keeps k=-4 features a token"),
    "an impossible value of training": (TOPK + "learning_rate = -1.0", "training.learning_rate = -1.0"),
    "a value of another kind": (TOPK + "seed = 'x'", "training.seed = 'x'"),
    "an empty list": (TOPK.replace("k = 4", "k = []"), "k is an empty list"),
    "a list elsewhere": (TOPK + "auxk_weight = [0.0, 1.0]", "auxk_weight is a list; lists are tried .* for n_features"),
    "what all share": (TOPK + "training = { batch_tokens = 64 }", "training.batch_tokens is the same for all SAEs"),
    "no architecture": ("n_features = 64", "a recipe needs an architecture, one of batchtopk, crosscoder"),
    "the same twice": (TOPK + "[[recipes]]\n" + TOPK, "two recipes are the same: model.layers.1/topk-64"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_wrong_recipe_is_refused_by_number_with_what_is_wanted(case: str, tmp_path: Path) -> None:
    recipe, complaint = REFUSED[case]
    with pytest.raises(RunConfigError, match=complaint) as caught:
        run(tmp_path, recipe)
    assert str(tmp_path / "run.toml") in str(caught.value) and "recipes" in str(caught.value)
    assert isinstance(caught.value, ConfigError)
