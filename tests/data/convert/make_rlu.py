"""Write TFRecords, tf.train.Examples and PNGs byte by byte, for the tests of what reads them."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + masked_crc(length) + record + masked_crc(record)


def varint(value: int) -> bytes:
    value, out = value % 2**64, b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: Any, packed: bool = True) -> bytes:
    """Encode a list of bytes, or an array of float32 or int64, as Feature."""
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype == np.float32:
        data = values.astype("<f4").tobytes()
        if packed:
            return field(2, field(1, data))
        return field(2, b"".join(b"\x0d" + data[k : k + 4] for k in range(0, len(data), 4)))
    numbers = [varint(int(value)) for value in values]
    if packed:
        return field(3, field(1, b"".join(numbers)))
    return field(3, b"".join(b"\x08" + number for number in numbers))


def entry(name: str, value: bytes) -> bytes:
    return field(1, field(1, name.encode()) + field(2, value))


def example(features: dict[str, Any]) -> bytes:
    return field(1, b"".join(entry(name, feature(v)) for name, v in features.items()))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    frame: np.ndarray, *, filters: Any = 0, depth: int = 8, colour: int = 0, interlace: int = 0
) -> bytes:
    """Encode a grey frame (H, W); ``filters`` is one number, or one a row."""
    height, width = frame.shape
    kinds = np.broadcast_to(filters, height)
    pixels = frame.astype(int)
    left = np.pad(pixels, ((0, 0), (1, 0)))[:, :-1]
    above = np.pad(pixels, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(pixels, ((1, 0), (1, 0)))[:-1, :-1]
    distances = np.abs([above - corner, left - corner, left + above - 2 * corner])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    guesses = [0 * left, left, above, (left + above) // 2, paeth]
    rows = b"".join(
        bytes([kind]) + ((pixels[y] - guesses[min(kind, 4)][y]) % 256).astype(np.uint8).tobytes()
        for y, kind in enumerate(kinds)
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def transition(rng: np.random.Generator, frames: np.ndarray | None = None, **changes: Any) -> dict:
    """Return the features of one record of RL Unplugged's Atari transitions.

    :param frames: (5, 84, 84) uint8; random if left out.
    """
    if frames is None:
        frames = rng.integers(0, 256, (5, 1, 84), np.uint8).repeat(84, 1)
    images = [png(frame, filters=int(rng.integers(5))) for frame in frames]
    return {
        "o_t": images[:4],
        "o_tp1": images[1:],
        "a_t": np.array([3]),
        "a_tp1": np.array([1]),
        "r_t": np.array([0.5], np.float32),
        "d_t": np.array([1], np.float32),
        "episode_id": np.array([-5]),
        "episode_return": np.array([7], np.float32),
    } | changes


def write_shard(path: Path, examples: list[dict], zipped: bool = True) -> bytes:
    data = b"".join(framed(example(features)) for features in examples)
    data = gzip.compress(data, 6, mtime=0) if zipped else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Return a damaged copy: flipped bits, a cut, a piece moved, doubled or left out, or noise."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        a, b = sorted(int(k) for k in rng.integers(0, len(out) + 1, 2))
        at = int(rng.integers(len(out)))
        match int(rng.integers(7)):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.choice([0, 1, 127, 128, 255]))
            case 2:
                out = out[:a]
            case 3:
                out = out[:a] + out[b:]
            case 4:
                out = out[:at] + out[a:b] + out[at:]
            case 5:
                size = int(rng.choice([1, 2, 4, 8]))
                out[at : at + size] = int(rng.choice([0, 2**63, 2**31, 2**32 - 1])).to_bytes(
                    8, str(rng.choice(["little", "big"]))
                )[:size]
            case 6:
                out[at : at + 8] = rng.bytes(8)
    return bytes(out)
