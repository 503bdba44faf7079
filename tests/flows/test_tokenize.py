"""Text → tokens → catalog: where every token stands in its document, what was refused, and a corpus that changed."""

import dataclasses
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_builds import Record, tiny
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from catalog import Store, connect
from flows import steps
from flows.cli import app
from flows.config import RunConfig
from flows.path import path
from flows.place import Place
from flows.rows import corpus as corpus_rows
from flows.steps.publish import publish_work
from flows.steps.tokenize import tokenizer_threads
from saelib.lm import LanguageModel, LMConfig, load_lm
from saelib.text import CorpusConfig, Source, read_documents, tokenize

Built = tuple[RunConfig, Place]
MODULES = ["bisect", "heapq", "textwrap", "shlex", "csv", "fnmatch", "glob", "queue"]
FEW = {"training": {"n_tokens": 10_240, "batch_tokens": 512, "learning_rate": 1e-2}}
FEW |= {"describe": {"activation_tokens": 4_000, "effects": {"tokens": 500, "ablated_features": 2}}}  # type: ignore[dict-item]


def rows(place: Place, sql: str) -> list[tuple[Any, ...]]:
    return connect(place.store).execute(sql).fetchall()


def modules() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return [(root / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]


def texts_of(corpus: Path) -> dict[str, str]:
    """uri → text."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    texts = {}
    for number, line in enumerate(lines):
        if '"text"' in line and line.endswith("}"):
            texts[f"{corpus.name}#{number}"] = json.loads(line)["text"]
    return texts


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight modules as JSON lines, and among them a line that is no JSON, and one that lacks the field."""
    lines = [json.dumps({"text": text}) for text in modules()]
    lines[2:2] = ['{"text": "never closed', '{"words": "of another field"}']
    written = tmp_path_factory.mktemp("damaged") / "modules.jsonl"
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def run_on(corpus: Path, **settings: object) -> RunConfig:
    """The tiny run on a corpus, with other settings of it."""
    config = tiny(corpus, **FEW)
    changed = CorpusConfig.model_validate(config.corpus.model_dump() | settings)
    return config.model_copy(update={"corpus": changed})


@pytest.fixture(scope="module")
def packed(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The whole path over packed sequences, with two lines in quarantine. Treat the store as read-only."""
    config = run_on(damaged, on_bad="quarantine", max_quarantined_share=0.2, packing="separator", max_tokens=None)
    place = Place(Store.create(tmp_path_factory.mktemp("packed") / "store"), Record())
    path(config, place)
    return config, place


def check_cut(cut: str, decoded: str) -> None:
    """The same text, but for characters of which the tokens hold some bytes only."""
    parts = decoded.split("\ufffd")
    assert cut == decoded if len(parts) == 1 else all(part in cut for part in parts), (cut, decoded)


def check_places(place: Place, texts: dict[str, str]) -> int:
    """The text cut at an example's characters is the text of its tokens; returns how many examples there are."""
    found = rows(
        place,
        """select p.uri, p.char_start, p.char_end, p.token_char_start, p.token_char_end,
                  e.left_text, e.token, e.right_text
           from example_place p join example e using (sae_id, feature, example_id)""",
    )
    for uri, start, end, token_start, token_end, left, token, right in found:
        check_cut(texts[uri][token_start:token_end], token)
        window = left.removeprefix("<|bos|>") + token + right.removesuffix("<|eos|>")
        check_cut(texts[uri][start:end], window)
    return len(found)


def test_examples_are_traced_from_sql_to_the_characters_of_their_document(built: Built, corpus: Path) -> None:
    assert check_places(built[1], texts_of(corpus)) == rows(built[1], "select count(*) from example")[0][0] > 100


def test_examples_of_packed_sequences_are_traced_to_their_own_document(packed: Built, damaged: Path) -> None:
    assert check_places(packed[1], texts_of(damaged)) > 100
    several = "select count(*) from sequence where len(document_ids) > 1 and document_ids[1] = document_id"
    assert rows(packed[1], several)[0][0] >= 3


CORPORA = {
    "Python, demo model": (None, {"kind": "stdlib", "documents": ":12"}),
    "stories": ("models/stories260K", {"path": "corpora/tinystories_v1_1000.jsonl", "documents": ":60"}),
    "languages": (None, {"path": "corpora/languages_udhr.jsonl", "documents": ":30"}),
}


@pytest.mark.parametrize("packing", ["none", "separator"])
@pytest.mark.parametrize("name", CORPORA)
def test_the_sequence_table_cuts_every_token_out_of_its_document(
    name: str, packing: str, almanac_data: Path, tmp_path: Path
) -> None:
    """Oracle: the tokenizer's own decoder, document by document."""
    model, where = CORPORA[name]
    lm = load_lm(LMConfig(model=str(almanac_data / model)) if model else LMConfig())
    source = Source.model_validate(where | ({"path": str(almanac_data / where["path"])} if "path" in where else {}))
    config = CorpusConfig.model_validate({"sources": (source,), "packing": packing, "shard_tokens": 20_000})
    corpus_rows.write(tmp_path, lm, tokenize(lm, config), "f" * 64)
    texts, rebuilt, special = [document.text for document in read_documents(config)], {}, set(lm.special_ids)
    for row in pq.read_table(tmp_path / "sequence.parquet").to_pylist():
        stops = [*row["document_starts"][1:], row["n_tokens"]]
        places = zip(row["document_ids"], row["document_starts"], stops, row["document_chars"], strict=True)
        for document, first, stop, start in places:
            end = start + sum(row["token_chars"][first:stop])
            cut, ids = texts[document][start:end], row["token_ids"][first:stop]
            decoded = lm.tokenizer.decode([token for token in ids if token not in special])
            if model:  # its decoder makes one space of several
                cut, decoded = "".join(cut.split()), "".join(decoded.split())
            check_cut(cut, decoded)
            rebuilt[document] = rebuilt.get(document, "") + texts[document][start:end]
    assert [rebuilt[document] for document in range(len(texts))] == texts


def test_the_sequence_table_is_in_order_and_whole_whatever_the_shards(tmp_path: Path) -> None:
    lm, tables = load_lm(LMConfig()), []
    for shard_tokens in (3_000, 1_000_000):
        folder = tmp_path / str(shard_tokens)
        folder.mkdir()
        config = CorpusConfig(sources=(Source(kind="stdlib", documents=":12"),), shard_tokens=shard_tokens)
        corpus_rows.write(folder, lm, tokenize(lm, config), "f" * 64)
        tables.append(pq.read_table(folder / "sequence.parquet"))
        assert tables[-1]["sequence_id"].to_pylist() == list(range(tables[-1].num_rows))
    assert tables[0].equals(tables[1])


def test_offsets_are_null_where_the_tokenizer_tells_none(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=32))
    lm = LanguageModel(model, tokenizer, "bytes", "0" * 64)
    (tmp_path / "a.txt").write_text("a text for a tokenizer that is written in Python")
    tokenized = tokenize(lm, CorpusConfig(sources=(Source(path=str(tmp_path / "a.txt")),), held_out_share=0.0))
    assert "character offsets are unknown: the tokenizer is not a fast one" in tokenized.notes
    corpus_rows.write(tmp_path, lm, tokenized, "f" * 64)
    table = pq.read_table(tmp_path / "sequence.parquet")
    assert table["token_chars"].null_count == table["document_chars"].null_count == table.num_rows == 2
    assert table["document_starts"].to_pylist() == [[0], [0]]


def test_refused_lines_are_in_the_quarantine_table_with_file_and_line(packed: Built, damaged: Path) -> None:
    config, place = packed
    found = rows(place, "select document_id, dataset_id, uri, step, reason, detail from quarantine order by 1 desc")
    dataset = rows(place, "select dataset_id from dataset")[0][0]
    assert [row[:5] for row in found] == [
        (-1, dataset, "modules.jsonl#2", "tokenize", "not_json"),
        (-2, dataset, "modules.jsonl#3", "tokenize", "no_text"),
    ]
    assert f"{damaged}:3 is not JSON" in found[0][5] and f"{damaged}:4 has no text in 'text'" in found[1][5]
    (said,) = [line for line in place.watch.lines if "in quarantine" in line]  # type: ignore[attr-defined]
    assert said.startswith("publish: 2 documents are in quarantine; to see them: almanac sql ")
    command = said.split('"')[1]
    shown = CliRunner().invoke(app, ["sql", command, "--format", "csv", "--store", str(place.store.root)])
    assert shown.exit_code == 0 and "not_json" in shown.output and "modules.jsonl#3" in shown.output


def test_every_question_of_the_docs_is_answered(built: Built, corpus: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/text.md").read_text(encoding="utf-8")
    asked = [block.split('"')[1] for block in page.split("```sh\n")[1:] if block.startswith("almanac sql")]
    assert len(asked) == 4
    for sql in asked:
        rows(built[1], sql)
    texts = list(texts_of(corpus).values())
    for sequence, document, position, token, start in rows(built[1], asked[1]):
        assert sequence == 0 and texts[document][start:].startswith(token) == (position > 0)


def test_publishing_again_doubles_no_row_and_another_name_has_its_own(packed: Built) -> None:
    config, place = packed
    activations, tokens = steps.harvest(config, steps.tokenize(config, place), place), steps.tokenize(config, place)
    trained = steps.train(config, tokens, activations, place)
    groups = [(sae, steps.evaluate(config, sae, tokens, activations, place),
               steps.describe(config, sae, tokens, activations, place)) for sae in trained]  # fmt: skip
    before = rows(place, "select * from quarantine order by all")
    named = config.model_copy(update={"corpus": config.corpus.model_copy(update={"licence": "MIT"})})
    assert publish_work(named, tokens, groups).fingerprint != publish_work(config, tokens, groups).fingerprint
    steps.publish(named, tokens, activations, groups, place)
    assert rows(place, "select * from quarantine order by all") == before and len(before) == 2
    facts = {**activations.manifest["facts"], "quarantined": [
        {"document_id": 1, "step": "harvest", "reason": "not_finite", "detail": "NaN at model.layers.1"}
    ]}  # fmt: skip
    harvested = dataclasses.replace(activations, manifest={**activations.manifest, "facts": facts})
    renamed = config.model_copy(update={"corpus": config.corpus.model_copy(update={"name": "the-same-again"})})
    steps.publish(renamed, tokens, harvested, groups, place)
    found = rows(place, "select document_id, uri, step, reason from quarantine where dataset_id like 'the-same%'")
    assert (1, "modules.jsonl#1", "harvest", "not_finite") in found and len(found) == 3
    assert rows(place, "select count(*) from quarantine") == [(5,)]


def test_a_build_stops_where_more_is_refused_than_the_share(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'[corpus]\nsources = [{{ path = "{damaged}" }}]\non_bad = "quarantine"\n'
        '[harvest]\nsites = ["model.layers.1"]\n[[recipes]]\narchitecture = "topk"\nn_features = 64\nk = 8\n'
    )
    words = ["build", str(tmp_path / "run.toml"), "--local", "--store", str(tmp_path / "store")]
    stopped = CliRunner().invoke(app, words, env={"COLUMNS": "1000"})
    assert stopped.exit_code != 0
    said = str(stopped.exception) + stopped.output
    assert "2 of 10 documents cannot be used, more than max_quarantined_share = 0.01: [not_json]" in said
    assert f"{damaged}:3" in said and f"{damaged}:4" in said
    assert not list((tmp_path / "store/artifacts").glob("tokens/[!.]*"))


def test_facts_count_what_became_of_every_document(packed: Built) -> None:
    config, place = packed
    facts = steps.tokenize(config, place).facts
    counts = facts["counts"]
    assert counts["n_read"] == facts["n_documents"] + counts["n_quarantined"] + counts["n_empty"] == 10
    assert set(counts) == {"n_read", "n_empty", "n_duplicates", "n_replaced", "n_quarantined", "n_split", "n_cut"}


def test_a_corpus_that_changed_is_said_to_be_a_new_data_set(tmp_path: Path) -> None:
    texts, source, store = modules(), tmp_path / "a.jsonl", Store.create(tmp_path / "store")

    def tokens_of(texts: list[str], name: str = "code") -> tuple[str, list[str]]:
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        config, watch = run_on(source, name=name, max_tokens=None), Record()
        made = steps.tokenize(config, Place(store, watch))
        return corpus_rows.dataset_id(config, made), [line for line in watch.lines if "changed" in line]

    first, said = tokens_of(texts)
    assert said == []
    assert tokens_of(texts, "another name")[1] == tokens_of(texts)[1] == []
    second, said = tokens_of([*texts[1:], "import os\n", "import sys\n"])
    assert second != first and said == [
        f"tokenize: the corpus 'code' changed since {first} was made: 9 documents where there were 8: 7 are as they "
        f"were, 2 are new, 1 are gone. This is a new data set, {second}; {first} stays, with all that was learned "
        "from it"
    ]
    assert tokens_of(texts) == (first, []), "it is there still"


def test_a_file_name_that_is_no_utf8_is_kept_readable(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    Path(str(tmp_path / "text") + "/\udcff.txt").write_text("import os")
    lm, config = load_lm(LMConfig()), CorpusConfig(sources=(Source(path=str(tmp_path / "text")),), held_out_share=0.0)
    corpus_rows.write(tmp_path, lm, tokenize(lm, config), "f" * 64)
    assert pq.read_table(tmp_path / "document.parquet")["uri"].to_pylist() == ["\ufffd.txt"]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_tokenizer_has_as_many_threads_as_the_plan_says(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")
    monkeypatch.delenv(names[0], raising=False)
    with tokenizer_threads(threads):
        assert tuple(map(os.environ.get, names)) == (str(threads > 1).lower(), str(threads))
    assert tuple(map(os.environ.get, names)) == ("false", None), "forked processes must not wait for threads"
