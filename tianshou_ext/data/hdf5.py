"""Buffers in HDF5: Tianshou's own layout, written in constant memory and opened without pickle.

A file written here opens with ``ReplayBuffer.load_hdf5`` of both Tianshou lines and holds the
same transitions there. It differs from what ``save_hdf5`` writes in four ways:

- no pickled random state (numpy 1 cannot read numpy 2's; unpickling runs code);
- the insertion state is that of a buffer that was filled row by row, so ``prev`` and ``next``
  are right at the first and the last row;
- arrays are contiguous and uncompressed, so they can be mapped instead of read;
- the root attribute ``tianshou_ext`` carries the provenance as JSON.

Frames (uint8) are stored once a step, with ``stack_num`` set and ``obs_next`` left out. A
truncated episode then ends with one extra row: its final observation, action and reward 0,
``truncated`` True. ``Replay`` never samples such a row.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext import __version__
from tianshou_ext.data.replay import neighbours
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

__all__ = ["BufferWriter", "load_buffer", "load_rl_unplugged", "read_provenance", "save_buffer"]

PROVENANCE = "tianshou_ext"
FLAGS = ("terminated", "truncated", "done")
PLAIN = {"ndarray", "Tensor"}


class BufferWriter:
    """Write a buffer of ``size`` rows block by block; the file appears only when complete.

    Use as a context manager. Rows go to ``<path>.partial``, which is renamed on a clean exit and
    removed otherwise, so an existing ``path`` is never damaged.

    :param path: the HDF5 file to make.
    :param size: number of rows; exactly this many must be appended.
    :param obs_shape: shape of one row's observation (one frame where ``stack_num`` > 1).
    :param stack_num: frames a policy sees at once; 1 for data that are not stacked.
    :param save_obs_next: store ``obs_next`` (False only for ordered data, see above).
    :param provenance: anything JSON can hold: source, command, seed, spaces, scores.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        *,
        obs_shape: tuple[int, ...],
        obs_dtype: Any = np.float32,
        act_shape: tuple[int, ...] = (),
        act_dtype: Any = np.int64,
        stack_num: int = 1,
        save_obs_next: bool = True,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.size = size
        self.rows = 0
        self.provenance = dict(provenance or {})
        self._options = {
            "stack_num": stack_num,
            "ignore_obs_next": not save_obs_next,
            "save_only_last_obs": stack_num > 1,
            "sample_avail": False,
        }
        self._columns: dict[str, tuple[tuple[int, ...], Any]] = {
            "obs": (obs_shape, obs_dtype),
            "act": (act_shape, act_dtype),
            "rew": ((), np.float32),
            **dict.fromkeys(FLAGS, ((), np.bool_)),
        }
        if save_obs_next:
            self._columns["obs_next"] = (obs_shape, obs_dtype)
        self._last_done = False

    def __enter__(self) -> BufferWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = h5py.File(self.partial, "w")
        except BlockingIOError as error:
            raise InputError(
                f"expected to be the only one to write {self.path}, but another process is at it; "
                "wait until it is done"
            ) from error
        meta = self._file.create_group("_meta")
        meta.attrs["__data_type__"] = "Batch"
        for key, (shape, dtype) in self._columns.items():
            dataset = meta.create_dataset(key, (self.size, *shape), dtype)
            dataset.attrs["__data_type__"] = "ndarray"
        info = meta.create_group("info")
        info.attrs["__data_type__"] = "Batch"
        return self

    def append(self, **columns: Any) -> None:
        """Append rows: ``obs act rew terminated truncated`` (and ``obs_next``), (K, ...) each.

        :raises ValueError: if the columns are not those of the buffer, differ in length, or
            exceed its size.
        :raises OSError: if they cannot be written, for example on a full disk.
        """
        expected = set(self._columns) - {"done"}
        if set(columns) != expected:
            raise ValueError(f"expected columns {sorted(expected)}, got {sorted(columns)}")
        count = len(columns["rew"])
        stop = self.rows + count
        if stop > self.size or any(len(values) != count for values in columns.values()):
            lengths = {key: len(values) for key, values in columns.items()}
            raise ValueError(f"expected at most {self.size - self.rows} rows each, got {lengths}")
        done = np.asarray(columns["terminated"]) | np.asarray(columns["truncated"])
        with self._one_sentence():
            for key, values in {**columns, "done": done}.items():
                self._file["_meta"][key][self.rows : stop] = values
        if count:
            self._last_done = bool(done[-1])
        self.rows = stop

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with self._one_sentence():
                    self._finish()
                    self._file.close()
                    with self.partial.open("rb") as file:
                        os.fsync(file.fileno())
                    self.partial.replace(self.path)
        finally:
            # A full disk makes closing fail too; what matters then is the first error.
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
            self.partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"expected to write {self.path}, but that failed ({' '.join(str(error).split())}); "
                "make room or choose another folder, what was there before is untouched"
            ) from error

    def _finish(self) -> None:
        if self.rows != self.size:
            raise ValueError(f"expected {self.size} rows, got {self.rows}; append the rest")
        last = self.size - 1
        state = {
            "maxsize": self.size,
            "_size": self.size,
            "_insertion_idx": 0,
            "_ep_len": 0,
            "_ep_return": 0.0,
            "_ep_start_idx": 0,
            "stack_num": self._options["stack_num"],
            "_save_obs_next": not self._options["ignore_obs_next"],
            "_save_only_last_obs": self._options["save_only_last_obs"],
            "_sample_avail": self._options["sample_avail"],
        }
        provenance = {"version": __version__, "rows": self.size, **self.provenance}
        _write_state(self._file, state, self._options, np.array([last]), provenance)
        self._file.flush()


