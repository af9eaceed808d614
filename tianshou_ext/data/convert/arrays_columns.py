"""Which of the arrays of a source is what, and its rows as a buffer stores them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import flat_rows
from tianshou_ext.data.convert.arrays_files import NOT_LOADED, Columns
from tianshou_ext.errors import InputError

__all__ = ["Column", "find_columns", "parse_map"]

Array = np.ndarray[Any, Any]
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
HOW = "name them with --map obs=KEY act=KEY rew=KEY terminated=KEY"


def parse_map(map: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys asked for by what they are: ``obs=x,y`` is ``{"obs": ["x", "y"]}``.

    :raises InputError: if an item is no such thing, or names a column twice.
    """
    asked: dict[str, list[str]] = {}
    for item in map:
        name, equals, keys = item.partition("=")
        if name not in NAMES or not equals or name in asked:
            raise InputError(
                f"expected --map as NAME=KEY or NAME=KEY,KEY, once each of {', '.join(NAMES)}, got "
                f"{item!r}"
            )
        asked[name] = [key for key in keys.split(",") if key]
    return asked


def find_columns(
    src: Path, keys: list[str], asked: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return the keys of every column.

    :raises InputError: if one of obs, act and rew is not found, or several could be a column.
    """
    found: dict[str, list[str]] = {}
    listed = f"{', '.join(keys[:40])}{' ...' if len(keys) > 40 else ''}"
    for name, wanted in asked.items():
        groups = [[key] if key in keys else _numbered(keys, key) for key in wanted]
        if not all(groups):
            raise InputError(
                f"expected {name} in the columns {wanted} of {src}, found {listed}; correct --map"
            )
        found[name] = [key for group in groups for key in group]
    taken = {key for group in found.values() for key in group}
    free = [key for key in keys if key not in taken]
    for name, usual in NAMES.items():
        if name in asked:
            continue
        groups = [[key] for key in free if key.rsplit("/", 1)[-1].lower() in usual]
        groups = [group for group in groups if "/" not in group[0]] or groups
        groups += [group for group in (_numbered(free, one) for one in usual) if group]
        if len(groups) > 1:
            raise InputError(
                f"expected one column that can be {name} in {src}, got "
                f"{' and '.join(','.join(group) for group in groups)}; choose with --map {name}=KEY"
            )
        if groups:
            found[name] = groups[0]
    missing = [name for name in ("obs", "act", "rew") if not found.get(name)]
    if missing:
        raise InputError(
            f"expected columns that are {' and '.join(missing)} in {src}, found {listed}; {HOW}"
        )
    return {name: group for name, group in found.items() if group}


def _numbered(keys: Sequence[str], prefix: str) -> list[str]:
    """Return ``prefix_0, prefix_1, ...`` in the order of the numbers."""
    pattern = re.compile(re.escape(prefix) + r"[_.\[-]?(\d{1,9})\]?", re.IGNORECASE)
    matches = [match for match in map(pattern.fullmatch, keys) if match]
    group = sorted(matches, key=lambda match: int(match[1]))
    numbers = [int(match[1]) for match in group]
    if numbers and numbers != [*range(numbers[0], numbers[0] + len(numbers))]:
        raise InputError(
            f"expected {prefix} columns numbered without gaps, got {numbers[:20]}; name the ones "
            "to use with --map"
        )
    return [match[0] for match in group]


class Column:
    """One column of a table: an array, or several side by side."""

    def __init__(self, name: str, table: Columns, keys: Sequence[str]) -> None:
        absent = [key for key in keys if key not in table]
        if absent:
            raise InputError(f"{absent[0]} is missing, there are {', '.join([*table][:20])}")
        self.name, self.keys, self.parts = name, keys, [table[key] for key in keys]
        lengths = {key: len(part) for key, part in zip(keys, self.parts, strict=True)}
        if len({*lengths.values()}) > 1:
            raise InputError(f"columns of unequal length, {lengths}")
        self.rows = len(self.parts[0])
        for key, part in zip(keys, self.parts, strict=True):
            if part.dtype.kind == "O" and self.rows and part[0] is NOT_LOADED:
                raise InputError(
                    f"{key} holds Python objects, which are not loaded because unpickling can run "
                    "code; save it as a plain array"
                )
            if part.dtype.kind not in "biuf" and name != "episode":
                raise InputError(f"{key} holds {part.dtype}, not numbers{_first_other(part)}")

    def read(self, start: int, stop: int) -> Array:
        """Return rows as they are stored in a buffer."""
        rows = [np.asarray(part[start:stop]) for part in self.parts]
        if len(rows) > 1:
            rows = [np.concatenate([flat_rows(part) for part in rows], axis=1)]
        return _as_stored(self.name, rows[0])

    def whole(self) -> Array:
        """Return all rows of a column with one number a row."""
        values = np.asarray(self.parts[0][:])
        if len(self.parts) > 1 or values.size != len(values):
            raise InputError(f"{self.name} holds {values.shape[1:]} a row, expected one number")
        return values.reshape(-1)

    def discounts(self) -> Array:
        values = self.whole()
        sound = (values >= 0) & (values <= 1)  # NaN is neither
        if not sound.all():
            row = int(np.argmin(sound))
            raise InputError(f"{self.keys[0]} is {values[row]} in row {row}, expected 0 to 1")
        return values

    def flags(self) -> Array:
        values = self.whole()
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if len(wrong):
            raise InputError(
                f"{self.keys[0]} is {values[wrong[0]]} in row {wrong[0]}, expected 0 or 1"
            )
        return values.astype(bool)


def _first_other(part: Any) -> str:
    """Name the first value of texts or objects that is no number or of another shape."""
    values = part[:] if part.dtype.kind in "OUS" else ()
    shapes = [getattr(value, "shape", ()) for value in values]
    if row := next((row for row, shape in enumerate(shapes) if shape != shapes[0]), 0):
        return f": of the shape {shapes[0]} in row 0, {shapes[row]} in row {row}"
    for row, value in enumerate(values):
        try:
            is_number = not math.isnan(float(value))
        except (TypeError, ValueError):
            is_number = False
        if not is_number:
            return f": {value!r:.40} in row {row}"
    return ""


def _as_stored(name: str, values: Array) -> Array:
    if name == "rew":
        if values.size != len(values):
            raise InputError(f"rew holds {values.shape[1:]} a row, expected one number")
        values = values.reshape(-1)
    elif name == "act" and values.dtype.kind in "biu":
        flat = values.ndim == 2 and values.shape[1] == 1
        values = (values[:, 0] if flat else values).astype(np.int64)
    elif values.dtype.kind == "f" and values.ndim == 1:
        values = values[:, None]
    if name == "rew" or (values.dtype.kind == "f" and values.dtype.itemsize > 4):
        with np.errstate(over="ignore"):  # infinite values are reported as such later
            values = values.astype(np.float32)
    # Rows of a map may be in another byte order.
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))
