"""Our own form: `sae.json` beside `sae.safetensors`, as SAE.save writes them."""

from pathlib import Path

import torch

from saelib.base import Ends
from saelib.errors import CheckpointError
from saelib.interop.files import Config, read_tensors
from saelib.interop.found import About, Found, settled
from saelib.nonlinearity import tensors_of
from saelib.sae import SAE

__all__ = ["describe", "read"]


def describe(config: Config, folder: Path) -> About:
    """What `sae.json` says. Raises CheckpointError that names the key."""
    try:
        return About(str(config["architecture"]), None, Ends.model_validate(config["ends"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'sae.json'}: the keys 'architecture' and 'ends' are wanted: {error}"
        ) from error


def read(found: Found, b_dec_in: bool | None) -> SAE:
    """The SAE, bit by bit. Raises CheckpointError that names the key or the tensor at fault."""
    settled(b_dec_in, False, found)
    kept = read_tensors(found.weights)
    if bad := [name for name, tensor in kept.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{found.weights}: {bad[0]} holds NaN or Inf; the training went wrong or it is damaged")
    sae = SAE.load(found.folder)
    if extra := sorted(set(kept) - {name for name, _ in sae.named_buffers()} - tensors_of(sae.nonlinearity).keys()):
        raise CheckpointError(f"{found.weights} has the tensor {', '.join(extra)}, which no SAE of its kind has")
    sae.ends = found.ends
    return sae
