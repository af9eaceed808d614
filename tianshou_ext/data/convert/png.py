"""Decode small grey PNGs: the standard library's zlib, and the row filters in compiled code.

See "Portable Network Graphics (PNG) Specification", W3C, sections 5 (chunks) and 9 (filters).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tianshou_ext.data.convert.tfrecord import compiled, fast_zlib
from tianshou_ext.errors import InputError

__all__ = ["PngError", "decode_grey", "decode_greys", "grey_rows", "unfilter"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
ERRORS = (zlib.error, fast_zlib.error)
CHUNK = struct.Struct(">I4s")
HEADER = struct.Struct(">IIBBBBB")


class PngError(InputError):
    """An image that is not what it should be.

    :param reason: what came.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"expected a sound grey PNG, got {self.reason}; fetch the file again"


def decode_grey(data: bytes, out: np.ndarray[Any, Any]) -> None:
    """Decode a PNG of 8-bit grey, not interlaced, into ``out`` (H, W) uint8.

    :raises PngError: if it is another kind of PNG, of another size, or damaged.
    """
    decode_greys([data], out[None])


def decode_greys(images: Sequence[bytes], out: np.ndarray[Any, Any]) -> None:
    """Decode N PNGs of 8-bit grey, not interlaced, into ``out`` (N, H, W) uint8.

    :raises PngError: if one is another kind of PNG, of another size, or damaged.
    """
    _, height, width = out.shape
    unfilter(b"".join([grey_rows(data, height, width) for data in images]), out)


def grey_rows(data: bytes, height: int, width: int) -> bytes:
    """Return the rows of a PNG as they are stored, filtered, (H * (1 + W)) bytes.

    :raises PngError: if it is no 8-bit grey PNG of that size, or damaged.
    """
    if not data.startswith(SIGNATURE):
        raise PngError("bytes that are no PNG")
    at, parts, kind = 8, [], b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise PngError("a PNG that is cut off")
        length, kind = CHUNK.unpack_from(data, at)
        stop = at + 8 + length
        if stop + 4 > len(data):
            raise PngError("a PNG that is cut off")
        if zlib.crc32(data[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            raise PngError("a PNG with a wrong checksum")
        if (at == 8) != (kind == b"IHDR"):
            raise PngError("a PNG that does not have one header at its start")
        if kind == b"IHDR":
            _check_header(data[at + 8 : stop], height, width)
        elif kind == b"IDAT":
            parts.append(data[at + 8 : stop])
        elif kind != b"IEND" and not kind[0] & 32:  # must not be ignored
            raise PngError(f"a grey PNG with the part {kind.decode('latin-1')!r}")
        at = stop + 4
    size = height * (1 + width)
    stream = fast_zlib.decompressobj()
    try:
        # One more than there should be: then the end, and its checksum, are reached.
        rows: bytes = stream.decompress(b"".join(parts), size + 1)
    except ERRORS as error:
        raise PngError(f"a PNG with damaged contents ({error})") from error
    if len(rows) != size or not stream.eof:
        raise PngError(f"a PNG whose contents are not {size} bytes")
    if max(rows[:: 1 + width]) > 4:
        raise PngError("a PNG with an unknown row filter")
    return rows


def _check_header(header: bytes, height: int, width: int) -> None:
    if len(header) != HEADER.size:
        raise PngError("a PNG with a header of another length")
    found_width, found_height, depth, colour, packing, filtering, interlace = HEADER.unpack(header)
    if colour != 0:
        raise PngError(f"a PNG of {COLOURS.get(colour, 'unknown colours')} where grey is expected")
    if depth != 8:
        raise PngError(f"a PNG of {depth} bits where 8 are expected")
    if (found_height, found_width) != (height, width):
        raise PngError(f"a PNG of {found_height}x{found_width} where {height}x{width} is expected")
    if packing or filtering or interlace:
        raise PngError("a PNG that is interlaced, or packed in an unknown way")


def unfilter(rows: bytes, out: np.ndarray[Any, Any]) -> None:
    """Turn N images' filtered rows, as ``grey_rows`` returns them, into ``out`` (N, H, W)."""
    count, height, width = out.shape
    _unfilter(np.frombuffer(rows, np.uint8).reshape(count, height, 1 + width), out)


@compiled
def _unfilter(rows: Any, out: Any) -> None:  # (N, H, 1 + W) to (N, H, W)
    nothing = np.zeros(out.shape[2], np.uint8)
    for image in range(out.shape[0]):
        above = nothing
        for y in range(out.shape[1]):
            kind, row, here = rows[image, y, 0], rows[image, y, 1:], out[image, y]
            if kind == 0:
                here[:] = row
            elif kind == 1:  # left
                left = np.uint8(0)
                for x in range(len(here)):
                    left = np.uint8(row[x] + left)
                    here[x] = left
            elif kind == 2:  # above
                for x in range(len(here)):
                    here[x] = np.uint8(row[x] + above[x])
            elif kind == 3:  # mean of both
                mean_left = 0
                for x in range(len(here)):
                    mean_left = (row[x] + ((mean_left + above[x]) >> 1)) & 255
                    here[x] = mean_left
            else:  # Paeth: of left, above and corner, the nearest to left + above - corner
                a = c = np.int64(0)
                for x in range(len(here)):
                    b = np.int64(above[x])
                    to_left, to_above, to_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
                    nearest = b if to_above <= to_corner else c
                    if to_left <= to_above and to_left <= to_corner:
                        nearest = a
                    a = (row[x] + nearest) & 255
                    c = b
                    here[x] = a
            above = here
