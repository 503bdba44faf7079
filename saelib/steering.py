"""Use a feature: find where it fires in texts, and change how strongly it fires while the model generates.

An edit is applied as decode(edited) − decode(original), so the part of the activation that the SAE does not
reconstruct is left alone. It is applied as soon as every site that the SAE reads has been passed: at each site that is
written from there on (of a crosscoder that is the last one, which holds what the earlier ones wrote).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelib.base import Frozen, Site
from saelib.errors import ConfigError
from saelib.evaluation import sites_of
from saelib.lm import LanguageModel, patch_sites, read_sites, site_width
from saelib.sae import SAE

__all__ = ["Edit", "Occurrence", "find_feature_activations", "steering_hook"]


class Occurrence(NamedTuple):
    """One token on which a feature fires."""

    text: str
    token: str
    activation: float


class Edit(Frozen):
    """What to do with one feature. `strength` is in multiples of `unit`, the feature's maximum activation (`act_max`).

    add: f + s·unit · scale: f·s · clamp: s·unit on every token · ablate: 0.
    """

    feature: int
    op: Literal["add", "scale", "clamp", "ablate"] = "add"
    strength: float = 1.0
    unit: float = 1.0

    def change(self, f: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
        """edited − original."""
        if self.op == "add":
            return torch.full_like(f, self.strength * self.unit)
        if self.op == "scale":
            return f * (self.strength - 1)
        target = self.strength * self.unit if self.op == "clamp" else 0.0
        return target - f


def _check_feature(sae: SAE, feature: int) -> None:
    if not 0 <= feature < sae.n_features:
        raise ConfigError(f"no feature {feature}; the SAE has features 0…{sae.n_features - 1}")


def find_feature_activations(sae: SAE, lm: LanguageModel, texts: Sequence[str], feature: int) -> list[Occurrence]:
    """Every token of `texts` on which `feature` fires, strongest first; special tokens are left out."""
    _check_feature(sae, feature)
    found = []
    special = torch.tensor(lm.special_ids)
    for text in texts:
        encoded = lm.tokenizer(text, return_tensors="pt", truncation=True, max_length=lm.context_tokens)
        ids = encoded["input_ids"]
        if ids.shape[1] == 0:
            continue
        seen = read_sites(lm, ids.to(lm.device), torch.ones_like(ids).to(lm.device), sae.ends.read)
        x = torch.cat([seen[site][0] for site in sae.ends.read], dim=1)
        f = sae.fire(x.float()).columns(torch.tensor([feature]))[:, 0].cpu()
        for position in torch.nonzero((f > 0) & ~torch.isin(ids[0], special)).flatten().tolist():
            found.append(Occurrence(text, lm.token_text(int(ids[0, position])), f[position].item()))
    return sorted(found, key=lambda occurrence: -occurrence.activation)


@contextmanager
def steering_hook(lm: LanguageModel, sae: SAE, edits: Sequence[Edit]) -> Iterator[None]:
    """While open, `lm.model.generate` (and any forward pass) runs with the edits at the sites that the SAE writes.

    Works with and without the key-value cache: each pass edits the positions that it is given. Special tokens and
    padding pass through untouched. Raises ConfigError for a feature the SAE does not have.
    """
    for edit in edits:
        _check_feature(sae, edit.feature)
    run = _Steered(lm, sae, edits)
    handles = [
        lm.model.register_forward_pre_hook(run.begin, with_kwargs=True),
        lm.model.register_forward_hook(run.end),
    ]
    try:
        with patch_sites(lm, {site: partial(run.at, site) for site in sites_of(sae.ends)}):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Steered:
    """The forward pass that is under way: what was read so far, and the change that follows from it."""

    def __init__(self, lm: LanguageModel, sae: SAE, edits: Sequence[Edit]) -> None:
        self.sae, self.edits = sae, edits
        self.features = torch.tensor([edit.feature for edit in edits], dtype=torch.int64, device=lm.device)
        self.special = torch.tensor(lm.special_ids, device=lm.device)
        self.ids = torch.zeros(0)
        self.seen: dict[Site, Tensor] = {}
        self.change, self.is_applied = torch.zeros(0), False
        widths = [site_width(lm, site) for site in sae.ends.write]
        starts = [0, *accumulate(widths)]
        self.columns = {site: slice(a, b) for site, (a, b) in zip(sae.ends.write, pairwise(starts), strict=True)}

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Which tokens are given."""
        self.ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self.seen, self.is_applied = {}, False

    def end(self, *_: Any) -> None:
        """Raises ConfigError where nothing could be edited."""
        if not self.is_applied:
            raise ConfigError(
                f"the SAE writes {', '.join(map(str, self.sae.ends.write))} before all of "
                f"{', '.join(map(str, self.sae.ends.read))} is read, so it cannot be steered; "
                "take one that writes where it reads, or later"
            )

    def at(self, site: Site, x: Float[Tensor, "batch position d"]) -> Float[Tensor, "batch position d"]:
        """Look at a site that is read; change one that is written once all is read."""
        if site in self.sae.ends.read:
            self.seen[site] = x
        if site not in self.columns or len(self.seen) < len(self.sae.ends.read):
            return x
        if not self.is_applied:
            self.change, self.is_applied = self._changes(), True
        return x + self.change[..., self.columns[site]].to(x.dtype)

    def _changes(self) -> Float[Tensor, "batch position d_out"]:
        """decode(edited) − decode(original), in the unit of the output; nothing at special tokens and padding."""
        sae, batch = self.sae, self.ids.shape
        read = torch.cat([self.seen[site] for site in sae.ends.read], dim=-1).flatten(0, 1).float()
        f = sae.fire(read).columns(self.features)
        changes = torch.zeros_like(f)
        for index, edit in enumerate(self.edits):
            changes[:, index] = edit.change(f[:, index])
        changes *= ~torch.isin(self.ids.flatten(), self.special).unsqueeze(-1)
        written: Tensor = changes @ sae.W_dec[self.features] * sae.gain(read)
        return written.view(*batch, sae.d_out)
