"""Harvested rows as they are read back: every row once an epoch, several sites aligned, the same batch at any time."""

import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from saelib.errors import CheckpointError, ConfigError
from saelib.shard_files import ROWS, Column, parts_of
from saelib.shuffled import Rows, ShuffledRows


def saved(folder: Path, sizes: list[int], dtype: torch.dtype = torch.float32) -> tuple[list[Path], torch.Tensor]:
    """Shard files whose rows are numbered, and all rows."""
    rows = torch.arange(sum(sizes)).unsqueeze(1) + torch.tensor([0.0, 0.25, 0.5])
    paths = []
    for index, part in enumerate(rows.to(dtype).split(sizes)):
        paths.append(folder / f"shard-{index}.safetensors")
        paths[-1].write_bytes(b"".join(parts_of({ROWS: part})))
    return paths, rows


def reading(paths: list[Path], batch_tokens: int, seed: int) -> ShuffledRows:
    """The only site of the shards."""
    return ShuffledRows([[path] for path in paths], batch_tokens, seed)


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
    reader = reading(paths, batch, seed)
    read = torch.cat([reader.batch(step)[0] for step in range(2 * n // batch + 1)])
    for epoch in range(2):
        mine = read[epoch * n : (epoch + 1) * n]
        assert torch.equal(mine[mine[:, 0].argsort()][: mine.shape[0]], rows[: mine.shape[0]]) or mine.shape[0] < n
    m = min(read.shape[0], 8 * batch)
    assert torch.equal(reader.sample()[0][:m], read[:m])


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [13, 7, 22, 5])
    forward, back = reading(paths, 6, 3), reading(paths, 6, 3)
    batches = [forward.batch(step)[0] for step in range(30)]
    for step in (29, 3, 17, 0, 28):
        assert torch.equal(back.batch(step)[0], batches[step])
    assert not torch.equal(reading(paths, 6, 4).batch(0)[0], batches[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_read_in_the_dtype_that_they_are_stored_in(tmp_path: Path, dtype: torch.dtype) -> None:
    paths, rows = saved(tmp_path, [12], dtype)
    reader = reading(paths, 12, 0)
    assert torch.equal(reader.batch(0)[0], rows.to(dtype))


def test_fewer_rows_than_a_batch_are_refused_with_both_numbers(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [5, 6])
    with pytest.raises(ConfigError, match=r"11 training tokens, fewer than one batch of 12; add text or lower"):
        reading(paths, 12, 0)


def test_a_truncated_shard_is_refused_with_both_sizes(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [30, 30])
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-300])
    with pytest.raises(CheckpointError, match=r"shard-1\.safetensors is truncated: \d+ bytes where \d+ are wanted"):
        reading(paths, 4, 0)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"])
def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard-0.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-0\.safetensors is no readable activation shard.*harvest again"):
        reading([path], 4, 0)


def test_a_shard_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [30])
    reader = reading(paths, 30, 0)
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ended early"):
        reader.batch(0)


def test_sites_are_aligned_row_by_row(tmp_path: Path) -> None:
    paths = []
    for index in range(3):
        rows = torch.arange(index * 10.0, index * 10.0 + 10).unsqueeze(1)
        paths.append([tmp_path / f"shard-{index}.site-{place}.safetensors" for place in range(2)])
        for path, site in zip(paths[-1], (rows, torch.cat([-rows, rows], dim=1)), strict=True):
            path.write_bytes(b"".join(parts_of({ROWS: site})))
    for first, second in (ShuffledRows(paths, 8, 1).batch(step) for step in range(7)):
        assert torch.equal(torch.cat([-first, first], dim=1), second)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("almanac")]


def test_reading_ahead_changes_no_batch_and_leaves_no_thread(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, [13, 7, 22, 5])
    ahead, plain = reading(paths, 6, 3), reading(paths, 6, 3)
    for step in (0, 1, 2, 7, 3, 4, 4, 5, 30):
        (batch,), (same,) = ahead.batch(step), Rows.batch(plain, step)
        assert torch.equal(batch, same), step
        assert torch.equal(ahead.sample()[0], Rows.sample(plain)[0])
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_the_next_batch_is_read_while_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = saved(tmp_path, [40])
    reader, readers = reading(paths, 10, 0), list[str]()
    real = Column.read

    def noted(self: Column, first: int, out: torch.Tensor) -> None:
        readers.append(threading.current_thread().name)
        real(self, first, out)

    monkeypatch.setattr(Column, "read", noted)
    for step in range(4):
        reader.batch(step)
    reader.sample()
    here = threading.current_thread().name
    assert readers[:5] == [here, *["almanac-read-ahead"] * 4] and set(readers[5:]) == {here}


def test_what_goes_wrong_while_reading_ahead_is_raised_for_the_batch_that_it_hit(tmp_path: Path) -> None:
    paths, rows = saved(tmp_path, [10])
    reader = reading(paths, 10, 0)
    whole = paths[0].read_bytes()
    first = reader.batch(0)[0]
    reader.sample()  # waits for what is read ahead
    paths[0].write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="ended early"):
        reader.batch(1)
    paths[0].write_bytes(whole)
    assert torch.equal(reader.batch(0)[0], first) and first.shape == rows.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32])
@pytest.mark.parametrize("n_rows", [0, 3])
def test_files_that_we_write_are_what_safetensors_reads(tmp_path: Path, dtype: torch.dtype, n_rows: int) -> None:
    wide, narrow = torch.randn(2, n_rows, 5).mul(100).to(dtype).unbind()
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"".join(parts_of({"wide": wide, "column": narrow[:, 0]}, {"said": "\u00fc"})))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"said": "\u00fc"}
        assert torch.equal(file.get_tensor("wide"), wide) and torch.equal(file.get_tensor("column"), narrow[:, 0])
