"""Text to documents to tokens to shards."""

import gc
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import sentence, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelib import text
from saelib.activations import HarvestConfig, Harvester
from saelib.base import Site
from saelib.documents import _Seen
from saelib.errors import ConfigError, CorpusError
from saelib.lm import LanguageModel
from saelib.spilled import SpilledDocuments
from saelib.text import (
    CorpusConfig,
    Counts,
    Document,
    Source,
    Tokenized,
    TokenShard,
    corpus_fingerprint,
    document_text,
    read_documents,
    tokenize,
)


def jsonl(path: Path, documents: list[str], field: str = "text") -> Source:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in documents))
    return Source(path=str(path), field=field)


def test_the_held_out_share_is_drawn_by_content_whatever_stands_around_it(tmp_path: Path) -> None:
    many = [sentence(seed, 5) for seed in range(800)]
    config = CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", many),), held_out_share=0.25)
    held_out = {document.text for document in read_documents(config) if document.held_out}
    assert 150 < len(held_out) < 250
    some = config.model_copy(update={"sources": (jsonl(tmp_path / "b.jsonl", many[::-1][:300]),)})
    assert {document.text for document in read_documents(some) if document.held_out} == held_out & set(many[::-1][:300])


def test_named_held_out_documents_replace_the_drawn_share(tmp_path: Path) -> None:
    first, second = (jsonl(tmp_path / name, [name + str(i) for i in range(50)]) for name in ("a.jsonl", "b.jsonl"))
    config = CorpusConfig(sources=(first,), held_out=(second,), held_out_share=0.5)
    assert [document.held_out for document in read_documents(config)] == [False] * 50 + [True] * 50


def test_a_fingerprint_follows_content_and_slice_not_the_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    one, two = (Source(path=str(tmp_path / name / "a.txt")) for name in ("one", "two"))
    before = corpus_fingerprint(CorpusConfig(sources=(one,)))
    assert corpus_fingerprint(CorpusConfig(sources=(two,))) == before
    assert corpus_fingerprint(CorpusConfig(sources=(two.model_copy(update={"documents": "1:"}),))) != before
    (tmp_path / "two/a.txt").write_text("other")
    assert corpus_fingerprint(CorpusConfig(sources=(two,))) != before


def corpus(lm: LanguageModel, path: Path, lengths: list[int], **settings: object) -> tuple[Tokenized, list[list[int]]]:
    """The tokenized corpus, and the ids of every document as the tokenizer gives them."""
    documents = [sentence(seed, length) for seed, length in enumerate(lengths)]
    config = CorpusConfig.model_validate({"sources": (jsonl(path / "c.jsonl", documents),), **settings})
    return tokenize(lm, config), [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]


def sequences(tokenized: Tokenized) -> dict[int, tuple[int, int, list[int]]]:
    """sequence_id → document, start, ids."""
    found = {}
    for shard in tokenized.shards:
        for index in range(shard.n_sequences):
            first, last = shard.sequence_starts[index], shard.sequence_starts[index + 1]
            key = int(shard.sequence_id[index])
            assert key not in found
            ids = shard.token_ids[first:last].tolist()
            found[key] = (int(shard.document_id[index]), int(shard.start_token[index]), ids)
    return found


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    shard_tokens=st.integers(5, 200),
    held_out_share=st.sampled_from([0.0, 0.4]),
)
def test_every_token_lies_in_exactly_one_sequence_and_every_document_in_one_shard(
    tiny_lm: LanguageModel,
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    shard_tokens: int,
    held_out_share: float,
) -> None:
    tokenized, ids = corpus(
        tiny_lm, tmp_path_factory.mktemp("c"), lengths, shard_tokens=shard_tokens, held_out_share=held_out_share
    )
    rebuilt: dict[int, list[int]] = {}
    for _, (document, start, tokens) in sorted(sequences(tokenized).items()):
        assert tokens[0] == 0 and 1 < len(tokens) <= 12, "BOS first, at most one context"
        assert start == len(rebuilt.setdefault(document, []))
        rebuilt[document] += tokens[1:]
    assert [rebuilt[index] for index in range(len(ids))] == ids
    assert [record.n_tokens for record in tokenized.documents] == lengths
    where = [set(shard.document_id.tolist()) for shard in tokenized.shards]
    assert sum(map(len, where)) == len(ids), "shards share no document"
    held_out = {record.document_id for record in tokenized.documents if record.held_out}
    for documents, flag in zip(where, tokenized.held_out, strict=True):
        assert documents <= held_out if flag else not documents & held_out


