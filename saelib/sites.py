"""Names of sites: short ones that mean the same on every architecture, wildcards, and what a model has.

`resid_pre.6` and `resid_post.6` are what block 6 takes and returns, `attn_out.6` and `mlp_out.6` what its attention
and its feed-forward module return. Blocks are found by structure: the outermost list of modules that is as long as the
configuration says, else the longest. A wildcard stands for one part of a module path, or for every layer.
"""

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from saelib.base import Site
from saelib.errors import SiteNotFound
from saelib.hooks import site_widths
from saelib.lm import LanguageModel

__all__ = ["SHORT_NAMES", "SiteRow", "list_sites", "needs_model", "resolve_sites"]

SHORT_NAMES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""In the order in which a block computes them."""

_CHILDREN = {
    "attn_out": ("self_attn", "attn", "attention", "self_attention", "linear_attn"),
    "mlp_out": ("mlp", "ffn", "feed_forward", "block_sparse_moe", "fc2", "output"),
}
"""What blocks call these two. `fc2` and `output` are projections of blocks without a module for it (OPT, BERT)."""

_CLASSES = {"attn_out": r"Attention", "mlp_out": r"MLP|FFN|FeedForward|Moe|MoE"}
"""What their classes are called, where no attribute has a known name."""

_ADDED = {"residual", "input_tensor"}
"""A module that takes one of these adds it to what it returns (BERT, Bloom): its own is the projection's."""

_SHORT = re.compile(rf"({'|'.join(SHORT_NAMES)})\.(\d+|\*)")
_FOREIGN = re.compile(r"blocks\.(\d+|\*)\.hook_(resid_pre|resid_post)")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


class SiteRow(NamedTuple):
    """One site of a model."""

    site: Site
    short_name: str | None
    width: int


def needs_model(site: Site | str) -> bool:
    """Whether the name is a short one or has a wildcard, so that only the model says which module paths it means."""
    path = str(site).partition(":")[0]
    return "*" in path or bool(_SHORT.fullmatch(path) or _FOREIGN.fullmatch(path))


def resolve_sites(model: LanguageModel | PreTrainedModel, texts: Sequence[Site | str]) -> tuple[Site, ...]:
    """Sites by module path, short name or wildcard, as module paths; each once, in the order given.

    Raises SiteNotFound that names the nearest for a name that the model does not have, and the range for a layer.
    """
    tree = _Tree(model)
    found = [site for text in texts for site in tree.sites(str(text))]
    return tuple(dict.fromkeys(found))


def list_sites(lm: LanguageModel, every: bool = False) -> list[SiteRow]:
    """The sites that have short names, layer by layer; with `every`, all that a forward pass reaches, in its order.

    Widths are those of a forward pass of three tokens.
    """
    tree = _Tree(lm)
    ids = torch.ones(2, min(3, lm.context_tokens), dtype=torch.long, device=lm.device)
    with torch.no_grad(), site_widths(lm.model) as widths:
        lm.forward(ids, torch.ones_like(ids))
    short = {site: name for name, site in tree.short_sites() if site in widths}
    chosen = widths if every else short
    return [SiteRow(site, short.get(site), widths[site]) for site in chosen]