def _write_state(
    file: h5py.File,
    state: Mapping[str, Any],
    options: Mapping[str, Any],
    last_index: np.ndarray[Any, Any],
    provenance: Mapping[str, Any],
) -> None:
    for key, value in state.items():
        file.attrs[key] = value
    group = file.create_group("options")
    for key, value in options.items():
        group.attrs[key] = value
    arrays = {"last_index": last_index, "_indices": np.arange(state["maxsize"])}
    for key, value in arrays.items():
        file.create_dataset(key, data=value)
        file[key].attrs["__data_type__"] = "ndarray"
    file.attrs[PROVENANCE] = json.dumps(provenance)


def save_buffer(
    buffer: ReplayBuffer, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write the transitions of a buffer in memory, oldest first, as ``BufferWriter`` does.

    Episodes that the buffer cut off (still running when it was saved) become truncated.

    :param buffer: one that stacks uint8 frames (``stack_num`` > 1) is written with one frame a
        row; any other with ``obs_next``.
    :raises InputError: if the buffer is empty or its observations are no plain array.
    """
    if len(buffer) == 0:
        raise InputError("expected a buffer with transitions to save, got an empty one")
    if not isinstance(buffer.obs, np.ndarray):
        raise InputError(
            f"expected observations that are one array per step, got a {type(buffer.obs).__name__};"
            " flatten them first"
        )
    stacked = buffer.stack_num > 1
    rows = _all_rows(buffer)
    terminated = np.asarray(buffer.terminated[rows], dtype=bool)
    truncated = np.asarray(buffer.truncated[rows], dtype=bool)
    truncated[np.isin(rows, buffer.unfinished_index())] = True
    source_next, rows_next = buffer.obs, rows
    if buffer._save_obs_next:
        source_next = buffer.obs_next
    elif not stacked:
        rows_next = neighbours(buffer)[1][rows]
        lost = (rows_next == rows) & ~terminated  # what came next was not stored
        truncated[np.isin(rows_next, rows[lost])] = True
        rows, rows_next = rows[~lost], rows_next[~lost]
        terminated, truncated = terminated[~lost], truncated[~lost]
        if len(rows) == 0:
            raise InputError(
                "expected transitions with a known successor to save, got only truncated rows "
                "without obs_next; store obs_next"
            )
    writer = BufferWriter(
        path,
        len(rows),
        obs_shape=buffer.obs.shape[1:],
        obs_dtype=buffer.obs.dtype,
        act_shape=buffer.act.shape[1:],
        act_dtype=buffer.act.dtype,
        stack_num=buffer.stack_num,
        save_obs_next=not stacked,
        provenance=provenance,
    )
    with writer:
        for start in range(0, len(rows), 4096):
            here = slice(start, start + 4096)
            columns = {
                "obs": buffer.obs[rows[here]],
                "act": buffer.act[rows[here]],
                "rew": buffer.rew[rows[here]],
                "terminated": terminated[here],
                "truncated": truncated[here],
            }
            if not stacked:
                columns["obs_next"] = source_next[rows_next[here]]
            writer.append(**columns)


def _all_rows(buffer: ReplayBuffer) -> np.ndarray[Any, Any]:
    """Return all filled rows, oldest first within each sub-buffer."""
    parts, start = [], 0
    for sub in getattr(buffer, "buffers", [buffer]):
        order = np.arange(len(sub))
        full = len(sub) == sub.maxsize
        parts.append(start + (np.roll(order, -sub._insertion_idx) if full else order))
        start += sub.maxsize
    return np.concatenate(parts)


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise InputError(
            f"expected a buffer file at {path}, found none; check the path, or leave out "
            "--load-buffer-name to have one made"
        )
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"expected an HDF5 file at {path}, got one that cannot be opened "
            f"({' '.join(str(error).split())}); it is foreign or truncated, make or copy it again"
        ) from error


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Return what the writer recorded about a buffer file; empty for a foreign file."""
    with _open(Path(path)) as file:
        recorded: dict[str, Any] = json.loads(file.attrs.get(PROVENANCE, "{}"))
    return recorded


def _array(path: Path, dataset: h5py.Dataset, mapped: bool) -> np.ndarray[Any, Any]:
    """Read a dataset, or map it copy-on-write where it is contiguous and large."""
    offset = dataset.id.get_offset()
    if mapped and offset is not None and dataset.nbytes > 1 << 20:
        if offset + dataset.nbytes > path.stat().st_size:
            raise InputError(
                f"expected {dataset.name} in {path} to hold {dataset.nbytes} bytes, got a file "
                "that ends before; it is truncated, make or copy it again"
            )
        return np.memmap(path, dataset.dtype, "c", offset, dataset.shape)
    values: np.ndarray[Any, Any] = dataset[()]
    return values


def _meta(path: Path, group: h5py.Group, mapped: bool) -> Batch:
    """Read the transitions' columns; pickled ones are never loaded."""
    columns: dict[str, Any] = {}
    for key, item in group.items():
        if isinstance(item, h5py.Group):
            columns[key] = _meta(path, item, mapped)
        elif item.attrs.get("__data_type__") in PLAIN:
            columns[key] = _array(path, item, mapped)
        elif key in ("obs", "obs_next", "act", "rew", *FLAGS):
            raise InputError(
                f"expected {item.name} in {path} to be an array of numbers, got a pickled object, "
                "which is not loaded because unpickling can run code; save it again as an array"
            )
    return Batch(columns)


def load_buffer(path: str | Path, *, mapped: bool = True) -> ReplayBuffer:
    """Open a buffer file written here or by Tianshou's ``save_hdf5``, on either line.

    :param mapped: leave large contiguous arrays in the file and map them (next to no memory);
        otherwise, or where they are compressed, read them.
    :return: a ``ReplayBuffer``, or a ``VectorReplayBuffer`` where the file holds one.
    :raises InputError: if the file is missing, foreign, truncated or inconsistent, or would have
        to be unpickled.
    """
    path = Path(path).expanduser()
    with _open(path) as file:
        required = ("maxsize", "_size", "_insertion_idx", "stack_num")
        if "_meta" not in file or any(key not in file.attrs for key in required):
            hint = "pass --buffer-from-rl-unplugged" if "observations" in file else "convert it"
            raise InputError(
                f"expected a Tianshou buffer in {path}, got an HDF5 file with {sorted(file)[:8]}; "
                f"{hint}"
            )
        try:
            meta = _meta(path, file["_meta"], mapped)
            state = {key: _plain(value) for key, value in file.attrs.items()}
            options = {key: _plain(value) for key, value in file["options"].attrs.items()}
            last_index = file["last_index"][()]
            is_vector = "_extend_offset" in file
            sub_edges = file["_extend_offset"][()] if is_vector else None
            lengths: Any = file["_lengths"][()] if is_vector else None
        except (OSError, KeyError) as error:
            raise InputError(
                f"expected a complete Tianshou buffer in {path}, but reading it failed "
                f"({' '.join(str(error).split())}); make or copy it again"
            ) from error
    _check_columns(path, meta, int(state["maxsize"]))
    filled = int(state["_size"]) if lengths is None else int(max(lengths))
    places = int(state["maxsize"]) // len(last_index)
    equal = sub_edges is None or len({*np.diff(sub_edges).tolist()}) == 1
    if not (0 <= filled <= places and 0 <= int(state["_insertion_idx"]) <= places and equal):
        raise InputError(
            f"expected a buffer of {places} rows (or such sub-buffers) in {path}, got {filled} "
            f"filled ones and sub-buffers that start at {sub_edges}; convert it"
        )
    if sub_edges is not None:
        return _restore_vector(meta, options, last_index, sub_edges, lengths)
    buffer = ReplayBuffer(int(state["maxsize"]), **_known_options(options))
    fields = ("_size", "_insertion_idx", "_ep_len", "_ep_return", "_ep_start_idx")
    for key in fields:
        if key in state:
            setattr(buffer, key, state[key])
    buffer._meta = meta
    buffer.last_index = _true_last_index(last_index, state)
    return buffer


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    known = ("stack_num", "ignore_obs_next", "save_only_last_obs", "sample_avail")
    return {key: options[key] for key in known if key in options}


def _true_last_index(last_index: np.ndarray[Any, Any], state: Mapping[str, Any]) -> Any:
    """Undo what ``from_data`` leaves behind: a full buffer whose newest row is row 0."""
    full = state["_size"] == state["maxsize"] and state["_insertion_idx"] == 0
    return np.array([state["maxsize"] - 1]) if full else last_index


def _restore_vector(
    meta: Batch,
    options: Mapping[str, Any],
    last_index: np.ndarray[Any, Any],
    edges: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
) -> VectorReplayBuffer:
    """Rebuild a vector buffer from its arrays; its pickled sub-buffers are not needed."""
    total, count = int(edges[-1]), len(edges) - 1
    buffer = VectorReplayBuffer(total, count, **_known_options(options))
    buffer.set_batch(meta)
    buffer.last_index = np.array(last_index)
    for k, sub in enumerate(buffer.buffers):
        start, stop, newest = int(edges[k]), int(edges[k + 1]), int(last_index[k])
        sub._size = buffer._lengths[k] = int(lengths[k])
        sub._insertion_idx = (newest + 1 - start) % (stop - start) if sub._size else 0
        sub.last_index = np.array([newest - start])
    return buffer


def _check_columns(path: Path, meta: Batch, size: int) -> None:
    missing = [key for key in ("obs", "act", "rew", *FLAGS) if key not in meta.get_keys()]
    if missing:
        raise InputError(
            f"expected obs, act, rew, terminated, truncated and done in {path}, {missing} "
            f"missing; keys are {sorted(meta.get_keys())}"
        )
    stored = [key for key in ("obs", "act", "rew", *FLAGS, "obs_next") if key in meta.get_keys()]
    lengths = {key: len(meta[key]) if meta[key].shape else 0 for key in stored}
    if set(lengths.values()) != {size}:
        raise InputError(f"expected {size} rows of each column in {path}, got {lengths}")


def load_rl_unplugged(path: str | Path, *, mapped: bool = True) -> ReplayBuffer:
    """Open what Tianshou's RL Unplugged script writes: D4RL's keys, shuffled transitions.

    :param path: HDF5 with ``observations next_observations actions rewards terminals``.
    :raises InputError: if the file is missing or has other keys.
    """
    path = Path(path).expanduser()
    names = {
        "obs": "observations",
        "obs_next": "next_observations",
        "act": "actions",
        "rew": "rewards",
        "terminated": "terminals",
    }
    with _open(path) as file:
        absent = [name for name in names.values() if name not in file]
        if absent:
            hint = "leave out --buffer-from-rl-unplugged" if "_meta" in file else "convert it"
            raise InputError(
                f"expected the keys {list(names.values())} in {path}, {absent} missing; {hint}"
            )
        columns = {key: _array(path, file[name], mapped) for key, name in names.items()}
    lengths = {name: len(columns[key]) for key, name in names.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"expected arrays of one length in {path}, got {lengths}")
    columns["terminated"] = np.asarray(columns["terminated"]).astype(bool).reshape(-1)
    columns["rew"] = np.asarray(columns["rew"], dtype=np.float32).reshape(-1)
    columns["truncated"] = np.zeros_like(columns["terminated"])
    buffer = ReplayBuffer(len(columns["rew"]))
    buffer._meta = Batch(**columns, done=columns["terminated"].copy())
    buffer._size = buffer.maxsize
    buffer.last_index = np.array([buffer.maxsize - 1])
    return buffer
