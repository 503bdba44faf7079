"""The language model: load it, read activations at its sites, patch them.

A site is a module path and a side. Hooks work on whatever a module takes or returns: a tensor, a tuple whose first
element is the tensor, or a keyword argument. A read stops the forward pass after the last site that it needs.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from saelib.base import Frozen, Site, expand_path
from saelib.errors import ModelError, SiteNotFound
from saelib.model_files import DEMO_LM, check_folder, folder_fingerprint, model_folder

__all__ = [
    "DEMO_LM",
    "LMConfig",
    "LanguageModel",
    "load_lm",
    "model_fingerprint",
    "patch_sites",
    "read_sites",
    "site_width",
    "token_texts",
]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    """A causal language model with its tokenizer. `name` and `fingerprint` say which one it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str

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
        return int(self.model.config.num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def n_vocab(self) -> int:
        """Number of rows of the unembedding."""
        return int(self.unembedding.shape[0])

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """Weights of the output layer."""
        head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is None:
            raise ModelError(f"{self.name!r} has no output embeddings; logit effects need a causal language model")
        return head.get_parameter("weight").detach()

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the model was made for."""
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            length = getattr(self.model.config, key, None)
            if length:
                return int(length)
        return 2048

    @property
    def bos_id(self) -> int | None:
        """The token that starts every sequence, where the tokenizer puts one there by itself."""
        ids = self.tokenizer("a")["input_ids"]
        first = self.tokenizer.bos_token_id
        return int(first) if first is not None and ids and ids[0] == first else None

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

    Raises ModelError for a folder without configuration, tokenizer or weights, and for weights that are pickles only.
    """
    fingerprint = model_fingerprint(config)
    folder = model_folder(config.model)
    source = str(folder) if folder else config.model
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    safe: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        shape = AutoConfig.from_pretrained(source, **safe)
        safe["dtype"] = _resolved_dtype(config, getattr(shape, "dtype", None))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **safe
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the language model {config.model!r}: {first_line}") from error
    model, missing = loaded[0], sorted(map(str, loaded[1]["missing_keys"]))
    if missing:
        raise ModelError(
            f"the weights of {config.model!r} lack {len(missing)} tensors ({missing[0]!r} …), left random; "
            "give a complete checkpoint of a causal language model"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{config.model!r} loads as {type(model).__name__}; a transformers causal model is wanted")
    model.requires_grad_(False).train(False)
    model.to(torch.device(config.resolved_device()))  # type: ignore[arg-type]
    return LanguageModel(model, tokenizer, config.model, fingerprint)


def _resolved_dtype(config: LMConfig, saved: torch.dtype | None) -> torch.dtype:
    """`auto`: as saved on a GPU; float32 on a CPU, where half precision is slow or missing."""
    if config.dtype != "auto":
        if config.dtype not in _DTYPES:
            raise ModelError(f"dtype {config.dtype!r} is not known; give one of {', '.join(_DTYPES)} or 'auto'")
        return _DTYPES[config.dtype]
    if config.resolved_device() == "cpu" or saved is None:
        return torch.float32
    return saved


class _Stop(Exception):
    """Raised by the last hook of a read: nothing after it is needed."""


def _hidden(value: Any, site: Site) -> Tensor:
    first = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(first, Tensor):
        raise SiteNotFound(f"the site {site} holds a {type(first).__name__}; one that holds a tensor is wanted")
    return first


def _replaced(value: Any, hidden: Tensor) -> Any:
    if isinstance(value, tuple | list):
        return type(value)([hidden, *value[1:]])
    return hidden


@contextmanager
def _hooked(lm: LanguageModel, site: Site, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `act` with the tensor at `site`; what it returns (if not None) takes the tensor's place."""
    module = lm.module(site.path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next((key for key in ("hidden_states", "x", "input") if key in kwargs), next(iter(kwargs), ""))
        new = act(_hidden(args[0] if args else kwargs.get(name), site))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        new = act(_hidden(output, site))
        return None if new is None else _replaced(output, new)

    if site.side == "in":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def read_sites(
    lm: LanguageModel,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Int[Tensor, "batch position"] | Bool[Tensor, "batch position"],
    sites: Sequence[Site],
) -> dict[Site, Float[Tensor, "batch position d_model"]]:
    """Activations at every site, in the model's own dtype, from one forward pass that stops after the last of them."""
    read: dict[Site, Tensor] = {}

    def keep(site: Site) -> Callable[[Tensor], None]:
        def act(hidden: Tensor) -> None:
            read[site] = hidden
            if len(read) == len(set(sites)):
                raise _Stop

        return act

    with ExitStack() as hooks, torch.no_grad():
        for site in sites:
            hooks.enter_context(_hooked(lm, site, keep(site)))
        try:
            lm.model(input_ids=input_ids, attention_mask=attention_mask.to(torch.long), use_cache=False)
        except _Stop:
            return read
    missing = [str(site) for site in sites if site not in read]
    raise SiteNotFound(f"the forward pass of {lm.name!r} never reached {', '.join(missing)}; choose other sites")


def site_width(lm: LanguageModel, site: Site) -> int:
    """d_model of a site, from one token's forward pass. Raises SiteNotFound."""
    one = torch.ones(1, 1, dtype=torch.long, device=lm.device)
    return int(read_sites(lm, one, one, [site])[site].shape[-1])


@contextmanager
def patch_sites(lm: LanguageModel, patches: dict[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While open, every forward pass replaces the activations at each site by what its function makes of them."""
    with ExitStack() as hooks:
        for site, patch in patches.items():
            hooks.enter_context(_hooked(lm, site, patch))
        yield
