"""The statistics of summaries once more, with plain loops over a dense matrix: the oracle."""

from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import torch
from tiny import activation_shard, random_sae, token_shard

from saelib.activations import ActivationShard
from saelib.sae import SAE
from saelib.summaries.rows import ShardFirings, shard_firings
from saelib.text import TokenShard

N_VOCAB = 12
N_FEATURES = 10
D = 6


class Case(NamedTuple):
    """Documents of few different words, so that contexts repeat; activations by token and place."""

    documents: list[list[int]]
    x: list[torch.Tensor]
    sae: SAE

    @classmethod
    def random(cls, seed: int, n_documents: int = 9, longest: int = 30) -> "Case":
        random = np.random.default_rng(seed)
        documents = [
            [0, *random.integers(3, N_VOCAB, random.integers(1, longest)).tolist()] for _ in range(n_documents)
        ]
        documents[-1] = documents[0].copy()  # the same text twice
        generator = torch.Generator().manual_seed(seed)
        words = torch.randn(N_VOCAB, D, generator=generator)
        x = [1.5 * words[torch.tensor(ids)] + 0.5 * torch.randn(len(ids), D, generator=generator) for ids in documents]
        return cls(documents, x, random_sae(D, N_FEATURES, seed=seed))

    def shard(self, first: int, stop: int) -> tuple[TokenShard, ActivationShard]:
        """Documents first … stop as one shard."""
        tokens = token_shard(self.documents[first:stop], first_sequence=first, first_document=first)
        return tokens, activation_shard(tokens, torch.cat(self.x[first:stop]), seed=first)

    def firings(self, first: int = 0, stop: int | None = None) -> ShardFirings:
        """As describe makes them."""
        tokens, activations = self.shard(first, len(self.documents) if stop is None else stop)
        return shard_firings(self.sae, tokens, activations, 0, seed=3)

    def f(self) -> list[np.ndarray]:
        """[n_tokens, n_features] of each document; BOS does not fire."""
        dense = [self.sae.encode(x).numpy().astype(np.float64) for x in self.x]
        for f in dense:
            f[0] = 0
        return dense


def plain_core(case: Case) -> dict[str, np.ndarray]:
    """The columns of Core that are plain counts and moments, feature by feature and token by token."""
    found: dict[str, list[float]] = defaultdict(list)
    for feature in range(N_FEATURES):
        values, positions, n_sequences, n_first, n_runs, gain = [], [], 0, 0, 0, 0.0
        for x, f in zip(case.x, case.f(), strict=True):
            fires = np.flatnonzero(f[:, feature] > 0)
            n_sequences += fires.size > 0
            error = x - case.sae.decode(case.sae.encode(x))
            for position in fires:
                values.append(f[position, feature])
                positions.append(position)
                n_first += position == 1
                n_runs += f[position - 1, feature] == 0
                without = error[position] + values[-1] * case.sae.W_dec[feature]
                gain += float((without.double() ** 2).sum() - (error[position].double() ** 2).sum())
        away = np.array(values) - np.mean(values) if values else np.zeros(1)
        row = {
            "n_fires": len(values), "n_sequences_fired": n_sequences, "mean": np.mean(values) if values else 0.0,
            "m2": (away**2).sum(), "m3": (away**3).sum(), "m4": (away**4).sum(), "maximum": max(values, default=0.0),
            "position_sum": sum(positions), "n_first_position": n_first, "n_runs": n_runs, "gain_sum": gain,
        }  # fmt: skip
        for name, value in row.items():
            found[name].append(float(value))
    return {name: np.array(column) for name, column in found.items()}


def plain_tokens(case: Case, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Firings and summed activation by (feature, token at `offset` from the firing), and how often a token is there."""
    counts, acts = np.zeros((2, N_FEATURES, N_VOCAB))
    totals: Counter[int] = Counter()
    for ids, f in zip(case.documents, case.f(), strict=True):
        for position in range(1, len(ids)):
            if not 0 <= position + offset < len(ids):
                continue
            token = ids[position + offset]
            totals[token] += 1
            for feature in np.flatnonzero(f[position] > 0):
                counts[feature, token] += 1
                acts[feature, token] += f[position, feature]
    return counts, acts, np.array([totals[token] for token in range(N_VOCAB)])


def context_of(ids: list[int], position: int, window: int) -> tuple[int, ...]:
    """The tokens of the window, −1 outside of the sequence."""
    return tuple(ids[i] if 0 <= i < len(ids) else -1 for i in range(position - window, position + window + 1))
