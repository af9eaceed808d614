"""Decode small grey PNGs: with the standard library's zlib, or all in compiled code.

See "Portable Network Graphics (PNG) Specification", W3C, sections 5 (chunks) and 9 (filters).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tianshou_ext.data.convert.checksums import CRC32, crc
from tianshou_ext.data.convert.compiled import compiled
from tianshou_ext.data.convert.gunzip import fast_zlib
from tianshou_ext.data.convert.huffman import ROOM, TABLE_ENTRIES
from tianshou_ext.data.convert.inflate import SLACK, inflate
from tianshou_ext.errors import InputError

__all__ = ["PngError", "decode_grey", "decode_greys", "decode_plain", "grey_rows", "unfilter"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
ERRORS = (zlib.error, fast_zlib.error)
CHUNK = struct.Struct(">I4s")
HEADER = struct.Struct(">IIBBBBB")
IDAT = int.from_bytes(b"IDAT", "big")


class PngError(InputError):
    """An image that is not what it should be.

    :param reason: what came.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"expected a sound grey PNG, got {self.reason}; replace the file"


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
    octets = np.frombuffer(rows, np.uint8).reshape(count, height * (1 + width))
    image = np.empty(height * width, np.uint8)
    for k in range(count):
        _unfilter(octets[k].copy(), image, 0, height, width)
        out[k] = image.reshape(height, width)


def decode_plain(
    octets: np.ndarray[Any, Any], places: np.ndarray[Any, Any], out: np.ndarray[Any, Any]
) -> bool:
    """Decode N PNGs that are one header, one part of contents and an end; all in compiled code.

    Compiling takes many seconds once; ``decode_greys`` takes other kinds, and names damages.

    :param octets: bytes that hold the images.
    :param places: where in them they start and stop, (N, 2) int64.
    :param out: (N, H, W) uint8, contiguous.
    :return: whether all are sound and of that kind; else what is in ``out`` is of no use.
    """
    _, height, width = out.shape
    header = HEADER.pack(width, height, 8, 0, 0, 0, 0)
    head = np.frombuffer(SIGNATURE + _chunk(b"IHDR", header), np.uint8)
    tail = np.frombuffer(_chunk(b"IEND", b""), np.uint8)
    return bool(_decode_plain(octets, places, head, tail, out.reshape(-1), height, width))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return CHUNK.pack(len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


@compiled
def _decode_plain(
    octets: Any, places: Any, head: Any, tail: Any, out: Any, height: Any, width: Any
) -> Any:
    size, pixels = height * (1 + width), height * width
    rows = np.zeros(size + SLACK, np.uint8)
    tables, room = np.empty(TABLE_ENTRIES, np.uint32), np.empty(ROOM, np.int64)
    for image in range(len(places)):
        start, stop = places[image, 0], places[image, 1]
        first = start + len(head) + 8  # of the contents
        if stop < first + 4 + len(tail) or stop > len(octets):
            return False
        for k in range(len(head)):
            if octets[start + k] != head[k]:
                return False
        last = stop - len(tail) - 4
        if _big(octets, first - 8) != last - first or _big(octets, first - 4) != IDAT:
            return False
        for k in range(len(tail)):
            if octets[last + 4 + k] != tail[k]:
                return False
        if crc(octets, first - 4, last, CRC32) != _big(octets, last):
            return False
        if not inflate(octets, first, last, rows, size, tables, room):
            return False
        if not _unfilter(rows, out, image * pixels, height, width):
            return False
    return True


@compiled
def _big(octets: Any, at: Any) -> Any:
    value: Any = 0
    for k in range(4):
        value = value << 8 | np.int64(octets[at + k])
    return value


@compiled
def _nearest(a: Any, b: Any, c: Any) -> Any:
    """Return which of left, above and corner is the nearest to left + above - corner (Paeth)."""
    low, high, limit = min(a, b), max(a, b), 3 * c - a - b
    found = low if high <= limit else c
    return high if limit <= low else found


@compiled
def _unfilter(rows: Any, out: Any, start: Any, height: Any, width: Any) -> Any:
    """Undo the filters of one image.

    Unsigned positions spare a check of each.

    :param rows: (H * (1 + W)), the filter before each row; may be changed.
    :param out: the image goes here, from ``start`` on.
    :return: whether all filters are known.
    """
    start, height, width = np.uint64(start), np.uint64(height), np.uint64(width)
    one, first = np.uint64(1), np.int64(rows[0])
    if first == 3:  # above the first row are zeros
        left = np.int64(0)
        for x in range(width):
            left = (rows[one + x] + (left >> 1)) & 255
            out[start + x] = left
    elif first == 2 or first == 4:
        rows[0] = 0 if first == 2 else 1  # which is the same there
    two = False
    for y in range(height):
        if two:  # done with the row above
            two = False
            continue
        at, here = y * (width + one), start + y * width
        above = here - width
        kind = rows[at]
        at += one
        if y == 0 and kind == 3:
            continue
        if kind == 0:
            for x in range(width):
                out[here + x] = rows[at + x]
        elif kind == 1:  # left
            left = np.int64(0)
            for x in range(width):
                left += rows[at + x]
                out[here + x] = left
        elif kind == 2:  # above
            for x in range(width):
                out[here + x] = rows[at + x] + out[above + x]
        elif kind == 3:  # mean of both
            left = np.int64(0)
            for x in range(width):
                left = (rows[at + x] + ((left + np.int64(out[above + x])) >> 1)) & 255
                out[here + x] = left
        elif kind == 4 and y + one < height and rows[at + width] == 4:
            # Each pixel waits for the one to its left; so the row below goes along, one behind.
            two = True
            below, rows_below = here + width - one, at + width
            rows[rows_below] = 0
            a = c = under = under_corner = np.int64(0)
            for x in range(width):
                b = np.int64(out[above + x])
                pixel = (rows[at + x] + _nearest(a, b, c)) & 255
                under = (rows[rows_below + x] + _nearest(under, a, under_corner)) & 255
                out[here + x] = pixel
                out[below + x] = under
                under_corner, a, c = a, pixel, b
            out[below] = a
            out[below + width] = rows[rows_below + width] + _nearest(under, a, under_corner)
        elif kind == 4:
            a = c = np.int64(0)
            for x in range(width):
                b = np.int64(out[above + x])
                a = (rows[at + x] + _nearest(a, b, c)) & 255
                out[here + x] = a
                c = b
        else:
            return False
    return True
