"""Buffer files: readable by Tianshou, never unpickled, never half written."""

from __future__ import annotations

import errno
import fcntl
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tianshou.data import Batch, CachedReplayBuffer, VectorReplayBuffer

from tianshou_ext.data.hdf5 import load_buffer, load_rl_unplugged, read_provenance
from tianshou_ext.data.replay import Replay
from tianshou_ext.data.save import save_buffer
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make writing past ``size`` bytes of a file fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rows_of(buffer: ReplayBuffer) -> list[tuple[Any, ...]]:
    """Return all that can be sampled, in an order of its own."""
    batch = Replay(buffer).sample(0)
    columns = (batch.rew, batch.act, batch.terminated, batch.obs, batch.obs_next)
    rows = [tuple(c[k].flatten().tolist() for c in columns) for k in range(len(batch))]
    return sorted(rows)


def write(path: Path, size: int = 4, **options: Any) -> BufferWriter:
    return BufferWriter(path, size, **options)


def block(count: int, value: float = 1.0) -> dict[str, Any]:
    ends = {"terminated": np.arange(count) == count - 1, "truncated": np.zeros(count, bool)}
    obs = np.full((count, 2), value, np.float32)
    rew = value + np.arange(count)
    return {"obs": obs, "obs_next": obs + 1, "act": np.arange(count), "rew": rew, **ends}


@pytest.mark.parametrize(
    "kind", [("vector", "discrete"), ("vector", "continuous"), ("pixel", "discrete")]
)
def test_tianshou_opens_what_we_write(kind, make_buffer, tmp_path: Path):
    buffer = make_buffer(*kind)
    save_buffer(buffer, tmp_path / "b.hdf5")
    theirs = ReplayBuffer.load_hdf5(str(tmp_path / "b.hdf5"))
    assert len(theirs) == len(buffer)
    for key in ("obs", "act", "rew", "terminated", "truncated", "done"):
        ours = getattr(buffer, key)
        wanted = ours.astype(np.float32) if key == "rew" else ours
        assert np.array_equal(getattr(theirs, key), wanted), key
    inner = Replay(buffer).rows.numpy()
    assert np.array_equal(theirs[inner].obs_next, buffer[inner].obs_next)
    assert np.array_equal(theirs.prev(inner), buffer.prev(inner))
    assert np.array_equal(theirs.next(inner), buffer.next(inner))
    assert len(theirs.sample(5)[0]) == 5
    assert rows_of(theirs) == rows_of(buffer)


def test_a_loaded_buffer_samples_as_tianshou_buffers_do(discrete_buffer, tmp_path: Path):
    save_buffer(discrete_buffer, tmp_path / "b.hdf5")
    loaded = load_buffer(tmp_path / "b.hdf5")
    batch, indices = loaded.sample(6)
    assert np.array_equal(batch.obs, discrete_buffer[indices].obs)
    assert np.array_equal(batch.obs_next, discrete_buffer[indices].obs_next)


def test_no_pickle_in_a_file(discrete_buffer, tmp_path: Path):
    """A pickled random state is what numpy 1 cannot read from numpy 2."""
    save_buffer(discrete_buffer, tmp_path / "b.hdf5")
    kinds: dict[str, Any] = {}
    with h5py.File(tmp_path / "b.hdf5") as file:
        file.visititems(lambda name, item: kinds.update({name: dict(item.attrs)}))
        assert "_random_state" not in file
        assert "_random_state" not in file.attrs
    tagged = {
        name: attrs["__data_type__"] for name, attrs in kinds.items() if "__data_type__" in attrs
    }
    assert set(tagged.values()) == {"ndarray", "Batch"}
    assert {"_meta/obs", "_meta/done", "last_index", "_indices"} <= set(tagged)


