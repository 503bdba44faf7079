"""Where text comes from: every format, every compression, every way in which a file can be wrong."""

import csv
import gzip
import hashlib
import io
import json
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import sentence

from saelib.base import expand_path
from saelib.errors import ConfigError, CorpusError
from saelib.sources import Source, read_items
from saelib.text import CorpusConfig, Document, corpus_fingerprint, read_documents

DOCS = Path(__file__).parents[2] / "docs/text.md"
UNICODE = [
    "é combining e\u0301",
    "日本語\u2028still one document",
    "👍🏽 \u200d\x00\r\nnext",
    'a "quoted", line\nand\ttab',
    " ",
]
Writer = Callable[[Path, list[str]], bytes]


def documents(source: Source, **settings: object) -> list[Document]:
    return list(read_documents(CorpusConfig.model_validate({"sources": (source,), **settings})))


def texts(source: Source, **settings: object) -> list[str]:
    return [document.text for document in documents(source, **settings)]


def jsonl(path: Path, documents: list[str], field: str = "text") -> Source:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in documents))
    return Source(path=str(path), field=field)


def as_json_lines(_: Path, rows: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": row}, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(delimiter: str) -> Writer:
    def written(_: Path, rows: list[str]) -> bytes:
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *(["1", row] for row in rows)])
        return file.getvalue().encode()

    return written


def as_parquet(path: Path, rows: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(rows)), "text": rows}), file, row_group_size=2)
    return file.getvalue()


