"""Harvested rows against one sequence at a time, and the order in which they are read back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import token_shard

from saelib.activations import ActivationShard, HarvestConfig, Harvester, rows_bytes
from saelib.base import Site
from saelib.errors import ActivationError
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.sinks import sink_norms
from saelib.text import TokenShard

SITES = (Site(path="model.layers.0"), Site(path="model.layers.1.mlp.down_proj", side="in"))
CONFIG = HarvestConfig(sites=SITES, batch_tokens=36, sink_norm_multiple=0.0)


def some_tokens() -> TokenShard:
    """Sequences of many lengths, with a special token inside some."""
    random = np.random.default_rng(0)
    documents = [[0, *random.integers(3, 43, length).tolist()] for length in (1, 11, 4, 7, 11, 2, 5, 9)]
    documents[1][4] = 1
    documents[3][7] = 2
    return token_shard(documents, first_sequence=100, first_document=40)


def oracle(lm: LanguageModel, tokens: TokenShard) -> dict[tuple[int, int], list[torch.Tensor]]:
    """(sequence, position) → the vector of every site, from one sequence at a time without padding."""
    rows = {}
    for sequence in range(tokens.n_sequences):
        first, last = tokens.sequence_starts[sequence], tokens.sequence_starts[sequence + 1]
        ids = torch.tensor([tokens.token_ids[first:last].tolist()])
        read = read_sites(lm, ids, torch.ones_like(ids), SITES)
        for position, token in enumerate(ids[0].tolist()):
            if token not in (0, 1, 2):
                rows[sequence, position] = [read[site][0, position] for site in SITES]
    return rows


def harvested(lm: LanguageModel, tokens: TokenShard, config: HarvestConfig = CONFIG) -> ActivationShard:
    return Harvester(lm, config, tuple(sink_norms(lm, [tokens], config)))(tokens, "shard 0")


def assert_rows(shard: ActivationShard, wanted: dict[tuple[int, int], list[torch.Tensor]]) -> None:
    """Every wanted (sequence, position) once, no other, with its vectors."""
    places = list(zip(shard.sequence.tolist(), shard.position.tolist(), strict=True))
    assert sorted(places) == sorted(wanted)
    for index, site in enumerate(shard.sites):
        assert site.shape[0] == len(places)
        for row, place in zip(site, places, strict=True):
            torch.testing.assert_close(row, wanted[place][index], atol=1e-5, rtol=1e-5)


def test_harvested_rows_equal_one_sequence_at_a_time(tiny_lm: LanguageModel) -> None:
    tokens = some_tokens()
    shard, wanted = harvested(tiny_lm, tokens), oracle(tiny_lm, tokens)
    assert_rows(shard, wanted)
    assert shard.n_masked == {"special": 8 + 2, "sink": 0, "not_finite": 0}


def test_harvested_rows_stay_aligned_with_their_tokens(tiny_lm: LanguageModel) -> None:
    tokens = some_tokens()
    shard = harvested(tiny_lm, tokens)
    flat = tokens.sequence_starts[shard.sequence] + shard.position
    assert np.array_equal(shard.token_id, tokens.token_ids[flat])
    assert np.array_equal(shard.document_id, tokens.document_id[shard.sequence])
    assert {column.shape[0] for column in (*shard.columns().values(), *shard.sites)} == {shard.token_id.size}


def test_harvested_rows_stand_in_an_order_that_the_seed_decides(tiny_lm: LanguageModel) -> None:
    first, again = harvested(tiny_lm, some_tokens()), harvested(tiny_lm, some_tokens())
    other = harvested(tiny_lm, some_tokens(), CONFIG.model_copy(update={"seed": 1}))
    places = [list(zip(s.sequence.tolist(), s.position.tolist(), strict=True)) for s in (first, again, other)]
    assert places[0] == places[1] and torch.equal(first.sites[0], again.sites[0])
    assert places[0] != places[2] and sorted(places[0]) == sorted(places[2])
    assert places[0] != sorted(places[0])


def test_positions_above_the_sink_norm_are_left_out(tiny_lm: LanguageModel) -> None:
    tokens, config = some_tokens(), CONFIG.model_copy(update={"sink_norm_multiple": 1.2})
    limits = sink_norms(tiny_lm, [tokens], config)
    rows = oracle(tiny_lm, tokens)
    for index, limit in enumerate(limits):
        median = torch.stack([row[index].norm() for row in rows.values()]).median().item()
        assert limit == pytest.approx(1.2 * median, rel=1e-5)
    kept = {place: row for place, row in rows.items() if all(x.norm() <= m for x, m in zip(row, limits, strict=True))}
    assert 0 < len(kept) < len(rows)
    shard = harvested(tiny_lm, tokens, config)
    assert_rows(shard, kept)
    assert shard.n_masked["sink"] == len(rows) - len(kept)


def spoiled(bad: float, lengths: tuple[int, ...] = (10,)) -> Callable[[torch.Tensor], torch.Tensor]:
    """A patch that puts `bad` at position 3 of the sequences of some lengths, where each is a batch of its own."""

    def patch(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        if x.shape[1] in lengths:
            x[0, min(3, x.shape[1] - 1)] = bad
        return x

    return patch


ONE_BY_ONE = HarvestConfig(sites=SITES[:1], batch_tokens=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_document_with_nan_or_inf_is_left_out_and_named(tiny_lm: LanguageModel, bad: float) -> None:
    tokens = some_tokens()
    tokens = tokens._replace(document_id=np.array([40, 41, 42, 43, 44, 45, 46, 42]))  # the last goes with the third
    clean = Harvester(tiny_lm, ONE_BY_ONE, (1e6,))(tokens, "shard 7")
    with patch_sites(tiny_lm, {SITES[0]: spoiled(bad)}):
        shard = Harvester(tiny_lm, ONE_BY_ONE, (1e6,))(tokens, "shard 7")
    assert shard.not_finite == ((42, "NaN or Inf at model.layers.0, position 3 of sequence 107"),)
    assert shard.n_masked == clean.n_masked | {"not_finite": int((clean.document_id == 42).sum())}
    rest = clean.document_id != 42
    assert shard.n_masked["not_finite"] > 9, "all its sequences are left out, not only the one with NaN"
    assert torch.equal(shard.sites[0], clean.sites[0][torch.from_numpy(rest)])
    for name, column in shard.columns().items():
        assert np.array_equal(column.numpy(), getattr(clean, name)[rest]), name


def test_nan_in_the_sample_does_not_move_the_sink_norm_to_nan(tiny_lm: LanguageModel) -> None:
    config = ONE_BY_ONE.model_copy(update={"sink_norm_multiple": 2.0})
    with patch_sites(tiny_lm, {SITES[0]: spoiled(torch.nan)}):
        (spoiled_limit,) = sink_norms(tiny_lm, [some_tokens()], config)
    (limit,) = sink_norms(tiny_lm, [some_tokens()], config)
    assert spoiled_limit == pytest.approx(limit, rel=0.2)


def test_nan_in_every_document_is_refused_with_shard_and_document(tiny_lm: LanguageModel) -> None:
    with (
        patch_sites(tiny_lm, {SITES[0]: spoiled(torch.nan, tuple(range(20)))}),
        pytest.raises(ActivationError, match=r"in shard 7, document 40, and in all 8 documents"),
    ):
        Harvester(tiny_lm, ONE_BY_ONE, (None,))(some_tokens(), "shard 7")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_are_kept_in_the_dtype_that_is_asked_for(tiny_lm: LanguageModel, dtype: str) -> None:
    exact = harvested(tiny_lm, some_tokens())
    shard = harvested(tiny_lm, some_tokens(), CONFIG.model_copy(update={"dtype": dtype}))
    for rows, full in zip(shard.sites, exact.sites, strict=True):
        assert torch.equal(rows, full.to(getattr(torch, dtype)))


def test_a_number_too_large_for_the_dtype_is_refused_with_what_to_choose(tiny_lm: LanguageModel) -> None:
    config = ONE_BY_ONE.model_copy(update={"dtype": "float16"})
    with patch_sites(tiny_lm, {SITES[0]: spoiled(7e4)}):
        wide = Harvester(tiny_lm, ONE_BY_ONE, (None,))(some_tokens(), "shard 7")
        with pytest.raises(ActivationError) as refused:
            Harvester(tiny_lm, config, (None,))(some_tokens(), "shard 7")
        a_sink = Harvester(tiny_lm, config, (6e4,))(some_tokens(), "shard 7")
    said = str(refused.value)
    assert "at model.layers.0 are too large for float16 in shard 7, document 47, position 3 of sequence 107" in said
    assert "set harvest.dtype to 'bfloat16' or 'float32'" in said
    assert wide.sites[0].max() == 7e4 and a_sink.n_masked["sink"] == 1, "what is masked may be as large as it likes"


def test_rows_of_a_packed_sequence_are_of_their_own_documents(tiny_lm: LanguageModel) -> None:
    tokens = token_shard([[0, 5, 6, 1, 7, 8, 9, 1, 10]], first_document=3)._replace(
        piece_start=np.array([1, 4, 8]), piece_tokens=np.array([2, 3, 1]), piece_document=np.array([3, 9, 11])
    )
    shard = harvested(tiny_lm, tokens)
    place = np.argsort(shard.position)
    assert shard.token_id[place].tolist() == [5, 6, 7, 8, 9, 10]
    assert shard.document_id[place].tolist() == [3, 3, 9, 9, 9, 11]


def test_rows_bytes_is_what_a_shard_file_takes(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shard = harvested(tiny_lm, some_tokens())
    columns = (*shard.columns().values(), *shard.sites)
    size = sum(tensor.numel() * tensor.element_size() for tensor in columns)
    assert rows_bytes(shard.token_id.size, [16, 32], torch.float32) == size
