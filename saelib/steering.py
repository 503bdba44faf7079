"""Use a feature: find where it fires in texts, and change how strongly it fires while the model generates.

An edit is applied as decode(edited) − decode(original), so the part of the activation that the SAE does not
reconstruct is left alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelib.base import Frozen
from saelib.errors import ConfigError
from saelib.lm import LanguageModel, patch_sites, read_sites
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
    site, found = sae.ends.read[0], []
    special = torch.tensor(lm.special_ids)
    for text in texts:
        encoded = lm.tokenizer(text, return_tensors="pt", truncation=True, max_length=lm.context_tokens)
        ids = encoded["input_ids"]
        if ids.shape[1] == 0:
            continue
        x = read_sites(lm, ids.to(lm.device), torch.ones_like(ids).to(lm.device), [site])[site][0]
        f = sae.fire(x.float()).columns(torch.tensor([feature]))[:, 0].cpu()
        for position in torch.nonzero((f > 0) & ~torch.isin(ids[0], special)).flatten().tolist():
            found.append(Occurrence(text, lm.token_text(int(ids[0, position])), f[position].item()))
    return sorted(found, key=lambda occurrence: -occurrence.activation)


@contextmanager
def steering_hook(lm: LanguageModel, sae: SAE, edits: Sequence[Edit]) -> Iterator[None]:
    """While open, `lm.model.generate` (and any forward pass) runs with the edits at the SAE's site.

    Works with and without the key-value cache: each pass edits the positions that it is given. Special tokens and
    padding pass through untouched. Raises ConfigError for a feature the SAE does not have.
    """
    for edit in edits:
        _check_feature(sae, edit.feature)
    features = torch.tensor([edit.feature for edit in edits], dtype=torch.int64, device=lm.device)
    given: dict[str, Tensor] = {}
    special = torch.tensor(lm.special_ids, device=lm.device)

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given["ids"] = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]

    def patch(x: Float[Tensor, "batch position d"]) -> Float[Tensor, "batch position d"]:
        f = sae.fire(x.flatten(0, 1).float()).columns(features).view(*x.shape[:2], len(edits))
        changes = torch.zeros_like(f)
        for index, edit in enumerate(edits):
            changes[..., index] = edit.change(f[..., index])
        changes *= ~torch.isin(given["ids"], special).unsqueeze(-1)
        return x + (changes @ sae.W_dec[features]).to(x.dtype)

    handle = lm.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with patch_sites(lm, {sae.ends.write[0]: patch}):
            yield
    finally:
        handle.remove()
