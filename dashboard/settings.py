"""What the dashboard was started with. It is handed over in the environment, so that every way of starting works."""

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings", "settings"]

DEFAULT_STORE = "almanac"


@dataclass(frozen=True)
class Settings:
    """Where the store is, and who labels unless they say otherwise in the page."""

    store: Path
    user: str


def settings() -> Settings:
    """ALMANAC_STORE, else ./almanac; ALMANAC_USER, else the login name."""
    store = Path(os.environ.get("ALMANAC_STORE") or DEFAULT_STORE)
    return Settings(store, os.environ.get("ALMANAC_USER") or _login_name())


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "somebody"
