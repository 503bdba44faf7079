"""What a device may do to a batch, in our words, and how large a batch is."""

import pytest
import torch

from saelib.batches import auto_batch_tokens
from saelib.devices import OnTheWay, computing
from saelib.errors import BatchTooLarge, DeviceError
from saelib.lm import LMConfig, load_lm, shape_of
from saelib.model_files import ModelShape

CPU = torch.device("cpu")
SMALL = ModelShape(d_model=256, d_ff=1024, n_heads=8, n_layers=4, n_vocab=4096, itemsize=4)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("the device lost its way: device lost"),
    ],
)
def test_a_lost_device_is_an_error_of_ours(error: RuntimeError) -> None:
    said = "'cpu' was lost in shard 4 .*shards that were finished are kept"
    with pytest.raises(DeviceError, match=said), computing(CPU, (8, 64), "shard 4"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_told_from_a_lost_device_and_from_the_last_resort(error: Exception) -> None:
    with pytest.raises(BatchTooLarge, match="a batch of 8 sequences of 64 tokens"), computing(CPU, (8, 64), "shard 4"):
        raise error
    said = "single sequence of 64 tokens.*no smaller batch is left"
    with pytest.raises(DeviceError, match=said), computing(CPU, (1, 64), "shard 4"):
        raise error


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), computing(CPU, (8, 64), "shard 4"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_tensors_of_the_cpu_are_there_already() -> None:
    given = [torch.ones(3), torch.zeros(2, 2)]
    assert all(here is there for here, there in zip(given, OnTheWay(given).arrived(), strict=True))


def test_a_batch_is_as_large_as_model_context_and_device_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert auto_batch_tokens(SMALL, 128, CPU) == 2048
    assert auto_batch_tokens(SMALL._replace(d_model=512, d_ff=2048), 128, CPU) == 1024
    assert auto_batch_tokens(SMALL._replace(itemsize=2), 128, CPU) == 4096
    assert auto_batch_tokens(SMALL, 4096, CPU) == 4096, "one whole sequence at least"
    for n_bytes, size in ((24 << 30, 65_536), (1 << 30, 8_192)):
        monkeypatch.setattr("saelib.batches.device_bytes", lambda _, n=n_bytes: n)
        assert auto_batch_tokens(SMALL, 128, torch.device("cuda")) == size


def test_the_shape_of_a_model_is_known_before_it_is_loaded() -> None:
    config = LMConfig(device="cpu")
    shape, lm = shape_of(config), load_lm(config)
    assert (shape.d_model, shape.n_layers, shape.n_vocab) == (lm.d_model, lm.n_layers, lm.n_vocab)
    assert shape == ModelShape.of(lm.model.config, lm.dtype)
    assert shape.weight_bytes == pytest.approx(4 * sum(each.numel() for each in lm.model.parameters()), rel=0.3)
