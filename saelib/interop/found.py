"""What is known of a checkpoint before its weights are read, and how its settings are asked for."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from saelib.base import Ends, Site
from saelib.errors import CheckpointError, ConfigError
from saelib.interop.files import Config

__all__ = ["UNKNOWN", "About", "Found", "ends_named", "flag", "number", "settled", "site_named", "whole"]

UNKNOWN = Site(path="unknown")
"""The site of a checkpoint that does not name one: give `ends` when you read it."""


class About(NamedTuple):
    """What the settings say of an SAE."""

    architecture: str
    model_name: str | None
    ends: Ends


@dataclass(frozen=True)
class Found:
    """A checkpoint: its format, its files, and what its settings say."""

    format: str
    folder: Path
    weights: Path
    settings: Path | None
    """The JSON file, where there is one."""
    config: Config
    """What it says, word for word."""
    architecture: str
    """By the file's own name."""
    model_name: str | None
    ends: Ends

    @property
    def site(self) -> Site:
        """Where it reads, by the name that the file gives."""
        return self.ends.read[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that reading it opens."""
        beside = [self.folder / name for name in ("activation_scaler.json", "activation_whitening.safetensors")]
        mine = [path for path in (self.settings, self.weights) if path is not None]
        return tuple([*mine, *(path for path in beside if path.is_file())])


def site_named(name: Any) -> Site:
    """The site of that name, which may be another tool's: `blocks.6.hook_resid_post`, or ours: `model.layers.6:in`."""
    if not isinstance(name, str) or not name:
        return UNKNOWN
    path, _, side = name.rpartition(":")
    return Site.model_validate({"path": path, "side": side} if path and side in ("in", "out") else {"path": name})


def ends_named(read: Any, write: Any = None) -> Ends:
    """Ends by their names; without a second one it writes where it reads."""
    return Ends(read=(site_named(read),), write=(site_named(write if write else read),))


def number(config: Config, key: str, where: Path | None) -> float:
    """A finite number. Raises CheckpointError that names the key."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise CheckpointError(f"{where}: the key {key!r} is {value!r}; a number is wanted")
    return float(value)


def whole(config: Config, key: str, where: Path | None) -> int:
    """A positive whole number. Raises CheckpointError that names the key."""
    value = number(config, key, where)
    if value != int(value) or value < 1:
        raise CheckpointError(f"{where}: the key {key!r} is {config[key]!r}; a positive whole number is wanted")
    return int(value)


def flag(config: Config, key: str, default: bool, where: Path | None) -> bool:
    """True or false. Raises CheckpointError that names the key."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: the key {key!r} is {value!r}; true or false is wanted")
    return value


def settled(b_dec_in: bool | None, stated: bool, found: Found) -> bool:
    """Whether b_dec is taken from the input, where the file says so. Raises ConfigError for one who says otherwise."""
    if b_dec_in not in (None, stated):
        raise ConfigError(
            f"b_dec_in={b_dec_in} but the {found.format} SAE in {found.folder} says {stated}; leave the argument out"
        )
    return stated
