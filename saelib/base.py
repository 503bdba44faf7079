"""The words every other file uses: a strict frozen configuration, and the place a vector is read from."""

import os
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

from saelib.errors import ConfigError

__all__ = ["Ends", "Frozen", "Site", "expand_path"]


def expand_path(path: str) -> str:
    """`~`, `$NAME` and `${NAME:-default}` in a path. Raises ConfigError where NAME is not set and has no default."""

    def value(found: re.Match[str]) -> str:
        name, default = found.group(1) or found.group(3), found.group(2)
        got = os.environ.get(name, default)
        if got is None:
            raise ConfigError(f"the path {path!r} uses ${name}, which is not set; set it or write ${{{name}:-default}}")
        return got

    return os.path.expanduser(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)", value, path))


class Frozen(BaseModel):
    """Configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(Frozen):
    """A hook point: a module of the language model and which side of it, its input or its output."""

    path: str
    side: Literal["in", "out"] = "out"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """`model.layers.2` is the module's output, `model.layers.2:in` its input."""
        path, _, side = text.partition(":")
        return cls.model_validate({"path": path, "side": side or "out"})

    def __str__(self) -> str:
        return self.path if self.side == "out" else f"{self.path}:{self.side}"


class Ends(Frozen):
    """Which sites an SAE reads and which it writes. Several sites are concatenated, in this order."""

    read: tuple[Site, ...]
    write: tuple[Site, ...]

    @classmethod
    def at(cls, site: Site) -> "Ends":
        """Read and write the same site: a plain SAE."""
        return cls(read=(site,), write=(site,))
