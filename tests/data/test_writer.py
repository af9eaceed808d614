"""What converters ask of the writer: any length, nested columns, compression, shared frames."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tianshou.data import Batch

from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.replay import Replay
from tianshou_ext.data.writer import BufferWriter, bytes_of_row
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

RNG = np.random.default_rng(0)


def columns(count: int, obs: Any, obs_next: Any) -> dict[str, Any]:
    ends = {"terminated": np.arange(count) == count - 1, "truncated": np.zeros(count, bool)}
    return {
        "obs": obs,
        "obs_next": obs_next,
        "act": np.arange(count),
        "rew": np.ones(count),
        **ends,
    }


def both(path: Path) -> list[ReplayBuffer]:
    return [load_buffer(path), load_buffer(path, mapped=False), ReplayBuffer.load_hdf5(str(path))]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("rows", [700, 1000])
def test_a_shorter_file_than_announced_holds_what_was_appended(
    compression: Any, rows: int, tmp_path: Path
):
    if compression == "zstd":
        pytest.importorskip("hdf5plugin")
    obs = RNG.normal(size=(rows, 300)).astype(np.float32)
    with BufferWriter(tmp_path / "b.hdf5", 1000, compression=compression) as writer:
        writer.append(**{k: v[:400] for k, v in columns(rows, obs, obs + 1).items()})
        writer.append(**{k: v[400:] for k, v in columns(rows, obs, obs + 1).items()})
    for buffer in both(tmp_path / "b.hdf5"):
        assert len(buffer) == buffer.maxsize == rows
        assert np.array_equal(buffer.obs, obs)
        assert np.array_equal(buffer.obs_next, obs + 1)
        assert np.array_equal(buffer.act, np.arange(rows))
        assert buffer.next(rows - 1) == rows - 1 and buffer.prev(0) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "b.hdf5"]


def test_dict_observations_become_a_batch(tmp_path: Path):
    obs = {
        "goal": RNG.normal(size=(5, 2)),
        "view": {"left": np.arange(5), "right": np.ones((5, 3))},
    }
    with BufferWriter(tmp_path / "b.hdf5", 5) as writer:
        writer.append(**columns(5, obs, obs))
    for buffer in both(tmp_path / "b.hdf5"):
        assert isinstance(buffer.obs, Batch)
        batch = buffer[np.array([3, 1])]
        assert np.array_equal(batch.obs.view.left, [3, 1])
        assert np.array_equal(batch.obs_next.goal, obs["goal"][[3, 1]])
    with pytest.raises(InputError, match="flatten"):
        Replay(load_buffer(tmp_path / "b.hdf5"))


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_shared_frames_are_stored_once_and_read_as_two_stacks(compression: Any, tmp_path: Path):
    frames = RNG.integers(0, 256, (60, 5, 84, 84), dtype=np.uint8)
    rest = columns(60, 0, 0)
    del rest["obs"], rest["obs_next"]
    path = tmp_path / "b.hdf5"
    with BufferWriter(path, 90, shared_frames=True, compression=compression) as writer:
        writer.append(frames=frames, **rest)
    assert path.stat().st_size < 1.05 * frames.nbytes
    for buffer in both(path):
        assert np.array_equal(buffer.obs, frames[:, :4])
        assert np.array_equal(buffer.obs_next, frames[:, 1:])
    if compression == "none":
        mapped = load_buffer(path)
        assert isinstance(mapped.obs.base, np.memmap)
        assert np.shares_memory(mapped.obs, mapped.obs_next)
        batch = Replay(mapped).gather(Replay(mapped).rows[[7, 30]])
        assert np.array_equal(batch.obs_next.numpy(), frames[[7, 30], 1:])


def test_a_block_of_another_shape_or_type_is_refused(tmp_path: Path):
    obs = np.zeros((2, 3), np.float32)
    for other in (np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float64)):
        with pytest.raises(ValueError, match="obs"), BufferWriter(tmp_path / "b", 9) as writer:
            writer.append(**columns(2, obs, obs))
            writer.append(**columns(2, other, other))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "b.hdf5", tmp_path / "file" / "new" / "b.hdf5"):
        with pytest.raises(OSError, match="^expected to write .*another folder"):
            BufferWriter(path, 9).__enter__()


def test_a_folder_in_the_place_of_a_file_is_one_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, "."):
        with pytest.raises(InputError, match="expected a file to write, got the folder"):
            BufferWriter(path, 9)


def test_bytes_of_a_row_count_nested_columns():
    assert bytes_of_row({"obs": {"x": np.zeros((4, 2), np.float32)}, "act": np.zeros(4, int)}) == 16


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="expected a file to write, got the device"):
        BufferWriter(tmp_path / "pipe", 9)


FULL = """
import resource, sys
import numpy as np
from tianshou_ext.data.writer import BufferWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
rng = np.random.default_rng(0)
flags = np.zeros(500, bool)
for compression in sys.argv[2:]:
    try:
        with BufferWriter(sys.argv[1], 200_000, compression=compression) as writer:
            for _ in range(400):
                obs = rng.normal(size=(500, 30))
                writer.append(obs=obs, obs_next=obs, act=flags, rew=obs[:, 0], terminated=flags,
                              truncated=~flags)
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on the size of files")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    kinds = ["none", "gzip", *(["zstd"] if find_spec("hdf5plugin") else [])]
    command = [sys.executable, "-c", FULL, str(tmp_path / "b.hdf5"), *kinds]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(kinds)
    assert all(sentence.startswith("expected to write") for sentence in sentences)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_small_blocks_compress_as_well_as_large_ones(compression: Any, tmp_path: Path):
    if compression == "zstd":
        pytest.importorskip("hdf5plugin")
    obs = RNG.normal(size=(5000, 100)).astype(np.float32)
    rows = columns(5000, obs, obs + 1)
    for name, step in (("large", 5000), ("small", 7)):
        with BufferWriter(tmp_path / name, 5000, compression=compression) as writer:
            for k in range(0, 5000, step):
                block = {key: values[k : k + step].copy() for key, values in rows.items()}
                writer.append(**block)
                block["obs"][:] = 0  # what was brought is the caller's again
            writer.overwrite(4321, obs=obs[1])
    large, small = tmp_path / "large", tmp_path / "small"
    assert small.stat().st_size < 1.02 * large.stat().st_size
    obs[4321] = obs[1]
    for buffer in (*both(large), *both(small)):
        assert np.array_equal(buffer.obs, obs)
        assert np.array_equal(buffer.act, np.arange(5000))
