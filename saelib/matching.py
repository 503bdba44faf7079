"""Which feature of one SAE is which feature of another: candidates by similarity, and what became of each.

Similarity is the cosine of decoder directions where both SAEs write into the same space, else the correlation of
activations on the same tokens. Only the best few candidates of each feature are ever kept.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from saelib.base import Frozen
from saelib.errors import ShapeError

__all__ = [
    "Candidates",
    "MatchConfig",
    "Matches",
    "correlated_candidates",
    "correlations",
    "cosine_candidates",
    "cosines",
    "jaccards",
    "match_features",
]

BLOCK = 4096
CORRELATED_BLOCK = 1024

Verdict = Literal["same", "split", "merged", "gone", "new"]


class MatchConfig(Frozen):
    """When two features are related, and when a pair is told from its rivals."""

    related_cosine: float = Field(default=0.7, ge=-1, le=1)
    """Decoder cosine from which two features have to do with each other."""
    related_correlation: float = Field(default=0.5, ge=-1, le=1)
    """The same for the correlation of activations, where there is no cosine."""
    margin: float = Field(default=0.1, ge=0)
    """A pair that is nearer to each other by so much than to any rival is the same feature, whatever else is near."""
    n_candidates: PositiveInt = 5
    shared_tokens: PositiveInt = 250_000
    """Activations are compared on so many tokens at most."""


class Candidates(NamedTuple):
    """For every feature its best others, best first: [n_features, n]; −1 and −inf where there are fewer."""

    other: np.ndarray
    score: np.ndarray

    def best(self, threshold: float) -> np.ndarray:
        """[n_features] the best, −1 where even that is below the threshold."""
        best: np.ndarray = np.where(self.score[:, 0] >= threshold, self.other[:, 0], -1)
        return best

    def rival(self, feature: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The best score of each feature with any but that other; −1 where there is none."""
        scores = np.where(self.other[feature] == other[:, None], -np.inf, self.score[feature])
        rival: np.ndarray = np.maximum(scores.max(axis=1), -1.0)
        return rival


class Matches(NamedTuple):
    """One row for each pair that belongs together, and one for each feature that is left over (−1 for its partner)."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray
    """Similarity of the pair; of a feature that is left over, with the nearest one that there was."""
    runner_up: np.ndarray
    """Similarity of the first feature (of the second where that is new) with its next best."""
    margin: np.ndarray
    """Similarity of the pair minus that of either with its best rival; NaN for one that is left over."""
    is_mutual: np.ndarray
    is_assigned: np.ndarray
    verdict: np.ndarray

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The features of those rows that are pairs."""
        is_pair = (self.a >= 0) & (self.b >= 0)
        return self.a[is_pair], self.b[is_pair]

    def of_pairs(self, values: np.ndarray) -> np.ndarray:
        """One number for each of the `pairs` as a column of all rows, NaN elsewhere."""
        column = np.full(self.a.size, np.nan)
        column[(self.a >= 0) & (self.b >= 0)] = values
        return column


def cosine_candidates(
    a: Float[Tensor, "n_a d_a"], b: Float[Tensor, "n_b d_b"], n: int, block: int = BLOCK
) -> tuple[Candidates, Candidates]:
    """The `n` largest cosines of every row of `a` with rows of `b`, and the other way round, in one blocked product.

    Memory is that of the normalised rows, one block of products and the kept candidates. Raises ShapeError.
    """
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"directions of width {a.shape[1]} and {b.shape[1]} have no cosine; match by activations instead"
        )
    a, b = (torch.nn.functional.normalize(rows.float(), dim=1) for rows in (a, b))
    forward, backward = _Best(a.shape[0], n), _Best(b.shape[0], n)
    for top in range(0, a.shape[0], block):
        for left in range(0, b.shape[0], block):
            product = a[top : top + block] @ b[left : left + block].t()
            forward.add(top, left, product)
            backward.add(left, top, product.t().contiguous())
    return forward.candidates(), backward.candidates()


