"""Open buffers in HDF5: Tianshou's own layout, mapped where possible, without unpickling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

__all__ = ["load_buffer", "load_rl_unplugged", "read_provenance"]

PROVENANCE = "tianshou_ext"  # the root attribute with what the writer recorded, as JSON
FRAMES = "frames"  # the root dataset (M, S+1, ...) whose views are obs and obs_next
FLAGS = ("terminated", "truncated", "done")
COLUMNS = ("obs", "obs_next", "act", "rew", *FLAGS)
PLAIN = {"ndarray", "Tensor"}
ZSTD = 32015  # the number of HDF5's filter


def open_hdf5(path: Path) -> h5py.File:
    if not path.exists():
        raise InputError(f"expected a buffer file at {path}, found none; check the path")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"expected an HDF5 file at {path}, got one that cannot be opened "
            f"({' '.join(str(error).split())}); it is foreign or truncated, make or copy it again"
        ) from error


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Return what the writer recorded about a buffer file; empty for a foreign file."""
    with open_hdf5(Path(path)) as file:
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
    plist = dataset.id.get_create_plist()
    if ZSTD in (plist.get_filter(k)[0] for k in range(plist.get_nfilters())):
        import_zstd(path)
    values: np.ndarray[Any, Any] = dataset[()]
    return values


def import_zstd(path: Path) -> None:
    try:
        import hdf5plugin  # noqa: F401 (registers the filter)
    except ImportError as error:
        raise InputError(
            f"expected the package hdf5plugin to read {path}, which is compressed with zstd, found "
            'none; pip install "tianshou_ext[zstd]"'
        ) from error


def _meta(path: Path, group: h5py.Group, mapped: bool) -> Batch:
    """Read the transitions' columns; pickled ones are never loaded."""
    columns: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for key, item in group.items():
        needed = f"{group.name}/{key}".split("/")[2] in COLUMNS
        if item is None:
            if needed:
                raise KeyError(f"{group.name}/{key} is a link to nothing")
        elif isinstance(item, h5py.Group):
            columns[key] = _meta(path, item, mapped)
        elif item.attrs.get("__data_type__") in PLAIN and item.is_virtual:
            # Views of the frames that obs and obs_next share, read or mapped once.
            if FRAMES not in shared:
                shared[FRAMES] = _array(path, group.file[FRAMES], mapped)
            frames = shared[FRAMES]
            columns[key] = frames[:, 1:] if key == "obs_next" else frames[:, :-1]
        elif item.attrs.get("__data_type__") in PLAIN:
            columns[key] = _array(path, item, mapped)
        elif needed:
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
    with open_hdf5(path) as file:
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
            state |= {key: int(state[key]) for key in required}
            options = {key: _plain(value) for key, value in file["options"].attrs.items()}
            if int(options.get("stack_num", 1)) < 1:
                raise ValueError(f"stack_num is {options['stack_num']}")
            last_index = file["last_index"][()]
            is_vector = "_extend_offset" in file
            sub_edges = file["_extend_offset"][()] if is_vector else None
            lengths: Any = file["_lengths"][()] if is_vector else None
        except InputError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
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
    for key in ("rew", *FLAGS):
        if meta[key].dtype.kind not in "biuf":
            raise InputError(
                f"expected numbers for {key} in {path}, got {meta[key].dtype}; convert it"
            )


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
    with open_hdf5(path) as file:
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
