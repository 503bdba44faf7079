"""Several documents in one sequence: statistics, windows and examples stay inside one of them. Against plain loops."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from plain_summaries import N_FEATURES, N_VOCAB, D, context_of
from tiny import activation_shard, random_sae

from saelib.batches import batches_of
from saelib.evaluation import documents_of
from saelib.sae import SAE
from saelib.summaries.rows import WINDOW, ShardFirings, shard_firings
from saelib.summaries.sample import Sample
from saelib.summaries.summary import Summary
from saelib.text import TokenShard

BOS, SEPARATOR = 0, 1


class Piece(NamedTuple):
    """A document in one sequence, BOS and the separator after it counted in; `f` [n, n_features] is 0 on those."""

    sequence: int
    document: int
    start: int
    ids: list[int]
    f: np.ndarray


class Packed(NamedTuple):
    """Sequences of up to four short documents of few words."""

    tokens: TokenShard
    pieces: list[Piece]
    firings: ShardFirings
    sae: SAE

    @classmethod
    def random(cls, seed: int, n_sequences: int = 14) -> "Packed":
        random, sae = np.random.default_rng(seed), random_sae(D, N_FEATURES, seed=seed)
        layout: list[tuple[int, int, int, list[int]]] = []
        for sequence in range(n_sequences):
            lengths, position = random.integers(1, 18, random.integers(1, 5)), 0
            for index, length in enumerate(lengths):
                ids = random.integers(3, N_VOCAB, length).tolist()
                ids = [BOS] * (index == 0) + ids + [SEPARATOR] * (index < lengths.size - 1)
                layout.append((sequence, len(layout), position, ids))
                position += len(ids)
        tokens = _shard(layout)
        words = torch.randn(N_VOCAB, D, generator=torch.Generator().manual_seed(seed))
        noise = torch.randn(tokens.token_ids.size, D, generator=torch.Generator().manual_seed(seed + 1))
        x = 1.5 * words[torch.from_numpy(tokens.token_ids.astype(np.int64))] + 0.5 * noise
        f = sae.encode(x).double().numpy() * (tokens.token_ids > SEPARATOR)[:, None]
        starts = tokens.sequence_starts
        pieces = [Piece(s, d, p, ids, f[starts[s] + p : starts[s] + p + len(ids)]) for s, d, p, ids in layout]
        return cls(tokens, pieces, shard_firings(sae, tokens, _harvested(tokens, x), 0, seed=3), sae)


def _shard(layout: list[tuple[int, int, int, list[int]]]) -> TokenShard:
    ids = [np.array(piece[3], dtype=np.int32) for piece in layout]
    bases = np.cumsum([0, *(part.size for part in ids)])
    opens = [index for index, piece in enumerate(layout) if piece[2] == 0]
    text = [part > SEPARATOR for part in ids]
    return TokenShard(
        np.concatenate(ids),
        np.array([*bases[opens], bases[-1]], dtype=np.int64),
        np.arange(len(opens)) + 100,
        np.array([layout[index][1] for index in opens]),
        np.zeros(len(opens), dtype=np.int64),
        np.array([base + is_text.argmax() for base, is_text in zip(bases, text, strict=False)]),
        np.array([is_text.sum() for is_text in text]),
        np.array([piece[1] for piece in layout]),
        np.zeros(len(layout), dtype=np.int64),
    )


def _harvested(tokens: TokenShard, x: torch.Tensor):  # type: ignore[no-untyped-def]
    """BOS and separators left out, as a harvest does."""
    shard = activation_shard(tokens, x, seed=1)
    kept = np.flatnonzero(shard.token_id > SEPARATOR)
    columns = {name: getattr(shard, name)[kept] for name in ("token_id", "document_id", "sequence", "position")}
    return shard._replace(sites=[shard.sites[0][torch.from_numpy(kept)]], **columns)


@pytest.fixture(scope="module")
def packed() -> Packed:
    return Packed.random(0)


@pytest.fixture(scope="module")
def summary(packed: Packed) -> Summary:
    return Summary.of(packed.firings, N_VOCAB)


def test_every_row_is_of_its_own_document(packed: Packed) -> None:
    wanted = [(p.document, p.start + i) for p in packed.pieces for i, token in enumerate(p.ids) if token > SEPARATOR]
    rows = packed.firings.rows
    assert list(zip(rows.document_id.tolist(), rows.position.tolist(), strict=True)) == wanted
    assert np.unique(rows.document_id).size > 2 * np.unique(rows.sequence).size


@pytest.mark.parametrize(("role", "offset"), [("at", 0), ("previous", -1), ("next", 1)])
def test_tokens_before_and_after_are_of_the_same_document(
    packed: Packed, summary: Summary, role: str, offset: int
) -> None:
    counts, totals = np.zeros((N_FEATURES, N_VOCAB)), np.zeros(N_VOCAB)
    for piece in packed.pieces:
        for i, token in enumerate(piece.ids):
            if token > SEPARATOR and 0 <= i + offset < len(piece.ids):
                totals[piece.ids[i + offset]] += 1
                counts[:, piece.ids[i + offset]] += piece.f[i] > 0
    assert np.array_equal(summary.tokens.counts[role].toarray(), counts)
    assert np.array_equal(summary.tokens.totals[role], totals)


def test_positions_and_sequence_density_are_by_sequence(packed: Packed, summary: Summary) -> None:
    for feature in range(N_FEATURES):
        fires = [(p.sequence, p.start + int(i)) for p in packed.pieces for i in np.flatnonzero(p.f[:, feature])]
        assert summary.core.position_sum[feature] == sum(position for _, position in fires)
        assert summary.core.n_sequences_fired[feature] == len({sequence for sequence, _ in fires})
        assert summary.core.n_first_position[feature] == sum(position == 1 for _, position in fires)
        runs = sum((sequence, position - 1) not in set(fires) for sequence, position in fires)
        assert summary.core.n_runs[feature] == runs


def test_windows_of_firings_end_where_their_document_does(packed: Packed, summary: Summary) -> None:
    found, cut = summary.candidates, 0
    pieces = {piece.document: piece for piece in packed.pieces}
    for n in range(found.feature.size):
        piece = pieces[int(found.document_id[n])]
        at, column = int(found.position[n]) - piece.start, piece.f[:, found.feature[n]]
        wanted = [column[i] if 0 <= i < column.size else 0.0 for i in range(at - WINDOW, at + WINDOW + 1)]
        assert found.window[n].tolist() == pytest.approx(wanted) and found.value[n] > 0
        cut += at < WINDOW < piece.start
    assert cut > 20, "some window would have reached into the document before"


def test_contexts_are_equal_where_the_text_of_the_document_is() -> None:
    many, contexts = Packed.random(1, n_sequences=200), dict[tuple[int, ...], int]()
    wanted = [context_of(p.ids, i, WINDOW) for p in many.pieces for i, token in enumerate(p.ids) if token > SEPARATOR]
    for context, found in zip(wanted, many.firings.rows.context.tolist(), strict=True):
        assert contexts.setdefault(context, found) == found
    assert len(set(contexts.values())) == len(contexts) < len(wanted)


def test_windows_of_the_sample_end_where_their_document_does(packed: Packed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "sample").write_bytes(Sample.of(packed.firings, 1.0, seed=3).save())
    sample = Sample.merged([tmp_path / "sample"])
    feature, row = (part.ravel() for part in np.indices((N_FEATURES, sample.n_rows)))
    windows, pieces = sample.windows(feature, row), {piece.document: piece for piece in packed.pieces}
    for window, one, place in zip(windows, feature, row, strict=True):
        piece = pieces[int(sample.document_id[place])]
        at, column = int(sample.position[place]) - piece.start, piece.f[:, one]
        wanted = [column[i] if 0 <= i < column.size else 0.0 for i in range(at - WINDOW, at + WINDOW + 1)]
        assert window.tolist() == pytest.approx(wanted)


def test_an_evaluation_credits_each_token_to_its_own_document(packed: Packed) -> None:
    wanted = {(p.sequence, p.start + i): p.document for p in packed.pieces for i in range(len(p.ids))}
    for batch in batches_of(packed.tokens, 4, 2):
        documents = documents_of(packed.tokens, batch)
        for row, position in zip(*batch.attention_mask.numpy().nonzero(), strict=True):
            assert documents[row, position] == wanted[int(batch.sequences[row]), int(position)]
