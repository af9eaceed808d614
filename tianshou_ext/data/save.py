"""Save a buffer in memory as ``BufferWriter`` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tianshou.data import Batch

from tianshou_ext.data.info import numbers_in
from tianshou_ext.data.replay import neighbours, rows_in_time
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

__all__ = ["save_buffer"]


def save_buffer(
    buffer: ReplayBuffer, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write the transitions of a buffer in memory, oldest first, as ``BufferWriter`` does.

    Episodes that the buffer cut off (still running when it was saved) become truncated. Of
    ``info``, arrays of numbers are kept; the provenance names what else was there.

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
    rows = rows_in_time(buffer)
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
    info, left_out = numbers_in(getattr(buffer, "info", None), buffer.maxsize)
    about = {"info_left_out": left_out} if left_out else {}
    writer = BufferWriter(
        path,
        len(rows),
        stack_num=buffer.stack_num,
        save_obs_next=not stacked,
        provenance={**about, **(provenance or {})},
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
            if info:
                columns["info"] = Batch(info)[rows[here]]
            writer.append(**columns)
