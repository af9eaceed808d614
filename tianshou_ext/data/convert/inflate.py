"""Inflate small zlib streams in compiled code, many in one call.

It only takes what is whole, sound and common: anything else is refused without a reason, and left
to zlib, which finds one. See RFC 1950 (zlib) and RFC 1951 (deflate).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tianshou_ext.data.convert.compiled import compiled, load_word, store_word
from tianshou_ext.data.convert.huffman import (
    COPY,
    DISTANCE_BITS,
    END,
    LITERAL_BITS,
    ONE,
    SECOND,
    fixed_codes,
    read_codes,
    split_tables,
)

__all__ = ["SLACK", "inflate"]

SLACK = 280  # bytes that may be written behind the end of what is inflated


@compiled
def _adler(octets: Any, size: Any) -> Any:
    total = weighted = 0  # far from 63 bits
    for k in range(size):
        total += octets[k]
        weighted += octets[k] * (size - k)
    return (size + weighted) % 65521 << 16 | (1 + total) % 65521


@compiled
def inflate(data: Any, start: Any, stop: Any, out: Any, size: Any, tables: Any, room: Any) -> Any:
    """Inflate ``data[start:stop]`` to exactly ``size`` bytes.

    :param data: uint8 with at least 16 bytes behind ``stop``.
    :param out: uint8 with room for ``size`` and ``SLACK`` bytes.
    :param tables: uint32 (TABLE_ENTRIES,), scratch.
    :param room: int64 (ROOM,), scratch.
    :return: whether it was done; else what is in ``out`` is of no use.
    """
    if stop - start < 6:
        return False
    head = np.int64(data[start]) << 8 | np.int64(data[start + 1])
    if head & 0x8F20 != 0x0800 or head % 31:  # deflate, a window of at most 32 kB, no dictionary
        return False
    literals, distances, _ = split_tables(tables)
    at, last = 8 * (start + 2), False  # at: in bits
    done: Any = 0
    while not last:
        if at >> 3 > stop:
            return False
        word = load_word(data, at >> 3) >> (at & 7)
        last, kind = word & 1 == 1, word >> 1 & 3
        at += 3
        if kind == 1:
            fixed_codes(tables, room)
        elif kind == 2:
            at = read_codes(data, at, tables, stop, room)
            if at < 0:
                return False
        else:
            return False
        while True:
            if at >> 3 > stop or done > size:
                return False
            word = load_word(data, at >> 3) >> (at & 7)  # 57 bits at least
            entry = np.int64(literals[word & (1 << LITERAL_BITS) - 1])
            if entry & 0x80 == 0:  # one or two literals
                store_word(out, done, entry >> 16)
                done += entry >> 5 & 3
                at += entry & 31
                word >>= entry & 31
                entry = np.int64(literals[word & (1 << LITERAL_BITS) - 1])
                if entry & 0x80 == 0:
                    store_word(out, done, entry >> 16)
                    done += entry >> 5 & 3
                    at += entry & 31
                    if entry == 0:
                        return False
                    continue
                word = load_word(data, at >> 3) >> (at & 7)
            kind = entry & 0xE0
            if kind == SECOND:
                at += LITERAL_BITS
                word >>= LITERAL_BITS
                more = entry >> 8 & 255
                entry = np.int64(literals[(entry >> 16) + (word & (1 << more) - 1)])
                kind = entry & 0xE0
                if kind == ONE:
                    out[done] = entry >> 16
                    done += 1
                    at += entry & 31
                    continue
            at += entry & 31
            if kind == END:
                break
            if kind != COPY:
                return False
            word >>= entry & 31
            extra = entry >> 8 & 255
            length = (entry >> 16) + (word & (1 << extra) - 1)
            at += extra
            word >>= extra
            entry = np.int64(distances[word & (1 << DISTANCE_BITS) - 1])
            if entry & 0xE0 == SECOND:
                at += DISTANCE_BITS
                word >>= DISTANCE_BITS
                more = entry >> 8 & 255
                entry = np.int64(distances[(entry >> 16) + (word & (1 << more) - 1)])
            if entry & 0xE0 != COPY:
                return False
            at += entry & 31
            word >>= entry & 31
            extra = entry >> 8 & 255
            distance = (entry >> 16) + (word & (1 << extra) - 1)
            at += extra
            if distance > done or length > size - done:
                return False
            _copy(out, done, distance, length)
            done += length
    at = (at + 7) >> 3
    if done != size or at + 4 > stop:
        return False
    stored = np.int64(0)
    for k in range(4):
        stored = stored << 8 | np.int64(data[at + k])
    return stored == _adler(out, size)


@compiled
def _copy(out: Any, to: Any, distance: Any, length: Any) -> None:
    """Repeat what stands ``distance`` before; up to seven bytes more are written."""
    stop = to + length
    if distance >= 8:
        while to < stop:
            store_word(out, to, load_word(out, to - distance))
            to += 8
        return
    word = load_word(out, to - distance) & (1 << 8 * distance) - 1
    step = distance
    while step < 8:
        word |= word << 8 * step
        step *= 2
    step = 8 // distance * distance
    while to < stop:
        store_word(out, to, word)
        to += step
