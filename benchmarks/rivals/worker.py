"""The process around one racer: builds it from a task, warms it up, then obeys lines on standard input.

go N   trains N steps and answers {tokens, wall_s, cpu_s, minor_faults, rss_peak_mb, turn_cpu_s}: only the steps are
       timed, but for the last figure, which includes what lies between them
eval   answers {fvu, l0, errors, variances} on the held-out tokens: one mean for all of them, sums in float64
quit   ends
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

CHUNK_TOKENS = 256
"""The held-out tokens are evaluated in pieces of this size, over which intervals can be taken."""

FIRING_AT_START = 50
"""Features that fire on a token where no k says how many: jumprelu and standard start from that, and are held there."""

LONG_AGO = 1_000_000_000
"""Tokens, or steps, since a feature that is marked dead has fired."""


@dataclass(frozen=True)
class Task:
    """What to train, how, and on what. `start` holds W_dec.npy, b_dec.npy and cut.npy, or is None: own start."""

    architecture: str
    precision: str
    d: int
    n_features: int
    k: int
    batch: int
    threads: int
    oneDNN_bf16: bool
    product: str
    activations: str
    held_out: str
    start: str | None
    dead_share: float
    dead_after_tokens: int
    n_steps: int
    warmup_steps: int
    decay_steps: int
    learning_rate: float
    seed: int
    untimed_steps: int

    def start_of(self, name: str) -> Tensor:
        """A part of the common start."""
        return torch.from_numpy(np.load(Path(self.start or "") / f"{name}.npy"))

    def autocast(self) -> torch.autocast:
        """The library's own bf16 mode, or nothing."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "autocast")

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, flat, linear decay."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return up * min(1.0, (self.n_steps - step) / (self.decay_steps + 1)) if step < self.n_steps else 0.0


class Racer(Protocol):
    """One implementation of SAE training."""

    library: str

    def step(self, x: Tensor) -> None:
        """Train on one batch, with every duty that the library's own loop has."""

    def mark_dead(self, features: Tensor) -> None:
        """Make these features count as dead in the next step."""

    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """The reconstruction, and the number of firings in it."""


def serve(build: Callable[[Task], Racer]) -> None:
    """Run the process: the task comes as JSON in the first argument."""
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    racer = build(task)
    if task.oneDNN_bf16:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    run = _Run(task, racer)
    run.go(task.untimed_steps)
    answer({"ready": True, "versions": {name: version(name) for name in ("torch", racer.library)}})
    for line in sys.stdin:
        order, *rest = line.split()
        if order == "quit":
            return
        answer(run.go(int(rest[0])) if order == "go" else run.evaluate())


class _Run:
    """The batches in order, and the figures of each stretch of steps."""

    def __init__(self, task: Task, racer: Racer) -> None:
        self.task, self.racer, self.step = task, racer, 0
        mapped = np.load(task.activations, mmap_mode="r")
        self.shape, self.start = mapped.shape, mapped.offset
        generator = torch.Generator().manual_seed(task.seed)
        order = torch.randperm(task.n_features, generator=generator)
        self.dead = order[: round(task.dead_share * task.n_features)]

    def batch(self) -> Tensor:
        """The batch of this step: the same for every racer, starting over at the end of the file.

        Read, not mapped: pages of the file would count as the racer's memory.
        """
        size, width = self.task.batch, self.shape[1]
        first = self.step % (self.shape[0] // size) * size
        rows = np.fromfile(self.task.activations, np.float32, size * width, offset=self.start + 4 * first * width)
        return torch.from_numpy(rows.reshape(size, width))

    def go(self, n_steps: int) -> dict[str, float]:
        """Train; fetching a batch and marking features dead are outside the clock."""
        wall = cpu = faults = 0.0
        turn = time.process_time()
        for _ in range(n_steps):
            x = self.batch()
            if self.dead.numel():
                self.racer.mark_dead(self.dead)
            before = (_minor_faults(), time.process_time(), time.perf_counter())
            self.racer.step(x)
            wall += time.perf_counter() - before[2]
            cpu += time.process_time() - before[1]
            faults += _minor_faults() - before[0]
            self.step += 1
        tokens = n_steps * self.task.batch
        figures = {"tokens": tokens, "wall_s": wall, "cpu_s": cpu, "minor_faults": faults, "rss_peak_mb": peak_mb()}
        return figures | {"turn_cpu_s": time.process_time() - turn}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """FVU = sum ||x - x_hat||^2 / sum ||x - mean||^2 over the held-out tokens."""
        held_out = torch.from_numpy(np.load(self.task.held_out))
        mean = held_out.double().mean(dim=0)
        errors, variances, firings = [], [], 0.0
        for x in held_out.split(CHUNK_TOKENS):
            x_hat, fired = self.racer.reconstruct(x)
            errors.append((x.double() - x_hat.double()).square().sum().item())
            variances.append((x.double() - mean).square().sum().item())
            firings += fired
        fvu, l0 = sum(errors) / sum(variances), firings / len(held_out)
        return {"fvu": fvu, "l0": l0, "errors": errors, "variances": variances}


def answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_mb() -> float:
    """Peak resident memory of this program alone; `ru_maxrss` would start at that of the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux")
