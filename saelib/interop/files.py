"""What the files of a checkpoint hold, read without running anything in them; a folder written whole or not at all."""

import json
import os
import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saelib.errors import CheckpointError, ConfigError

__all__ = ["Config", "read_config", "read_tensors", "write_folder"]

Config = dict[str, Any]
"""What a checkpoint's JSON file says."""


def read_config(path: Path) -> Config:
    """The object in a JSON file. Raises CheckpointError that names the file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {path}: {type(error).__name__}: {error}; a JSON file is wanted: copy the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}; a JSON object of settings is wanted")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors, .npz or .pt file by name, as it was written.

    Raises CheckpointError where the file is missing, damaged or holds anything but tensors; pickled code never runs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} lacks {path.name}, which holds the weights; copy the checkpoint again")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise CheckpointError(f"{path} is no file of tensors that is read here; {', '.join(_READERS)} are")
    return reader(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or no safetensors file: {error}; copy the checkpoint again"
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} is damaged or holds something else than arrays of numbers: {error}; pickled objects in it were "
            "not executed: copy the checkpoint again"
        ) from error


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a bad pickle fails in as many ways as it has opcodes
        raise CheckpointError(_why_no_state(path, error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; a state dict, tensors by name, is wanted")
    if {"ae", "step"} <= state.keys():
        raise CheckpointError(
            f"{path} is a backup of a training run that has not ended (it holds the keys 'ae' and 'step'); let the run "
            "end, or read one of its checkpoints/ae_<step>.pt"
        )
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: {wrong[0]} is no tensor; a state dict holds tensors only")
    return {str(name): value for name, value in state.items()}


def _why_no_state(path: Path, error: Exception) -> str:
    """torch says at length how its safety could be switched off; what was found is what matters."""
    if wanted := re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error)):
        return (
            f"{path} holds code, not only tensors (it asks for {wanted.group(1)}); it was not executed: have its tool "
            "save a plain state dict"
        )
    return (
        f"{path} is truncated, damaged or no file of tensors ({type(error).__name__}); nothing in it was executed: "
        "copy the checkpoint again"
    )


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pt": _read_pt,
}


def write_folder(path: Path, contents: dict[str, bytes]) -> list[Path]:
    """Write files into a folder that was not there, or was empty: all of them, or nothing. Returns the files.

    Raises ConfigError where something is at `path` already.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path.resolve()} is there already and is not overwritten; give a new or an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        for name, content in contents.items():
            with (aside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [path / name for name in contents]
