"""The commands that read the catalog and label it, as a person at a terminal sees them."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "catalog"))
from catalog_samples import FAMILY, published_store  # noqa: E402

from catalog import CatalogError, Damage, Publication, Store, connect, current, guarded, publish  # noqa: E402
from flows.cli import care, search, share  # noqa: E402
from flows.cli import catalog as catalog_commands  # noqa: E402
from flows.cli import label as label_commands  # noqa: E402
from flows.cli.answers import Format, show_answer  # noqa: E402
from flows.cli.common import UNSAFE, run_app, safe  # noqa: E402

SAE = f"{FAMILY}@1"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Almanac = Callable[..., Result]


@pytest.fixture(scope="session")
def read_only_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return published_store(tmp_path_factory.mktemp("cli") / "store")


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    return published_store(tmp_path / "store")


@pytest.fixture
def almanac(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, read_only_store: Store) -> Almanac:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    catalog_commands.register(app)
    for commands in (label_commands, search, share, care):
        commands.register(app)
    monkeypatch.setenv("ALMANAC_STORE", str(read_only_store.root))
    monkeypatch.setenv("ALMANAC_USER", "ada")
    monkeypatch.setenv("COLUMNS", "110")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["almanac", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(app, (CatalogError,))
        shown = capfd.readouterr()
        return Result(int(ended.value.code or 0), shown.out, shown.err)

    return run


def answer(result: Result) -> str:
    assert result.code == 0 and "Traceback" not in result.err, result.err
    return result.out


# ---- sql ---------------------------------------------------------------------------

QUESTION = "select feature, density, top_token from feature order by feature"


def test_sql_prints_a_table(almanac: Almanac) -> None:
    shown = answer(almanac("sql", QUESTION)).splitlines()
    assert shown[0].split() == ["feature", "density", "top_token"] and len(shown) == 9
    assert shown[6].rstrip().endswith("␛[31m"), "an escape sequence from a corpus is shown, not obeyed"
    assert shown[5].rstrip().endswith("[red]"), "square brackets of a corpus are no markup"


def test_sql_answers_in_csv_json_and_parquet(almanac: Almanac, tmp_path: Path, read_only_store: Store) -> None:
    expected = connect(read_only_store).sql(QUESTION).to_arrow_table()
    rows = list(csv.DictReader(io.StringIO(answer(almanac("sql", QUESTION, "--format", "csv")))))
    assert [row["top_token"] for row in rows] == expected["top_token"].to_pylist()
    assert json.loads(answer(almanac("sql", QUESTION, "--format", "json"))) == expected.to_pylist()
    answer(almanac("sql", QUESTION, "--output", tmp_path / "a.parquet"))
    assert pq.read_table(tmp_path / "a.parquet").equals(expected)
    for suffix in ("csv", "json", "txt"):
        answer(almanac("sql", QUESTION, "-o", tmp_path / f"a.{suffix}"))
    assert json.loads((tmp_path / "a.json").read_text()) == expected.to_pylist()


def test_sql_says_when_there_is_more(almanac: Almanac) -> None:
    result = almanac("sql", "from range(50)", "--limit", 3)
    assert len(answer(result).splitlines()) == 4 and "first 3 rows" in result.err
    assert almanac("sql", "from range(3)", "--limit", 3).err == ""


@pytest.mark.parametrize(
    "sql",
    ["select 1 as a, 2 as a", "select {'a': [1, 2]} as s, map {'x': 1.5} as m", "select 1/0 as a, 'nan'::double as b",
     "select '\\x00'::blob as b, timestamp '2026-01-01' as t, null as n, 170141183460469231731687303715884105727 as h",
     "select * from feature where feature < 0", "explain select 1"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_any_type_of_answer_is_shown(
    read_only_store: Store, capfd: pytest.CaptureFixture[str], sql: str, form: Format
) -> None:
    show_answer(guarded(connect(read_only_store), sql, 10), form, None)
    shown = capfd.readouterr().out
    assert shown
    if form == "json":
        json.loads(shown)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", "LINE 1: selec"),
        ("select nope\nfrom feature", "nope"),
        ("drop view feature", "expected one SELECT, got 1 statement(s): DROP"),
        ("copy feature to '/tmp/hack'", "COPY"),
        ("select * from read_text('/etc/passwd')", "disabled by configuration"),
    ],
)
def test_sql_that_is_wrong_is_one_message_and_exit_code_one(almanac: Almanac, sql: str, message: str) -> None:
    result = almanac("sql", sql)
    assert result.code == 1 and result.out == "" and message in result.err and "Traceback" not in result.err


def test_sql_that_takes_too_long_is_stopped(almanac: Almanac) -> None:
    result = almanac("sql", "select count(*) from range(10000000000) a, range(100) b", "--timeout", 0.5)
    assert result.code == 1 and "no answer within 0.5 s" in result.err


def test_output_that_cannot_be_written_is_said(almanac: Almanac, tmp_path: Path) -> None:
    result = almanac("sql", "select 1", "--output", tmp_path / "no" / "such" / "folder.csv")
    assert result.code == 1 and "cannot be written" in result.err


# ---- query, features, show -----------------------------------------------------------


def test_query_lists_the_questions_and_answers_one(almanac: Almanac) -> None:
    assert "read_feature" in answer(almanac("query"))
    shown = answer(almanac("query", "card", "-p", f"sae_id={SAE}", "-p", "feature=3", "--format", "json"))
    assert json.loads(shown)[0]["feature"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "cart"], "did you mean 'card'"),
        (["query", "card", "-p", "sae_id"], "--param wants name=value"),
        (["query", "card", "-p", f"sae_id={SAE}"], "needs the parameter feature"),
        (["query", "card", "-p", "sae_id=tini", "-p", "feature=3"], "no SAE 'tini'"),
        (["query", "card", "-p", "feature=99"], "features 0 to 7"),
        (["search", "like", "tiny", "99"], "features 0 to 7"),
        (["search", "token", "x", "--in", "nothing"], "no SAE 'nothing'"),
        (["search", "where", "densty > 0"], "densty"),
        (["search", "where", "true) or (true"], "LINE 1"),
        (["collection", "show", "nothing"], "no collection 'nothing'"),
        (["export-table", "featur", "-o", "x.csv"], "did you mean 'feature'"),
        (["export-table", "feature", "-o", "x.doc"], "ends in none of"),
        (["retire", "nothing"], "no SAE 'nothing'"),
        (["restore", "/nowhere"], "cannot be read as a backup"),
        (["share", "import", "/nowhere"], "/nowhere"),
        (["share", "page", "tiny"], "name either an SAE and its features"),
        (["show", "nothing", "1"], "no SAE 'nothing'"),
        (["show", "tiny", "99"], "features 0 to 7"),
        (["features", "nothing"], "no SAE 'nothing'"),
        (["label", "add", "tiny", "99", "x"], "features 0 to 7"),
        (["verify", "--store", "/nowhere"], "there is no store at /nowhere"),
        (["sql", "select 1", "--store", "/tmp"], "/tmp is not a store"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest(almanac: Almanac, arguments: list[str], message: str) -> None:
    result = almanac(*arguments)
    assert result.code == 1 and message in " ".join(result.err.split()) and "Traceback" not in result.err


def test_features_are_listed_filtered_and_sorted(almanac: Almanac) -> None:
    def shown(*arguments: object) -> list[int]:
        lines = answer(almanac("features", *arguments)).splitlines()
        return [int(line.split()[0]) for line in lines[2:]]

    assert shown("--sort", "feature") == list(range(8))
    assert shown("tiny", "--status", "dead") == [0]
    assert shown("--token", "import", "--sort", "feature") == [0, 5]
    assert shown("--search", "return", "--limit", 5) == [4]
    assert shown("--sort", "act_max", "--limit", 2) == [7, 6]


def test_show_tells_everything_of_a_feature(almanac: Almanac) -> None:
    shown = answer(almanac("show", "tiny", 3))
    for piece in (SAE, "feature 3", "sparse", "reconstructive", "monosemantic", "interpretable", "activations 0",
                  "fires on", "promotes", "suppresses", "neighbours", "strongest", "«"):  # fmt: skip
        assert piece in shown, piece
    assert "no name yet" in shown and "\x1b[31m" not in shown and "\u202e" not in shown and "[red]" in shown


def test_show_of_a_dead_feature_works(almanac: Almanac) -> None:
    assert "dead" in answer(almanac("show", SAE, 0)) and "never" in answer(almanac("show", SAE, 0))


def test_firing_tokens_are_shaded_by_strength() -> None:
    from flows.cli.feature_text import SHADES, window_text

    example = {
        "tokens": list("abcd"),
        "window_start": 5,
        "position": 7,
        "fire_positions": [6, 7],
        "fire_acts": [1.0, 10.0],
    }
    line = window_text(example, act_max=10.0)
    assert line.plain == "ab«c»d"
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    assert styles == {"b": SHADES[0], "«c»": f"{SHADES[-1]} underline"}


# ---- labels --------------------------------------------------------------------------


def test_labels_are_added_listed_undone_and_kept_in_the_history(almanac: Almanac, own_store: Store) -> None:
    at = ("--store", own_store.root)
    answer(almanac("label", "add", "tiny", 3, "digits", "--tag", "a", "--tag", "b", "--confidence", 2, *at))
    answer(almanac("label", "add", "tiny", 3, "numbers", "--user", "bob", "--safety", 1, *at))
    listed = answer(almanac("label", "list", *at))
    assert "digits" in listed and "numbers" in listed
    assert "numbers" not in answer(almanac("label", "list", "tiny", "--author", "ada", *at))
    assert "numbers" in answer(almanac("show", "tiny", 3, *at)) and "disputed" in answer(
        almanac("show", "tiny", 3, *at)
    )
    sql = "select author, text, tags from label order by author"
    rows = json.loads(answer(almanac("sql", sql, "--format", "json", *at)))
    assert rows == [
        {"author": "ada", "text": "digits", "tags": ["a", "b"]},
        {"author": "bob", "text": "numbers", "tags": None},
    ]
    assert "took back" in answer(almanac("label", "undo", *at))
    assert "digits" not in answer(almanac("label", "list", *at))
    history = answer(almanac("label", "history", "tiny", 3, *at))
    assert "digits" in history and "undo" in history


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "add", "tiny", "1", " "], "text of a label is empty"),
        (["label", "add", "tiny", "1", "x" * 100_000], "100,000 characters; at most 10,000"),
        (["label", "add", "tiny", "1", "\x1b[2J"], "control character U+001B"),
        (["label", "undo", "nothing"], "there is no event 'nothing'"),
        (["label", "undo", "--user", "nobody"], "has labelled nothing"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    almanac: Almanac, own_store: Store, arguments: list[str], message: str
) -> None:
    result = almanac(*arguments, "--store", own_store.root)
    assert result.code == 1 and message in " ".join(result.err.split())
    assert "no rows" in answer(almanac("label", "list", "--store", own_store.root))


def test_somebody_elses_label_is_not_undone(almanac: Almanac, own_store: Store) -> None:
    at = ("--store", own_store.root)
    event_id = answer(almanac("label", "add", "tiny", 1, "mine", *at)).split("event ")[1].strip().rstrip(")")
    result = almanac("label", "undo", event_id, "--user", "eve", *at)
    assert result.code == 1 and "is ada's; only they undo it" in result.err


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_labels_travel_between_stores(almanac: Almanac, own_store: Store, tmp_path: Path, form: str) -> None:
    other = published_store(tmp_path / "other")
    answer(almanac("label", "add", "tiny", 1, 'a "quoted", text', "--tag", "x", "--store", own_store.root))
    file = tmp_path / f"labels.{form}"
    answer(almanac("label", "export", "-o", file, "--store", own_store.root))
    assert answer(almanac("label", "export", "--format", form, "--store", own_store.root)) == file.read_text()
    assert "1 labels would be new" in answer(almanac("label", "import", file, "--dry-run", "--store", other.root))
    assert "no rows" in answer(almanac("label", "list", "--store", other.root))
    assert "1 labels recorded" in answer(almanac("label", "import", file, "--store", other.root))
    assert "0 labels recorded, 1 were there already" in answer(almanac("label", "import", file, "--store", other.root))
    assert "quoted" in answer(almanac("label", "list", "--store", other.root))


def test_an_import_with_a_bad_line_records_nothing(almanac: Almanac, own_store: Store, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"sae_id,feature,text\n{SAE},1,good\n{SAE},x,bad\n")
    result = almanac("label", "import", tmp_path / "labels.csv", "--store", own_store.root)
    assert result.code == 1 and "line 3 cannot be read" in result.out and "nothing was recorded" in result.out
    assert "no rows" in answer(almanac("label", "list", "--store", own_store.root))


# ---- verify, help, the rest --------------------------------------------------------------


def test_verify_says_that_a_store_is_whole_or_what_is_not(almanac: Almanac, own_store: Store) -> None:
    assert "is whole: snapshot 1" in answer(almanac("verify", "--store", own_store.root))
    path = own_store.catalog / current(own_store).parts_of("example")[0].path
    path.unlink()
    result = almanac("verify", "--store", own_store.root)
    assert result.code == 1 and str(path) in result.out and "is missing" in result.out and "publish again" in result.out


def test_verify_asks_the_other_checks_too(
    read_only_store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    catalog_commands.register(app, [lambda store: [Damage(store.artifacts / "x", "is rotten", "throw it away")]])
    monkeypatch.setattr(sys, "argv", ["almanac", "verify", "--store", str(read_only_store.root)])
    with pytest.raises(SystemExit) as ended:
        run_app(app, (CatalogError,))
    assert ended.value.code == 1 and "is rotten" in capfd.readouterr().out


COMMANDS = [
    "sql",
    "query",
    "features",
    "show",
    "verify",
    "export-table",
    "migrate",
    "retire",
    "backup",
    "restore",
    *(f"search {c}" for c in ("text", "token", "logit", "like", "where")),
    *(f"collection {c}" for c in ("add", "remove", "list", "show")),
    *(f"share {c}" for c in ("features", "import", "page")),
    *(f"label {c}" for c in ("add", "list", "undo", "history", "export", "import")),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(almanac: Almanac, command: str) -> None:
    shown = answer(almanac(*command.split(), "--help"))
    assert f"almanac {command}" in " ".join(re.split("Examples?:", shown)[1].split())


def test_without_a_store_the_default_is_named(
    almanac: Almanac, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ALMANAC_STORE")
    monkeypatch.chdir(tmp_path)
    result = almanac("features")
    assert result.code == 1 and f"there is no store at {tmp_path / 'almanac'}" in "".join(result.err.split("\n"))
    publish(Store.create(tmp_path / "almanac"), sample())
    assert SAE in answer(almanac("features"))


def sample() -> Publication:
    from catalog_samples import publication

    return publication(8)


def test_safe_leaves_no_control_character() -> None:
    everything = "".join(map(chr, range(0x3000)))
    assert not UNSAFE.search(safe(everything)) and safe("plain ünï 漢字 🙂") == "plain ünï 漢字 🙂"
    assert safe("a\nb\tc\x1b[2Jd\x9b1m\u202e") == "a↵b→c␛[2Jd\\x9b1m\\x202e"
