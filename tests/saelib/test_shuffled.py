"""Harvested rows as they are read back: every row once an epoch, several sites aligned, the same batch at any time."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from saelib.errors import CheckpointError, ConfigError
from saelib.shuffled import ShuffledRows


def saved(folder: Path, sizes: list[int], dtype: torch.dtype = torch.float32) -> tuple[list[Path], torch.Tensor]:
    """Shard files whose rows are numbered, and all rows."""
    rows = torch.arange(sum(sizes)).unsqueeze(1) + torch.tensor([0.0, 0.25, 0.5])
    paths = []
    for index, part in enumerate(rows.to(dtype).split(sizes)):
        paths.append(folder / f"shard-{index}.safetensors")
        save_file({"site_0": part.clone(), "token_id": torch.arange(part.shape[0])}, paths[-1])
    return paths, rows


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    batch=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_an_epoch_is_a_permutation_of_all_rows(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], batch: int, seed: int
) -> None:
    paths, rows = saved(tmp_path_factory.mktemp("rows"), sizes)
    n = rows.shape[0]
    if n < batch:
        return
    reader = ShuffledRows(paths, (0,), batch, seed)
    read = torch.cat([reader.batch(step)[0] for step in range(2 * n // batch + 1)])
    for epoch in range(2):
        mine = read[epoch * n : (epoch + 1) * n]
        assert torch.equal(mine[mine[:, 0].argsort()][: mine.shape[0]], rows[: mine.shape[0]]) or mine.shape[0] < n
    m = min(read.shape[0], 8 * batch)
    assert torch.equal(reader.sample()[0][:m], read[:m])


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [13, 7, 22, 5])
    forward, back = ShuffledRows(paths, (0,), 6, 3), ShuffledRows(paths, (0,), 6, 3)
    batches = [forward.batch(step)[0] for step in range(30)]
    for step in (29, 3, 17, 0, 28):
        assert torch.equal(back.batch(step)[0], batches[step])
    assert not torch.equal(ShuffledRows(paths, (0,), 6, 4).batch(0)[0], batches[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_read_in_the_dtype_that_they_are_stored_in(tmp_path: Path, dtype: torch.dtype) -> None:
    paths, rows = saved(tmp_path, [12], dtype)
    reader = ShuffledRows(paths, (0,), 12, 0)
    assert torch.equal(reader.batch(0)[0], rows.to(dtype))


def test_fewer_rows_than_a_batch_are_refused_with_both_numbers(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [5, 6])
    with pytest.raises(ConfigError, match=r"11 training tokens, fewer than one batch of 12; add text or lower"):
        ShuffledRows(paths, (0,), 12, 0)


def test_a_truncated_shard_is_refused_with_both_sizes(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [30, 30])
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-300])
    with pytest.raises(CheckpointError, match=r"shard-1\.safetensors is truncated: \d+ bytes where \d+ are wanted"):
        ShuffledRows(paths, (0,), 4, 0)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"])
def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard-0.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-0\.safetensors is no readable activation shard.*harvest again"):
        ShuffledRows([path], (0,), 4, 0)


def test_a_shard_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [30])
    reader = ShuffledRows(paths, (0,), 30, 0)
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ended early"):
        reader.batch(0)


def test_sites_are_aligned_row_by_row(tmp_path: Path) -> None:
    paths = []
    for index in range(3):
        rows = torch.arange(index * 10.0, index * 10.0 + 10).unsqueeze(1)
        paths.append(tmp_path / f"shard-{index}.safetensors")
        save_file({"site_0": rows, "site_1": torch.cat([-rows, rows], dim=1)}, paths[-1])
    for first, second in (ShuffledRows(paths, (0, 1), 8, 1).batch(step) for step in range(7)):
        assert torch.equal(torch.cat([-first, first], dim=1), second)
