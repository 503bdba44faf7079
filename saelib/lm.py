"""The language model: load it, read activations at its sites, patch them.

A site is a module path and a side; `saelib.sites` finds them by short names and wildcards. A read stops the forward
pass after the last site that it needs.
"""

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saelib.base import Frozen, Site, expand_path
from saelib.errors import ModelError, SiteNotFound
from saelib.hooks import hooked
from saelib.model_files import (
    DEMO_LM,
    ModelShape,
    check_folder,
    folder_fingerprint,
    load_model,
    model_folder,
    model_shape,
)

__all__ = [
    "DEMO_LM",
    "LMConfig",
    "LanguageModel",
    "device_of",
    "load_lm",
    "model_fingerprint",
    "patch_sites",
    "read_sites",
    "shape_of",
    "site_width",
    "token_texts",
]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


class LMConfig(Frozen):
    """Which language model, and how it is run: `demo_lm`, a folder, or a hub name."""

    model: str = DEMO_LM
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    @property
    def model_id(self) -> str:
        """Short name, as it stands in an sae_id."""
        return Path(expand_path(self.model)).name

    def resolved_device(self) -> str:
        """`auto` is the first GPU where there is one."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its tokenizer. `name` and `fingerprint` say which one it is.

    An encoder (BERT …) and a decoder without an output layer have sites like any other model, but no next-token loss:
    `predicts_next_token` is False.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    predicts_next_token: bool = True

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Its activations' dtype."""
        return next(self.model.parameters()).dtype

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return int(self._shape.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._shape.hidden_size)

    @property
    def _shape(self) -> Any:
        """The configuration of the part that reads text: a model of text and images has several."""
        return self.model.config.get_text_config()

    @property
    def n_vocab(self) -> int:
        """Number of rows of the unembedding; of the embedding, where there is no next token to predict."""
        if self.predicts_next_token:
            return int(self.unembedding.shape[0])
        embedding: nn.Module = self.model.get_input_embeddings()
        return int(embedding.get_parameter("weight").shape[0])

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """Weights of the output layer. Raises ModelError for a model that predicts no next token."""
        self.check_predicts("effect of a direction on the next token's logits")
        head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is None:
            raise ModelError(f"{self.name!r} has no output embeddings; logit effects need a causal language model")
        return head.get_parameter("weight").detach()

    def check_predicts(self, what: str = "next-token loss") -> None:
        """Raises ModelError, for something that only a model with a next token has."""
        if not self.predicts_next_token:
            raise ModelError(
                f"{self.name!r} ({type(self.model).__name__}) is an encoder, or has no output layer: "
                f"it has no {what}; give a causal language model, or leave that out"
            )

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the model was made for."""
        lengths = (getattr(self._shape, key, None) for key in _CONTEXT_KEYS)
        return int(next((length for length in lengths if length), 2048)) - self._skipped_positions

    @property
    def _skipped_positions(self) -> int:
        """Rows of a position table that no token uses: where padding has one (RoBERTa), text starts after it."""
        for path, module in self.model.named_modules():
            if "position" in path and isinstance(module, nn.Embedding) and module.padding_idx is not None:
                return int(module.padding_idx) + 1
        return 0

    @property
    def bos_id(self) -> int | None:
        """The token that starts every sequence (BOS, or an encoder's CLS), where the tokenizer puts one there."""
        ids = self.tokenizer("a")["input_ids"]
        known = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        return next((int(first) for first in known if first is not None and ids and ids[0] == first), None)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Token ids that are no text; masked out of training and of every statistic."""
        return tuple(sorted(set(map(int, self.tokenizer.all_special_ids))))

    def module(self, path: str) -> nn.Module:
        """The module at `path`. Raises SiteNotFound that names the nearest paths."""
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if path in modules and path:
            return modules[path]
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.4) or [name for name in modules if name][:3]
        raise SiteNotFound(f"{self.name!r} has no module {path!r}; the nearest are {', '.join(map(repr, near))}")

    def forward(self, input_ids: Int[Tensor, "batch position"], attention_mask: Int[Tensor, "batch position"]) -> Any:
        """One pass, without the key-value cache, which some encoders do not know of. Gives what the model returns."""
        takes_cache = "use_cache" in inspect.signature(self.model.forward).parameters
        without = {"use_cache": False} if takes_cache else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **without)

    def token_text(self, token_id: int) -> str:
        """What one token stands for, as text."""
        return token_texts(self.tokenizer, [token_id])[0]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself. A sentencepiece word start keeps its space, which decoding alone would drop."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = []
    for token_id, piece in zip(ids, pieces, strict=True):
        text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if str(piece).startswith("\u2581") and not text.startswith(" "):
            text = " " + text
        texts.append(text or str(piece or ""))
    return texts


def model_fingerprint(config: LMConfig) -> str:
    """sha256 of the weight, configuration and tokenizer files of a folder; of name and revision for a hub model."""
    folder = model_folder(config.model)
    if folder is None:
        return hashlib.sha256(json.dumps([config.model, config.revision]).encode()).hexdigest()
    check_folder(folder, config.model)
    return folder_fingerprint(folder)


def load_lm(config: LMConfig) -> LanguageModel:
    """Load from a local folder, a hub name, or `demo_lm`: safetensors only, no code from the model's repository.

    Raises ModelError for a folder without configuration, tokenizer or weights, for weights that are pickles only, and
    for a device or dtype that is not there.
    """
    device, dtype = device_of(config), _dtype(config)
    fingerprint = model_fingerprint(config)
    loaded = load_model(config.model, config.revision, dtype)
    loaded.model.requires_grad_(False).train(False)
    loaded.model.to(device)  # type: ignore[arg-type]
    return LanguageModel(loaded.model, loaded.tokenizer, config.model, fingerprint, loaded.predicts_next_token)


def shape_of(config: LMConfig) -> ModelShape:
    """How large the model is, without loading it. Raises ModelError."""
    return model_shape(config.model, config.revision, _dtype(config))


def device_of(config: LMConfig) -> torch.device:
    """The device that it runs on. Raises ModelError for one that is not there."""
    name = config.resolved_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"device {name!r} is not there ({first_line}); give 'cpu', 'cuda', 'cuda:1' … or 'auto'"
        ) from error
    return device


def _dtype(config: LMConfig) -> torch.dtype | None:
    """`auto`: as saved (None) on a GPU; float32 on a CPU, where half precision is slow or missing."""
    if config.dtype == "auto":
        return torch.float32 if config.resolved_device() == "cpu" else None
    if config.dtype not in _DTYPES:
        raise ModelError(f"dtype {config.dtype!r} is not known; give one of {', '.join(_DTYPES)} or 'auto'")
    return _DTYPES[config.dtype]


class _Stop(Exception):
    """Raised by the last hook of a read: nothing after it is needed."""


class _Reading:
    """What a read has seen so far."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.wanted, self.read = list(dict.fromkeys(sites)), dict[Site, Tensor]()

    def see(self, site: Site, x: Tensor) -> None:
        """Keep it; a copy where the pass goes on, for a model may add to it in place. Raises _Stop after the last."""
        if site in self.read:
            return
        is_last = len(self.read) == len(self.wanted) - 1
        self.read[site] = x if is_last else x.clone()
        if is_last:
            raise _Stop


def read_sites(
    lm: LanguageModel,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Int[Tensor, "batch position"] | Bool[Tensor, "batch position"],
    sites: Sequence[Site],
) -> dict[Site, Float[Tensor, "batch position d_model"]]:
    """Activations at every site, in the model's own dtype, from one forward pass that stops after the last of them.

    Of a module that a pass calls several times (ALBERT's shared layers), the first call counts.
    """
    reading = _Reading(sites)
    if not reading.wanted:
        return {}
    targets = [(site, lm.module(site.path), partial(reading.see, site)) for site in reading.wanted]
    try:
        with hooked(lm.model, targets), torch.no_grad():
            lm.forward(input_ids, attention_mask.to(torch.long))
    except _Stop:
        return {site: reading.read[site] for site in reading.wanted}
    missing = [str(site) for site in reading.wanted if site not in reading.read]
    raise SiteNotFound(f"the forward pass of {lm.name!r} never reached {', '.join(missing)}; choose other sites")


def site_width(lm: LanguageModel, site: Site) -> int:
    """d_model of a site, from one token's forward pass. Raises SiteNotFound."""
    one = torch.ones(1, 1, dtype=torch.long, device=lm.device)
    return int(read_sites(lm, one, one, [site])[site].shape[-1])


@contextmanager
def patch_sites(lm: LanguageModel, patches: dict[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While open, every forward pass replaces the activations at each site by what its function makes of them."""
    with hooked(lm.model, [(site, lm.module(site.path), patch) for site, patch in patches.items()]):
        yield
