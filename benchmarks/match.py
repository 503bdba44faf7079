"""How long does it take to match two SAEs? `benchmarks/match.py [--features 32768] [--d 768] [--threads 2]`

Both hold the same directions in another order, with noise, so that the right answer is known. Beside it stands the
plain product of the same matrices, block by block and with nothing kept of it, which no exact search can do without.
"""

import argparse
import json
import resource
import time

import torch

from saelib.matching import BLOCK, MatchConfig, cosine_candidates, match_features

NOISE = 0.3


def seconds_of_the_product(a: torch.Tensor, b: torch.Tensor) -> float:
    started = time.perf_counter()
    for top in range(0, a.shape[0], BLOCK):
        for left in range(0, b.shape[0], BLOCK):
            a[top : top + BLOCK] @ b[left : left + BLOCK].t()
    return time.perf_counter() - started


def measured(n_features: int, d: int) -> dict[str, float]:
    """Seconds of each part, the share that was matched rightly, and the largest memory of the process."""
    torch.manual_seed(0)
    a, order = torch.randn(n_features, d), torch.randperm(n_features)
    b = a[order] + NOISE * torch.randn(n_features, d)
    product = seconds_of_the_product(a, b)
    config, started = MatchConfig(), time.perf_counter()
    found = cosine_candidates(a, b, config.n_candidates)
    searched = time.perf_counter() - started
    matches = match_features(*found, config.related_cosine, config.margin)
    total = time.perf_counter() - started
    right = float(((order.numpy()[matches.b] == matches.a) & (matches.verdict == "same")).sum()) / n_features
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "features": n_features, "d": d, "threads": torch.get_num_threads(), "product_s": product,
        "candidates_s": searched, "verdicts_s": total - searched, "match_s": total, "right_share": right,
        "peak_gb": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps({name: round(value, 3) for name, value in measured(given.features, given.d).items()}))


if __name__ == "__main__":
    main()
