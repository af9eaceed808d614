"""The spaces of a Minari dataset, as its JSON or its arrays describe them; gymnasium's order.

A space is a dict: ``type``, and ``parts`` by key for a Dict or Tuple, else ``shape`` and what the
type has beside it (``dtype low high``, ``n start``, ``nvec start``, ``charset``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

__all__ = [
    "Space",
    "bounds_to_scale",
    "brief",
    "guess_space",
    "is_nested",
    "joins_actions",
    "layout",
    "leaves",
    "parse_space",
    "starts_of",
]

Space = dict[str, Any]


def parse_space(said: Any, depth: int = 0) -> Space:
    """Check a space that Minari wrote, and put its parts in order: the keys of a Dict sorted.

    :raises ValueError: if no array can hold it. Other errors mean that it is no such JSON.
    """
    kind = said["type"]
    if depth > 8:
        raise ValueError("nested too deeply")
    if kind not in ("Dict", "Tuple"):
        return {"type": kind, **_plain(kind, said)}
    subspaces = said["subspaces"]
    if kind == "Dict":
        parts = {key: parse_space(subspaces[key], depth + 1) for key in sorted(subspaces)}
    else:
        parts = {str(k): parse_space(part, depth + 1) for k, part in enumerate(subspaces)}
    if not parts:
        raise ValueError(f"an empty {kind}")
    return {"type": kind, "parts": parts}


def _plain(kind: Any, said: Any) -> Space:
    """Return what there is to a space beside its type."""
    if kind == "Box":
        shape, dtype = [int(n) for n in said["shape"]], str(said["dtype"])
        if np.dtype(dtype).kind not in "biuf":
            raise ValueError(f"a Box of {dtype}")
        bounds = {key: _bound(said.get(key)) for key in ("low", "high")}
        return {"shape": shape, "dtype": dtype, **bounds}
    if kind == "Discrete":
        n, start = np.asarray([said["n"], said.get("start", 0)], np.int64).tolist()
        return {"shape": [], "n": n, "start": start}
    if kind == "MultiDiscrete":
        nvec = np.asarray(said["nvec"], np.int64)
        start = np.broadcast_to(np.asarray(said.get("start", 0), np.int64), nvec.shape)
        return {"shape": list(nvec.shape), "nvec": nvec.tolist(), "start": start.tolist()}
    if kind == "MultiBinary":
        return {"shape": np.atleast_1d(np.asarray(said["n"], np.int64)).tolist()}
    if kind == "Text":
        return {"shape": [int(said["max_length"])], "charset": str(said["charset"])}
    raise ValueError(f"a space of the type {str(kind)[:40]}, which no array can hold")


def _bound(values: Any) -> Any:
    """Return the bounds of a Box, as one number if all are the same."""
    if values is None:
        return None
    array = np.asarray(values, np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else array.tolist()


def guess_space(item: Any) -> Space:
    """Make a space from a dataset or group of HDF5.

    :raises ValueError: if it does not say what it holds.
    """
    if isinstance(item, h5py.Group):
        is_tuple = all(key.startswith("_index_") for key in item)
        parts = {
            key.removeprefix("_index_") if is_tuple else key: guess_space(item[key]) for key in item
        }
        if not parts:
            raise ValueError("an empty group")
        order = sorted(parts, key=int) if is_tuple else sorted(parts)
        return {
            "type": "Tuple" if is_tuple else "Dict",
            "parts": {key: parts[key] for key in order},
        }
    if item.dtype.kind not in "biuf":
        raise ValueError(f"{item.name} holds {item.dtype}, and no space says what that is")
    shape = list(item.shape[1:])
    if item.dtype.kind in "iu" and not shape:
        return {"type": "Discrete", "shape": [], "n": None, "start": 0}
    return {"type": "Box", "shape": shape, "dtype": str(item.dtype), "low": None, "high": None}


def is_nested(space: Space) -> bool:
    """Return whether a space is a Dict or a Tuple."""
    return "parts" in space


def leaves(space: Space, path: str = "") -> Iterator[tuple[str, Space]]:
    """Yield the plain spaces in the order in which gymnasium's flatten joins them."""
    if is_nested(space):
        for key, part in space["parts"].items():
            yield from leaves(part, f"{path}/{key}" if path else key)
    else:
        yield path, space


def joins_actions(space: Space, flatten: bool) -> bool:
    """Return whether the parts of an action become one vector: boxes always do."""
    boxes = all(leaf["type"] == "Box" for _, leaf in leaves(space))
    return is_nested(space) and (flatten or boxes)


def layout(space: Space) -> list[list[Any]]:
    """Return name and width of every part of a flattened observation or action."""
    return [[path, _width(leaf)] for path, leaf in leaves(space)]


def _width(leaf: Space) -> int:
    if leaf["type"] == "Discrete":
        return int(leaf["n"])
    if leaf["type"] == "MultiDiscrete":
        return int(np.sum(leaf["nvec"]))
    return int(np.prod(leaf["shape"]))


def bounds_to_scale(space: Space) -> tuple[Any, Any] | None:
    """Return the bounds of a Box of floats that are finite and not -1 and 1; else None.

    Tianshou's buffers hold actions in [-1, 1], which a policy scales to these bounds.
    """
    if space["type"] != "Box" or np.dtype(space["dtype"]).kind != "f":
        return None
    low, high = space.get("low"), space.get("high")
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    is_unit = np.equal(low, -1.0).all() and np.equal(high, 1.0).all()
    if is_unit or np.less_equal(high, low).any():
        return None
    return low, high


def starts_of(space: Space) -> Any:
    """Return what discrete actions count from, None if that is 0 or they are not discrete."""
    start = space.get("start")
    return start if start is not None and np.any(start) else None


def brief(space: Space) -> Space:
    """Return a space as Minari writes it, for the provenance; bounds only if they are short."""
    if is_nested(space):
        parts = {key: brief(part) for key, part in space["parts"].items()}
        is_tuple = space["type"] == "Tuple"
        return {"type": space["type"], "subspaces": [*parts.values()] if is_tuple else parts}
    return {key: value for key, value in space.items() if not _is_long(value)}


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and np.size(value) > 1024
