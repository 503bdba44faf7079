"""SIGTERM and Ctrl-C while `almanac build` trains: the step under way ends, the state is kept, nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catalog import Store, connect
from flows.stopping import stopping

RUN = """
name = "tiny"
threads = 1
[corpus]
name = "few-modules"
sources = [{{ path = "{corpus}" }}]
held_out_share = 0.25
max_tokens = 12_000
shard_tokens = 6_000
context_tokens = 64
[[recipes]]
architecture = "batchtopk"
n_features = 512
k = [4, 8]
[training]
n_tokens = 131_072
batch_tokens = 512
learning_rate = 1e-2
checkpoint_every_steps = 1_000_000
[evaluation]
max_tokens = 1_000
[describe]
activation_tokens = 4_000
effects = {{ tokens = 500, ablated_features = 4, ablation_tokens = 500 }}
"""
N_STEPS = 256
TIMEOUT_SECONDS = 200.0


def build(folder: Path, store: str) -> subprocess.Popen[str]:
    words = ["build", "tiny.toml", "--local", "--store", store]
    command = [sys.executable, "-u", "-c", "from flows.cli import main; main()", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
    )


def trained(store: Path) -> dict[str, str]:
    """Fingerprint -> what the manifest says of itself and of its files."""
    found = (json.loads(path.read_text()) for path in store.glob("artifacts/sae/*/manifest.json"))
    return {manifest["fingerprint"]: manifest["sha256"] for manifest in found}


def stopped(folder: Path, number: signal.Signals, seconds: float) -> tuple[int, str]:
    """A build that gets a signal so long after its activations were there: its exit code, and what it said."""
    process, said = build(folder, number.name), ""
    assert process.stdout is not None
    while "harvest:" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    time.sleep(seconds)
    process.send_signal(number)
    said += process.communicate(timeout=TIMEOUT_SECONDS)[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run file, and the store of a build that nobody disturbed."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "tiny.toml").write_text(RUN.format(corpus=corpus))
    process = build(folder, "whole")
    output = process.communicate(timeout=TIMEOUT_SECONDS)[0]
    assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize(("number", "code", "n_stops"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)])
def test_build_that_is_stopped_while_it_trains_resumes_to_the_same_bytes(
    whole: Path, number: signal.Signals, code: int, n_stops: int
) -> None:
    """At random moments. Every stop keeps the steps that were made, whatever the interval of checkpoints."""
    chance, steps = random.Random(int(number)), [0]
    while len(steps) <= n_stops:
        status, said = stopped(whole, number, chance.uniform(0.2, 1.5))
        assert "Traceback" not in said and status in (code, -number), said
        if "train: stopped at step" not in said:
            continue  # before the first step: then there is nothing to keep
        line = next(line for line in said.splitlines() if "train: stopped at step" in line)
        words = line.split()
        assert status == code and line.endswith(f"of {N_STEPS}; run the same command to go on")
        if steps[-1]:
            assert said.count(f"train: resumed at step {steps[-1]} of {N_STEPS}") == 2
        steps.append(int(words[4]))
        assert steps[-2] < steps[-1] < N_STEPS
    process = build(whole, number.name)
    said = process.communicate(timeout=TIMEOUT_SECONDS)[0]
    assert process.returncode == 0 and said.count(f"train: resumed at step {steps[-1]} of") == 2, said
    store = whole / number.name
    assert trained(store) == trained(whole / "whole") and len(trained(store)) == 2
    failed = connect(Store.open(store)).execute("select error from run where state = 'failed' and step = 'train'")
    assert len(failed.fetchall()) >= 2 * n_stops


def test_first_signal_is_noted_and_a_second_ctrl_c_stops_at_once() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stopping() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as left:
            stop.leave()
        assert left.value.code == 143
    with stopping() as stop:
        stop.leave()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.leave()
    assert {number: signal.getsignal(number) for number in before} == before
