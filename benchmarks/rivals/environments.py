"""A virtual environment for each rival, with the versions in <rival>.txt, made where it is missing."""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
RIVALS = ("saelens", "sparsify", "dictionary_learning")
KEPT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def python_of(racer: str, folder: Path) -> str:
    """The interpreter that runs a racer: a rival's own, or this one."""
    return str(folder / racer / "bin" / "python") if racer in RIVALS else sys.executable


def make_missing(racers: list[str], folder: Path, torch_index: str | None) -> None:
    """Install the rivals that are not there yet; some minutes and 2 GB each."""
    for racer in racers:
        done = folder / racer / "installed"
        if racer in RIVALS and not done.exists():
            print(f"installing {racer} into {folder / racer} (once; 2 GB)", flush=True)
            _install(racer, folder / racer, torch_index)
            done.touch()


def _install(racer: str, folder: Path, torch_index: str | None) -> None:
    """All versions are pinned, so that nothing has to be resolved; some rivals' own requirements contradict."""
    pins = HERE / f"{racer}.txt"
    torch = next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps"]
    _run([*pip, torch, *(["--index-url", torch_index] if torch_index else [])], racer)
    _run([*pip, "-r", str(pins)], racer)


def _run(command: list[str], racer: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SystemExit(
            f"cannot install {racer}: {wrong[-1] if wrong else 'pip failed'}; see benchmarks/rivals/{racer}.txt"
        )


def environment(racer: str, setting: str, threads: int) -> dict[str, str]:
    """Environment variables of a racer: the same allocator and number of threads for all."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD", "KMP_"))}
    paths = [str(HERE.parent)]
    if racer not in RIVALS:
        paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(HERE.parent.parent), *paths]
    mine |= dict.fromkeys(THREADS, str(threads))
    mine |= {"PYTHONPATH": os.pathsep.join(paths), "SPARSIFY_DISABLE_TRITON": "1", "WANDB_MODE": "disabled"}
    mine |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return mine if setting == "plain" else mine | KEPT_ALLOCATOR
