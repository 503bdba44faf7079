"""The tensors a format wants against those a file has: every difference is an error that names the tensor."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saelib.errors import CheckpointError

__all__ = ["Shape", "checked"]

Shape = tuple[str, ...]
"""A tensor's axes by the name of their size; a size that is not known yet is the one of its first tensor."""

_COUNTS = ("k", "group_sizes")
"""Tensors that hold whole numbers."""


def checked(
    path: Path,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Shape],
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The wanted tensors, in float32 whatever they were kept in.

    `sizes`: what the settings say of the axes. Raises CheckpointError that names a tensor which is missing, unknown, of
    another shape, of another type, or not finite.
    """
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(
            f"{path} lacks the tensor {', '.join(missing)}; it has {sorted(tensors)}: copy the checkpoint again"
        )
    if extra := sorted(set(tensors) - set(wanted)):
        raise CheckpointError(
            f"{path} has the tensor {', '.join(extra)}, which its kind of SAE has not; {sorted(wanted)} are wanted: "
            "the settings do not belong to these weights, or another tool wrote them"
        )
    known = dict(sizes)
    return {name: _one(path, name, tensors[name], shape, known).to(dtype) for name, shape in wanted.items()}


def _one(path: Path, name: str, tensor: Tensor, shape: Shape, sizes: dict[str, int]) -> Tensor:
    if tensor.dim() == len(shape):
        for axis, size in zip(shape, tensor.shape, strict=True):
            sizes.setdefault(axis, size)
    expected = tuple(sizes.get(axis, -1) for axis in shape)
    if tuple(tensor.shape) != expected or tensor.numel() == 0:
        named = ", ".join(f"{axis}={sizes.get(axis, 'any')}" for axis in shape) or "a single number"
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(tensor.shape)}; ({named}) is wanted: the settings or the weights are not "
            "of this SAE"
        )
    if tensor.layout is not torch.strided or not (tensor.is_floating_point() or name in _COUNTS):
        raise CheckpointError(f"{path}: {name} is of {tensor.dtype}, {tensor.layout}; dense floating point is wanted")
    if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
        raise CheckpointError(f"{path}: {name} holds NaN or Inf; the training went wrong or the file is damaged")
    return tensor
