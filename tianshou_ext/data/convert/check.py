"""What is wrong with rows that a converter read, whatever their source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tianshou_ext.data.writer import flat_columns

__all__ = ["MAX_ACTIONS", "wrong_with"]

MAX_ACTIONS = 18  # of an Atari game

Array = np.ndarray[Any, Any]


def wrong_with(columns: Mapping[str, Any], numbers: Array | None, *, ends: bool) -> str | None:
    """Return what would ruin training on rows, or None.

    :param columns: as ``BufferWriter.append`` takes them, (K, ...) each.
    :param numbers: (K,) what to call the rows; from 0 if None.
    :param ends: whether the last row must end an episode.
    """

    def first(wrong: Array) -> int:
        row = int(np.argmax(wrong))
        return row if numbers is None else int(numbers[row])

    flat = flat_columns(columns)
    lengths = {path: len(values) for path, values in flat.items()}
    if len(set(lengths.values())) != 1:
        return f"columns of unequal length, {lengths}"
    if lengths["rew"] == 0:
        return "no rows"
    for name in columns:
        parts = [values for path, values in flat.items() if path.split("/")[0] == name]
        if name != "info" and not any(values.size for values in parts):
            return f"{name} holds no numbers"
    for path, values in flat.items():
        if values.dtype.kind not in "biuf":
            return f"{path} holds {values.dtype}, not numbers"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            unsound = ~np.isfinite(values).reshape(len(values), -1).all(1)
            return f"{path} is NaN or infinite in row {first(unsound)}"
    if flat["rew"].ndim != 1:
        return f"rewards have the shape {flat['rew'].shape}, expected (N,)"
    act = flat.get("act")
    if act is not None and act.ndim == 1 and act.dtype.kind == "i" and act.min() < 0:
        return (
            f"act is negative in row {first(act < 0)}; whole numbers are taken as discrete actions "
            "from 0, so store continuous ones as floats"
        )
    if ends and not (columns["terminated"][-1] or columns["truncated"][-1]):
        return "the last row ends no episode"
    return None
