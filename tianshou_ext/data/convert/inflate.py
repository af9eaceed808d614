"""Inflate small zlib streams in compiled code, many in one call.

It only takes what is whole, sound and common: anything else is refused without a reason, and left
to zlib, which finds one. See RFC 1950 (zlib) and RFC 1951 (deflate).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tianshou_ext.data.convert.compiled import compiled, load_word, store_word

__all__ = ["SLACK", "TABLE_ENTRIES", "inflate"]

SLACK = 280  # bytes that may be written behind the end of what is inflated
LITERAL_BITS, DISTANCE_BITS, CODE_BITS = 10, 8, 7  # that are looked up at once
# Of the three tables together; with the most entries that codes of up to 15 bits can ask for.
TABLE_ENTRIES = 1334 + 402 + 128
MAX_LENGTHS = 286 + 30 + 8
REFUSED = -1
REPEAT = 255
EACH = 0x0101010101010101

# An entry of a table: how many bits the code has (5 bits), what it stands for (3), how many extra
# bits follow (8), and a value (16): one or two literals, the base of a length or a distance, or
# where a second table begins.
ONE, TWO, COPY, END, SECOND, NOTHING = (kind << 5 for kind in (1, 2, 4, 5, 6, 7))


def _meanings() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the entries, without bits of the code, of every literal or length, and distance."""
    literals = np.zeros(288, np.uint32)
    literals[:256] = np.arange(256) << 16 | ONE
    literals[256] = END
    extra = np.array([0] * 8 + [k // 4 for k in range(4, 24)] + [0])
    base = 3 + np.cumsum(np.append(0, 1 << extra[:-1]))
    base[-1] = 258
    literals[257:286] = base << 16 | extra << 8 | COPY
    literals[286:] = NOTHING
    distances = np.zeros(32, np.uint32)
    extra = np.array([0, 0] + [k // 2 for k in range(28)])
    base = 1 + np.cumsum(np.append(0, 1 << extra[:-1]))
    distances[:30] = base << 16 | extra << 8 | COPY
    # Of a code length: how often it is meant, at least, in the upper half of the value.
    codes = np.arange(19, dtype=np.uint32) << 16 | 1 << 24
    codes[16:] = [3 << 24 | REPEAT << 16 | 2 << 8, 3 << 24 | 3 << 8, 11 << 24 | 7 << 8]
    return literals, distances, codes


LITERALS, DISTANCES, CODES = _meanings()
REVERSED = np.array([int(f"{octet:08b}"[::-1], 2) for octet in range(256)])
ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])


@compiled
def _fill(table: Any, bits: Any, lengths: Any, meanings: Any) -> Any:
    """Fill a table of ``bits`` bits, and the second ones behind it, for codes of these lengths.

    :return: whether zlib takes such codes.
    """
    counts = np.zeros(16, np.int64)
    for length in lengths:
        counts[length] += 1
    starts, order = np.zeros(17, np.int64), np.empty(len(lengths), np.int64)
    longest, left = 0, 1
    for length in range(16):
        starts[length + 1] = starts[length] + counts[length]
        if length:
            left = 2 * left - counts[length]
            if left < 0:
                return False
            if counts[length]:
                longest = length
    if left and longest > 1:
        return False
    for symbol in range(len(lengths)):
        length = np.int64(lengths[symbol])
        order[starts[length]] = symbol
        starts[length] += 1
    table[: 1 << bits] = 0
    behind, prefix, second = 1 << bits, -1, 0
    code: Any = 0  # of 15 bits
    for k in range(counts[0], len(lengths)):
        symbol = order[k]
        length = np.int64(lengths[symbol])
        place = REVERSED[code & 255] << 7 | REVERSED[code >> 8] >> 1
        code += 1 << (15 - length)
        if length <= bits:
            entry = meanings[symbol] | length
            while place < 1 << bits:
                table[place] = entry
                place += 1 << length
        else:
            if place & (1 << bits) - 1 != prefix:
                prefix = place & (1 << bits) - 1
                second, open_, more = behind, 1 << (length - bits), length - bits
                taken = starts[length] - k
                while taken < open_:
                    open_ = 2 * (open_ - taken)
                    more += 1
                    taken = counts[bits + more]
                behind += 1 << more
                table[prefix] = second << 16 | more << 8 | SECOND | bits
            size = behind - second
            entry = meanings[symbol] | (length - bits)
            place >>= bits
            while place < size:
                table[second + place] = entry
                place += 1 << (length - bits)
    return True


@compiled
def _pair(table: Any) -> None:
    """Make one entry of two literals whose codes are looked up together."""
    single = table[: 1 << LITERAL_BITS].copy()
    for place in range(1 << LITERAL_BITS):
        entry = single[place]
        if entry >> 5 & 7 == ONE >> 5:
            after = single[place >> (entry & 31)]
            bits = (entry & 31) + (after & 31)
            if after >> 5 & 7 == ONE >> 5 and bits <= LITERAL_BITS:
                table[place] = (after >> 16 & 255) << 24 | entry & 0xFF0000 | TWO | bits


@compiled
def _codes(data: Any, at: Any, tables: Any, stop: Any) -> Any:
    """Read the codes of a dynamic block from bit ``at``; return where they end."""
    literals, distances, codes = _split(tables)
    word = load_word(data, at >> 3) >> (at & 7)
    literal_count, distance_count = 257 + (word & 31), 1 + (word >> 5 & 31)
    count = 4 + (word >> 10 & 15)
    at += 14
    if literal_count > 286 or distance_count > 30 or at >> 3 > stop:
        return REFUSED
    few = np.zeros(19, np.uint8)
    for k in range(count):
        few[ORDER[k]] = load_word(data, (at + 3 * k) >> 3) >> (at + 3 * k & 7) & 7
    at += 3 * count
    if not _fill(codes, CODE_BITS, few, CODES):
        return REFUSED
    lengths = np.empty(MAX_LENGTHS, np.uint8)
    done: Any = 0
    value: Any = -1
    total = literal_count + distance_count
    while done < total:
        if at >> 3 > stop:
            return REFUSED
        word = load_word(data, at >> 3) >> (at & 7)
        for _ in range(4):  # 14 bits at most each
            entry = np.int64(codes[word & (1 << CODE_BITS) - 1])
            word >>= entry & 31
            more = entry >> 8 & 7
            times = (entry >> 24) + (word & (1 << more) - 1)
            word >>= more
            if entry >> 16 & 255 != REPEAT:
                value = entry >> 16 & 255
            if entry == 0 or value < 0 or done + times > total:
                return REFUSED
            store_word(lengths, done, value * EACH)
            for rest in range(done + 8, done + times):
                lengths[rest] = value
            done += times
            at += (entry & 31) + more
            if done == total:
                break
    if lengths[256] == 0 or not _fill(literals, LITERAL_BITS, lengths[:literal_count], LITERALS):
        return REFUSED
    _pair(literals)
    if not _fill(distances, DISTANCE_BITS, lengths[literal_count:total], DISTANCES):
        return REFUSED
    return at


@compiled
def _split(tables: Any) -> Any:
    return tables[:1334], tables[1334 : 1334 + 402], tables[1334 + 402 :]


@compiled
def _fixed(tables: Any) -> None:
    literals, distances, _ = _split(tables)
    lengths = np.full(288, 8, np.uint8)
    lengths[144:256] = 9
    lengths[256:280] = 7
    _fill(literals, LITERAL_BITS, lengths, LITERALS)
    _pair(literals)
    _fill(distances, DISTANCE_BITS, np.full(32, 5, np.uint8), DISTANCES)


@compiled
def _adler(octets: Any, size: Any) -> Any:
    total = weighted = 0  # far from 63 bits
    for k in range(size):
        total += octets[k]
        weighted += octets[k] * (size - k)
    return (size + weighted) % 65521 << 16 | (1 + total) % 65521


@compiled
def inflate(data: Any, start: Any, stop: Any, out: Any, size: Any, tables: Any) -> Any:
    """Inflate ``data[start:stop]`` to exactly ``size`` bytes.

    :param data: uint8 with at least 16 bytes behind ``stop``.
    :param out: uint8 with room for ``size`` and ``SLACK`` bytes.
    :param tables: uint32 (TABLE_ENTRIES,), scratch.
    :return: whether it was done; else what is in ``out`` is of no use.
    """
    if stop - start < 6:
        return False
    head = np.int64(data[start]) << 8 | np.int64(data[start + 1])
    if head & 0x8F20 != 0x0800 or head % 31:  # deflate, a window of at most 32 kB, no dictionary
        return False
    literals, distances, _ = _split(tables)
    at, last = 8 * (start + 2), False  # at: in bits
    done: Any = 0
    while not last:
        if at >> 3 > stop:
            return False
        word = load_word(data, at >> 3) >> (at & 7)
        last, kind = word & 1 == 1, word >> 1 & 3
        at += 3
        if kind == 1:
            _fixed(tables)
        elif kind == 2:
            at = _codes(data, at, tables, stop)
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
