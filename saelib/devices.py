"""What a device does beside computing: it runs out of memory, is lost, and copies to the host while it goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from saelib.errors import BatchTooLarge, DeviceError

__all__ = ["OnTheWay", "computing", "device_bytes"]

_NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "not enough memory")
_LOST = ("CUDA error", "HIP error", "device-side assert", "device lost", "unspecified launch failure")


def device_bytes(device: torch.device) -> int | None:
    """Memory of a GPU; None for the CPU, where a plan must not depend on the machine."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


@contextmanager
def computing(device: torch.device, shape: tuple[int, int], name: str) -> Iterator[None]:
    """Says in our words what a device may do to a batch of `shape` (sequences, tokens of the longest) of shard `name`.

    Raises BatchTooLarge where memory runs out with several sequences; DeviceError where it does with a single one, and
    where the device is lost.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise _too_large(device, shape, name, said) from error
        if isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _LOST):
            raise DeviceError(
                f"the device {str(device)!r} was lost in {name} ({said}); shards that were finished are kept: "
                "bring it back, or name another as lm.device, and run again, which goes on from there"
            ) from error
        raise


def _too_large(device: torch.device, shape: tuple[int, int], name: str, said: str) -> Exception:
    n_sequences, n_tokens = shape
    found = f"out of memory on {str(device)!r} in {name}, with a batch of {n_sequences} sequences of {n_tokens} tokens"
    if n_sequences > 1:
        return BatchTooLarge(f"{found} ({said}); lower harvest.batch_tokens")
    return DeviceError(
        f"out of memory on {str(device)!r} in {name}, with a single sequence of {n_tokens} tokens ({said}): no smaller "
        "batch is left; lower corpus.context_tokens, set lm.dtype to 'bfloat16', or name another lm.device"
    )


class OnTheWay:
    """Tensors that are copied to the host: from a GPU into pinned memory, on a stream of its own, beside what it
    computes next; on a CPU they are there already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._there: torch.cuda.Event | None = None
        self._tensors = list(tensors)
        if tensors and tensors[0].device.type == "cuda":
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._tensors = self._leave(tensors, self._there)

    def _leave(self, tensors: Sequence[Tensor], there: torch.cuda.Event) -> list[Tensor]:
        device = tensors[0].device
        stream = _copying(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        with torch.cuda.stream(stream):
            for host, tensor in zip(hosts, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
            there.record(stream)
        return hosts

    def arrived(self) -> list[Tensor]:
        """On the host; waits for them."""
        if self._there is not None:
            self._there.synchronize()
        return self._tensors


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies of a device; one for all, since making one takes time."""
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]
