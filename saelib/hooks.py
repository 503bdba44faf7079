"""Hooks on a model's modules: look at the tensor on one side of a module, or put another in its place.

A hook works on whatever a module takes or returns: a tensor, a tuple whose first element is the tensor, or a keyword
argument. What it hands over is always [batch, position, width]: some models fold batch and position into one axis on
the way (OPT's feed-forward), which is undone here and redone for what takes its place.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from saelib.base import Site
from saelib.errors import SiteNotFound

__all__ = ["Act", "hooked", "site_widths"]

Act = Callable[[Tensor], Tensor | None]
"""Looks at the tensor at a site; what it returns (if not None) takes the tensor's place."""

Target = tuple[Site, nn.Module, Act]


class _Grid:
    """Batch and position of the forward pass that is under way; None before the first."""

    def __init__(self) -> None:
        self.shape: tuple[int, int] | None = None

    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the model's own forward pass."""
        given = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        first = next((value for value in given if isinstance(value, Tensor)), None)
        self.shape = None if first is None or first.ndim < 2 else (first.shape[0], first.shape[1])

    def unfolded(self, x: Tensor) -> Tensor | None:
        """`x` as [batch, position, width]; None where it is something else."""
        if self.shape is None:
            return x
        if x.ndim == 3 and tuple(x.shape[:2]) == self.shape:
            return x
        if x.ndim == 2 and x.shape[0] == self.shape[0] * self.shape[1]:
            return x.reshape(*self.shape, x.shape[1])
        return None


def _first_tensor(value: Any, site: Site) -> Tensor:
    first = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(first, Tensor):
        raise SiteNotFound(f"the site {site} holds a {type(first).__name__}; one that holds a tensor is wanted")
    return first


def _with_first(value: Any, first: Tensor) -> Any:
    if not isinstance(value, tuple | list):
        return first
    rest = [first, *value[1:]]
    return type(value)(*rest) if hasattr(value, "_fields") else type(value)(rest)


def _acted(first: Tensor, site: Site, act: Act, grid: _Grid) -> Tensor | None:
    """What takes the place of `first`, in its shape: a copy, for a model may go on and add to it in place."""
    x = grid.unfolded(first)
    if x is None:
        raise SiteNotFound(
            f"the site {site} holds a tensor of shape {list(first.shape)}; one of [batch, position, width] with batch "
            f"and position {list(grid.shape or ())} is wanted, so choose the module around it"
        )
    new = act(x)
    return None if new is None else new.clone().reshape(first.shape)


def _named(module: nn.Module, kwargs: dict[str, Any]) -> str:
    """The keyword under which the activation comes: the first parameter that `forward` names, else the first tensor."""
    first = next(iter(inspect.signature(module.forward).parameters), "")
    if first in kwargs:
        return first
    return next((key for key, value in kwargs.items() if isinstance(value, Tensor)), "")


@dataclass(frozen=True)
class _Hook:
    """One target, as the hooks that torch calls. A class, for functions made anew for each module cost more."""

    site: Site
    act: Act
    grid: _Grid

    def on(self, module: nn.Module) -> Callable[[], None]:
        """Puts it there; what is returned takes it away."""
        if self.site.side == "in":
            return module.register_forward_pre_hook(self.before, with_kwargs=True).remove
        return module.register_forward_hook(self.after).remove

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On what the module takes."""
        name = "" if args else _named(module, kwargs)
        new = _acted(_first_tensor(args[0] if args else kwargs.get(name), self.site), self.site, self.act, self.grid)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """On what it returns."""
        new = _acted(_first_tensor(output, self.site), self.site, self.act, self.grid)
        return None if new is None else _with_first(output, new)


@contextmanager
def hooked(model: nn.Module, targets: Sequence[Target]) -> Iterator[None]:
    """While open, every forward pass of `model` calls each target's function with the tensor at its site."""
    with ExitStack() as stack:
        grid = _Grid()
        stack.callback(model.register_forward_pre_hook(grid.note, with_kwargs=True).remove)
        for site, module, act in targets:
            stack.callback(_Hook(site, act, grid).on(module))
        yield


class _Widths:
    """The width of every site that is passed."""

    def __init__(self, grid: _Grid) -> None:
        self.grid, self.found = grid, dict[Site, int]()

    def before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """On what a module takes."""
        self._keep(Site(path=path, side="in"), args[0] if args else kwargs.get(_named(module, kwargs)))

    def after(self, path: str, _: nn.Module, __: Any, output: Any) -> None:
        """On what it returns."""
        self._keep(Site(path=path), output)

    def _keep(self, site: Site, value: Any) -> None:
        first = value[0] if isinstance(value, tuple | list) and value else value
        x = self.grid.unfolded(first) if isinstance(first, Tensor) else None
        if x is not None and x.is_floating_point():
            self.found.setdefault(site, int(x.shape[-1]))


@contextmanager
def site_widths(model: nn.Module) -> Iterator[dict[Site, int]]:
    """While open, a forward pass leaves the width of every site that it reaches in the dictionary, in its order."""
    with ExitStack() as stack:
        grid = _Grid()
        widths = _Widths(grid)
        stack.callback(model.register_forward_pre_hook(grid.note, with_kwargs=True).remove)
        for path, module in model.named_modules():
            if path:
                stack.callback(module.register_forward_pre_hook(partial(widths.before, path), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(partial(widths.after, path)).remove)
        yield widths.found
