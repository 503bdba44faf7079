"""The formats, each a value in a table, and how a folder is recognised as one of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from saelib.base import Ends
from saelib.errors import CheckpointError, ConfigError
from saelib.interop import almanac, dictionary_learning, gemma_scope, saelens, saelens_written, sparsify
from saelib.interop.files import Config, read_config, write_folder
from saelib.interop.found import About, Found
from saelib.sae import SAE

__all__ = ["FORMATS", "Format", "read", "recognise", "write"]

_DEPTH = 3
"""How many folders below the one that was given are looked into: run / hookpoint / seed."""


@dataclass(frozen=True)
class Format:
    """A format: the files that tell it from the others, and what is made of them."""

    name: str
    weights: str
    settings: str
    marks: tuple[str, ...]
    """Files by which a folder is known to be of this format."""
    describe: Callable[[Config, Path], About]
    read: Callable[[Found, bool | None], SAE]
    contents: Callable[[SAE, str | None], dict[str, bytes]] | None = None
    """Files of an SAE by name; None: not written."""
    needs_settings: bool = True


FORMATS = (
    Format("almanac", "sae.safetensors", "sae.json", ("sae.json",), almanac.describe, almanac.read),
    Format(
        "saelens",
        "sae_weights.safetensors",
        "cfg.json",
        ("sae_weights.safetensors",),
        saelens.describe,
        saelens.read,
        saelens_written.contents,
    ),
    Format(
        "sparsify",
        "sae.safetensors",
        "cfg.json",
        ("sae.safetensors", "cfg.json"),
        sparsify.describe,
        sparsify.read,
        sparsify.contents,
    ),
    Format(
        "dictionary_learning",
        "ae.pt",
        "config.json",
        ("ae.pt",),
        dictionary_learning.describe,
        dictionary_learning.read,
    ),
    Format(
        "gemma_scope",
        "params.npz",
        "config.json",
        ("params.npz",),
        gemma_scope.describe,
        gemma_scope.read,
        needs_settings=False,
    ),
    Format(
        "gemma_scope_2",
        "params.safetensors",
        "config.json",
        ("params.safetensors",),
        gemma_scope.describe,
        gemma_scope.read,
        needs_settings=False,
    ),
)


def recognise(path: Path | str) -> Found:
    """What the checkpoint at `path` is: a folder, a file in it, or a folder whose only sub-folder with one it is.

    Raises CheckpointError where there is no checkpoint, or more than one, or its settings cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path.resolve()}; give the folder of an SAE")
    form, weights = _at_file(path) if path.is_file() else _below(path)
    settings = _settings(form, weights)
    config = {} if settings is None else read_config(settings)
    about = form.describe(config, weights.parent)
    return Found(form.name, weights.parent, weights, settings, config, about.architecture, about.model_name, about.ends)


def read(path: Path | str, ends: Ends | None = None, b_dec_in: bool | None = None) -> SAE:
    """The SAE at `path`, in the unit of f that its tool emits; weights kept in half precision become float32.

    `ends`: the sites it reads and writes; without it those that the file names, in its words. `b_dec_in`: whether b_dec
    is taken from the input; Gemma Scope and dictionary_learning's JumpReLU do not say, and then it is not unless this
    is given. Raises CheckpointError that names the tensor, key or file at fault, and ConfigError for a `b_dec_in` that
    contradicts the file.
    """
    found = recognise(path)
    form = next(form for form in FORMATS if form.name == found.format)
    return form.read(found if ends is None else replace(found, ends=ends), b_dec_in)


def write(sae: SAE, path: Path | str, format: str = "saelens", model_name: str | None = None) -> list[Path]:
    """Write an SAE as another tool's folder, whole or not at all; returns the files. `SAE.save` writes our own form.

    Raises ConfigError for a format that is not written, an SAE that it has no form for, or a `path` that is taken.
    """
    written = {form.name: form.contents for form in FORMATS if form.contents is not None}
    contents = written.get(format)
    if contents is None:
        raise ConfigError(f"the format {format!r} is not written; {', '.join(written)} are")
    return write_folder(Path(path).expanduser(), contents(sae, model_name))


def _at_file(path: Path) -> tuple[Format, Path]:
    """The checkpoint that a file belongs to; a state dict may have any name, as checkpoints/ae_1000.pt has."""
    if path.suffix == ".pt":
        return next(form for form in FORMATS if form.weights == "ae.pt"), path
    form = _of(path.parent)
    if form is None or path.name not in (form.weights, form.settings):
        raise CheckpointError(f"{path.resolve()} is no file of an SAE that is read here; {_known()}")
    return form, path.parent / form.weights


def _below(path: Path) -> tuple[Format, Path]:
    """The checkpoint in a folder or, where it holds none, the only one in the folders below it."""
    folders = [path]
    for _ in range(_DEPTH + 1):
        found = [(form, folder) for folder in folders for form in [_of(folder)] if form is not None]
        if len(found) > 1:
            names = [str(folder.relative_to(path)) for _, folder in found]
            raise CheckpointError(f"{path.resolve()} holds several SAEs; give the folder of one of them: {names}")
        if found:
            return found[0][0], found[0][1] / found[0][0].weights
        folders = [sub for folder in folders for sub in sorted(folder.iterdir()) if sub.is_dir()]
    has = sorted(entry.name for entry in path.iterdir())[:20]
    raise CheckpointError(f"{path.resolve()} holds no SAE that is read here; it has {has}; {_known()}")


def _of(folder: Path) -> Format | None:
    return next((form for form in FORMATS if all((folder / mark).is_file() for mark in form.marks)), None)


def _settings(form: Format, weights: Path) -> Path | None:
    """The settings beside the weights, or above them, where dictionary_learning keeps those of its checkpoints/."""
    places = [weights.parent / form.settings]
    if weights.parent.name == "checkpoints":
        places.append(weights.parent.parent / form.settings)
    there = next((place for place in places if place.is_file()), None)
    if there is None and form.needs_settings:
        raise CheckpointError(f"{weights.parent.resolve()} lacks {form.settings}, the settings of a {form.name} SAE")
    return there


def _known() -> str:
    return "read are " + "; ".join(f"{form.name} ({form.weights}, {form.settings})" for form in FORMATS)
