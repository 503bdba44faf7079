"""The offline namer: features that fire on planted patterns get the right names, and the names can be run."""

import ast
import json
import re
import sys
import sysconfig
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from catalog import CatalogError, Publication, Store, connect, current, publish
from flows.cli import name as name_commands
from flows.cli.common import run_app
from flows.errors import FlowError
from flows.interpret.choose import Criterion, Firings
from flows.interpret.namer import NO_PATTERN
from flows.interpret.patterns import (
    SHAPES,
    Affix,
    Both,
    Pattern,
    Place,
    Shape,
    Structure,
    Tokens,
    Word,
    as_json,
    from_json,
)
from flows.interpret.structure import KINDS, structure_of, token_structure
from flows.interpret.text import Text, load_text
from flows.place import Place as Workplace
from flows.place import Quiet
from flows.steps.name import name_features

MODULES = ("bisect", "textwrap", "fnmatch", "glob", "sched")
CONTEXT = 64
BOS = "<|bos|>"
TOKEN = re.compile(r"[^\S\n]*\n[^\S\n]*| ?[A-Za-z]+| ?\d|_+| ?[^\w\s]| +")


def source(module: str) -> str:
    return (Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py").read_text(encoding="utf-8")


def sequences() -> list[tuple[int, int, list[str]]]:
    """(document, first token, tokens) of stretches as a model would read them."""
    cut = []
    for document, module in enumerate(MODULES):
        tokens = [word for word in TOKEN.findall(source(module)) if word]
        cut += [(document, start, [BOS, *tokens[start : start + CONTEXT]]) for start in range(0, len(tokens), CONTEXT)]
    return cut


PLANTED: dict[str, Pattern] = {
    'token " return"': Tokens((" return",)),
    'tokens "(", "["': Tokens(("(", "[")),
    'after "def"': Tokens(("def",), offset=-1),
    'before "("': Tokens(("(",), offset=1),
    "digits": Shape("digits"),
    'ends in "-ing"': Affix("ing", at_end=True),
    "in a docstring": Structure("a docstring"),
    "in a comment": Structure("a comment"),
    "in an import line": Structure("an import line"),
    "as a name being defined": Structure("a name being defined"),
    "the first token of the sequence": Place(1),
    'token "." in a docstring': Both((Tokens((".",)), Structure("a docstring"))),
    'token ":" after ")"': Both((Tokens((":",)), Tokens((")",), offset=-1))),
    'promotes " self"': Tokens((" self",), offset=1, promoted=True),
}
"""The name that a feature must get -> where it fires."""

DEAD, RANDOM = len(PLANTED), len(PLANTED) + 1
N_FEATURES = len(PLANTED) + 2


def firings(pattern: Pattern, documents: dict[int, list[str]]) -> list[tuple[int, int]]:
    """(sequence, position) where the plain predicate holds, one place at a time."""
    found = []
    for number, (document, start, tokens) in enumerate(sequences()):
        words = documents[document]
        around = "".join(words[:start]), "".join(words[start + CONTEXT :])
        found += [(number, at) for at in range(1, len(tokens)) if pattern.matches(tokens, at, around)]
    return found


@cache
def all_firings() -> list[list[tuple[int, int]]]:
    """Of the planted features, the dead one, and one that fires anywhere."""
    cut = sequences()
    documents = {document: TOKEN.findall(source(module)) for document, module in enumerate(MODULES)}
    places = [(number, at) for number, (_, _, tokens) in enumerate(cut) for at in range(1, len(tokens))]
    picked = np.random.default_rng(0).choice(len(places), 300, replace=False)
    planted = [firings(pattern, documents) for pattern in PLANTED.values()]
    return [*planted, [], [places[at] for at in sorted(picked)]]


def publication(train: str = "1") -> Publication:
    """Features that fire exactly where their pattern holds, on real source; one dead, one at random."""
    cut = sequences()
    rng, fires = np.random.default_rng(0), all_firings()
    words = sorted({token for _, _, tokens in cut for token in tokens})
    code = {word: number for number, word in enumerate(words)}
    rows = [(feature, *place) for feature, found in enumerate(fires) for place in found]
    feature, sequence, position = zip(*rows, strict=True)
    n, n_rows, data = len(cut), len(rows), "modules"
    tables: dict[str, Any] = {
        "sae": {"n_features": [N_FEATURES], "model_id": ["none"]},
        "feature": {
            "feature": range(N_FEATURES), "dataset_id": [data] * N_FEATURES,
            "status": ["dead" if number == DEAD else "alive" for number in range(N_FEATURES)],
            "top_tokens": [[" self", " cls"] if "promotes" in name else ["zz", "yy"] for name in (*PLANTED, "", "")],
            "top_logits": [[2.0, 1.0]] * N_FEATURES,
        },
        "activation": {"feature": feature, "dataset_id": [data] * n_rows, "sequence_id": sequence,
                       "position": position, "act": rng.uniform(1, 3, n_rows)},
    }  # fmt: skip
    own = ["0" * 64]
    shared: dict[str, Any] = {
        "model": {"model_id": ["none"], "fingerprint": own},
        "dataset": {"dataset_id": [data], "fingerprint": own},
        "document": {"dataset_id": [data] * len(MODULES), "document_id": range(len(MODULES)),
                     "fingerprint": own * len(MODULES)},
        "sequence": {"dataset_id": [data] * n, "sequence_id": range(n), "fingerprint": own * n,
                     "document_id": [document for document, _, _ in cut], "start_token": [start for _, start, _ in cut],
                     "token_ids": [[code[token] for token in tokens] for _, _, tokens in cut],
                     "tokens": [tokens for _, _, tokens in cut]},
    }  # fmt: skip
    return Publication("none/planted", train * 64, tables, shared)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A published SAE whose features are known, and named. Treat the store as read-only."""
    store = Store.create(tmp_path_factory.mktemp("planted") / "store")
    publish(store, publication())
    name_features(Workplace(store, Quiet()), None)
    return store


@pytest.fixture(scope="module")
def text(planted: Store) -> Text:
    return load_text(connect(planted), "none/planted@1")


def named(store: Store, sae_id: str = "none/planted@1") -> dict[int, tuple[str, dict[str, Any]]]:
    sql = "select feature, text, evidence from explanation where sae_id = ? order by feature"
    rows = connect(store).execute(sql, [sae_id]).fetchall()
    return {feature: (text, json.loads(evidence)) for feature, text, evidence in rows}


@pytest.mark.parametrize(("feature", "name"), list(enumerate(PLANTED)), ids=list(PLANTED))
def test_a_planted_pattern_is_found(planted: Store, feature: int, name: str) -> None:
    text, evidence = named(planted)[feature]
    assert text == name
    assert evidence["precision"] == evidence["recall"] == evidence["f"] == 1.0
    assert from_json(evidence["pattern"]) == PLANTED[name]


def test_what_fires_anywhere_has_no_clear_pattern(planted: Store) -> None:
    text, evidence = named(planted)[RANDOM]
    assert text == NO_PATTERN and not evidence["is_clear"] and evidence["f"] < Criterion().clear_f


def test_every_feature_that_fires_has_a_row_and_a_dead_one_has_none(planted: Store) -> None:
    assert sorted(named(planted)) == [feature for feature in range(N_FEATURES) if feature != DEAD]


def test_the_rates_in_the_evidence_are_those_of_the_pattern_run_again(planted: Store) -> None:
    """One place at a time, with nothing but the pattern and the tokens."""
    documents = {document: TOKEN.findall(source(module)) for document, module in enumerate(MODULES)}
    fires = connect(planted).execute("select feature, sequence_id, position from activation").fetchall()
    for feature in (1, 4, RANDOM):
        evidence = named(planted)[feature][1]
        holds = set(firings(from_json(evidence["pattern"]), documents))
        firing = {(sequence, position) for of, sequence, position in fires if of == feature}
        assert evidence["counts"]["precision"] == pytest.approx(len(holds & firing) / len(holds), abs=1e-4)
        assert evidence["counts"]["recall"] == pytest.approx(len(holds & firing) / len(firing), abs=1e-4)


def every_pattern() -> list[Pattern]:
    lexical: list[Pattern] = [Shape(shape, offset) for shape in SHAPES for offset in (0, -1, 1)]
    structural: list[Pattern] = [Structure(part) for part in KINDS]
    return [*lexical, *structural, *PLANTED.values(), Word("self", -1), Affix("re", at_end=False), Place(3)]


@pytest.mark.parametrize("pattern", every_pattern(), ids=lambda pattern: pattern.words())
def test_a_pattern_says_of_one_place_what_the_tables_say_of_all(text: Text, pattern: Pattern) -> None:
    assert from_json(json.loads(json.dumps(as_json(pattern)))) == pattern
    all_rows = np.arange(text.starts[40])
    held = text.holds(pattern, all_rows)
    words = [text.words[word] for word in text.word]
    document = text.document[text.starts[:-1]]
    for sequence in (0, 7, 39):
        start, stop = text.starts[sequence], text.starts[sequence + 1]
        rows = np.flatnonzero(text.document == document[sequence])
        before, after = (
            "".join(words[row] for row in some if words[row] != BOS)
            for some in (rows[rows < start], rows[rows >= stop])
        )
        for row in range(start + 1, stop):
            assert pattern.matches(words[start:stop], row - start, (before, after)) == held[row]


def test_naming_twice_changes_nothing(planted: Store) -> None:
    def files() -> set[str]:
        return {part.path for part in current(planted).parts if part.table not in ("run", "lineage")}

    before = files()
    name_features(Workplace(planted, Quiet()), "planted")
    assert files() == before


def test_a_retrained_sae_is_named_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    for train in ("1", "2"):
        publish(store, publication(train))
        name_features(Workplace(store, Quiet()), None)
    assert named(store, "none/planted@2").keys() == named(store, "none/planted@1").keys()


def test_the_card_shows_the_name_where_no_person_has_labelled(planted: Store) -> None:
    sql = "select name, name_source from feature_card where feature = 0"
    assert connect(planted).execute(sql).fetchall() == [('token " return"', "machine")]


def test_the_command_sums_up(
    planted: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    name_commands.register(app)
    app.command("other")(lambda: None)  # with one command only, its name would not be asked for
    monkeypatch.setattr(sys, "argv", ["almanac", "name", "planted", "--store", str(planted.root)])
    with pytest.raises(SystemExit) as ended:
        run_app(app, (CatalogError, FlowError))
    shown = capfd.readouterr().out
    assert not ended.value.code and "none/planted@1" in shown
    assert re.search(r"nothing clear\s+1 ", shown) and re.search(r"structure\s+4 ", shown)


def test_docstrings_are_those_of_the_parser() -> None:
    for module in ("textwrap", "csv", "shlex"):
        content = source(module)
        mask = structure_of(content)
        inside = (mask >> np.uint64(KINDS.index("a docstring")) & np.uint64(1)).astype(bool)
        nodes = [ast.parse(content), *(n for n in ast.walk(ast.parse(content)) if isinstance(n, BODIES))]
        documented = [node for node in nodes if ast.get_docstring(node, clean=False)]
        assert documented
        for node in documented:
            statement = node.body[0]
            lines = content.splitlines(keepends=True)
            start = sum(map(len, lines[: statement.lineno - 1])) + statement.col_offset
            stop = sum(map(len, lines[: (statement.end_lineno or 0) - 1])) + (statement.end_col_offset or 0)
            assert inside[start:stop].all()


BODIES = (ast.FunctionDef, ast.ClassDef)


def kinds_at(code: str, piece: str) -> set[str]:
    mask = int(structure_of(code)[code.index(piece)])
    return {kind for bit, kind in enumerate(KINDS) if mask >> bit & 1}


CODE = textwrap.dedent('''\
    import os
    @cached
    def area(width, height=1.5):
        """The area."""
        return {"w": [size(width, unit='m')]}  # square
''')


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        ("os", "an import line"), ("cached", "a decorator"), ("area", "a name being defined"),
        ("height", "a parameter"), ("1.5", "a number"), ("The area", "a docstring"), ("return", "a keyword"),
        ('"w"', "a string literal"), ('"w"', "curly brackets"), ("size(", "a called name"),
        ("unit", "a keyword argument"), ("unit", "nested brackets"), ("# sq", "a comment"),
        ("import", "the start of a line"), ("    return", "indentation"), ("{", "a return statement"),
    ],
)  # fmt: skip
def test_the_parts_of_source_are_recognised(piece: str, kind: str) -> None:
    assert kind in kinds_at(CODE, piece)


@pytest.mark.parametrize(
    "broken", ["x = (1,\n", 'a = """open\nmore', "  b\n c\n", "\x00 $ ?", "", "def f(:\n)]}\nimport os\n"]
)
def test_source_that_is_broken_is_read_all_the_same(broken: str) -> None:
    assert structure_of(broken).size == len(broken)
    assert token_structure(tuple(broken)).size == len(broken)


