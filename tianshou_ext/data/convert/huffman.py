"""The codes of deflate streams, and tables to look them up; in compiled code. See RFC 1951."""

from __future__ import annotations

from typing import Any

import numpy as np

from tianshou_ext.data.convert.compiled import compiled, load_word, store_word

__all__ = [
    "COPY",
    "DISTANCE_BITS",
    "END",
    "LITERAL_BITS",
    "ONE",
    "REFUSED",
    "ROOM",
    "SECOND",
    "TABLE_ENTRIES",
    "fixed_codes",
    "read_codes",
    "split_tables",
]

LITERAL_BITS, DISTANCE_BITS, CODE_BITS = 9, 8, 7  # that are looked up at once
# Of the three tables together; with the most entries that codes of up to 15 bits can ask for.
TABLE_ENTRIES = 852 + 402 + 128
MAX_LENGTHS = 286 + 30 + 8
ROOM = 16 + 17 + 2 * 288  # numbers, to sort codes in
FEW = 1200  # bytes of a stream, for which pairs of literals do not pay
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
def _fill(table: Any, bits: Any, lengths: Any, meanings: Any, room: Any) -> Any:
    """Fill a table of ``bits`` bits, and the second ones behind it, for codes of these lengths.

    :param room: (ROOM,) int64, scratch.
    :return: whether zlib takes such codes.
    """
    counts, starts, order, used = room[:16], room[16:33], room[33:321], room[321:]
    length: Any
    code: Any = 0  # of 15 bits
    count = 0
    for symbol in range(len(lengths)):  # most have no code
        used[count] = symbol
        count += lengths[symbol] != 0
    counts[:] = 0
    for k in range(count):
        counts[lengths[used[k]]] += 1
    starts[1], longest, left = 0, 0, 1
    for length in range(1, 16):
        starts[length + 1] = starts[length] + counts[length]
        left = 2 * left - counts[length]
        if left < 0:
            return False
        if counts[length]:
            longest = length
    if left and longest > 1:
        return False
    for k in range(count):
        length = np.int64(lengths[used[k]])
        order[starts[length]] = used[k]
        starts[length] += 1
    k = 0
    table[0] = 0
    for length in range(1, bits + 1):  # each code once, then all again for every bit more
        half = 1 << (length - 1)
        for place in range(half):
            table[half + place] = table[place]
        while k < starts[length]:
            symbol = order[k]
            table[REVERSED[code & 255] << 7 | REVERSED[code >> 8] >> 1] = meanings[symbol] | length
            code += 1 << (15 - length)
            k += 1
    behind, prefix, second = 1 << bits, -1, 0
    while k < count:
        symbol = order[k]
        length = np.int64(lengths[symbol])
        place = REVERSED[code & 255] << 7 | REVERSED[code >> 8] >> 1
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
        code += 1 << (15 - length)
        k += 1
    return True


@compiled
def _pair(table: Any) -> None:
    """Make one entry of two literals whose codes are looked up together."""
    for place in range((1 << LITERAL_BITS) - 1, -1, -1):  # what it looks up is still single
        entry = np.int64(table[place])
        after = np.int64(table[place >> (entry & 31)])
        bits = (entry & 31) + (after & 31)
        pair = (after >> 16 & 255) << 24 | entry & 0xFF0000 | TWO | bits
        both = (entry & 0xE0 == ONE) & (after & 0xE0 == ONE) & (bits <= LITERAL_BITS)
        table[place] = pair if both else entry  # no branch, which would be guessed wrong


@compiled
def read_codes(data: Any, at: Any, tables: Any, stop: Any, room: Any) -> Any:
    """Read the codes of a dynamic block from bit ``at``.

    :param tables: uint32 (TABLE_ENTRIES,), filled.
    :param stop: where the stream ends.
    :param room: int64 (ROOM,), scratch.
    :return: the bit where they end, or REFUSED.
    """
    literals, distances, codes = split_tables(tables)
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
    if not _fill(codes, CODE_BITS, few, CODES, room):
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
    of_literals, of_distances = lengths[:literal_count], lengths[literal_count:total]
    if lengths[256] == 0 or not _fill(literals, LITERAL_BITS, of_literals, LITERALS, room):
        return REFUSED
    if stop - (at >> 3) > FEW:
        _pair(literals)
    if not _fill(distances, DISTANCE_BITS, of_distances, DISTANCES, room):
        return REFUSED
    return at


@compiled
def split_tables(tables: Any) -> Any:
    """Return the tables of literals and lengths, of distances, and of code lengths."""
    return tables[:852], tables[852 : 852 + 402], tables[852 + 402 :]


@compiled
def fixed_codes(tables: Any, room: Any) -> None:
    """Fill the tables for the codes of a fixed block."""
    literals, distances, _ = split_tables(tables)
    lengths = np.full(288, 8, np.uint8)
    lengths[144:256] = 9
    lengths[256:280] = 7
    _fill(literals, LITERAL_BITS, lengths, LITERALS, room)
    _pair(literals)
    _fill(distances, DISTANCE_BITS, np.full(32, 5, np.uint8), DISTANCES, room)
