"""What is trained: everything that is not the shipped default, and why."""

from typing import Any, NamedTuple

N_FEATURES = 1024
BATCH_TOKENS = 512
"""At 1 M samples the number of steps decides: 4,096 tokens a step are 244 steps, and half as good again."""


class Variant(NamedTuple):
    """An architecture with the settings that bring it to L0 16; the reference that it stands beside."""

    architecture: str
    settings: dict[str, Any]
    reference: str | None = None


VARIANTS = {
    "topk": Variant("topk", {"k": 16}, "topk"),
    "batchtopk": Variant("batchtopk", {"k": 16}, "batchtopk"),
    "matryoshka": Variant("matryoshka", {"k": 16}),
    "jumprelu": Variant("jumprelu", {"k": 15}),
    "jumprelu-step": Variant("jumprelu", {"k": 16, "loss": "step", "l0_weight": 7e-4}),
    "jumprelu-tanh": Variant("jumprelu", {"k": 16, "loss": "tanh", "l0_weight": 1.4e-3}),
    "standard": Variant("standard", {"l1_weight": 4.0}, "standard"),
    "gated": Variant("gated", {"l1_weight": 10.0}),
}
"""By name, in the order of the table. The target loss of jumprelu reaches its k on the text it learns from; other text
fires 4 to 6 % more often, hence 15."""

_KS = (4, 8, 16, 32)
FRONTIER: dict[str, list[dict[str, Any]]] = {
    "topk": [{"k": k} for k in _KS],
    "batchtopk": [{"k": k} for k in _KS],
    "matryoshka": [{"k": k} for k in _KS],
    "jumprelu": [{"k": k} for k in (4, 8, 15, 30)],
    "standard": [{"l1_weight": weight} for weight in (16.0, 8.0, 4.0, 1.6)],
    "gated": [{"l1_weight": weight} for weight in (20.0, 10.0, 5.0)],
}
"""Settings that cover L0 4 to 32, by variant. With k = 64 of 64 dimensions an SAE would be a basis."""
