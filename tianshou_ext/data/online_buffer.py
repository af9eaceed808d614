"""The buffer that is filled online: made, cut between epochs, saved and restored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium.spaces import Box
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.data.hdf5 import open_hdf5
from tianshou_ext.data.replay import filled_rows
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer


class OnlineBuffer(VectorReplayBuffer):
    """A buffer that Tianshou 2.x does not search for NaN, the whole of it after every step.

    Rows are looked at when they are staged, each once; see ``GrowingReplay``.
    """

    def hasnull(self) -> bool:
        return False

    def add(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Add a step of each environment.

        :raises InputError: if observations are taken for stacked frames and are none.
        """
        if self._save_only_last_obs and "obs_next" in batch:
            older, newer = np.asarray(batch.obs), np.asarray(batch.obs_next)
            if not np.array_equal(older[:, 1:], newer[:, :-1]):
                raise InputError(
                    f"expected uint8 observations of shape {older.shape[1:]} to be frames, the "
                    "newest last, each step's but the oldest of the step before, got others; pass "
                    "stacked_frames=False"
                )
        return super().add(batch, *args, **kwargs)


def make_online_buffer(
    observation_space: Any, size: int, num_envs: int, *, stacked_frames: bool = True
) -> VectorReplayBuffer:
    """Return an empty buffer; of stacked frames it keeps one a step.

    :param observation_space: of an environment; None if next observations are not needed.
    :param size: rows, over all environments.
    :param stacked_frames: whether uint8 observations (S, H, W) are the last S frames.
    """
    options: dict[str, Any] = {"ignore_obs_next": observation_space is None}
    frames = isinstance(observation_space, Box) and observation_space.dtype == np.uint8
    if stacked_frames and frames and len(observation_space.shape) == 3:
        stack = observation_space.shape[0]
        options = {"stack_num": stack, "ignore_obs_next": True, "save_only_last_obs": True}
    return OnlineBuffer(max(size, num_envs), num_envs, **options)


def cut_episodes(buffer: ReplayBuffer) -> None:
    """Mark the newest row of every environment as truncated, unless its episode has ended."""
    for sub in getattr(buffer, "buffers", [buffer]):
        if len(sub) and not sub._meta.done[sub.last_index[0]]:
            sub._meta.truncated[sub.last_index[0]] = True
            sub._meta.done[sub.last_index[0]] = True
        sub._ep_return, sub._ep_len, sub._ep_start_idx = 0.0, 0, sub._insertion_idx


def save_rows(buffer: ReplayBuffer, path: Path, name: str = "") -> None:
    """Write a buffer of arrays with its insertion state, to be restored exactly.

    :param name: that tells the file from others.
    """
    rows = filled_rows(buffer)
    with h5py.File(path, "w") as file:
        for key, values in buffer._meta.items():
            if isinstance(values, np.ndarray) and values.dtype != object:
                file.create_dataset(key, data=values[rows] if len(rows) < len(values) else values)
        subs = list(getattr(buffer, "buffers", [buffer]))
        file.attrs["name"] = name
        file.attrs["state"] = [[len(s), s._insertion_idx, s.last_index[0]] for s in subs]


def restore_rows(buffer: ReplayBuffer, path: Path, name: str = "") -> None:
    """Fill an empty buffer, of the same sizes or larger, with what ``save_rows`` wrote.

    A ring that was full and has more room now goes on behind its newest row.

    :param name: that it was given there; any if empty.
    :raises InputError: if the file is missing, damaged or of another buffer.
    """
    subs = list(getattr(buffer, "buffers", [buffer]))
    if not path.exists():
        raise InputError(
            f"expected the run's buffer at {path}, found none; restore it or start anew"
        )
    with open_hdf5(path) as file:
        own = file.attrs.get("name", name)
        if name and own != name:
            raise InputError(
                f"expected the buffer that the run saved at {path}, got one of another run; "
                "restore it or start anew"
            )
        if "state" not in file.attrs:
            raise InputError(
                f"expected the run's buffer at {path}, got an HDF5 file with {sorted(file)[:8]}; "
                "restore it or start anew"
            )
        state = np.asarray(file.attrs["state"])
        if len(state) != len(subs):
            raise InputError(
                f"expected a buffer of {len(subs)} environments at {path}, got one of "
                f"{len(state)}; use the settings of the run"
            )
        if state[:, 0].max() > min(sub.maxsize for sub in subs):
            raise InputError(
                f"expected a buffer of at most {min(sub.maxsize for sub in subs)} rows of an "
                f"environment at {path}, got {state[:, 0].max()}; use the settings of the run"
            )
        lengths = {key: len(column) for key, column in file.items()}
        needed = {"obs", "act", "rew", "terminated", "truncated", "done"}
        size = int(state[:, 0].sum())
        if size and (needed - set(lengths) or {*lengths.values()} != {size}):
            raise InputError(
                f"expected {size} rows of {', '.join(sorted(needed))} at {path}, got "
                f"{lengths}; the file is damaged, restore it or start anew"
            )
        starts = np.cumsum([0, *(sub.maxsize for sub in subs)])
        state = state.copy()
        places = []
        for k, (sub, (size, inserted, _)) in enumerate(zip(subs, state, strict=True)):
            place = np.arange(size)
            if 0 < size < sub.maxsize:  # its oldest row comes first, also if it was a full ring
                place = (place - inserted) % size
                state[k, 1:] = size, size - 1
            places.append(starts[k] + place)
        rows = np.concatenate(places)
        columns = {}
        for key, values in file.items():
            column = np.zeros((buffer.maxsize, *values.shape[1:]), values.dtype)
            column[rows] = values[()]
            columns[key] = column
    buffer.set_batch(Batch(**columns))
    for k, (sub, (size, inserted, last)) in enumerate(zip(subs, state, strict=True)):
        sub._size, sub._insertion_idx, sub._ep_start_idx = int(size), int(inserted), int(inserted)
        sub.last_index = np.array([last])
        if sub is not buffer:
            buffer._lengths[k] = size
            buffer.last_index[k] = starts[k] + last
