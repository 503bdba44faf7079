"""Harvest as a step: what lies on disk and how large it was said to be, limits, and what a model or a device may do."""

import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_builds import Record, tiny

from catalog import Store
from flows import steps
from flows.artifact import Artifact, every
from flows.config import RunConfig
from flows.place import Place
from flows.planning import plan_run
from flows.steps import loading
from flows.steps.loading import language_model, load_activations, load_tokens, shard_name
from saelib.activations import COLUMNS, Harvester
from saelib.errors import ActivationError, DeviceError
from saelib.lm import LanguageModel, LMConfig

TWO_SITES = {"sites": [{"path": "model.layers.0"}, {"path": "model.layers.1"}]}


def small(corpus: Path, **settings: Any) -> RunConfig:
    """A third of the tiny run's text, in six shards."""
    config = tiny(corpus, harvest=settings)
    text = config.corpus.model_copy(update={"max_tokens": 9_000, "shard_tokens": 1_500})
    return config.model_copy(update={"corpus": text})


@pytest.fixture(scope="module")
def tokenized(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the tokens of the tiny run. Copy it before writing."""
    store = Store.create(tmp_path_factory.mktemp("tokenized") / "store")
    steps.tokenize(small(corpus), Place(store, Record()))
    return store


@pytest.fixture
def harvested(tokenized: Store, corpus: Path) -> Iterator[Callable[..., tuple[Artifact, list[str]]]]:
    """Harvest the tokens with some settings: the artifact, and what was said. Everything is removed afterwards."""

    def run(**settings: Any) -> tuple[Artifact, list[str]]:
        config, place = small(corpus, **settings), Place(tokenized, Record())
        found = steps.harvest(config, steps.tokenize(config, place), place)
        return found, place.watch.lines

    yield run
    shutil.rmtree(tokenized.artifacts / "activations", ignore_errors=True)


def tokens_of(store: Store) -> Artifact:
    (found,) = every(store, "tokens")
    return found


def bytes_on_disk(activations: Artifact) -> int:
    return sum(file.stat().st_size for file in activations.directory.glob("shard-*"))


def test_each_site_of_a_shard_is_a_file_of_its_own_beside_what_its_rows_are(
    harvested: Callable[..., Any], tokenized: Store
) -> None:
    both, _ = harvested(**TWO_SITES)
    names = sorted(file.name for file in both.directory.glob("shard-*"))
    kinds = ("rows", "site-0", "site-1")
    assert names == [f"shard-{shard:05d}.{kind}.safetensors" for shard in both.facts["shards"] for kind in kinds]
    with safe_open(both.file("shard-00000.rows.safetensors"), framework="np") as file:
        assert sorted(file.keys()) == sorted(COLUMNS)
    alone, _ = harvested(sites=TWO_SITES["sites"][1:], batch_tokens=both.manifest["plan"]["harvest"]["batch_tokens"])
    for shard, n_rows in zip(both.facts["shards"], both.facts["n_rows"], strict=True):
        (second,) = load_activations(both, shard, [1]).sites
        assert torch.equal(second, load_activations(alone, shard, [0]).sites[0]) and second.shape == (n_rows, 256)
        tokens, rows = load_tokens(tokens_of(tokenized).file(shard_name(shard))), load_activations(both, shard, [])
        at = tokens.sequence_starts[rows.sequence] + rows.position
        assert (tokens.token_ids[at] == rows.token_id).all()
        assert (tokens.token_document[at] == rows.document_id).all()


@pytest.mark.parametrize("settings", [{}, TWO_SITES, {"dtype": "float16"}])
def test_the_size_is_said_before_the_work_begins_and_true_to_two_percent(
    harvested: Callable[..., Any], tokenized: Store, corpus: Path, settings: dict[str, Any]
) -> None:
    (planned,) = (row for row in plan_run(small(corpus, **settings), tokenized) if row.step == "harvest")
    activations, said = harvested(**settings)
    told = float(planned.size.removesuffix(" MB").replace(",", ""))
    assert told * 1e6 == pytest.approx(bytes_on_disk(activations), rel=0.02)
    assert any(f"take {told:,.1f} MB; batches of" in line for line in said)


def test_the_size_of_a_narrow_models_harvest_is_true_as_well(corpus: Path, almanac_data: Path, tmp_path: Path) -> None:
    lm = LMConfig(model=str(almanac_data / "models/stories260K"), device="cpu")
    config = small(corpus, **TWO_SITES).model_copy(update={"lm": lm})
    place = Place(Store.create(tmp_path / "store"), Record())
    tokens = steps.tokenize(config, place)
    (planned,) = (row for row in plan_run(config, place.store) if row.step == "harvest")
    activations = steps.harvest(config, tokens, place)
    told = float(planned.size.removesuffix(" MB"))
    assert told * 1e6 == pytest.approx(bytes_on_disk(activations), rel=0.02)
    assert activations.facts["widths"] == [64, 64]


def test_max_bytes_keeps_whole_shards_and_those_held_out(harvested: Callable[..., Any]) -> None:
    everything, _ = harvested()
    held_out, sizes = everything.facts["held_out"], [n * (256 * 4 + 20) for n in everything.facts["n_rows"]]
    least = sum(size for size, flag in zip(sizes, held_out, strict=True) if flag)
    first, second, *_ = (size for size, flag in zip(sizes, held_out, strict=True) if not flag)
    for limit, n_learned in ((least + first + second, 2), (least + first + second - 1, 1), (1, 1)):
        some, said = harvested(max_bytes=limit)
        assert some.facts["held_out"].count(False) == n_learned
        assert some.facts["held_out"].count(True) == held_out.count(True)
        is_said = any(f"harvest.max_bytes = {limit:,} leaves out" in line for line in said)
        assert is_said == (n_learned < held_out.count(False))


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, when: Callable[[torch.Tensor], bool]) -> None:
    """A forward pass that raises `error` where its token ids are as `when` says."""
    real = LanguageModel.forward

    def forward(self: LanguageModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if when(input_ids):
            raise error
        return real(self, input_ids, attention_mask)

    monkeypatch.setattr(LanguageModel, "forward", forward)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_which_is_another_plan(
    harvested: Callable[..., Any], tokenized: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patched:
        failing(patched, error, lambda ids: ids.shape[0] > 4)
        halved, said = harvested(batch_tokens=1024)
    assert halved.manifest["plan"]["harvest"]["batch_tokens"] == 256
    assert [line.split("with a batch of ")[1].split(" (")[0] for line in said if "another plan" in line] == [
        "16 sequences of 64 tokens",
        "8 sequences of 64 tokens",
    ]
    assert harvested(batch_tokens=256)[0].fingerprint == halved.fingerprint
    again, said = harvested(batch_tokens=1024)
    assert again.fingerprint == halved.fingerprint and not any("another plan" in line for line in said)
    config = small(corpus, batch_tokens=1024)
    assert [row.is_done for row in plan_run(config, tokenized) if row.step == "harvest"] == [True]
    assert not list(tokenized.artifacts.glob("activations/.partial-*/shard-*"))


def test_out_of_memory_with_one_sequence_says_how_long_it_is_and_what_to_do(
    harvested: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, NO_MEMORY[0], lambda ids: ids.shape[1] > 32)
    with pytest.raises(DeviceError, match=r"single sequence of 64 tokens.*lower corpus\.context_tokens.*'bfloat16'"):
        harvested(sink_norm_multiple=0.0)


def test_a_lost_device_is_named_and_finished_shards_are_kept(
    harvested: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = harvested()
    made: list[str] = []
    real = Harvester.__call__

    def counted(self: Harvester, shard: Any, name: str, *rest: Any) -> Any:
        made.append(name)
        return real(self, shard, name, *rest)

    monkeypatch.setattr(Harvester, "__call__", counted)
    with monkeypatch.context() as patched:
        failing(patched, torch.AcceleratorError("CUDA error: unspecified launch failure"), lambda _: len(made) == 3)
        with pytest.raises(DeviceError, match="'cpu' was lost in shard 2 .*finished are kept.*goes on from there"):
            harvested(seed=5, sink_norm_multiple=0.0)
    del made[:]
    resumed, _ = harvested(seed=5, sink_norm_multiple=0.0)
    assert made == [f"shard {shard}" for shard in whole.facts["shards"][2:]]
    assert resumed.facts["n_rows"] == whole.facts["n_rows"]


@pytest.fixture
def poison(tokenized: Store, corpus: Path) -> Iterator[int]:
    """A document with a token that stands in no other; the model gives NaN for it."""
    tokens = [load_tokens(path) for path in tokens_of(tokenized).files("shard-")]
    documents = {int(each): set() for shard in tokens for each in shard.document_id}
    for shard in tokens:
        for document, token in zip(shard.token_document.tolist(), shard.token_ids.tolist(), strict=True):
            documents[document].add(token)
    chosen = min(documents)
    (token, *_) = documents[chosen] - set().union(*(own for each, own in documents.items() if each != chosen))
    embedding = language_model(small(corpus).lm).model.get_input_embeddings().weight.data
    row = embedding[token].clone()
    embedding[token] = torch.nan
    yield chosen
    embedding[token] = row


def test_a_poisoned_document_is_quarantined_with_its_reason(
    harvested: Callable[..., Any], tokenized: Store, poison: int
) -> None:
    some, _ = harvested(max_quarantine_share=0.5)
    (entry,) = some.facts["quarantined"]
    assert (entry["document_id"], entry["step"], entry["reason"]) == (poison, "harvest", "not_finite")
    assert entry["detail"].startswith("NaN or Inf at model.layers.1, position ")
    of_it = sum(
        int((load_tokens(path).token_document == poison).sum() - (load_tokens(path).document_id == poison).sum())
        for path in tokens_of(tokenized).files("shard-")
    )
    assert some.facts["n_masked"]["not_finite"] == of_it, "all its tokens but BOS"
    for shard in some.facts["shards"]:
        rows = load_activations(some, shard, [0])
        assert poison not in rows.document_id and torch.isfinite(rows.sites[0]).all()


def test_too_many_poisoned_documents_stop_the_run_with_the_first_reasons(
    harvested: Callable[..., Any], poison: int
) -> None:
    with pytest.raises(
        ActivationError, match=rf"1 of \d+ documents, more than .* = 0\.0 .*document {poison}: NaN or Inf"
    ):
        harvested(max_quarantine_share=0.0)
    assert harvested(max_quarantine_share=0.5)[0].facts["quarantined"], "the share is no part of the plan"


def test_one_token_shard_is_held_at_a_time(harvested: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    most = 0

    def counted(path: Path) -> Any:
        nonlocal most
        shard = load_tokens(path)
        held.append(weakref.ref(shard.token_ids))
        most = max(most, sum(each() is not None for each in held))
        return shard

    monkeypatch.setattr(loading, "load_tokens", counted)
    monkeypatch.setattr(sys.modules["flows.steps.harvest"], "load_tokens", counted)
    harvested()
    assert len(held) > 6 and most <= 2, "one, and the one that takes its place"