class _Tree:
    """A model's modules by path, and its blocks."""

    def __init__(self, model: LanguageModel | PreTrainedModel) -> None:
        root = model.model if isinstance(model, LanguageModel) else model
        self.name = model.name if isinstance(model, LanguageModel) else type(model).__name__
        self.modules: dict[str, nn.Module] = {path: module for path, module in root.named_modules() if path}
        self.blocks = _blocks(root)

    def sites(self, text: str) -> list[Site]:
        """Every site that `text` means."""
        site = Site.parse(text)
        if site.path in self.modules:
            return [site]
        path = _FOREIGN.sub(r"\2.\1", site.path)
        if short := _SHORT.fullmatch(path):
            if site.side == "in":
                raise SiteNotFound(
                    f"{text!r}: a short name has its side already; leave ':in' out, or give a module path"
                )
            return self._short(short.group(1), short.group(2))
        if "*" in path:
            return [Site(path=match, side=site.side) for match in self._matches(path)]
        raise SiteNotFound(f"{self.name!r} has no site {text!r}; the nearest are {self._nearest(path)}")

    def short_sites(self) -> Iterator[tuple[str, Site]]:
        """Every short name that this model has, with its site."""
        for layer in range(len(self.blocks)):
            for kind in SHORT_NAMES:
                if site := self._at(kind, layer):
                    yield f"{kind}.{layer}", site

    def _short(self, kind: str, layer: str) -> list[Site]:
        n = len(self.blocks)
        if n == 0:
            raise SiteNotFound(f"{self.name!r} has no list of blocks, so no {kind}; give a module path")
        if layer != "*" and int(layer) >= n:
            raise SiteNotFound(f"{self.name!r} has no {kind}.{layer}; its layers are 0…{n - 1}")
        layers = range(n) if layer == "*" else [int(layer)]
        found = [site for index in layers if (site := self._at(kind, index))]
        if not found:
            children = ", ".join(name for name, _ in self.modules[self.blocks[layers[0]]].named_children())
            having = [index for index in range(n) if self._at(kind, index)]
            where = f"layers that have one: {', '.join(map(str, having))}" if having else "no layer has one"
            raise SiteNotFound(f"{self.name!r} has no {kind}.{layer}: the block holds {children}; {where}")
        return found

    def _at(self, kind: str, layer: int) -> Site | None:
        path = self.blocks[layer]
        if kind.startswith("resid"):
            return Site(path=path, side="in" if kind == "resid_pre" else "out")
        child = _child(self.modules[path], kind)
        return None if child is None else Site(path=f"{path}.{child}")

    def _matches(self, pattern: str) -> list[str]:
        wanted = re.compile(re.escape(pattern).replace(r"\*", "[^.]*"))
        found = [path for path in self.modules if wanted.fullmatch(path)]
        if not found:
            raise SiteNotFound(
                f"no module of {self.name!r} matches {pattern!r}; the nearest are {self._nearest(pattern)}"
            )
        return found

    def _nearest(self, path: str) -> str:
        """Names like the one that was given: module paths, with `*` for the layer where it has one, and short names."""
        if "*" in path:
            known = [_NUMBER.sub(".*", name) for name in self.modules]
            short = [f"{kind}.*" for kind in SHORT_NAMES]
        else:
            known, short = list(self.modules), [name for name, _ in self.short_sites()]
        names = list(dict.fromkeys([*known, *short]))
        near = difflib.get_close_matches(path, names, n=3, cutoff=0.4) or [*short[:1], *known[:2]]
        return ", ".join(map(repr, near))


def _blocks(root: PreTrainedModel) -> list[str]:
    """Paths of the transformer's blocks, in order; none where their parts lie in several lists side by side (XLM)."""
    lists: dict[str, nn.ModuleList] = {}
    for path, module in root.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not is_inside:
            lists[path] = module
    if not lists:
        return []
    n_layers = getattr(root.config.get_text_config(), "num_hidden_layers", None)
    reader = root.get_decoder()  # type: ignore[no-untyped-call]  # of several parts, that which reads text
    text = next((f"{path}." for path, module in root.named_modules() if module is reader and path), "")

    def rank(path: str) -> tuple[bool, bool, int]:
        return len(lists[path]) == n_layers, path.startswith(text), len(lists[path])

    best = max(lists, key=rank)
    beside = [path for path in lists if path.rpartition(".")[0] == best.rpartition(".")[0] and rank(path) == rank(best)]
    return [f"{best}.{index}" for index in range(len(lists[best]))] if len(beside) == 1 else []


def _child(block: nn.Module, kind: str) -> str | None:
    """Path within the block of what its attention or feed-forward returns; None where it has none."""
    children = dict(block.named_children())
    named = [name for name in _CHILDREN[kind] if name in children]
    like = [name for name, child in children.items() if re.search(_CLASSES[kind], type(child).__name__)]
    chosen = next(iter([*named, *like]), None)
    return None if chosen is None else ".".join(filter(None, (chosen, _projection(children[chosen]))))


def _projection(module: nn.Module) -> str:
    """Path of the last linear map before the module adds what it was given; empty where it adds nothing."""
    for path, inner in module.named_modules():
        if _ADDED.isdisjoint(inspect.signature(inner.forward).parameters):
            continue
        linear = [name for name, child in inner.named_modules() if isinstance(child, nn.Linear)]
        if linear:
            return ".".join(filter(None, (path, linear[-1])))
    return ""