class _Best:
    """The n best columns of every row so far."""

    def __init__(self, n_rows: int, n: int) -> None:
        self.n = n
        self.score = torch.full((n_rows, n), -torch.inf)
        self.other = torch.full((n_rows, n), -1, dtype=torch.int64)

    def add(self, top: int, left: int, block: Tensor) -> None:
        """A block of scores whose first row is `top` and first column `left`."""
        found = block.topk(min(self.n, block.shape[1]), dim=1)
        rows = slice(top, top + block.shape[0])
        scores = torch.cat([self.score[rows], found.values.cpu()], dim=1)
        others = torch.cat([self.other[rows], found.indices.cpu() + left], dim=1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.n]  # earlier columns first where equal
        self.score[rows], self.other[rows] = scores.gather(1, order), others.gather(1, order)

    def candidates(self) -> Candidates:
        return Candidates(self.other.numpy(), self.score.numpy())


def cosines(a: Float[Tensor, "n_a d"], b: Float[Tensor, "n_b d"], pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[n_pairs] cosine of each pair of rows."""
    found = [
        torch.nn.functional.cosine_similarity(a[left].float(), b[right].float(), dim=1)
        for left, right in _stretches(pairs)
    ]
    return torch.cat(found).cpu().numpy() if found else np.zeros(0, dtype=np.float32)


def correlated_candidates(
    f_a: scipy.sparse.csr_matrix, f_b: scipy.sparse.csr_matrix, n: int
) -> tuple[Candidates, Candidates]:
    """The `n` largest activation correlations both ways. `f_a`, `f_b` [n_features, n_tokens] over the same tokens."""
    forward, backward = _Best(f_a.shape[0], n), _Best(f_b.shape[0], n)
    tokens_by_b = f_b.T.tocsr()
    for top in range(0, f_a.shape[0], CORRELATED_BLOCK):
        rows = f_a[top : top + CORRELATED_BLOCK]
        together = np.asarray((rows @ tokens_by_b).todense())
        scores = torch.from_numpy(_correlation(together, _moments(rows), _moments(f_b), f_a.shape[1]))
        forward.add(top, 0, scores)
        backward.add(0, top, scores.t().contiguous())
    return _only_finite(forward.candidates()), _only_finite(backward.candidates())


def _only_finite(found: Candidates) -> Candidates:
    return Candidates(np.where(np.isfinite(found.score), found.other, -1), found.score)


def _moments(f: scipy.sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of each feature."""
    return np.asarray(f.sum(axis=1)).ravel(), np.asarray(f.multiply(f).sum(axis=1)).ravel()


def _correlation(
    together: np.ndarray, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], n: int
) -> np.ndarray:
    """Pearson's r of all pairs from Σ f_a f_b and the moments; −inf where one of them never varies."""
    (sum_a, square_a), (sum_b, square_b) = a, b
    covariance = together / n - np.outer(sum_a / n, sum_b / n)
    variances = np.outer(np.maximum(square_a / n - (sum_a / n) ** 2, 0), np.maximum(square_b / n - (sum_b / n) ** 2, 0))
    is_varying = variances > 0
    r = np.where(is_varying, covariance / np.sqrt(np.where(is_varying, variances, 1)), -np.inf)
    return r.astype(np.float32)


