"""How the code should read, as far as a program can tell: limits, words, what must not be imported."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import catalog
import flows
import saelib

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("saelib", "catalog", "flows", "dashboard")
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 40, 6
FILES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
QUERIES = sorted((REPOSITORY / "catalog/queries").rglob("*.sql"))

VAGUE_FILES = {"util", "utils", "helper", "helpers", "manager", "handler", "misc"}
"""No file is named so that anything could be in it."""

BANNED_WORDS = {
    "latent", "latents", "neuron", "neurons", "codes", "hidden_pre", "residual", "submodule", "d_sae", "dict_size",
    "dictionary_size", "util", "utils", "helper", "helpers", "manager", "handler", "misc", "snippet", "annotation",
}  # fmt: skip
"""Other tools' words for our things (DESIGN §9). `handle` of a torch hook and pydantic's `annotation` are theirs."""

FOREIGN_NAMES = {
    ("flows/complaints.py", "annotation"),
    ("saelib/nonlinearity.py", "annotation"),
    ("saelib/training.py", "utils"),
}
"""Attributes of other libraries that a file has to name."""


def short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


by_file = pytest.mark.parametrize("path", FILES, ids=short)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_excused(path: Path, line: int) -> bool:
    """`noqa: PLR0913` with its reason beside it."""
    return "noqa: PLR0913" in path.read_text(encoding="utf-8").splitlines()[line - 1]


@by_file
def test_files_are_under_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@by_file
def test_functions_are_under_40_lines(path: Path) -> None:
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno is not None}
    assert {name: n for name, n in long.items() if n > MAX_FUNCTION} == {}


@by_file
def test_functions_have_at_most_six_parameters(path: Path) -> None:
    many = {}
    for function in functions(path):
        arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        n = len([name for name in arguments if name not in ("self", "cls")])
        if n > MAX_PARAMETERS and not is_excused(path, function.lineno):
            many[function.name] = n
    assert many == {}


@pytest.mark.parametrize("path", [p for p in FILES if short(p).startswith("saelib/")], ids=short)
def test_saelib_never_branches_on_an_architecture(path: Path) -> None:
    """An architecture is a value: nothing asks for its name, or for the class of what it chose but to write it down."""
    branching = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Compare | ast.Match)]
    words = re.compile(r"\barch(itecture)?\b|'(standard|topk|batchtopk|jumprelu|gated|matryoshka)'")
    allowed = {"architecture not in ARCHITECTURES"}
    assert [text for text in branching if words.search(text) and text not in allowed] == []


def modules() -> list[ModuleType]:
    found = []
    for package in (saelib, catalog, flows):
        found.append(package)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found.append(importlib.import_module(info.name))
    return found


def in_order(name: str) -> tuple[int, str]:
    """CONSTANTS, Classes, functions: as ruff sorts them (RUF022)."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_all_is_sorted_and_every_name_in_it_exists(module: ModuleType) -> None:
    names = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert list(names) == sorted(set(names), key=in_order)


@by_file
def test_what_another_package_imports_stands_in_all(path: Path) -> None:
    """A name that one of our packages takes from another is public there; within saelib from module to module too."""
    hidden, mine = [], path.relative_to(REPOSITORY).parts[0]
    others = {"saelib", "catalog", "flows"} - ({mine} - {"saelib"})
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in others:
            continue
        module = importlib.import_module(str(node.module))
        for name in (alias.name for alias in node.names):
            if not isinstance(getattr(module, name, module), ModuleType) and name not in getattr(module, "__all__", []):
                hidden.append(f"{node.module}.{name}")
    assert hidden == []


@by_file
def test_file_names_say_what_is_in_the_file(path: Path) -> None:
    assert path.stem not in VAGUE_FILES


@by_file
def test_identifiers_are_our_words(path: Path) -> None:
    used = set()
    for node in ast.walk(tree(path)):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str) and value.lower().strip("_") in BANNED_WORDS:
                used.add(value)
    assert {name for name in used if (short(path), name) not in FOREIGN_NAMES} == set()


@by_file
def test_nothing_loads_pickles_or_remote_code(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, ast.unparse(node)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.save", "eval", "exec"}, ast.unparse(node)
            only_tensors = any(
                keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords
            )
            assert ast.unparse(node.func) != "torch.load" or only_tensors, ast.unparse(node)
            for keyword in node.keywords:
                assert keyword.arg != "trust_remote_code" or ast.unparse(keyword.value) == "False", ast.unparse(node)


@pytest.mark.parametrize("path", QUERIES, ids=short)
def test_every_query_says_its_question_parameters_and_grain(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("--")]
    assert len(header[0]) > 20 and not header[0].startswith("-- params"), "the first line is the question"
    assert re.search(r"params: .*grain: \S+", " ".join(header)), "and then `params: … grain: …`"


def test_there_are_queries() -> None:
    assert QUERIES


def test_flows_tasks_has_exactly_the_public_names_of_flows_steps() -> None:
    tasks, steps = importlib.import_module("flows.tasks"), importlib.import_module("flows.steps")
    assert tasks.__all__ == steps.__all__
