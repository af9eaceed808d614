"""Your own arrays: .npz, .npy, .csv, .parquet, HDF5 and pickles of numpy arrays.

Rows are steps in order. Columns are found by their usual names or named with ``--map``. Arrays in
.npy files and uncompressed .npz are mapped and HDF5 is read in slices, so such a source may be
larger than memory; the other kinds are read whole.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import h5py
import numpy as np

from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Options,
    Report,
    Settings,
    chosen_episodes,
    fingerprint,
    write_blocks,
)
from tianshou_ext.data.convert.unpickle import load_arrays
from tianshou_ext.errors import InputError

__all__ = ["convert"]

Format = Literal["auto", "npz", "npy", "csv", "parquet", "hdf5", "pickle"]
Array = np.ndarray[Any, Any]

SUFFIXES: dict[str, Format] = {
    ".npz": "npz",
    ".npy": "npy",
    ".csv": "csv",
    ".parquet": "parquet",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".pkl": "pickle",
    ".pickle": "pickle",
}
NAMES = {
    "obs": ("obs", "observation", "observations", "state", "states"),
    "act": ("act", "acts", "action", "actions"),
    "rew": ("rew", "rews", "reward", "rewards"),
    "terminated": ("terminated", "terminations", "terminal", "terminals", "is_terminal"),
    "truncated": ("truncated", "truncations", "timeout", "timeouts"),
    "done": ("done", "dones"),
    "discount": ("discount", "discounts"),
    "obs_next": (
        *("obs_next", "next_obs", "next_observation", "next_observations"),
        *("next_state", "next_states"),
    ),
    "episode": ("episode", "episodes", "episode_id", "episode_ids", "traj_id"),
}
"""What is stored, and the names it is recognised by, upper or lower case alike."""
BLOCK_BYTES = 1 << 24
BLOCK_ROWS = 1 << 14
MAX_RATIO = 4096  # bytes of an HDF5 array per byte of its file; deflate reaches 1032
HOW = "name them with --map obs=KEY act=KEY rew=KEY terminated=KEY"


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    map: tuple[str, ...] = (),
    format: Format = "auto",
    stack_num: int = 1,
    one_episode: bool = False,
    episode_length: int | None = None,
    **options: Unpack[Options],
) -> Report:
    """Convert your own arrays.

    Rows are steps in order; a row whose successor is not the row below it is marked as truncated
    if that can be seen from stored next observations. Without them, a row leads to the row below,
    and the last row of an episode that did not terminate is left out.

    :param src: .npz, .csv, .parquet, .hdf5, .pkl, or a folder of .npy files.
    :param dst: the buffer file to make.
    :param map: which column is what, such as obs=x,y act=u rew=r terminated=done; of obs act rew
        terminated truncated done discount obs_next episode.
    :param format: kind of the source; by its suffix if auto.
    :param stack_num: for observations that are single uint8 frames (N, H, W): store one frame a
        step, of which a policy sees so many at once.
    :param one_episode: all rows are one episode.
    :param episode_length: steps after which an episode was cut off, if nothing else says so.
    :raises InputError: if the source is missing, damaged, or it is not clear what its columns are.
    """
    settings = Settings(**options)
    if stack_num < 1 or (episode_length is not None and episode_length < 1):
        raise InputError(
            f"expected --stack-num and --episode-length of at least 1, got {stack_num} and "
            f"{episode_length}"
        )
    src = Path(src).expanduser()
    tables, files = _read(src, format)
    asked = _parsed(map)
    first = next((table for table in tables if isinstance(table, dict)), {})
    keys = _columns_by_name(src, first, asked)
    notes: list[str] = []
    rules = _Rules(str(src), keys, stack_num, one_episode or len(tables) > 1, episode_length, notes)
    episodes = [] # (table, start, stop)
    return Report("arrays", Path(dst))