@pytest.mark.parametrize("parts", [1, 2], ids=["ring", "vector"])
def test_the_numbers_in_info_are_saved_with_their_rows(parts, tmp_path: Path):
    buffer = ReplayBuffer(5) if parts == 1 else VectorReplayBuffer(10, 2)
    for k in range(8):
        obs = np.full(2, k)
        row = Batch(obs=obs, act=k, rew=float(k), terminated=k == 7, truncated=False, obs_next=obs)
        row.update(info={"at": np.array([k, -k]), "of": {"seed": k}, "who": f"player {k}"})
        rows = [row] if parts == 1 else [row, row]
        buffer.add(row if parts == 1 else Batch.stack(rows))
    save_buffer(buffer, tmp_path / "b.hdf5", {"seed": 3})
    for loaded in (load_buffer(tmp_path / "b.hdf5"), ReplayBuffer.load_hdf5(tmp_path / "b.hdf5")):
        assert np.array_equal(loaded.info["at"], loaded.act[:, None] * [1, -1])
        assert np.array_equal(loaded.info.of.seed, loaded.act)
        assert loaded.act.tolist() == [3, 4, 5, 6, 7] * parts
    about = read_provenance(tmp_path / "b.hdf5")
    assert about["info_left_out"] == ["info/who"] and about["seed"] == 3


@pytest.mark.parametrize("frames", [False, True], ids=["vectors", "frames"])
def test_a_wrapped_ring_is_saved_oldest_first(frames, make_buffer, tmp_path: Path):
    full = make_buffer("pixel" if frames else "vector", "discrete")
    options = (
        {"stack_num": 4, "ignore_obs_next": True, "save_only_last_obs": True} if frames else {}
    )
    ring = ReplayBuffer(13, **options)
    for k in range(len(full)):
        row = full[k]
        row.info = {}
        ring.add(row)
    save_buffer(ring, tmp_path / "b.hdf5")
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert np.array_equal(loaded.rew, full.rew[-13:].astype(np.float32))
    assert rows_of(loaded) == rows_of(ring)


def fill_sub_buffers(buffer: VectorReplayBuffer, lengths: list[int]) -> None:
    """Give each sub-buffer one running episode of that many rows, on from an ended one."""
    count = 0
    for k, length in enumerate(lengths):
        for t in range(length):
            count += 1
            obs = np.full(3, count, np.float32)
            row = Batch(
                obs=obs, act=count % 4, rew=float(count), terminated=t == 1, truncated=False
            )
            row.update(obs_next=obs + 0.5, info={})
            buffer.add(Batch([row]), buffer_ids=[k])


@pytest.mark.parametrize("lengths", [[5, 3, 0], [7, 5, 1], [0, 0, 2], [5, 9, 5]])
def test_a_vector_buffer_is_saved_with_every_row(lengths, tmp_path: Path):
    buffer = VectorReplayBuffer(15, 3)
    fill_sub_buffers(buffer, lengths)
    save_buffer(buffer, tmp_path / "b.hdf5")
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert len(loaded) == len(buffer) == sum(min(5, n) for n in lengths)
    assert rows_of(loaded) == rows_of(buffer)
    # Each sub-buffer's running episode is cut off, so that no episode runs on into the next.
    running = sum(n > 0 and n != 2 for n in lengths)
    assert loaded.truncated.sum() == running


def test_a_vector_buffer_of_stacked_frames_is_saved_with_every_row(tmp_path: Path):
    options = {"stack_num": 2, "ignore_obs_next": True, "save_only_last_obs": True}
    for sample_avail in (False, True):
        buffer = VectorReplayBuffer(12, 2, **options, sample_avail=sample_avail)
        for k, count in enumerate((3, 5)):
            for t in range(count):
                obs = np.full((2, 2, 2), 10 * k + t, np.uint8)
                row = Batch(obs=obs, act=t, rew=10.0 * k + t, obs_next=obs, info={})
                row.update(terminated=t == count - 1, truncated=False)
                buffer.add(Batch([row]), buffer_ids=[k])
        save_buffer(buffer, tmp_path / "b.hdf5")
        loaded = load_buffer(tmp_path / "b.hdf5")
        assert loaded.rew.tolist() == [0, 1, 2, 10, 11, 12, 13, 14]
        assert rows_of(loaded) == rows_of(buffer)


def test_truncated_rows_without_a_successor_do_not_get_a_false_one(tmp_path: Path):
    """Saved and loaded, a buffer without ``obs_next`` trains on what it did before, no more."""
    buffer = ReplayBuffer(8, ignore_obs_next=True)
    for t in range(6):
        obs = np.full(2, t, np.float32)
        row = Batch(obs=obs, act=t, rew=float(t), obs_next=obs, info={})
        row.update(terminated=False, truncated=t == 2)  # and the last row is still running
        buffer.add(row)
    save_buffer(buffer, tmp_path / "b.hdf5")
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert rows_of(loaded) == rows_of(buffer)
    assert loaded.rew.tolist() == [0.0, 1.0, 3.0, 4.0]
    assert loaded.truncated.tolist() == [False, True, False, True]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_tianshous_own_files_load(compression, make_buffer, tmp_path: Path):
    for k, kind in enumerate(
        [("vector", "discrete"), ("vector", "continuous"), ("pixel", "discrete")]
    ):
        buffer = make_buffer(*kind)
        path = tmp_path / f"{k}.hdf5"
        buffer.save_hdf5(str(path), compression=compression)
        assert rows_of(load_buffer(path)) == rows_of(buffer)


