"""Labels go out and come back the same; what cannot be read is named by line, and then nothing is recorded."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import Event, LabelError, SQLiteLabels, labelling
from catalog.label_files import Format, exported, import_labels, read_events
from catalog.labelling import Of

FEATURE = Of("a@1", 3)


def filled(folder: Path) -> SQLiteLabels:
    folder.mkdir()
    labels = SQLiteLabels(folder)
    labelling.add(labels, "ada", FEATURE, 'quotes " and, commas\nand lines', tags=["a", "b"], confidence=2, safety=0)
    gone = labelling.add(labels, "bob", FEATURE, "=1+1", note="ünï", seconds=1.5)
    labelling.reject(labels, "ada", Of("b@1", 0))
    labelling.undo(labels, "bob", gone.event_id)
    return labels


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_was_exported_is_imported_the_same(tmp_path: Path, form: Format) -> None:
    file = tmp_path / f"labels.{form}"
    with filled(tmp_path / "one") as labels:
        file.write_text(exported(labels, form), encoding="utf-8", newline="")
        before = labels.events("label_event")
    with SQLiteLabels(tmp_path) as other:
        report = import_labels(other, read_events(file, "me"), dry_run=False)
        assert (report.n_new, report.n_known, report.refused, report.is_written) == (4, 0, (), True)
        assert other.events("label_event").equals(before)
        again = import_labels(other, read_events(file, "me"), dry_run=False)
        assert (again.n_new, again.n_known) == (0, 4) and other.events("label_event").equals(before)


def test_a_dry_run_tells_and_records_nothing(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("sae_id,feature,text\na@1,1,digits\na@1,2,\n")
    with SQLiteLabels(tmp_path) as labels:
        report = import_labels(labels, read_events(file, "me"), dry_run=True)
        assert report.n_new == 1 and not report.is_written and labels.last() == 0
        assert report.refused[0][0] == 3 and "empty" in report.refused[0][1]


def test_a_list_made_by_hand_needs_little_and_is_known_again(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('\ufeffsae_id,feature,text,tags\na@1,1,digits,"[""x""]"\na@1,2,letters,\n', encoding="utf-8")
    with SQLiteLabels(tmp_path) as labels:
        assert import_labels(labels, read_events(file, "me"), dry_run=False).n_new == 2
        assert import_labels(labels, read_events(file, "me"), dry_run=False).n_known == 2
        rows = labels.events("label_event").to_pylist()
    assert [(r["author"], r["action"], r["feature"], r["tags"]) for r in rows] == [
        ("me", "write", 1, ["x"]),
        ("me", "write", 2, None),
    ]


BAD_LINES = [
    ("csv", "sae_id,feature,text\na@1,one,x\n", 2, "invalid literal"),
    ("csv", "sae_id,feature,text\na@1,1,x,y\n", 2, "1 values more than the header"),
    ("csv", "sae_id,feature,text,colour\na@1,1,x,red\n", 2, "unknown column 'colour'"),
    ("csv", "sae_id,feature,text,created_at\na@1,1,x,noon\n", 2, "cannot be read"),
    ("csv", "sae_id,feature,text,created_at\na@1,1,x,2999-01-01\n", 2, "yet to come"),
    ("csv", 'sae_id,feature,text\na@1,1,"open\n', 2, "not CSV"),
    ("csv", "sae_id,feature,text,tags\na@1,1,x,plain\n", 2, "cannot be read"),
    ("jsonl", '{"sae_id": "a@1"\n', 1, "is not JSON"),
    ("jsonl", "[1]\n", 1, "not an object but list"),
    ("jsonl", '\n{"sae_id": "a@1", "feature": 1, "text": "\\u001b"}\n', 2, "control character"),
    ("jsonl", '{"sae_id": "a@1", "feature": 1, "action": "undo", "undoes": "x"}\n', 1, "no event 'x' to undo"),
    ("jsonl", '{"sae_id": "a@1", "feature": "1", "text": "x", "tags": "y"}\n', 1, "cannot be read"),
    ("jsonl", '{"sae_id": ["a"], "feature": 1, "text": "x"}\n', 1, "must be string"),
    ("jsonl", '{"sae_id": "a@1", "feature": 1, "text": "x", "author": 7}\n', 1, "author"),
]


@pytest.mark.parametrize(("form", "content", "line", "reason"), BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_recorded(
    tmp_path: Path, form: str, content: str, line: int, reason: str
) -> None:
    good = "a@1,9,good\n" if form == "csv" else '{"sae_id": "a@1", "feature": 9, "text": "good"}\n'
    file = tmp_path / f"labels.{form}"
    file.write_text(content + good if '"open' not in content else content)
    with SQLiteLabels(tmp_path) as labels:
        report = import_labels(labels, read_events(file, "me"), dry_run=False)
        assert not report.is_written and labels.last() == 0
    (found_line, found_reason), *_ = report.refused
    assert found_line == line and reason in found_reason, report.refused


@pytest.mark.parametrize(("name", "content"), [("a.txt", b""), ("a.csv", b"\xff\xfe\x00"), ("gone.csv", None)])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match=r"cannot be read|neither \.csv nor \.jsonl"):
        list(read_events(tmp_path / name, "me"))


@given(
    st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1).filter(str.strip),
    st.sampled_from(["csv", "jsonl"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_the_way_through_a_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, form: Format
) -> None:
    folder = tmp_path_factory.mktemp("files")
    (folder / "other").mkdir()
    with SQLiteLabels(folder) as labels, SQLiteLabels(folder / "other") as other:
        labels.append(
            [Event("label_event", "ada", "write", {"sae_id": "a", "feature": 1, "text": text, "tags": [text]})]
        )
        file = folder / f"labels.{form}"
        file.write_text(exported(labels, form), encoding="utf-8", newline="")
        assert import_labels(other, read_events(file, "me"), dry_run=False).is_written
        assert other.events("label_event").equals(labels.events("label_event"))


def test_jsonl_has_one_object_a_line(tmp_path: Path) -> None:
    with filled(tmp_path / "one") as labels:
        lines = exported(labels, "jsonl").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["write", "write", "reject", "undo"]
