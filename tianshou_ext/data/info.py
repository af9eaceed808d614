"""What of the ``info`` of a buffer in memory a file can hold: arrays of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from tianshou.data import Batch

__all__ = ["numbers_in"]


def numbers_in(info: Any, size: int, path: str = "info") -> tuple[dict[str, Any], list[str]]:
    """Return the arrays (size, ...) of numbers in ``info``, nested as they are.

    :return: those, and the paths of what is something else, such as texts and objects.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    if not isinstance(info, Batch):
        return kept, left_out if info is None else [path]
    for key, values in info.items():
        here = f"{path}/{key}"
        if "/" in key:  # a path in a file
            left_out.append(here)
        elif isinstance(values, Batch):
            inner, others = numbers_in(values, size, here)
            kept |= {key: inner} if inner else {}
            left_out += others
        elif _holds_numbers(values, size):
            kept[key] = values
        else:
            left_out.append(here)
    return kept, left_out


def _holds_numbers(values: Any, size: int) -> bool:
    is_array = isinstance(values, np.ndarray) and values.shape[:1] == (size,)
    return is_array and values.dtype.kind in "biuf"
