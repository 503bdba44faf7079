"""The demo model's corpus: standard library and permissively licensed packages, without what is held out."""

import hashlib
import importlib.metadata
import math
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STDLIB = "python-stdlib"
STDLIB_REPEATS = 4  # passes over the standard library for each pass over the packages: it is the domain of use
PACKAGE_CAP_CHARACTERS, STDLIB_TEST_CAP_CHARACTERS = 1_500_000, 2_500_000
SHINGLE_LINES = 8
PERMISSIVE = re.compile(r"\b(MIT|0?BSD|Apache|PSF|Python Software|ISC|HPND)\b", re.I)
RESTRICTIVE = re.compile(r"GPL|MPL|Mozilla|General Public|Artistic|EUPL|CDDL|EPL", re.I)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "testing"})
VENDORED_FOLDERS = frozenset({"_vendor", "vendored", "vendor", "extern"})
SKIPPED_FOLDERS = VENDORED_FOLDERS | {"__pycache__", "site-packages", "dist-packages"}


class Document(NamedTuple):
    """One text of the corpus."""

    source: str  # distribution name, or STDLIB
    path: str  # posix, relative to the source's folder
    text: str


def read_text(path: Path) -> str:
    """Text of a UTF-8 file with newlines as stored; empty if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""


def is_held_out(relative_path: str) -> bool:
    return int(hashlib.sha1(relative_path.encode()).hexdigest(), 16) % 20 == 0


def is_test(relative_path: str) -> bool:
    return bool(TEST_FOLDERS & set(Path(relative_path).parts[:-1]))


def looks_written(text: str) -> bool:
    """False for generated, minified or table-like text."""
    lines = text.splitlines() or [""]
    letters = sum(map(str.isalpha, text)) / max(1, len(text))
    digits = sum(map(str.isdigit, text)) / max(1, len(text))
    return 200 <= len(text) <= 400_000 and max(map(len, lines)) < 1_000 and letters > 0.4 and digits < 0.15


def stdlib_files() -> dict[str, Path]:
    """Every .py file of the running interpreter's standard library by its path relative to the Lib folder."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
    return {name: path for name, path in paths.items() if not SKIPPED_FOLDERS & set(Path(name).parts)}


def held_out_files() -> dict[str, bytes]:
    """Held-out modules: sha1(relative path) mod 20 = 0, test folders aside (those are not trained on either)."""
    return {name: path.read_bytes() for name, path in stdlib_files().items() if is_held_out(name) and not is_test(name)}


def stdlib_documents() -> Iterator[Document]:
    """Standard-library modules and the language reference behind `help()`; never a path with sha1 mod 20 = 0."""
    from pydoc_data.topics import topics

    for name, path in stdlib_files().items():
        if not is_held_out(name) and name != "pydoc_data/topics.py":
            yield Document(STDLIB, name, read_text(path))
    for name, text in sorted(topics.items()):
        yield Document(STDLIB, f"pydoc_data/topics/{name}", text)


def licence(distribution: importlib.metadata.Distribution) -> str:
    """Licence as the distribution's metadata states it; empty unless it is permissive."""
    meta = distribution.metadata
    classifiers = [line.split("::")[-1].strip() for line in meta.get_all("Classifier") or [] if "License ::" in line]
    stated = meta.get("License-Expression") or ", ".join(classifiers) or (meta.get("License") or "").strip()[:60]
    stated = " ".join(stated.split())
    return stated if PERMISSIVE.search(stated) and not RESTRICTIVE.search(stated) else ""


def package_documents() -> Iterator[Document]:
    """Python source and documentation of the installed packages whose licence is permissive."""
    root = Path(sysconfig.get_paths()["purelib"])
    distributions = {found.name.lower(): found for found in importlib.metadata.distributions(path=[str(root)])}
    for name, distribution in sorted(distributions.items()):
        if not licence(distribution):
            continue
        for file in sorted(distribution.files or [], key=str):
            folders = set(file.parts[:-1])
            kept = file.suffix in {".py", ".md", ".rst", ".txt"} and not folders & (SKIPPED_FOLDERS | TEST_FOLDERS)
            if kept and not file.parts[0].endswith(".dist-info") and file.locate().is_file():
                yield Document(name, str(file), read_text(Path(file.locate())))


def shingles(text: str) -> set[int]:
    """Hashes of every run of SHINGLE_LINES non-blank lines, indentation and spacing aside."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    runs = (lines[i : i + SHINGLE_LINES] for i in range(len(lines) - SHINGLE_LINES + 1))
    return {int.from_bytes(hashlib.blake2b("\n".join(run).encode(), digest_size=8).digest()) for run in runs}


def copies_held_out(own: set[int], held_out: list[set[int]]) -> bool:
    """True if a text shares 3 or more shingles, and 5 % of either side's, with one held-out file."""
    shared = ((len(own & other), len(other)) for other in held_out)
    return any(n >= 3 and n >= 0.05 * min(len(own), n_other) for n, n_other in shared)


def read_corpus(seed: int) -> list[Document]:
    """Documents to train on: written text, no copy of a held-out file or of each other, capped per package."""
    held_out = [shingles(read_text(path)) for name, path in stdlib_files().items() if is_held_out(name)]
    held_out_any: set[int] = set().union(*held_out)
    packages = list(package_documents())
    random.Random(seed).shuffle(packages)
    seen: set[int] = set()
    taken: Counter[str] = Counter()
    kept: list[Document] = []
    for document in [*stdlib_documents(), *packages]:
        pot, cap = allowance(document)
        if not looks_written(document.text) or taken[pot] + len(document.text) > cap:
            continue
        own = shingles(document.text)
        if len(own & seen) > 0.3 * len(own) or (own & held_out_any and copies_held_out(own, held_out)):
            continue
        seen |= own
        taken[pot] += len(document.text)
        kept.append(document)
    return kept


def allowance(document: Document) -> tuple[str, float]:
    """The pot that a text counts towards and the characters that the pot may hold."""
    if document.source != STDLIB:
        return document.source, PACKAGE_CAP_CHARACTERS
    return (STDLIB, math.inf) if not is_test(document.path) else ("stdlib tests", STDLIB_TEST_CAP_CHARACTERS)
