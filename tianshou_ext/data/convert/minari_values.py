"""Arrays of a space's shape and type out of what a Minari dataset stores."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tianshou_ext.data.actions import ACT_SLACK, unit_actions
from tianshou_ext.data.convert.minari_spaces import Space, bounds_to_scale, is_nested, leaves
from tianshou_ext.errors import InputError

__all__ = [
    "as_flags",
    "as_vector",
    "decode",
    "from_zero",
    "join_parts",
    "parts_of",
    "scaled_to_unit",
]

LOSSY = "episodes hold images that were stored as JPEG, which loses detail"
Array = np.ndarray[Any, Any]


def decode(space: Space, stored: Any, path: str, noted: list[str]) -> Any:
    """Return stored values as arrays (T, ...) of the space's shape, nested as it is.

    :raises InputError: if they are not of the space.
    """
    if is_nested(space):
        parts = space["parts"].items()
        return {key: decode(part, stored[key], f"{path}/{key}", noted) for key, part in parts}
    kind, shape = space["type"], tuple(space["shape"])
    if kind == "Text":
        return _codes(space, stored, path)
    if kind == "Box" and space["dtype"] == "uint8" and len(shape) in (2, 3):
        is_matrix = stored.ndim == 2 and stored.dtype == np.uint8
        if stored.dtype == object or is_matrix:
            if LOSSY not in noted:
                noted.append(LOSSY)
            return _images(stored, shape, path)
    if stored.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {stored.dtype}, not numbers")
    if int(np.prod(stored.shape[1:])) != int(np.prod(shape)):
        raise InputError(f"{path} has the shape {stored.shape[1:]} a step, its space says {shape}")
    values = stored.reshape(len(stored), *shape)
    wanted = np.dtype(space["dtype"] if kind == "Box" else np.int64)
    if not np.can_cast(values.dtype, wanted, "same_kind"):
        raise InputError(f"{path} holds {values.dtype}, its {kind} says {wanted}")
    if kind == "Box":
        wanted = np.dtype(np.float32) if wanted.kind == "f" and wanted.itemsize > 4 else wanted
        with np.errstate(over="ignore"):  # infinite values are reported as such later
            return values.astype(wanted, copy=False)
    low = np.asarray(space.get("start", 0), np.int64)
    count = 2 if kind == "MultiBinary" else space["n"] if kind == "Discrete" else space["nvec"]
    values = values.astype(np.int64)
    if count is not None and ((values < low) | (values >= low + np.asarray(count))).any():
        raise InputError(f"{path} holds values outside its {kind} space")
    return values.astype(np.int8) if kind == "MultiBinary" else values


def _images(stored: Array, shape: tuple[int, ...], path: str) -> Array:
    """Decode JPEG frames; one of another size than the space says is not opened."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "expected the package Pillow for images stored as JPEG, found none; pip install pillow"
        ) from error
    frames = np.empty((len(stored), *shape), np.uint8)
    for row, data in enumerate(stored):
        try:
            with warnings.catch_warnings(action="ignore"):  # of its size, which is checked below
                image = Image.open(io.BytesIO(bytes(data)), formats=("JPEG",))
            if (image.height, image.width) != shape[:2] or len(image.getbands()) != (*shape, 1)[2]:
                raise InputError(
                    f"{path} holds an image of {image.height}x{image.width}x"
                    f"{len(image.getbands())} in row {row}, its space says {shape}"
                )
            frames[row] = np.asarray(image).reshape(shape)
        except InputError:
            raise
        except Exception as error:  # of damaged images, decoders raise many kinds
            raise InputError(
                f"{path} holds no sound JPEG image in row {row} ({type(error).__name__})"
            ) from error
    return frames


def _codes(space: Space, stored: Any, path: str) -> Array:
    """Return texts as numbers (T, max_length), as gymnasium's flatten does."""
    charset = space["charset"]
    numbers = {char: number for number, char in enumerate(charset)}
    codes = np.full((len(stored), *space["shape"]), len(set(charset)), np.int32)
    for row, text in enumerate(stored):
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not isinstance(text, str) or len(text) > codes.shape[1] or not {*text} <= {*charset}:
            raise InputError(f"{path} holds a text outside its space in row {row}")
        codes[row, : len(text)] = [numbers[char] for char in text]
    return codes


def join_parts(space: Space, values: Any) -> Array:
    """Return (T, D): the parts of a space as gymnasium's flatten joins them."""
    parts = [
        _flat(leaf, part) for (_, leaf), part in zip(leaves(space), parts_of(values), strict=True)
    ]
    joined = np.concatenate(parts, axis=1)
    return joined.astype(np.float32) if joined.dtype == np.float64 else joined


def _flat(leaf: Space, values: Array) -> Array:
    rows = len(values)
    if leaf["type"] not in ("Discrete", "MultiDiscrete"):
        return values.reshape(rows, -1)
    counts = np.atleast_1d(leaf["n"] if leaf["type"] == "Discrete" else leaf["nvec"]).reshape(-1)
    start = np.asarray(leaf["start"], np.int64)
    places = (values - start).reshape(rows, -1) + np.cumsum([0, *counts[:-1]])
    one_hot = np.zeros((rows, int(counts.sum())), np.int64)
    np.put_along_axis(one_hot, places, 1, axis=1)
    return one_hot


def from_zero(space: Space, values: Any) -> Any:
    """Return discrete actions counted from 0, others as they are."""
    if is_nested(space):
        return {key: from_zero(part, values[key]) for key, part in space["parts"].items()}
    return values - np.asarray(space["start"], np.int64) if "start" in space else values


def scaled_to_unit(space: Space, values: Any) -> Any:
    """Return actions with each finite Box's bounds scaled to -1 and 1, others as they are.

    :raises InputError: if an action lies outside its bounds by more than a thousandth of them.
    """
    if is_nested(space):
        return {key: scaled_to_unit(part, values[key]) for key, part in space["parts"].items()}
    bounds = bounds_to_scale(space)
    if bounds is None:
        return values
    scaled = unit_actions(values, *bounds)
    if np.abs(scaled).max(initial=0.0) > 1.0 + ACT_SLACK:
        low, high = (np.asarray(bound) for bound in bounds)
        raise InputError(
            f"actions from {values.min():g} to {values.max():g}, outside their bounds, "
            f"{low.min():g} to {high.max():g}"
        )
    return scaled.astype(np.float32)


def as_vector(key: str, stored: Array) -> Array:
    """Return one number a step, (T,).

    :raises InputError: if it is something else.
    """
    if stored.dtype.kind not in "biuf" or stored.size != len(stored):
        raise InputError(f"{key} are {stored.dtype} of the shape {stored.shape}, expected (T,)")
    return stored.reshape(-1)


def as_flags(key: str, stored: Array) -> Array:
    """Return one flag a step, (T,) bool.

    :raises InputError: if it is something else.
    """
    flags = as_vector(key, stored)
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"{key} hold something else than 0 and 1")
    return flags.astype(bool)


def parts_of(values: Any) -> Iterator[Array]:
    """Yield the arrays of nested ``values``."""
    if isinstance(values, Mapping):
        for part in values.values():
            yield from parts_of(part)
    else:
        yield values