def test_tianshous_own_file_of_a_ring_that_is_not_full_loads(tmp_path: Path):
    buffer = ReplayBuffer(9)
    for k in range(5):
        row = Batch(obs=np.full(2, k), act=k, rew=float(k), obs_next=np.full(2, k + 1), info={})
        row.update(terminated=k == 2, truncated=False)
        buffer.add(row)
    buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert rows_of(loaded) == rows_of(buffer)
    row.rew = 99.0
    loaded.add(row)  # and it goes on being filled behind what is there
    assert len(loaded) == 6
    assert loaded.rew[5] == 99.0


def test_the_neighbours_of_a_saved_from_data_buffer_are_repaired(discrete_buffer, tmp_path: Path):
    data, _ = discrete_buffer.sample(0)
    keys = ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")
    buffer = ReplayBuffer.from_data(**{key: data[key] for key in keys})
    assert (buffer.prev(1), buffer.next(26)) == (1, 26)  # the last row is an end here
    buffer.done[26] = buffer.truncated[26] = False
    assert buffer.next(26) == 0  # Tianshou's defect; when it is repaired, this test says so
    buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert (loaded.prev(1), loaded.prev(0), loaded.next(26)) == (0, 0, 26)


@pytest.mark.parametrize("lengths", [[5, 3, 0], [7, 5, 1], [0, 0, 2], [5, 9, 5]])
def test_tianshous_own_vector_buffers_load(lengths, tmp_path: Path):
    buffer = VectorReplayBuffer(15, 3)
    fill_sub_buffers(buffer, lengths)
    buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert isinstance(loaded, VectorReplayBuffer)
    assert [len(b) for b in loaded.buffers] == [len(b) for b in buffer.buffers]
    assert rows_of(loaded) == rows_of(buffer)
    assert len(loaded.sample(7)[0]) == 7


def test_a_vector_buffer_that_was_reset_loads_without_what_it_held_before(tmp_path: Path):
    buffer = VectorReplayBuffer(15, 3)
    fill_sub_buffers(buffer, [5, 5, 5])
    buffer.reset()
    fill_sub_buffers(buffer, [2, 4, 0])
    buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    loaded = load_buffer(tmp_path / "b.hdf5")
    assert [len(b) for b in loaded.buffers] == [2, 4, 0]
    assert rows_of(loaded) == rows_of(buffer)


def test_mapped_and_read_buffers_hold_the_same(tmp_path: Path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (200, 84, 84), dtype=np.uint8)  # 1.4 MB
    options: Any = {"stack_num": 4, "save_obs_next": False}
    zeros = np.zeros(200, bool)
    columns = {"act": np.arange(200) % 3, "rew": rng.normal(size=200), "truncated": zeros}
    columns["terminated"] = np.arange(200) % 50 == 49
    with BufferWriter(tmp_path / "b.hdf5", 200, **options) as writer:
        writer.append(obs=frames, **columns)
    mapped, read = (load_buffer(tmp_path / "b.hdf5", mapped=m) for m in (True, False))
    assert isinstance(mapped.obs, np.memmap)
    assert not isinstance(read.obs, np.memmap)
    rows = torch.tensor([0, 1, 49, 50, 199])
    a, b = (Replay(buffer).gather(rows) for buffer in (mapped, read))
    for key in ("obs", "act", "rew", "terminated", "obs_next"):
        assert torch.equal(getattr(a, key), getattr(b, key))
    assert np.array_equal(read.obs, frames)
    mapped.obs[0] = 7  # copy on write: the file stays as it is
    assert np.array_equal(load_buffer(tmp_path / "b.hdf5").obs, frames)


