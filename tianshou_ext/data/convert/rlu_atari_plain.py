"""RL Unplugged's Atari transitions in compiled code, many in one call.

Only records as they should be are taken; the rest is left to ``rlu_atari``, which says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tianshou_ext.data.convert.compiled import compiled, load_word
from tianshou_ext.data.convert.png import decode_plain
from tianshou_ext.data.convert.tfrecord import FLOATS, INTEGERS, varint, walk

__all__ = ["Transitions", "frames_of", "shares_frames", "transitions"]

SIDE = 84  # pixels
STACK = 4  # frames
BYTES = 1  # kind of a feature
LONGEST = 5  # name looked for
NAMES = np.array(  # as numbers: see _name
    [
        int.from_bytes(name, "little") | len(name) << 8 * LONGEST
        for name in (b"o_t", b"o_tp1", b"a_t", b"r_t", b"d_t")
    ]
)
KINDS = np.array([BYTES, BYTES, INTEGERS, FLOATS, FLOATS])
Array = np.ndarray[Any, Any]


@dataclass
class Transitions:
    """What R records hold, but for the pixels."""

    images: Array
    """Where the images of ``o_t`` and ``o_tp1`` start and stop, (R, 8, 2) int64."""
    actions: Array
    """(R,) int64."""
    rewards: Array
    """(R,) float32."""
    discounts: Array
    """(R,) float32."""


def transitions(data: bytes, bounds: Array, max_actions: int) -> Transitions | None:
    """Return what records hold, or None if one of them is not as it should be.

    :param bounds: where in ``data`` they start and stop, (R, 2) int64.
    """
    count = len(bounds)
    images, actions = np.empty((count, 2 * STACK, 2), np.int64), np.empty(count, np.int64)
    numbers = np.empty((2, count), np.uint32)
    octets = np.frombuffer(data, np.uint8)
    if not _transitions(octets, bounds, images, actions, numbers):
        return None
    rewards, discounts = numbers.view(np.float32)
    sound = (actions >= 0) & (actions < max_actions) & np.isfinite(rewards)
    if not (sound & (discounts >= 0) & (discounts <= 1)).all():
        return None
    return Transitions(images, actions, rewards, discounts)


def frames_of(data: bytes, found: Transitions, shared: bool) -> Array | None:
    """Return the frames, (R, 8, 84, 84) uint8, or None if one is damaged or unusual.

    :param shared: leave out the first three of ``o_tp1``, which makes it (R, 5, 84, 84).
    """
    images = found.images[:, [*range(STACK), 2 * STACK - 1]] if shared else found.images
    frames = np.empty((*images.shape[:2], SIDE, SIDE), np.uint8)
    octets = np.frombuffer(data, np.uint8)
    sound = decode_plain(octets, images.reshape(-1, 2), frames.reshape(-1, SIDE, SIDE))
    return frames if sound else None


def shares_frames(data: bytes, found: Transitions) -> bool:
    """Return whether in all records ``o_tp1`` begins with the last three images of ``o_t``."""
    return bool(_shares_frames(np.frombuffer(data, np.uint8), found.images))


@compiled
def _shares_frames(octets: Any, images: Any) -> Any:
    for record in range(len(images)):
        for k in range(STACK - 1):
            start, stop = images[record, 1 + k]
            other, other_stop = images[record, STACK + k]
            if stop - start != other_stop - other:
                return False
            while start + 8 <= stop:
                if load_word(octets, start) != load_word(octets, other):
                    return False
                start, other = start + 8, other + 8
            while start < stop:
                if octets[start] != octets[other]:
                    return False
                start, other = start + 1, other + 1
    return True


@compiled
def _transitions(octets: Any, bounds: Any, images: Any, actions: Any, numbers: Any) -> Any:
    entries, values = np.empty((32, 5), np.int64), np.empty((128, 3), np.int64)
    found = np.empty(len(NAMES), np.int64)
    for record in range(len(bounds)):
        base = bounds[record, 0]
        data = octets[base : bounds[record, 1]]
        many, count, error = walk(data, entries, values)
        if error or many > len(entries) or count > len(values):
            return False
        found[:] = -1
        for k in range(many):
            if not _sound(data, entries[k], values):
                return False
            name = _name(data, entries[k, 0], entries[k, 1])
            for which in range(len(NAMES)):
                if name == NAMES[which]:
                    found[which] = k  # the last entry of a name counts
        for which in range(len(NAMES)):
            if found[which] < 0:
                return False
            _, _, kind, first, last = entries[found[which]]
            if kind != KINDS[which] or last - first != (STACK if kind == BYTES else 1):
                return False
            wire, start, stop = values[first]
            if kind == BYTES:
                for k in range(STACK):
                    images[record, STACK * which + k, 0] = base + values[first + k, 1]
                    images[record, STACK * which + k, 1] = base + values[first + k, 2]
            elif kind == FLOATS:
                if stop - start != 4:
                    return False
                value: Any = 0
                for k in range(4):
                    value |= np.int64(data[start + k]) << 8 * k
                numbers[which - 3, record] = value
            elif wire == 0:  # the number itself
                actions[record] = start
            else:
                actions[record], end = varint(data, start, stop)
                if end != stop:
                    return False
    return True


@compiled
def _name(data: Any, start: Any, stop: Any) -> Any:
    """Return a name and its length as one number, or -1 if it is longer than those looked for."""
    if stop - start > LONGEST:
        return np.int64(-1)
    name: Any = (stop - start) << 8 * LONGEST
    for k in range(stop - start):
        name |= np.int64(data[start + k]) << 8 * k
    return name


@compiled
def _sound(data: Any, entry: Any, values: Any) -> Any:
    """Return whether a feature's name is ASCII, and its numbers are whole."""
    name_start, name_stop, kind, first, last = entry
    for k in range(name_start, name_stop):
        if data[k] > 127:
            return False
    size = 0
    for k in range(first, last):
        wire, at, stop = values[k]
        size += stop - at
        while kind == INTEGERS and wire == 2 and at < stop:
            _, at = varint(data, at, stop)
            if at < 0:
                return False
    return kind != FLOATS or size % 4 == 0
