"""SAEs that exist already, ours or another tool's, as a run names them: `[[imports]]`."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from flows.errors import ExchangeError, RecipeError
from flows.exchange import fetched
from saelib import interop
from saelib.base import Ends, Frozen, Site, expand_path

__all__ = ["Import", "Imported", "imported"]


class Import(Frozen):
    """An SAE to describe and publish. What it reads and writes is said here: files name sites in their tool's words."""

    path: str
    """A folder, or a hub name such as user/repo/folder."""
    name: str | None = None
    """What it is called in the catalog; the folder's name if left out."""
    read: tuple[Site, ...]
    write: tuple[Site, ...] = ()
    """What it writes, if not what it reads."""

    @field_validator("read", "write", mode="before")
    @classmethod
    def _as_sites(cls, given: Any) -> Any:
        several = given if isinstance(given, list | tuple) else [given]
        return [Site.parse(site) if isinstance(site, str) else site for site in several]

    @property
    def ends(self) -> Ends:
        """The sites it reads and writes."""
        return Ends(read=self.read, write=self.write or self.read)


class Imported(NamedTuple):
    """An import that was found, and everything that decides what is made of it."""

    given: Import
    found: interop.Found
    content: str
    """sha256 over its files."""

    @property
    def name(self) -> str:
        """Sites and name, as they stand in an sae_id."""
        read, write = ("+".join(map(str, sites)) for sites in (self.given.ends.read, self.given.ends.write))
        where = read if self.given.ends.read == self.given.ends.write else f"{read}..{write}"
        return f"{where}/{self.given.name or self.found.folder.resolve().name}"


def imported(imports: Sequence[Import]) -> list[Imported]:
    """Every import, found and recognised. Raises ExchangeError or CheckpointError that names what is wrong."""
    made = []
    for given in imports:
        found = interop.recognise(fetched(expand_path(given.path)))
        made.append(Imported(given, found, _content(found)))
    for number, one in enumerate(made):
        if any(one.name == other.name for other in made[:number]):
            raise RecipeError(f"two imports are called {one.name}; give them names of their own")
    return made


def _content(found: interop.Found) -> str:
    digest = sha256()
    for path in sorted({found.weights, *([found.settings] if found.settings else [])}):
        digest.update(path.name.encode())
        digest.update(_read(path))
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExchangeError(f"{path} cannot be read: {error}; check the folder that was imported") from error