def test_long_documents_may_be_cut_to_one_sequence(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tokenized, ids = corpus(tiny_lm, tmp_path, [40, 3], long_documents="cut", held_out_share=0.0)
    found = sequences(tokenized)
    assert found == {0: (0, 0, [0, *ids[0][:11]]), 1: (1, 0, [0, *ids[1]])}


def test_a_document_goes_to_the_same_sequence_whatever_the_shard_size(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    lengths = [17, 5, 30, 8, 12, 25]
    few, _ = corpus(tiny_lm, tmp_path, lengths, shard_tokens=1000)
    many, _ = corpus(tiny_lm, tmp_path, lengths, shard_tokens=20)
    assert len(many.shards) > len(few.shards)
    assert sequences(few) == sequences(many)


def test_context_tokens_shortens_sequences(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tokenized, _ = corpus(tiny_lm, tmp_path, [10], context_tokens=5, held_out_share=0.0)
    assert tokenized.shards[0].lengths.tolist() == [5, 5, 3]
    with pytest.raises(ConfigError, match="no room beside BOS"):
        corpus(tiny_lm, tmp_path, [10], context_tokens=1)


def test_max_tokens_stops_after_the_document_that_reaches_it(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tokenized, _ = corpus(tiny_lm, tmp_path, [10] * 9, max_tokens=35)
    assert len(tokenized.documents) == 4


def test_max_tokens_leaves_the_named_held_out_documents_in(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    held_out = jsonl(tmp_path / "h.jsonl", [sentence(100 + seed, 6) for seed in range(3)])
    tokenized, _ = corpus(tiny_lm, tmp_path, [10] * 9, max_tokens=35, held_out=(held_out,))
    assert [record.held_out for record in tokenized.documents] == [False] * 4 + [True] * 3


def test_tick_is_told_of_every_token(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    told: list[int] = []
    config = CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", [sentence(s, 20) for s in range(5)]),))
    tokenize(tiny_lm, config, told.append)
    assert sum(told) == 100


def test_an_empty_corpus_is_refused(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no text at all; name sources with text: \['.*a\.jsonl'\]"):
        tokenize(tiny_lm, CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", ["", " \n"]),)))


def test_a_corpus_of_only_special_tokens_is_refused_with_their_number(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"only special tokens \(5 of them\)"):
        tokenize(tiny_lm, CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", ["<eos> <bos>", "<pad> <eos> <eos>"]),)))


def test_shards_are_of_about_the_size_asked_for(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tokenized, _ = corpus(tiny_lm, tmp_path, [20] * 200, shard_tokens=500, held_out_share=0.0)
    sizes = np.array([shard.token_ids.size for shard in tokenized.shards])
    assert sizes.size == 8 and sizes.max() < 1200


CORPUS = ["the cat sat on the mat. ", "日本語の文 ", "naïve cafe\u0301 ", "👍🏽 thumbs ", "def f(x):\n\treturn x\n"]


def byte_level(trim: bool) -> Tokenizer:
    """As GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def sentence_piece() -> Tokenizer:
    """As Llama's: ▁ for a space, one before the text, and bytes for what has no token."""
    words = {
        "▁": 256,
        "▁the": 257,
        "▁cat": 258,
        "t": 259,
        "h": 260,
        "e": 261,
        "a": 262,
        "日": 263,
        "th": 264,
        "the": 265,
    }
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | words | {"c": 266, "ca": 267, "cat": 268}
    vocabulary |= {"▁t": 269, "▁th": 270, "▁c": 271, "▁ca": 272}
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("▁", "the"), ("▁", "cat")]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=False))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def whole_words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return made


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(trim=False),
    "byte level, trimmed": lambda: byte_level(trim=True),
    "sentence piece": sentence_piece,
    "whole words": whole_words,
}


def lm_of(tokenizer: Tokenizer, **special: str) -> LanguageModel:
    """A random model with just enough vocabulary."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    shape |= {"bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 16}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(fast)))
    return LanguageModel(model, fast, "made here", "0" * 64)


@pytest.fixture(scope="module", params=TOKENIZERS)
def some_lm(request: pytest.FixtureRequest) -> LanguageModel:
    return lm_of(TOKENIZERS[request.param]())


def places(shard: TokenShard) -> list[tuple[int, int, int]]:
    """(token, document, character) of every token."""
    return list(zip(*(column.tolist() for column in (shard.token_ids, shard.token_document, shard.char_start))))  # noqa: B905


def check_places(lm: LanguageModel, tokenized: Tokenized, written: list[str]) -> None:
    """Tokens of one place, decoded together, stand in the text from there to the next place."""
    found: dict[int, list[tuple[int, int]]] = {}
    for shard in tokenized.shards:
        for token, document, char in places(shard):
            if char >= 0:
                found.setdefault(document, []).append((token, char))
    for record in tokenized.documents:
        text, tokens = written[int(record.uri.split("#")[1])], found[record.document_id]
        starts = sorted({char for _, char in tokens})
        assert len(tokens) == record.n_tokens
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            decoded = lm.tokenizer.decode([token for token, char in tokens if char == start])
            for part in decoded.replace("<unk>", "").split("\ufffd"):
                assert part.strip() in text[start:stop], (decoded, text[start:stop])


pieces_of_text = st.sampled_from(
    [*CORPUS, "the", "cat", "  ", " ", "日本", "e\u0301", "👩‍👩‍👧", "\n", "\u2028", "z", "\x00"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(pieces_of_text, min_size=1, max_size=12).map("".join), min_size=1, max_size=5))
@pytest.mark.parametrize("packing", ["none", "separator"])
def test_every_token_is_traced_to_its_document_and_character(
    some_lm: LanguageModel, packing: str, rows: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*rows, "the cat"]
    some_lm.tokenizer.eos_token = "the" if packing == "separator" else None
    source = jsonl(tmp_path_factory.mktemp("traced") / "a.jsonl", rows)
    settings = {"sources": (source,), "held_out_share": 0.3, "shard_tokens": 20, "packing": packing}
    try:
        check_places(some_lm, tokenize(some_lm, CorpusConfig.model_validate(settings)), rows)
    finally:
        some_lm.tokenizer.eos_token = None


def test_a_space_that_the_tokenizer_drops_moves_no_offset(tmp_path: Path) -> None:
    lm = lm_of(whole_words())
    source = jsonl(tmp_path / "a.jsonl", ["cat   日本語の文\n\n👍🏽\tcat"])
    shard = tokenize(lm, CorpusConfig(sources=(source,), held_out_share=0.0)).shards[0]
    assert shard.char_start.tolist() == [0, 6, 13, 16]
    assert shard.char_step.dtype == np.uint8


def test_steps_widen_where_a_token_is_long(tmp_path: Path) -> None:
    lm = lm_of(whole_words())
    source = jsonl(tmp_path / "a.jsonl", ["cat" + " " * 300 + "cat" + " " * 70_000 + "cat"])
    shard = tokenize(lm, CorpusConfig(sources=(source,), held_out_share=0.0)).shards[0]
    assert shard.char_start.tolist() == [0, 303, 70_306]


def test_a_shard_may_tell_no_offsets(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shard = corpus(tiny_lm, tmp_path, [5], held_out_share=0.0)[0].shards[0]
    old = TokenShard(*shard[:5])
    assert old.char_start.tolist() == [-1] * 6 and old.token_document.tolist() == [0] * 6
    assert old.take(np.array([0])).token_ids.tolist() == shard.token_ids.tolist()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    shard_tokens=st.integers(5, 200),
    context_tokens=st.integers(2, 12),
)
def test_packed_sequences_are_full_and_lose_no_token(
    tiny_lm: LanguageModel,
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    shard_tokens: int,
    context_tokens: int,
) -> None:
    tokenized, ids = corpus(
        tiny_lm,
        tmp_path_factory.mktemp("packed"),
        lengths,
        shard_tokens=shard_tokens,
        context_tokens=context_tokens,
        packing="separator",
    )
    rebuilt: dict[int, list[int]] = {index: [] for index in range(len(ids))}
    for shard in tokenized.shards:
        assert set(shard.lengths[:-1].tolist()) <= {context_tokens}, "all but the last are full"
        assert set(shard.token_ids[shard.sequence_starts[:-1]].tolist()) == {0}, "BOS first"
        assert not (shard.token_ids[shard.sequence_starts[:-1] + 1] == 1).any(), "no sequence opens with a separator"
        assert (np.diff(shard.token_ids == 1, prepend=0) != 0)[shard.token_ids == 1].all(), "no two together"
        for token, document, char in places(shard):
            if char >= 0:
                rebuilt[document].append(token)
    assert list(rebuilt.values()) == ids
    sequence_ids = np.concatenate([shard.sequence_id for shard in tokenized.shards])
    assert sequence_ids.tolist() == list(range(sequence_ids.size))
    where = [set(shard.token_document.tolist()) for shard in tokenized.shards]
    assert sum(map(len, where)) == len(ids), "shards share no document"


@pytest.mark.parametrize("packing", ["none", "separator"])
def test_taken_sequences_keep_their_places(packing: str, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shard = corpus(tiny_lm, tmp_path, [30, 3, 9, 14], packing=packing, held_out_share=0.0)[0].shards[0]
    chosen = np.array([3, 0, 2])
    taken = shard.take(chosen)
    cut = [np.arange(shard.sequence_starts[s], shard.sequence_starts[s + 1]) for s in chosen]
    assert places(taken) == [places(shard)[index] for index in np.concatenate(cut)]
    assert shard.take(np.array([], dtype=np.int64)).token_ids.size == 0


def test_a_shard_is_the_same_each_time_it_is_made(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    shards = corpus(tiny_lm, tmp_path, [30, 3, 9, 14], shard_tokens=20)[0].shards
    assert len(shards) > 1 and len(list(shards)) == len(shards) == len(shards[:])
    for once, again in zip(shards, shards[:], strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(once, again, strict=True))
    assert shards[-1].sequence_id.tolist() == shards[len(shards) - 1].sequence_id.tolist()
    with pytest.raises(IndexError):
        shards[len(shards)]


def test_memory_does_not_grow_with_the_corpus(
    tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_BATCH_CHARS", 10_000)

    def peak(n_documents: int) -> int:
        source = jsonl(tmp_path / "a.jsonl", [sentence(seed, 2_000) for seed in range(n_documents)])
        gc.collect()
        tracemalloc.start()
        tokenized = tokenize(tiny_lm, CorpusConfig(sources=(source,), shard_tokens=4_000))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(tokenized.documents) == n_documents
        return most

    assert peak(35) - peak(5) < 30 * 2_000, "an id and an offset of each token more would be eight bytes"


def test_documents_that_are_split_or_cut_are_counted(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    assert corpus(tiny_lm, tmp_path, [40, 3, 12, 11])[0].counts == Counts(n_read=4, n_split=2)
    assert corpus(tiny_lm, tmp_path, [40, 3, 12, 11], long_documents="cut")[0].counts == Counts(n_read=4, n_cut=2)


def test_duplicates_are_counted_and_dropped_on_request(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    sources = (jsonl(tmp_path / "a.jsonl", ["w1 w2", "w3", "w1 w2", "", "w1 w2", "w1  w2"]),)
    held_out = (jsonl(tmp_path / "b.jsonl", ["w3", "w4"]),)
    kept = tokenize(tiny_lm, CorpusConfig(sources=sources, held_out=held_out))
    assert (kept.counts.n_duplicates, kept.counts.n_empty, len(kept.documents)) == (3, 1, 7)
    dropped = tokenize(tiny_lm, CorpusConfig(sources=sources, held_out=held_out, drop_duplicates=True))
    assert (dropped.counts.n_duplicates, dropped.counts.n_empty) == (3, 1)
    uris = [record.uri for record in dropped.documents]
    assert uris == ["a.jsonl#0", "a.jsonl#1", "a.jsonl#5", "b.jsonl#1"], "what was trained on is not held out too"


def test_a_document_without_tokens_is_empty(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\u2028"}\n{"text": "w1"}\n')
    assert tokenize(tiny_lm, CorpusConfig(sources=(Source(path=str(tmp_path / "a.jsonl")),))).counts.n_empty == 1


LINES = [
    *({"messages": text} for text in ("w1 w2 w3", "w4", " ", "w5 " * 30, "unheard w6", "")),
    *({"messages": [{"role": role, "content": "w7"}]} for role in ("w1", "w3")),
]
lines = st.sampled_from([*map(json.dumps, LINES), "{", '{"text": "w1"}', '{"messages": "w8 \\ud800"}'])
policies = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([None, 1, 9, 40]),
        "drop_duplicates": st.booleans(),
        "on_bad": st.sampled_from(["fail", "quarantine"]),
        "invalid_utf8": st.sampled_from(["replace", "drop", "fail"]),
        "packing": st.sampled_from(["none", "separator"]),
        "long_documents": st.sampled_from(["split", "cut"]),
        "max_quarantined_share": st.sampled_from([0.3, 1.0]),
    }
)


def outcome(lm: LanguageModel, config: CorpusConfig, batch_documents: int) -> list[object]:
    """All that a corpus becomes, or why it becomes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BATCH_DOCUMENTS", batch_documents)
        told: list[int] = []
        try:
            made = tokenize(lm, config, told.append)
        except CorpusError as error:
            return [str(error)]
    arrays = [[column.tolist() for column in shard] for shard in made.shards]
    return [arrays, made.held_out, list(made.documents), made.quarantined, made.counts, made.notes, told]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(lines, min_size=1, max_size=12), kept=st.lists(lines, max_size=3), policy=policies)
def test_documents_together_give_what_they_give_one_at_a_time(
    rows: list[str], kept: list[str], policy: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands in the batch: what is poisoned, repeated, or read and not wanted any more."""
    lm = chat_lm("{{ raise_exception('roles') if messages[0]['role'] == 'w3' else 'w1 w2' }}")
    lm.tokenizer.add_tokens(["unheard"])
    folder, sources = tmp_path_factory.mktemp("together"), []
    for name, content in (("a", rows), ("b", kept)):
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in content))
        sources.append(Source(kind="chat", path=str(folder / f"{name}.jsonl")))
    config = CorpusConfig.model_validate({"sources": sources[:1], "held_out": sources[1:], **policy})
    wanted = outcome(lm, config, 1)
    assert outcome(lm, config, 1024) == outcome(lm, config, 3) == wanted


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3).map(lambda n: n << 10), max_size=2_000))
def test_what_was_seen_is_known_as_a_set_knows_it(keys: list[int]) -> None:
    seen, truth = _Seen(), set[int]()
    for key in keys:
        assert (key in seen) == (key in truth) or key in (0, 1)  # these two are one
        seen.add(key)
        truth.add(key)
    assert all(key in seen for key in truth)


def test_few_bytes_of_each_document_stay_in_memory(tmp_path: Path) -> None:
    seen, documents = _Seen(), SpilledDocuments()
    tracemalloc.start()
    for number in range(4_000):
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        seen.add(int(sha256[:16], 16))
        document = Document("", f"a/long/name/of/a/file-{number}.txt", sha256, False)
        documents.add(document, np.zeros(2, dtype=np.int32), np.zeros(3, dtype=np.int32))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 4_000 < 45
    assert list(documents)[-1].uri == "a/long/name/of/a/file-3999.txt"


POISON = {"not_json": b'{"text": ', "no_text": b'{"words": "x"}', "not_utf8": b'{"text": "w1 \xff"}'}


@pytest.mark.parametrize("reason", POISON)
def test_a_poisoned_document_is_quarantined_with_its_reason(
    reason: str, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "w1"}\n' + POISON[reason] + b'\n{"text": "w2"}\n')
    policies = {"sources": (Source(path=str(path)),), "on_bad": "quarantine", "invalid_utf8": "drop"}
    tokenized = tokenize(tiny_lm, CorpusConfig.model_validate(policies))
    assert [record.uri for record in tokenized.documents] == ["a.jsonl#0", "a.jsonl#2"]
    (found,) = tokenized.quarantined
    assert (found.reason, found.uri, found.place) == (reason, "a.jsonl#1", f"{path}:2")
    assert found.place in found.detail and len(found.sha256) == 64
    assert tokenized.counts == Counts(n_read=3, n_quarantined=1)
    with pytest.raises(CorpusError, match=r"a\.jsonl:2"):
        tokenize(tiny_lm, CorpusConfig.model_validate(policies | {"on_bad": "fail", "invalid_utf8": "fail"}))
    with pytest.raises(CorpusError, match=rf"^1 of 3 documents cannot be used, more than .* = 0.0: \[{reason}\] .*:2"):
        tokenize(tiny_lm, CorpusConfig.model_validate(policies | {"max_quarantined_share": 0.0}))


def test_too_many_in_quarantine_stop_the_run_and_the_first_are_named(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "w1"}\n' * 96 + "broken\n" * 4)
    config = CorpusConfig(sources=(Source(path=str(path)),), on_bad="quarantine")
    with pytest.raises(CorpusError, match=r"^4 of 100 .* = 0.01: \[not_json\] \S+:97 .*:98 .*:99 .* …; mend") as raised:
        tokenize(tiny_lm, config)
    assert ":100 " not in str(raised.value)
    allowed = tokenize(tiny_lm, config.model_copy(update={"max_quarantined_share": 0.04}))
    assert allowed.counts.n_quarantined == len(allowed.quarantined) == 4


def test_a_file_of_nothing_but_bad_lines_stops_early(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("broken\n" * 5_000)
    with pytest.raises(CorpusError, match="^1000 of 1000 documents"):
        tokenize(tiny_lm, CorpusConfig(sources=(Source(path=str(path)),), on_bad="quarantine"))


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    lm = lm_of(whole_words())
    lm.tokenizer.add_tokens(["unheard"])
    config = CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", ["cat", "unheard cat"]),))
    with pytest.raises(CorpusError, match=r"a\.jsonl:2 holds token \d+, and the model knows \d+; leave it out"):
        tokenize(lm, config)
    (found,) = tokenize(lm, config.model_copy(update={"on_bad": "quarantine"})).quarantined
    assert found.reason == "unknown_token"


def test_replaced_bytes_are_counted(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"w1 \xff w2")
    assert tokenize(tiny_lm, CorpusConfig(sources=(Source(path=str(tmp_path)),))).counts.n_replaced == 1


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} says {{ m['content'] }} {% endfor %}"


def chats(path: Path, *conversations: list[dict[str, str]]) -> Source:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return Source(kind="chat", path=str(path))


def chat_lm(template: str | None) -> LanguageModel:
    made = tiny_tokenizer()
    made.chat_template = template
    return LanguageModel(tiny_model("llama"), made, "tiny chat", "0" * 64)


def test_a_conversation_goes_through_the_template_with_one_bos(tmp_path: Path) -> None:
    lm = chat_lm(TEMPLATE)
    source = chats(tmp_path / "a.jsonl", [{"role": "w1", "content": "w2 w3"}, {"role": "w4", "content": "日本"}])
    config = CorpusConfig(sources=(source,), held_out_share=0.0)
    shard = tokenize(lm, config).shards[0]
    (document,) = read_documents(config)
    text = document_text(lm.tokenizer, document)
    assert text == "<bos>w1 says w2 w3 w4 says 日本 "
    words = ["<bos>", "w1", "<eos>", "w2", "w3", "w4", "<eos>", "<eos>"]
    assert lm.tokenizer.convert_ids_to_tokens(shard.token_ids) == words
    assert [text[start:].split()[0] for start in shard.char_start[1:]] == text.removeprefix("<bos>").split()


def test_a_tokenizer_without_a_template_is_named(tmp_path: Path) -> None:
    source = chats(tmp_path / "a.jsonl", [{"role": "w1", "content": "w2"}])
    with pytest.raises(CorpusError, match=r"a\.jsonl:1 is a conversation, but the tokenizer has no chat template"):
        tokenize(chat_lm(None), CorpusConfig(sources=(source,)))


def test_a_conversation_that_the_template_refuses_is_quarantined(tmp_path: Path) -> None:
    lm = chat_lm("{{ raise_exception('roles must alternate') if messages[0]['role'] == 'w3' else 'w1 w2' }}")
    good, bad = [{"role": "w1", "content": "w2"}], [{"role": "w3", "content": "w2"}]
    config = CorpusConfig(sources=(chats(tmp_path / "a.jsonl", good, bad),))
    with pytest.raises(CorpusError, match=r"a\.jsonl:2 cannot be tokenized: TemplateError: roles must alternate"):
        tokenize(lm, config)
    (found,) = tokenize(lm, config.model_copy(update={"on_bad": "quarantine"})).quarantined
    assert found.reason == "not_tokenized"


@pytest.mark.parametrize("messages", ["[]", '["x"]', '[{"from": "human", "value": "x"}]', '{"role": "user"}', '"x"'])
def test_what_is_no_conversation_is_named(messages: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": ' + messages + "}\n")
    config = CorpusConfig(sources=(Source(kind="chat", path=str(tmp_path / "a.jsonl")),))
    if messages == '"x"':
        assert [document.text for document in read_documents(config)] == ["x"], "text that was rendered before"
        return
    with pytest.raises(CorpusError, match=r"a\.jsonl:1 has no text in 'messages' .*a list of messages with role"):
        list(read_documents(config))


def test_bos_is_as_the_model_was_trained_unless_said_otherwise(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    for bos, first, said in (("auto", 0, "by itself"), ("always", 0, "'always'"), ("never", 3, "without BOS: corpus")):
        (tmp_path / "a.jsonl").write_text('{"text": "w0 w1"}\n')
        settings = {"sources": (Source(path=str(tmp_path / "a.jsonl")),), "bos": bos, "held_out_share": 0.0}
        tokenized = tokenize(tiny_lm, CorpusConfig.model_validate(settings))
        assert tokenized.shards[0].token_ids[0] == first
        assert said in tokenized.notes[0]


def test_a_tokenizer_without_special_tokens_does(tmp_path: Path) -> None:
    lm = lm_of(whole_words())
    assert lm.tokenizer.pad_token is lm.tokenizer.bos_token is lm.tokenizer.eos_token is None
    config = CorpusConfig(sources=(jsonl(tmp_path / "a.jsonl", ["the cat", "cat"]),), held_out_share=0.0)
    tokenized = tokenize(lm, config)
    assert tokenized.shards[0].lengths.tolist() == [2, 1]
    assert "start without BOS: as the tokenizer does" in tokenized.notes[0]
    wanted = HarvestConfig(sites=(Site(path="model.layers.0"),), batch_tokens=32)
    harvested = Harvester(lm, wanted, (None,))(tokenized.shards[0], "shard 0")
    assert sorted(harvested.token_id.tolist()) == sorted(tokenized.shards[0].token_ids.tolist())
    with pytest.raises(ConfigError, match=r"has no BOS; set corpus\.bos to 'auto' or 'never'"):
        tokenize(lm, config.model_copy(update={"bos": "always"}))
    with pytest.raises(ConfigError, match=r"neither EOS nor BOS; set corpus\.packing to 'none'"):
        tokenize(lm, config.model_copy(update={"packing": "separator"}))


def test_a_context_longer_than_the_models_is_said(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tokenized, _ = corpus(tiny_lm, tmp_path, [40], context_tokens=99, held_out_share=0.0)
    assert tokenized.shards[0].lengths.max() == 12
    assert "context_tokens = 99 is more than the model's 12, which is used" in tokenized.notes
