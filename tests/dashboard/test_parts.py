"""Text, filters, headers, locks: the small parts under the pages."""

import base64
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from store import HOSTILE

import dashboard
from catalog import Store
from catalog.locks import exclusive
from dashboard.building import at_work
from dashboard.filters import Filter
from dashboard.parts.text import md_escape, number, share, visible
from dashboard.security import INDEX, security_headers

SOURCES = sorted(path for path in Path(dashboard.__file__).parent.rglob("*") if path.suffix in (".py", ".js"))
FORBIDDEN = re.compile(
    r"unsafe_allow_html|iframe\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|st\.html"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_hostile_text_keeps_its_markdown_or_its_control_characters(text: str) -> None:
    escaped = md_escape(text)
    assert re.sub(r"\\(.)", r"\1", escaped).replace("\\", "") == visible(text).replace("\\", "")
    assert not re.search(r"(?<!\\)[<>`*_\[\]()!:$#&]", escaped)
    assert not any(ord(character) < 32 or "\u202a" <= character <= "\u202e" for character in visible(text))


def test_numbers_are_short_and_nothing_is_a_dash() -> None:
    assert [number(value) for value in (None, float("nan"), 3, 1234, 0.123456, 12345.6)] == [
        "–", "–", "3", "1,234", "0.123", "12,346",
    ]  # fmt: skip
    assert [share(value) for value in (None, 0.0, 0.5, 1e-4, 7e-7)] == ["–", "0 %", "50 %", "0.01 %", "0.7 ppm"]


def test_a_filter_survives_the_url() -> None:
    chosen = Filter("alive", "unlabelled", "two words", " the", -4.0, -1.0, "density")
    assert Filter.of(chosen.changed) == chosen
    assert Filter.of({}) == Filter() and Filter().changed == {}


def test_nonsense_in_the_url_filters_nothing() -> None:
    assert Filter.of({"status": "<b>", "sort": "act_max", "low": "x", "high": "9", "q": "  ", "other": "1"}) == Filter()


def test_the_inline_script_of_streamlit_is_allowed_by_its_hash_and_no_other() -> None:
    policy = security_headers()[b"content-security-policy"].decode()
    inline = re.findall(r"<script>(.*?)</script>", INDEX.read_text(encoding="utf-8"), re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
    assert inline and re.findall(r"'sha256-([^']*)'", policy) == hashes
    assert "unsafe-eval'" not in policy.replace("'wasm-unsafe-eval'", "") and "script-src 'self' 'unsafe" not in policy
    assert not re.search(r"https?:", policy)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_writes_markup(path: Path) -> None:
    assert not FORBIDDEN.search(path.read_text(encoding="utf-8"))


def test_a_held_lock_is_a_build_and_a_free_one_is_none(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    (store.locks / "sae-0000.lock").write_text('{"pid": 1}')  # its holder was killed
    (store.locks / "catalog.lock").touch()
    assert at_work(store) == []
    with exclusive(store.locks / "sae-abcdef.lock", "making sae", 1.0):
        (work,) = at_work(store)
    assert (work.step, work.fingerprint) == ("train", "abcdef") and "process" in work.process
    assert at_work(store) == []


def test_pages_need_neither_torch_nor_the_other_floors() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'prefect', 'saelib', 'flows'): sys.modules[name] = None\n"
        "import dashboard.app, dashboard.pages\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_that_may_be_null_is_handed_to_replace_children() -> None:
    """`el` passes over null; the browser's own replaceChildren writes the word (seen once: "nullnull")."""
    for script in (Path(__file__).parents[2] / "dashboard/parts").glob("*.js"):
        for call in re.findall(r"replaceChildren\(\n(.*?)\n  \)", script.read_text(encoding="utf-8"), re.DOTALL):
            assert not [line for line in call.split("\n") if re.match(r"    \S.*: null,?$", line)], script.name