def test_blocks_add_up_and_provenance_is_kept(tmp_path: Path):
    with write(tmp_path / "deep" / "b.hdf5", 5, provenance={"source": "a", "seed": 3}) as writer:
        writer.append(**block(3))
        writer.append(**block(0))
        writer.append(**block(2, 10.0))
        writer.provenance["score_mean"] = 1.5
    about = read_provenance(tmp_path / "deep" / "b.hdf5")
    assert {"source": "a", "seed": 3, "score_mean": 1.5, "rows": 5}.items() <= about.items()
    loaded = load_buffer(tmp_path / "deep" / "b.hdf5")
    assert loaded.rew.tolist() == [1, 2, 3, 10, 11]
    assert loaded.done.tolist() == [False, False, True, False, True]
    assert [*tmp_path.glob("**/*.partial")] == []


def test_provenance_of_a_foreign_file_is_empty(discrete_buffer, tmp_path: Path):
    discrete_buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    assert read_provenance(tmp_path / "b.hdf5") == {}


@pytest.mark.parametrize("fault", ["error", "interrupt", "no rows", "too many rows", "columns"])
def test_a_writer_that_fails_leaves_the_older_file_and_no_partial(fault, tmp_path: Path):
    path = tmp_path / "b.hdf5"
    with write(path) as writer:
        writer.append(**block(4))
    before = path.read_bytes()
    with pytest.raises((ValueError, KeyboardInterrupt)), write(path) as writer:
        if fault != "no rows":
            writer.append(**block(2, 5.0))
        if fault == "error":
            raise ValueError
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "too many rows":
            writer.append(**block(3))
        if fault == "columns":
            writer.append(obs=np.zeros((2, 2)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.hdf5"]


def test_a_full_disk_leaves_the_older_file_and_no_partial(tmp_path: Path):
    path = tmp_path / "b.hdf5"
    with write(path) as writer:
        writer.append(**block(4))
    before = path.read_bytes()
    with (
        pytest.raises(OSError, match="expected to write .*make room") as caught,
        file_size_limit(1 << 20),
        write(path, 400_000) as writer,
    ):
        for _ in range(4):
            writer.append(**block(100_000))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.hdf5"]


@pytest.mark.parametrize("method", ["flush", "close"])
def test_a_disk_that_is_full_at_the_end_leaves_the_older_file_and_no_partial(
    method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """HDF5 keeps metadata back until the file is flushed or closed."""
    path = tmp_path / "b.hdf5"
    with write(path) as writer:
        writer.append(**block(4))
    before = path.read_bytes()

    def fail(self: h5py.File) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="expected to write .*No space"), write(path) as writer:
        writer.append(**block(4, 5.0))
        monkeypatch.setattr(h5py.File, method, fail)
    monkeypatch.undo()
    writer._file.close()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.hdf5"]


def test_two_processes_do_not_write_the_same_file(tmp_path: Path):
    """Seeds started side by side all log the data set that none of them finds."""
    path = tmp_path / "b.hdf5"
    with (tmp_path / "b.hdf5.partial").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is at it"), write(path):
            pass
    assert (tmp_path / "b.hdf5.partial").exists()  # the other one's


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def pickled(value: Any) -> np.ndarray:
    """Return ``value`` pickled to bytes, as Tianshou stores what is no array."""
    return np.frombuffer(pickle.dumps(value), dtype=np.byte)


def replace(file: h5py.File, name: str, value: Any) -> None:
    if name in file:
        del file[name]
    dataset = file.create_dataset(name, data=pickled(value))
    dataset.attrs["__data_type__"] = "pickled_ndarray"


@pytest.mark.parametrize("name", ["_random_state", "_meta/policy", "last_index", "_meta/obs"])
def test_nothing_in_a_file_is_ever_unpickled(name, discrete_buffer, tmp_path: Path):
    trap, path = tmp_path / "sprung", tmp_path / "b.hdf5"
    discrete_buffer.save_hdf5(str(path))
    with h5py.File(path, "a") as file:
        replace(file, name, Trap(trap))
    try:
        load_buffer(path)
    except InputError as error:
        assert name in ("last_index", "_meta/obs")
        assert "\n" not in str(error)
    assert not trap.exists()
    with h5py.File(path) as file:
        pickle.loads(file[name][()].tobytes())  # the trap is a real one
    assert trap.exists()


def test_pickled_sub_buffers_are_not_unpickled(tmp_path: Path):
    trap, path = tmp_path / "sprung", tmp_path / "b.hdf5"
    buffer = VectorReplayBuffer(6, 2)
    fill_sub_buffers(buffer, [2, 3])
    buffer.save_hdf5(str(path))
    with h5py.File(path, "a") as file:
        assert "buffers" in file
        replace(file, "buffers", Trap(trap))
    assert rows_of(load_buffer(path)) == rows_of(buffer)
    assert not trap.exists()


def expect_one_sentence(path: Path, sentence: str, load: Any = load_buffer) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unusable_files_give_one_sentence(discrete_buffer, tmp_path: Path):
    expect_one_sentence(tmp_path / "none.hdf5", "expected a buffer file at .* found none")
    expect_one_sentence(tmp_path, "expected an HDF5 file")

    foreign = tmp_path / "foreign.hdf5"
    foreign.write_text("observations,actions\n1,2\n")
    expect_one_sentence(foreign, "cannot be opened .* foreign or truncated")
    (tmp_path / "empty.hdf5").touch()
    expect_one_sentence(tmp_path / "empty.hdf5", "cannot be opened")

    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["frames"] = np.zeros(3)
    expect_one_sentence(other, r"expected a Tianshou buffer in .* \['frames'\]; convert it")
    with h5py.File(other, "a") as file:
        file["observations"] = np.zeros(3)
    expect_one_sentence(other, "pass --buffer-from-rl-unplugged")

    whole = tmp_path / "whole.hdf5"
    save_buffer(discrete_buffer, whole)
    for share in (0.05, 0.5, 0.99):
        cut = tmp_path / f"cut{share}.hdf5"
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        expect_one_sentence(cut, "truncated, make or copy it again")


@pytest.mark.parametrize("mapped", [True, False])
def test_a_large_truncated_file_gives_one_sentence(mapped, tmp_path: Path):
    whole, cut = tmp_path / "whole.hdf5", tmp_path / "cut.hdf5"
    with BufferWriter(whole, 40_000) as writer:  # 2.6 MB of obs
        obs = np.zeros((40_000, 16), np.float32)
        ends = {"terminated": np.zeros(40_000, bool), "truncated": np.zeros(40_000, bool)}
        act, rew = np.zeros(40_000, int), np.zeros(40_000)
        writer.append(obs=obs, obs_next=obs, act=act, rew=rew, **ends)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    expect_one_sentence(cut, "truncated", lambda path: load_buffer(path, mapped=mapped))


@pytest.mark.parametrize("column", ["act", "rew", "terminated", "done", "obs"])
def test_columns_of_another_length_or_missing_give_one_sentence(column, discrete_buffer, tmp_path):
    path = tmp_path / "b.hdf5"
    save_buffer(discrete_buffer, path)
    with h5py.File(path, "a") as file:
        del file["_meta"][column]
    expect_one_sentence(path, f"'{column}'. missing")
    with h5py.File(path, "a") as file:
        dataset = file["_meta"].create_dataset(column, data=np.zeros(3))
        dataset.attrs["__data_type__"] = "ndarray"
    expect_one_sentence(path, f"expected 27 rows of each column .*'{column}': 3")


def test_obs_next_of_another_length_gives_one_sentence(discrete_buffer, tmp_path: Path):
    path = tmp_path / "b.hdf5"
    save_buffer(discrete_buffer, path)
    with h5py.File(path, "a") as file:
        del file["_meta/obs_next"]
        dataset = file["_meta"].create_dataset("obs_next", data=np.zeros((3, 3), np.float32))
        dataset.attrs["__data_type__"] = "ndarray"
    expect_one_sentence(path, "obs_next")


@pytest.mark.parametrize(
    ("key", "value"), [("_size", 10**6), ("_size", -1), ("_insertion_idx", 99)]
)
def test_a_fill_state_beyond_the_rows_gives_one_sentence(key, value, discrete_buffer, tmp_path):
    path = tmp_path / "b.hdf5"
    save_buffer(discrete_buffer, path)
    with h5py.File(path, "a") as file:
        file.attrs[key] = value
    expect_one_sentence(path, "expected a buffer of 27 rows")


def test_links_to_nothing_and_state_that_is_none_give_one_sentence(discrete_buffer, tmp_path: Path):
    path = tmp_path / "b.hdf5"
    for column in ("obs", "rew", "done"):
        save_buffer(discrete_buffer, path)
        with h5py.File(path, "a") as file:
            del file["_meta"][column]
            file["_meta"][column] = h5py.SoftLink("/nowhere")
        expect_one_sentence(path, f"/_meta/{column} is a link to nothing")
    save_buffer(discrete_buffer, path)
    with h5py.File(path, "a") as file:
        file["_meta/info/x"] = h5py.ExternalLink("none.hdf5", "/x")
    assert len(load_buffer(path)) == len(discrete_buffer)
    for place, key, value in (("/", "_size", "x"), ("options", "stack_num", 0)):
        save_buffer(discrete_buffer, path)
        with h5py.File(path, "a") as file:
            file[place].attrs[key] = value
        expect_one_sentence(path, "expected a complete Tianshou buffer")
    with h5py.File(path, "a") as file:
        file["options"].attrs["stack_num"] = 1
        del file["_meta/rew"]
        file["_meta/rew"] = np.array([b"1"] * len(discrete_buffer))
        file["_meta/rew"].attrs["__data_type__"] = "ndarray"
    expect_one_sentence(path, "expected numbers for rew")


def test_sub_buffers_of_several_sizes_are_refused(discrete_buffer, tmp_path: Path):
    """Rebuilt as a ``VectorReplayBuffer``, their rows would change places."""
    path = tmp_path / "b.hdf5"
    buffer = CachedReplayBuffer(ReplayBuffer(6), 2, 4)
    for k in range(3):
        obs = np.full(2, k)
        row = Batch(obs=obs, act=k, rew=1.0, terminated=k == 2, truncated=False)
        row.update(obs_next=obs, info={})
        buffer.add(Batch([row, row]))
    buffer.save_hdf5(str(path))
    expect_one_sentence(path, "such sub-buffers")


def test_nothing_and_dicts_cannot_be_saved(tmp_path: Path):
    with pytest.raises(InputError, match="got an empty one"):
        save_buffer(ReplayBuffer(3), tmp_path / "b.hdf5")
    buffer = ReplayBuffer(3)
    obs = Batch(a=np.zeros(2))
    row = Batch(obs=obs, act=0, rew=0.0, terminated=True, truncated=False, obs_next=obs, info={})
    buffer.add(row)
    with pytest.raises(InputError, match="flatten them first"):
        save_buffer(buffer, tmp_path / "b.hdf5")
    assert [*tmp_path.iterdir()] == []


def rl_unplugged(path: Path, **changed: Any) -> dict[str, Any]:
    """Write what Tianshou's ``convert_rl_unplugged_atari.py`` writes."""
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.integers(0, 256, (6, 4, 8, 8), dtype=np.uint8),
        "next_observations": rng.integers(0, 256, (6, 4, 8, 8), dtype=np.uint8),
        "actions": rng.integers(0, 3, 6),
        "rewards": rng.normal(size=6).astype(np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 1], np.float32),
        **changed,
    }
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            if value is not None:
                file.create_dataset(key, data=value, compression="gzip")
    return columns


