"""The command line: plan and build, without Prefect where that is asked, and errors as one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.config import RunConfig
from flows.place import Place

RUN = """
name = "tiny"
threads = 1
[corpus]
name = "few-modules"
sources = [{{ path = "{corpus}" }}]
held_out_share = 0.4
max_tokens = 12_000
shard_tokens = 6_000
context_tokens = 64
[[recipes]]
architecture = "topk"
n_features = 96
k = 8
[training]
n_tokens = 10_240
batch_tokens = 512
learning_rate = 1e-2
[evaluation]
max_tokens = 1_000
[describe]
activation_tokens = 4_000
effects = {{ tokens = 500, ablated_features = 4, ablation_tokens = 500 }}
"""


def almanac(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed program, in a process of its own."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=cwd, env=os.environ | environment, check=False
    )


@pytest.fixture
def run_file(tmp_path: Path, corpus: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RUN.format(corpus=corpus))
    return path


def test_local_build_never_imports_prefect_and_ends_with_quality_and_next_commands(run_file: Path) -> None:
    script = (
        "import sys; sys.argv = ['almanac', 'build', 'tiny.toml', '--local', '--store', 'here']\n"
        "from flows.cli import app; app(standalone_mode=False)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'prefect'], 'prefect was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=run_file.parent, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for words in ("tokenize: ", "peak memory", "loss recovered", "Five features", "almanac show", "--store here"):
        assert words in done.stdout
    plan = almanac("plan", "tiny.toml", "--store", "here", cwd=run_file.parent)
    assert plan.stdout.count("done already") == 6
    again = almanac("build", "tiny.toml", "--store", "here", cwd=run_file.parent)
    assert again.stdout.count("done already") == 6
    assert "orchestrator" not in again.stdout


def test_plan_of_an_empty_store_lists_every_step_with_the_bytes_of_the_harvest(run_file: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(run_file), "--store", str(run_file.parent / "none")])
    assert result.exit_code == 0
    assert result.output.count("to do") == 6
    assert f"{12_000 * (256 * 4 + 20) / 1e6:,.1f} MB" in result.output
    assert not (run_file.parent / "none").exists()


@pytest.mark.parametrize("command", [[], ["plan"], ["build"], ["sql"], ["features"], ["show"], ["label"], ["verify"]])
def test_every_command_teaches_with_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "almanac " in result.output


def _broken_model(folder: Path, built: tuple[RunConfig, Place]) -> str:
    from saelib.lm import load_lm

    lm = load_lm(built[0].lm)
    lm.model.get_input_embeddings().weight.data[300:] = torch.nan
    lm.model.save_pretrained(folder / "nan")
    lm.tokenizer.save_pretrained(folder / "nan")
    return str(folder / "nan")


BAD = {
    "missing corpus": ("[corpus]\nsources = [{{ path = '{tmp}/nothing/*.txt' }}]", "no file at"),
    "empty corpus": ("[corpus]\nsources = [{{ path = '{empty}' }}]", "no text at all"),
    "only special tokens": ("[corpus]\nsources = [{{ path = '{special}' }}]", "only special tokens"),
    "no such model": ("[lm]\nmodel = '{tmp}/model'", "no folder"),
    "pickled model": ("[lm]\nmodel = '{pickled}'", "only as a pickle"),
    "no tokenizer": ("[lm]\nmodel = '{untokenized}'", "holds no tokenizer"),
    "no such site": (
        "[corpus]\nsources = [{{ path = '{text}' }}]\nheld_out = [{{ path = '{text}' }}]\n"
        "[harvest]\nsites = ['model.layer.1']",
        "'model.layers.1'",
    ),
    "too few tokens": (
        "[corpus]\nsources = [{{ path = '{text}' }}]\nheld_out = [{{ path = '{text}' }}]",
        "fewer than one batch of 512",
    ),
    "nothing held out": ("[corpus]\nsources = [{{ path = '{text}' }}]\nheld_out_share = 0", "no document is held out"),
    "too many features kept": ("[[recipes]]\narchitecture = 'topk'\nn_features = 8\nk = 8", "0 < k < n_features"),
    "unknown key": ("[lm]\nmodle = 'x'", "did you mean 'model'"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_message_with_exit_code_1_and_leaves_nothing_half_made(case: str, tmp_path: Path) -> None:
    text, complaint = BAD[case]
    for name, files in (("pickled", ["tokenizer.json", "pytorch_model.bin"]), ("untokenized", ["model.safetensors"])):
        (tmp_path / name).mkdir()
        for file in ["config.json", *files]:
            (tmp_path / name / file).write_text("{}")
    places = {"tmp": tmp_path, "pickled": tmp_path / "pickled", "untokenized": tmp_path / "untokenized"}
    for name, content in (
        ("empty", ""),
        ("special", "<|bos|><|eos|>" * 50),
        ("text", "def f(x):\n    return x\n" * 40),
    ):
        (tmp_path / f"{name}.txt").write_text(content)
        places[name] = tmp_path / f"{name}.txt"
    (tmp_path / "run.toml").write_text(text.format(**places))
    result = CliRunner().invoke(app, ["build", str(tmp_path / "run.toml"), "--store", str(tmp_path / "s"), "--local"])
    assert isinstance(result.exception, ValueError)
    assert complaint in str(result.exception)
    for path in (tmp_path / "s").glob("artifacts/*/*"):
        assert path.name.startswith(".partial-") or json.loads((path / "manifest.json").read_text())


def test_error_of_ours_is_printed_without_a_traceback(tmp_path: Path) -> None:
    done = almanac("build", "nowhere.toml", "--local", cwd=tmp_path)
    assert done.returncode == 1
    assert "no run file 'nowhere.toml'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_folder_that_is_no_store_and_a_newer_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    done = almanac("build", "demo", "--store", "photos", "--local", cwd=tmp_path)
    assert done.returncode == 1
    assert "not empty and not a store" in done.stderr
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "almanac.json").write_text('{"format": "sae-almanac store", "schema_version": 999}')
    done = almanac("build", "demo", "--store", "new", "--local", cwd=tmp_path)
    assert done.returncode == 1
    assert "schema version 999" in done.stderr


def test_nan_in_activations_names_shard_and_document(
    built: tuple[RunConfig, Place], corpus: Path, tmp_path: Path
) -> None:
    model = _broken_model(tmp_path, built)
    text = RUN.format(corpus=corpus) + f"[lm]\nmodel = '{model}'\n"
    (tmp_path / "run.toml").write_text(text)
    result = CliRunner().invoke(app, ["build", str(tmp_path / "run.toml"), "--store", str(tmp_path / "s"), "--local"])
    assert "hold NaN or Inf in shard 0, document" in str(result.exception)