def correlations(
    f_a: scipy.sparse.csr_matrix, f_b: scipy.sparse.csr_matrix, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[n_pairs] Pearson's r of the activations of each pair; NaN where one of them never fires on these tokens."""
    n, (sum_a, square_a), (sum_b, square_b) = f_a.shape[1], _moments(f_a), _moments(f_b)
    found = [
        np.asarray(f_a[left].multiply(f_b[right]).sum(axis=1)).ravel() / n - sum_a[left] * sum_b[right] / n**2
        for left, right in _stretches(pairs)
    ]
    covariance = np.concatenate(found) if found else np.zeros(0)
    left, right = pairs
    variances = (square_a / n - (sum_a / n) ** 2)[left] * (square_b / n - (sum_b / n) ** 2)[right]
    with np.errstate(invalid="ignore", divide="ignore"):
        r: np.ndarray = np.where(variances > 0, covariance / np.sqrt(variances), np.nan)
    return r


def jaccards(
    a: scipy.sparse.csr_matrix, b: scipy.sparse.csr_matrix, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[n_pairs] overlap of two sets: common / either. `a`, `b` [n_features, n_places] hold 1 where a place is in."""
    left, right = pairs
    found = [np.asarray(a[i].multiply(b[j]).sum(axis=1)).ravel() for i, j in _stretches(pairs)]
    common = np.concatenate(found) if found else np.zeros(0)
    either = np.asarray(a.sum(axis=1)).ravel()[left] + np.asarray(b.sum(axis=1)).ravel()[right] - common
    overlap: np.ndarray = common / np.maximum(either, 1)
    return overlap


def _stretches(pairs: tuple[np.ndarray, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, pairs[0].size, BLOCK):
        yield pairs[0][start : start + BLOCK], pairs[1][start : start + BLOCK]


def match_features(forward: Candidates, backward: Candidates, related: float, margin: float) -> Matches:
    """What became of every feature of the first SAE, and where every feature of the second comes from.

    A feature is linked to its best candidate, if that is `related`. A pair that is each other's best is the *same*
    where nothing else is linked to either, or it leads by `margin`. Else a first feature with several links is *split*,
    a second one with several is *merged*. A link that is not mutual says the same of the feature that it leads from:
    one of the first that had a better match taken is merged into it, one of the second is split off. What has no link
    is *gone*, or *new*.
    """
    n_a, n_b = forward.other.shape[0], backward.other.shape[0]
    to_b, to_a = forward.best(related), backward.best(related)
    linked_a, linked_b = np.flatnonzero(to_b >= 0), np.flatnonzero(to_a >= 0)
    links = np.unique(np.r_[np.c_[linked_a, to_b[linked_a]], np.c_[to_a[linked_b], linked_b]].reshape(-1, 2), axis=0)
    a, b = links[:, 0], links[:, 1]
    is_mutual = (to_b[a] == b) & (to_a[b] == a)
    rival_a, rival_b = forward.rival(a, b), backward.rival(b, a)
    score = np.where(to_b[a] == b, forward.score[a, 0], backward.score[b, 0])
    lead = score - np.maximum(rival_a, rival_b)
    many_a, many_b = np.bincount(a, minlength=n_a)[a] > 1, np.bincount(b, minlength=n_b)[b] > 1
    is_same = is_mutual & (~(many_a | many_b) | (lead >= margin))
    is_split = np.where(is_mutual, many_a & (~many_b | (rival_a >= rival_b)), to_a[b] == a)
    verdict = np.where(is_same, "same", np.where(is_split, "split", "merged"))
    assigned = _assigned(links, score, n_a, n_b)
    gone, new = np.setdiff1d(np.arange(n_a), a), np.setdiff1d(np.arange(n_b), b)
    left_over = np.full(gone.size + new.size, -1)
    nobody = np.zeros(left_over.size, dtype=bool)
    return Matches(
        a=np.r_[a, gone, left_over[: new.size]],
        b=np.r_[b, left_over[: gone.size], new],
        score=np.r_[score, forward.score[gone, 0], backward.score[new, 0]],
        runner_up=np.r_[rival_a, _second(forward, gone), _second(backward, new)],
        margin=np.r_[lead, np.full(left_over.size, np.nan)],
        is_mutual=np.r_[is_mutual, nobody],
        is_assigned=np.r_[assigned, nobody],
        verdict=np.r_[verdict, np.repeat(["gone", "new"], [gone.size, new.size])],
    )


def _second(candidates: Candidates, feature: np.ndarray) -> np.ndarray:
    if candidates.score.shape[1] < 2:
        return np.full(feature.size, -1.0)
    second: np.ndarray = np.maximum(candidates.score[feature, 1], -1.0)
    return second


def _assigned(links: np.ndarray, score: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Which links a one-to-one assignment with the largest sum of similarities takes."""
    if links.shape[0] == 0:
        return np.zeros(0, dtype=bool)
    alone = np.arange(n_a)  # everyone may stay alone, at a price above that of any link
    rows, columns = np.r_[links[:, 0], alone], np.r_[links[:, 1], n_b + alone]
    price = np.r_[2.0 - score, np.full(n_a, 4.0)]
    graph = scipy.sparse.csr_matrix((price, (rows, columns)), shape=(n_a, n_b + n_a))
    row, column = min_weight_full_bipartite_matching(graph)
    partner = np.full(n_a, -1)
    partner[row] = column
    taken: np.ndarray = partner[links[:, 0]] == links[:, 1]
    return taken