def test_rl_unplugged_file_loads(tmp_path: Path):
    columns = rl_unplugged(tmp_path / "Pong.hdf5")
    buffer = load_rl_unplugged(tmp_path / "Pong.hdf5")
    batch = Replay(buffer).sample(0)
    assert np.array_equal(batch.obs.numpy(), columns["observations"])
    assert np.array_equal(batch.obs_next.numpy(), columns["next_observations"])
    assert np.array_equal(batch.act.numpy(), columns["actions"])
    assert np.array_equal(batch.rew.numpy(), columns["rewards"])
    assert batch.terminated.tolist() == [0, 0, 1, 0, 0, 1]
    assert len(buffer.sample(4)[0]) == 4


def test_unusable_rl_unplugged_files_give_one_sentence(discrete_buffer, tmp_path: Path):
    path = tmp_path / "Pong.hdf5"
    rl_unplugged(path, terminals=None)
    expect_one_sentence(path, r"\['terminals'\] missing; convert it", load_rl_unplugged)
    rl_unplugged(path, rewards=np.zeros(5))
    expect_one_sentence(path, "arrays of one length .*'rewards': 5", load_rl_unplugged)
    save_buffer(discrete_buffer, tmp_path / "ours.hdf5")
    ours = tmp_path / "ours.hdf5"
    expect_one_sentence(ours, "leave out --buffer-from-rl-unplugged", load_rl_unplugged)
