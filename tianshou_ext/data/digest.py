"""Telling one data set from another, so that a run is not gone on with on other data."""

from __future__ import annotations

import zlib

import numpy as np
from tianshou.data import Batch

from tianshou_ext.data.replay import filled_rows
from tianshou_ext.tianshou_api import ReplayBuffer

COLUMNS = ("act", "rew", "terminated", "truncated", "obs")


def data_digest(buffer: ReplayBuffer) -> str:
    """Return a line that differs where the rows of two buffers do.

    Actions, rewards, ends and observations count; frames do not, which may be mapped from a file
    of gigabytes: rows that agree in all else are taken for the same.
    """
    rows = filled_rows(buffer)
    digest = 0
    for name in COLUMNS:
        column = buffer._meta.get(name)
        values = np.asarray([] if column is None or isinstance(column, Batch) else column)
        frames = name == "obs" and values.ndim > 2
        if values.size and not frames and values.dtype != object:
            digest = zlib.crc32(np.ascontiguousarray(values[rows]).data, digest)
    return f"{len(buffer):,} transitions, {digest:08x}"
