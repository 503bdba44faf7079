"""A language model's files: where they are, whether they are safe to load, their fingerprint, and the loading."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from saelib.base import expand_path
from saelib.errors import ModelError

__all__ = [
    "DEMO_LM",
    "Loaded",
    "ModelShape",
    "check_folder",
    "folder_fingerprint",
    "load_model",
    "model_folder",
    "model_shape",
]

DEMO_LM = "demo_lm"
"""The name of the small language model that this package carries."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SENTENCEPIECE = "sentencepiece.bpe.model"


class Loaded(NamedTuple):
    """A model in the dtype that was asked for, its tokenizer, and whether it has a head for the next token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    predicts_next_token: bool


class ModelShape(NamedTuple):
    """How large a model is, read off its configuration: known before its weights are loaded."""

    d_model: int
    d_ff: int
    n_heads: int
    n_layers: int
    n_vocab: int
    itemsize: int
    """Bytes of a number, in the dtype that it runs in."""

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> "ModelShape":
        """From a configuration of transformers: of a model of text and images, the part that reads text."""
        text = config.get_text_config()
        widths = (getattr(text, key, None) for key in ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"))
        d_model, n_heads = int(text.hidden_size), int(text.num_attention_heads)
        d_ff = int(next((width for width in widths if width), 4 * d_model))
        return cls(d_model, d_ff, n_heads, int(text.num_hidden_layers), int(text.vocab_size), dtype.itemsize)

    @property
    def weight_bytes(self) -> int:
        """About: two embeddings, and four matrices of attention and three of the feed-forward in every layer."""
        layer = 4 * self.d_model**2 + 3 * self.d_model * self.d_ff
        return self.itemsize * (2 * self.n_vocab * self.d_model + self.n_layers * layer)


def model_folder(name: str) -> Path | None:
    """The folder that `name` means; None for a hub name. Raises ModelError for a path at which there is no folder."""
    if name == DEMO_LM:
        return Path(__file__).parent / "demo_lm"
    given = expand_path(name)
    path = Path(given)
    if path.is_dir():
        return path
    if given.startswith((".", "/")) or given.count("/") > 1:
        raise ModelError(f"no folder {path.resolve()}; give a model folder, a hub name such as 'gpt2', or {DEMO_LM!r}")
    return None


def check_folder(folder: Path, name: str) -> None:
    """Refuse early, in our own words, what transformers would refuse late in its own."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json; a model folder as transformers saves it is wanted for {name!r}"
        )
    if not any((folder / file).is_file() for file in (*_VOCABULARIES, _SENTENCEPIECE)):
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
    kinds = ("*.safetensors", "*.json", "*.model", "vocab.txt")
    for path in sorted({path for kind in kinds for path in folder.glob(kind)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_model(name: str, revision: str | None, dtype: torch.dtype | None) -> Loaded:
    """From a folder or a hub name: safetensors only, no code from the model's repository. `dtype` None: as saved.

    Whether it predicts the next token or masked ones is read off its configuration; where the files hold no output
    layer it is loaded without. Raises ModelError.
    """
    folder = model_folder(name)
    source = str(folder) if folder else name
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        with _quiet():
            shape = AutoConfig.from_pretrained(source, **safe)
            _check_shape(shape, name)
            tokenizer = AutoTokenizer.from_pretrained(source, **safe)
            safe["dtype"] = dtype or getattr(shape, "dtype", None) or torch.float32
            model, head = _with_head(source, shape, name, safe)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_reason(name, folder, error)) from error
    return Loaded(model, tokenizer, head is AutoModelForCausalLM)


def model_shape(name: str, revision: str | None, dtype: torch.dtype | None) -> ModelShape:
    """From a folder or a hub name, in `dtype` (None: as saved). Raises ModelError."""
    folder = model_folder(name)
    try:
        with _quiet():
            source = str(folder) if folder else name
            whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        return ModelShape.of(whole, dtype or getattr(whole, "dtype", None) or torch.float32)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise ModelError(_reason(name, folder, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers would report on the terminal is checked here and said in an error, or is no one's concern."""
    before, hub_before = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        hub_logging.set_verbosity(hub_before)


def _check_shape(shape: Any, name: str) -> None:
    if shape.is_encoder_decoder:
        raise ModelError(
            f"{name!r} is an encoder with a decoder ({shape.model_type}), which takes two texts; "
            "give a decoder (GPT-2, Llama …) or an encoder (BERT …)"
        )


def _heads(shape: Any) -> list[Any]:
    """With which head to load it, the likeliest first. Some can be either: their configuration says which."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(shape.model_type)
    masked = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(shape.model_type)
    is_decoder = bool(getattr(shape, "is_decoder", False)) or causal in (shape.architectures or ())
    if causal and (is_decoder or not masked):
        return [AutoModelForCausalLM, AutoModel]
    return [AutoModelForMaskedLM, AutoModel] if masked else [AutoModel]


def _with_head(source: str, shape: Any, name: str, safe: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The model with the first head that leaves no tensor random."""
    for head in _heads(shape):
        model, report = head.from_pretrained(source, use_safetensors=True, output_loading_info=True, **safe)
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"{name!r} loads as {type(model).__name__}; a model of transformers is wanted")
        inside = f"{model.base_model_prefix}."
        missing = sorted(key for key in map(str, report["missing_keys"]) if not key.startswith("pooler."))
        if not missing:
            return model, head
        if head is AutoModel or any(key.startswith(inside) for key in missing):
            break
    raise ModelError(
        f"the weights of {name!r} lack {len(missing)} tensors ({missing[0]!r} …), left random; "
        "give a complete checkpoint of a language model"
    )


def _reason(name: str, folder: Path | None, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if folder is not None:
        return f"cannot load the language model {name!r}: {first_line}"
    return (
        f"no language model {name!r}: it is no folder here, nor in the hub or its cache ({first_line}); "
        f"give a model folder, a hub name such as 'gpt2' where the hub can be reached, or {DEMO_LM!r}"
    )
