"""Ctrl-C, and two builds of the same run at once."""

import signal
from pathlib import Path

from fault_store import ForkServer, Whole, appearing, copied, step_inside, until
from tiny_run import toml_file


def test_ctrl_c_during_training_says_that_it_resumes_and_it_does(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path
) -> None:
    run = toml_file(tmp_path / "tiny.toml", text)
    store = tmp_path / "store"
    words = ["build", str(run), "--local", "--store", str(store)]
    with appearing(store, "artifacts/sae/.partial-*/checkpoint.safetensors") as appeared:
        job = server.start("almanac", words=words)
        until(lambda: appeared() or not job.is_running, "a checkpoint")
        job.send(signal.SIGINT)
        stopped = job.wait()
    assert stopped.status == 130 and "the next run goes on from there" in stopped.log
    assert "Traceback" not in stopped.log
    assert step_inside(store) == "train" and server.run("damages", store=store).made == []
    rows = server.run("ask", store=store, sql="select step, error from run where state = 'failed'").made
    assert [step for step, _ in rows] == ["train"] and "KeyboardInterrupt" in rows[0][1]
    again = server.run("almanac", words=words)
    assert again.status == 0 and "train: resumed at step" in again.log, again.log
    assert server.run("compare", store=store, other=whole.store).made == []


def test_two_builds_of_one_run_at_once_both_end_right_and_one_says_that_it_waits(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = server.start("build", store=store, corpus=text)
    until(lambda: any(store.glob("locks/tokens-*.lock")), "the first build")
    second = server.start("build", store=store, corpus=text)
    lines = [job.wait().made["lines"] for job in (first, second)]
    waiting = [line for line in lines[0] + lines[1] if "waiting: another build makes the same thing" in line]
    assert waiting and "process" in waiting[0]
    assert server.run("compare", store=store, other=whole.store).made == []
    assert server.run("damages", store=store).made == []
    finished = "select step, count(*) from run where state = 'finished' group by step"
    assert all(n == 1 for _, n in server.run("ask", store=store, sql=finished).made), "nothing was made twice"


def test_two_builds_that_differ_late_share_what_is_equal(
    server: ForkServer, whole: Whole, text: Path, tmp_path: Path
) -> None:
    """Both publish at the same time; both versions are whole."""
    store = copied(whole.store, tmp_path / "store")
    jobs = [server.start("build", store=store, corpus=text, changes={"training": {"seed": seed}}) for seed in (1, 2)]
    for job in jobs:
        assert job.wait().made["states"]["train"] == "finished"
    inside = server.run("inspect", store=store).made
    assert inside["damages"] == [] and len(inside["inside"]) == 3
