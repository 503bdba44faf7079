"""Harvested rows against one sequence at a time, and the order in which they are read back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import token_shard

from saelib.activations import ActivationShard, HarvestConfig, Harvester, rows_bytes, sink_norms
from saelib.base import Site
from saelib.errors import ActivationError
from saelib.lm import LanguageModel, patch_sites, read_sites
from saelib.text import TokenShard

SITES = (Site(path="model.layers.0"), Site(path="model.layers.1.mlp.down_proj", side="in"))
CONFIG = HarvestConfig(sites=SITES, batch_sequences=3, sink_norm_multiple=0.0)


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
    assert shard.n_masked == {"special": 8 + 2, "sink": 0}


def test_harvested_rows_stay_aligned_with_their_tokens(tiny_lm: LanguageModel) -> None:
    tokens = some_tokens()
    shard = harvested(tiny_lm, tokens)
    flat = tokens.sequence_starts[shard.sequence] + shard.position
    assert np.array_equal(shard.token_id, tokens.token_ids[flat])
    assert np.array_equal(shard.document_id, tokens.document_id[shard.sequence])
    assert {name: tensor.shape[0] for name, tensor in shard.tensors().items()} == dict.fromkeys(
        ("site_0", "site_1", "token_id", "document_id", "sequence", "position"), shard.token_id.size
    )


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_with_shard_and_document(tiny_lm: LanguageModel, bad: float) -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        if x.shape[1] == 10:  # only the sequence of 10 tokens, padded to no more
            x[0, 3] = bad
        return x

    config = HarvestConfig(sites=SITES[:1], batch_sequences=1, sink_norm_multiple=10.0)
    with patch_sites(tiny_lm, {SITES[0]: spoil}), pytest.raises(ActivationError) as refused:
        Harvester(tiny_lm, config, (1e6,))(some_tokens(), "shard 7")
    assert "in shard 7, document 47, position 3;" in str(refused.value)


def test_rows_bytes_is_what_a_shard_file_takes(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shard = harvested(tiny_lm, some_tokens())
    size = sum(tensor.numel() * tensor.element_size() for tensor in shard.tensors().values())
    assert rows_bytes(shard.token_id.size, [16, 32], torch.float32) == size
