"""A language model's folder: where it is, whether it can be loaded safely, and a fingerprint of what is in it."""

import hashlib
from pathlib import Path

from saelib.base import expand_path
from saelib.errors import ModelError

__all__ = ["DEMO_LM", "check_folder", "folder_fingerprint", "model_folder"]

DEMO_LM = "demo_lm"
"""The name of the small language model that this package carries."""


def model_folder(name: str) -> Path | None:
    """The folder that `name` means; None for a hub name. Raises ModelError for a path at which there is no folder."""
    if name == DEMO_LM:
        return Path(__file__).parent / "demo_lm"
    path = Path(expand_path(name))
    if path.is_dir():
        return path
    if expand_path(name).startswith((".", "/")):
        raise ModelError(f"no folder {path.resolve()}; give a model folder, a hub name such as 'gpt2', or {DEMO_LM!r}")
    return None


def check_folder(folder: Path, name: str) -> None:
    """Refuse early, in our own words, what transformers would refuse late in its own."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json; a model folder as transformers saves it is wanted for {name!r}"
        )
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(
            f"{folder} holds no tokenizer (tokenizer.json …); save one there with tokenizer.save_pretrained"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        if pickled:
            raise ModelError(
                f"{folder} holds its weights only as a pickle ({pickled[0]}), which can run code when loaded; "
                "convert it with model.save_pretrained(…, safe_serialization=True)"
            )
        raise ModelError(f"{folder} holds no weights; at least one .safetensors file is wanted")


def folder_fingerprint(folder: Path) -> str:
    """sha256 of the weight, configuration and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("tokenizer.model")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
