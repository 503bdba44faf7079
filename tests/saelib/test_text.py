"""Text to documents to tokens to shards."""

import gzip
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sentence

from saelib.base import expand_path
from saelib.errors import ConfigError, CorpusError
from saelib.lm import LanguageModel
from saelib.text import CorpusConfig, Source, Tokenized, corpus_fingerprint, read_documents, tokenize


def texts(source: Source) -> list[str]:
    return [document.text for document in read_documents(CorpusConfig(sources=(source,)))]


def jsonl(path: Path, documents: list[str], field: str = "text") -> Source:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in documents))
    return Source(path=str(path), field=field)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text in every form that is read, and a file that is not."""
    jsonl(tmp_path / "a.jsonl", ["a0", "", "a1", "  ", "a2"])
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c0"}\n\n{"text": "c1"}\n'))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/d.md.gz").write_bytes(gzip.compress(b"d"))
    (tmp_path / "e.parquet").write_bytes(b"not text")
    return tmp_path


def test_a_folder_is_read_whole_in_the_order_of_names_without_empty_documents(folder: Path) -> None:
    assert texts(Source(path=str(folder))) == ["a0", "a1", "a2", "b", "c0", "c1", "d"]


def test_a_glob_names_some_files(folder: Path) -> None:
    assert texts(Source(path=str(folder / "*.jsonl*"))) == ["a0", "a1", "a2", "c0", "c1"]
    assert texts(Source(path=str(folder / "**" / "*.gz"))) == ["c0", "c1", "d"]


def test_a_field_may_have_another_name(tmp_path: Path) -> None:
    assert texts(jsonl(tmp_path / "a.jsonl", ["x", "y"], field="story")) == ["x", "y"]


@pytest.mark.parametrize("documents", [":", "2:", ":3", "1:4", "-2:", ":-2", "1:-1", "7:"])
def test_a_slice_means_what_python_means(documents: str, tmp_path: Path) -> None:
    every = [f"text {index}" for index in range(6)]
    source = jsonl(tmp_path / "a.jsonl", every).model_copy(update={"documents": documents})
    assert texts(source) == eval(f"every[{documents}]", {"every": every})


@pytest.mark.parametrize("documents", ["3", "a:", "1:2:3", ""])
def test_what_is_no_slice_is_refused(documents: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="is no slice; write it as in '200:'"):
        texts(Source(path=str(folder), documents=documents))


def test_a_path_may_name_variables_with_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TEXTS", str(folder))
    monkeypatch.delenv("NO_TEXTS", raising=False)
    assert texts(Source(path="$SOME_TEXTS/b.txt")) == texts(Source(path="${SOME_TEXTS}/b.txt")) == ["b"]
    assert texts(Source(path=f"${{NO_TEXTS:-{folder}}}/b.txt")) == ["b"]
    assert expand_path("~/x") == str(Path.home() / "x")
    with pytest.raises(ConfigError, match=r"uses \$NO_TEXTS, which is not set"):
        texts(Source(path="$NO_TEXTS/b.txt"))


def test_a_missing_file_is_refused_with_its_whole_path(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"no file at '{tmp_path}/nothing.txt'"):
        texts(Source(path=str(tmp_path / "nothing.txt")))


def test_files_without_text_are_refused_with_the_suffixes_that_are_read(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"no text in .*e\.parquet.*\.jsonl, \.txt"):
        texts(Source(path=str(folder / "e.parquet")))


def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n{"text": \n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:3 is not JSON"):
        texts(Source(path=str(path)))


@pytest.mark.parametrize("row", ['{"other": "x", "text": 3}', "[1, 2]", '"x"'])
def test_a_line_without_the_field_is_named_with_what_it_has(row: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(CorpusError, match=r"a\.jsonl:1 has no text in 'text'; it has (\['other', 'text'\]|list|str)"):
        texts(Source(path=str(path)))


def test_a_damaged_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(sentence(0, 500).encode())[:-20])
    with pytest.raises(CorpusError, match=r"cannot read .*a\.txt\.gz"):
        texts(Source(path=str(path)))


def test_the_standard_library_is_read_in_an_order_that_its_paths_decide() -> None:
    found = list(read_documents(CorpusConfig(sources=(Source(kind="stdlib", documents=":40"),))))
    assert [document.uri for document in found] == [
        document.uri for document in read_documents(CorpusConfig(sources=(Source(kind="stdlib", documents=":40"),)))
    ]
    assert found[0].uri.startswith("stdlib:") and not any("/test/" in document.uri for document in found)
    path = Path(sysconfig.get_paths()["stdlib"]) / found[0].uri.removeprefix("stdlib:")
    assert found[0].text == path.read_text(encoding="utf-8", errors="replace")


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
