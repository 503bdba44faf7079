"""Files of a harvested shard, in the safetensors format: written from the tensors as they lie in memory, read by rows.

A shard is one file a site and one of what stands beside the rows; see docs/harvest.md. Rows are read with `preadv`
into tensors of our own: a copy out of a mapped file is somewhat faster (docs/performance.md), but either loads several
GB/s, a hundredth of a training step, and mapped pages count as memory of the process, which would seem to grow to the
size of what it reads.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saelib.errors import CheckpointError

__all__ = ["ROWS", "Column", "parts_of"]

ROWS = "activations"
"""Name of the tensor in a site's file."""

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """What a safetensors file of `tensors` holds, one piece after another, without a copy of what is contiguous."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    content: list[bytes | memoryview] = []
    end = 0
    for name, tensor in tensors.items():
        flat = tensor.contiguous().view(-1)
        data = memoryview(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        start, end = end, end + data.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        content.append(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *content]


class Column:
    """The activations of one site in one shard, read by rows."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a file that is no shard, or not all of one."""
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            entry = header[ROWS]
            self.dtype, self.shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            self.start = 8 + size + entry["data_offsets"][0]
            end = 8 + size + entry["data_offsets"][1]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise CheckpointError(
                f"{path} is no readable activation shard ({error}); delete its artifact and harvest again"
            ) from error
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path} is truncated: {path.stat().st_size} bytes where {end} are wanted; harvest again"
            )
        self.path = path
        self.row_bytes = self.shape[1] * self.dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)

    @property
    def n_rows(self) -> int:
        """Rows in the file."""
        return int(self.shape[0])

    def read(self, first: int, out: Tensor) -> None:
        """Rows first … first + len(out) into `out`. Raises CheckpointError where the file ended early."""
        view = memoryview(out.view(torch.uint8).numpy().reshape(-1).data)
        offset = self.start + first * self.row_bytes
        while view:
            got = os.preadv(self._file, [view], offset)
            if got == 0:
                raise CheckpointError(f"{self.path} ended early; harvest again")
            view, offset = view[got:], offset + got

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