def test_after_what_is_wrong_source_is_read_on() -> None:
    assert "an import line" in kinds_at("  b\n c\n? $\nimport os\n", "import os")


def test_prose_has_no_structure(tmp_path: Path) -> None:
    base = publication()
    tokens = [["The", " cat", " sat", "."], ["For", " if", " it", " is"]]
    corpus = {**base.shared["sequence"], "tokens": tokens, "token_ids": [[0] * 4] * 2, "sequence_id": [0, 1],
              "document_id": [0, 1], "start_token": [0, 0], "dataset_id": ["modules"] * 2,
              "fingerprint": ["0" * 64] * 2}  # fmt: skip
    rows = {"feature": [0, 0], "dataset_id": ["modules"] * 2, "sequence_id": [0, 1], "position": [1, 2],
            "act": [1.0, 1.0]}  # fmt: skip
    store = Store.create(tmp_path / "store")
    tables = {**base.tables, "activation": rows}
    publish(store, Publication(base.family, base.fingerprint, tables, {**base.shared, "sequence": corpus}))
    assert not load_text(connect(store), "none/planted@1").is_code


def test_faint_firings_say_less_than_strong_ones() -> None:
    weighted = Firings.of(np.arange(4), np.array([1.0, 1.0, 1.0, 3.0]))
    assert weighted.weights.tolist() == [1 / 3, 1 / 3, 1 / 3, 3.0] and weighted.n == 4