def as_zstd(content: bytes) -> bytes:
    """Two frames one after the other, as `cat` and parallel compressors make them."""
    parts = (content[: len(content) // 2], content[len(content) // 2 :])
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in parts)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": lambda content: content, ".gz": gzip.compress, ".zst": as_zstd}
FORMATS: dict[str, Writer] = {
    ".jsonl": as_json_lines,
    ".ndjson": as_json_lines,
    ".csv": as_table(","),
    ".tsv": as_table("\t"),
    ".parquet": as_parquet,
}


PACKED = [(suffix, packed) for suffix in FORMATS for packed in COMPRESSIONS if not (packed and suffix == ".parquet")]


@pytest.mark.parametrize(("suffix", "compression"), PACKED)
@settings(max_examples=15, deadline=None)
@example(rows=UNICODE)
@given(rows=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8))
def test_every_format_gives_back_what_was_written(
    suffix: str, compression: str, rows: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / f"a{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](FORMATS[suffix](path, rows)))
    found = list(read_items(Source(path=str(path))))
    assert [item.body for item in found] == rows
    assert [item.uri for item in found] == [f"{path.name}#{index}" for index in range(len(rows))]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py"])
def test_a_text_file_is_one_document_as_it_stands(suffix: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression]("".join(UNICODE).encode()))
    assert texts(Source(path=str(path))) == ["".join(UNICODE)]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_parquet_is_read_whatever_its_own_compression_and_text_type(
    codec: str, kind: pa.DataType, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": pa.array(UNICODE, kind)}), tmp_path / "a.parquet", compression=codec)
    assert texts(Source(path=str(tmp_path / "a.parquet"))) == UNICODE[:-1]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_text(suffix: str, tmp_path: Path) -> None:
    path, write = tmp_path / f"a{suffix}", FORMATS.get(suffix, lambda _, rows: rows[0].encode())
    path.write_bytes(b"\xef\xbb\xbf" + write(path, ["one"]))
    assert texts(Source(path=str(path))) == ["one"]


def test_documents_longer_than_a_csv_field_may_be_by_default_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(as_table(",")(tmp_path, ["x" * 200_000]))
    assert [len(text) for text in texts(Source(path=str(tmp_path / "a.csv")))] == [200_000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text in every form that is read, and a file that is not."""
    jsonl(tmp_path / "a.jsonl", ["a0", "", "a1", "  ", "a2"])
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c0"}\n\n{"text": "c1"}\n'))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/d.md.gz").write_bytes(gzip.compress(b"d"))
    (tmp_path / "e.bin").write_bytes(b"not text")
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
    with pytest.raises(CorpusError, match=r"no text in .*e\.bin.*\.jsonl, \.ndjson, \.parquet"):
        texts(Source(path=str(folder / "e.bin")))


def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n{"text": \n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:3 is not JSON"):
        texts(Source(path=str(path)))


@pytest.mark.parametrize("row", ['{"other": "x", "text": 3}', "[1, 2]", '"x"'])
def test_a_line_without_the_field_is_named_with_what_it_has(row: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(
        CorpusError,
        match=r"a\.jsonl:1 has no text in 'text'(?: \(there is a int\))?; it has (\['other', 'text'\]|list|str)",
    ):
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


@settings(max_examples=200, deadline=None)
@given(n=st.integers(0, 9), ends=st.tuples(*[st.none() | st.integers(-11, 11)] * 2))
def test_a_slice_is_pythons_for_any_ends(
    n: int, ends: tuple[int | None, int | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    every = [f"text {index}" for index in range(n)]
    source = jsonl(tmp_path_factory.mktemp("slices") / "a.jsonl", every)
    cut = ":".join("" if end is None else str(end) for end in ends)
    found = read_items(source.model_copy(update={"documents": cut}))
    assert [item.body for item in found] == every[slice(*ends)]


def test_names_are_relative_so_that_two_files_of_one_name_differ(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    for path in (tmp_path, tmp_path / "*" / "*.txt", tmp_path / "**" / "*.txt"):
        assert [document.uri for document in documents(Source(path=str(path)))] == ["x/a.txt", "y/a.txt"]
    assert [document.uri for document in documents(Source(path=str(tmp_path / "x/a.txt")))] == ["a.txt"]


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a[1]*").mkdir()
    (tmp_path / "a[1]*/b.txt").write_text("b")
    assert texts(Source(path=str(tmp_path / "a[1]*"))) == texts(Source(path=str(tmp_path / "a[1]*/b.txt"))) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", b"id,text\n1,x\n2\n", r"a\.csv:3 has no text in 'text'; it has \['id', 'text'\]"),
        ("a.csv", b"id,words\n1,x\n", r"a\.csv has no column 'text'; it has \['id', 'words'\]: set `field`"),
        ("a.csv", b"", r"a\.csv has no column 'text'; it has \[\]"),
        ("a.csv", b'id,text\n1,x\n2,"never closed\n', r"cannot read .*a\.csv: line 2: unexpected end of data"),
        ("a.tsv", b"id,text\n", r"a\.tsv has no column 'text'"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1 has no text in 'text'; it has \['text'\]"),
        ("a.jsonl", b'{"text": ["x"]}\n', r"a\.jsonl:1 has no text in 'text' \(there is a list\)"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1 is not JSON \(maximum recursion"),
        ("a.jsonl", b"9" * 5_000 + b"\n", r"a\.jsonl:1 is not JSON \(Exceeds the limit"),
        ("a.jsonl.zst", b"plain", r"cannot read .*a\.jsonl\.zst"),
        ("a.jsonl.zst", as_zstd(b'{"text": "x"}\n' * 99)[:-9], r"cannot read .*a\.jsonl\.zst: Truncated compressed"),
        ("a.jsonl.gz", b"plain", r"cannot read .*a\.jsonl\.gz: Not a gzipped file"),
        ("a.parquet", b"PAR1 not", r"cannot read .*a\.parquet"),
        ("a.parquet.gz", b"", r"no text in .*a\.parquet\.gz.*\(but Parquet\) with \.gz or \.zst"),
    ],
)
def test_each_wrong_file_is_named_with_its_place_and_what_to_do(
    name: str, content: bytes, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=wanted):
        texts(Source(path=str(tmp_path / name)))


def test_a_parquet_file_names_row_and_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x", None], "n": [1, 2]}), tmp_path / "a.parquet")
    source = Source(path=str(tmp_path / "a.parquet"))
    with pytest.raises(CorpusError, match=r"a\.parquet row 1 has no text in 'text'"):
        texts(source)
    with pytest.raises(CorpusError, match=r"a\.parquet row 0 has no text in 'n' \(there is a int\)"):
        texts(source.model_copy(update={"field": "n"}))
    with pytest.raises(CorpusError, match=r"a\.parquet has no column 'story'; it has \['n', 'text'\]"):
        texts(source.model_copy(update={"field": "story"}))


@pytest.mark.parametrize("bad", [b"one \xff two", b"\xe6\x97 cut", b"\xed\xa0\x80 a surrogate in bytes"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_bytes_that_are_no_utf8_are_replaced_dropped_or_refused(suffix: str, bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = {
        ".txt": bad,
        ".jsonl": b'{"text": "' + bad + b'"}\n',
        ".csv": b"text\n" + bad + b"\n",
        ".parquet": b"",
    }[suffix]
    path.write_bytes(content)
    if suffix == ".parquet":
        raw = pa.array([bad], pa.binary()).view(pa.string())  # as a careless writer does it
        pq.write_table(pa.table({"text": raw}), path)
    source = Source(path=str(path))
    assert texts(source) == [bad.decode("utf-8", "replace")]
    assert texts(source, invalid_utf8="drop") == []
    with pytest.raises(CorpusError, match=rf"a\{suffix}.* is no valid UTF-8 at character \d; save it as UTF-8"):
        texts(source, invalid_utf8="fail")


def test_half_of_a_surrogate_pair_spelled_in_json_is_no_text_either(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud83d two"}\n{"text": "\\ud83d\\udc4d"}\n')
    source = Source(path=str(tmp_path / "a.jsonl"))
    assert texts(source) == ["one \ufffd two", "👍"]
    assert texts(source, invalid_utf8="drop") == ["👍"]


def test_a_package_is_read_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb_package/inner").mkdir(parents=True)
    for name in ("__init__", "inner/__init__", "inner/part"):
        (tmp_path / f"bomb_package/{name}.py").write_text(f"raise SystemExit({name!r})")
    (tmp_path / "bomb_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    found = {document.uri for document in documents(Source(kind="package", path="bomb_package"))}
    assert found == {f"package:bomb_package/{name}.py" for name in ("__init__", "inner/__init__", "inner/part")}
    inner = {document.uri for document in documents(Source(kind="package", path="bomb_package.inner"))}
    assert inner == {f"package:bomb_package/inner/{name}.py" for name in ("__init__", "part")}
    assert texts(Source(kind="package", path="bomb_package.inner.part")) == ["raise SystemExit('inner/part')"]
    assert texts(Source(kind="package", path="bomb_module")) == ["raise SystemExit"]
    assert "bomb_package" not in sys.modules
    for wrong in ("", "no_such_package_at_all", "sys"):
        with pytest.raises(CorpusError, match=f"no package {wrong!r} with Python sources"):
            texts(Source(kind="package", path=wrong))
    with pytest.raises(CorpusError, match="no Python sources at .*nothing"):
        texts(Source(kind="package", path="bomb_package.nothing"))


@pytest.fixture
def local_dataset(tmp_path: Path) -> Path:
    """A data set of two Parquet files."""
    folder = tmp_path / "some_data"
    folder.mkdir()
    for index in range(2):
        rows = [{"role": "user", "content": f"hello {index}"}]
        table = pa.table({"text": [f"{index} a", f"{index} b"], "messages": [rows, rows], "n": [1, 2]})
        pq.write_table(table, folder / f"train-{index}.parquet")
    return folder


def test_a_dataset_is_streamed(local_dataset: Path) -> None:
    source = Source(kind="dataset", path=str(local_dataset))
    assert texts(source) == ["0 a", "0 b", "1 a", "1 b"]
    assert texts(source.model_copy(update={"documents": "1:-1"})) == ["0 b", "1 a"]
    chats = documents(source.model_copy(update={"field": "messages"}))
    assert chats[0].messages == ({"content": "hello 0", "role": "user"},)


def test_the_code_of_a_dataset_is_never_run(local_dataset: Path) -> None:
    ran = local_dataset.parent / "ran"
    (local_dataset / "some_data.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(CorpusError, match="scripts are no longer supported"):
        texts(Source(kind="dataset", path=str(local_dataset)))
    assert not ran.exists()


def test_a_dataset_that_cannot_be_had_is_refused_by_name(local_dataset: Path) -> None:
    source = Source(kind="dataset", path=str(local_dataset))
    with pytest.raises(CorpusError, match=r"rows of .*some_data' have no field 'story'; they have \['messages', 'n'"):
        texts(source.model_copy(update={"field": "story"}))
    with pytest.raises(CorpusError, match=r"some_data#0 has no text in 'n' \(there is a int\)"):
        texts(source.model_copy(update={"field": "n"}))
    with pytest.raises(CorpusError, match=r"cannot load the data set .*some_data': .*test"):
        texts(source.model_copy(update={"split": "test"}))
    with pytest.raises(CorpusError, match=r"cannot load the data set '/no/such/folder'"):
        texts(Source(kind="dataset", path="/no/such/folder"))


@pytest.mark.parametrize("kind", ["files", "dataset"])
def test_a_corpus_that_changed_between_runs_has_another_fingerprint(kind: str, local_dataset: Path) -> None:
    config = CorpusConfig(sources=(Source.model_validate({"kind": kind, "path": str(local_dataset)}),))
    before = corpus_fingerprint(config)
    assert corpus_fingerprint(config) == before
    pq.write_table(pa.table({"text": ["new"]}), local_dataset / "train-1.parquet")
    changed = corpus_fingerprint(config)
    assert changed != before
    (local_dataset / "train-1.parquet").rename(local_dataset / "train-2.parquet")
    assert corpus_fingerprint(config) not in (before, changed)


def test_a_document_is_identified_by_its_content(tmp_path: Path) -> None:
    found = documents(jsonl(tmp_path / "a.jsonl", ["é", "é"])) + documents(jsonl(tmp_path / "b.jsonl", ["é"]))
    assert {document.sha256 for document in found} == {hashlib.sha256("é".encode()).hexdigest()}


def examples_of_the_docs() -> dict[str, str]:
    """Heading → TOML."""
    parts = DOCS.read_text(encoding="utf-8").split("```toml\n")[1:]
    blocks = [part.split("```")[0] for part in parts]
    return {block.splitlines()[0].removeprefix("# "): block for block in blocks}


@pytest.fixture
def as_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the docs name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts/deeper").mkdir(parents=True)
    (tmp_path / "texts/a.txt").write_text("a")
    (tmp_path / "texts/deeper/b.md").write_text("b")
    for name in ("texts/stories.jsonl.gz", "texts/stories.jsonl.zst", "texts/stories.parquet", "texts/stories.csv"):
        path = tmp_path / name
        write = FORMATS[path.with_suffix("").suffix or path.suffix]
        path.write_bytes(COMPRESSIONS[path.suffix if path.with_suffix("").suffix else ""](write(path, ["x", "y"])))
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    (tmp_path / "dataset").mkdir()
    pq.write_table(pa.table({"story": ["x", "y"]}), tmp_path / "dataset/train.parquet")
    (tmp_path / "validation.txt").write_text("held out")


@pytest.mark.usefixtures("as_in_the_docs")
@pytest.mark.parametrize("name", examples_of_the_docs())
def test_every_example_of_the_docs_loads_and_reads(name: str) -> None:
    table = tomllib.loads(examples_of_the_docs()[name])
    config = CorpusConfig.model_validate(table["corpus"])
    assert corpus_fingerprint(config)
    assert list(read_documents(config))


def test_the_docs_have_an_example_of_every_kind_of_source() -> None:
    written = "".join(examples_of_the_docs().values())
    assert all(f'kind = "{kind}"' in written for kind in Source.model_fields["kind"].annotation.__args__)
