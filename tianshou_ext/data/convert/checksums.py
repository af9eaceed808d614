"""CRCs in compiled code: of TFRecords (CRC-32C), and of PNGs' parts (CRC-32)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tianshou_ext.data.convert.compiled import compiled, load_word

__all__ = ["CRC32", "CRC32C", "crc", "crc32c", "masked", "masked_crc"]


def _tables(polynomial: int) -> np.ndarray[Any, Any]:
    """Return tables (8, 256) uint32: what a byte, followed by k zero bytes, does to the CRC."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(polynomial), np.uint32(0))
    tables = [table]
    for _ in range(7):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 255])
    return np.stack(tables)


CRC32 = _tables(0xEDB88320)
CRC32C = _tables(0x82F63B78)


@compiled
def crc(octets: Any, start: Any, stop: Any, tables: Any) -> Any:  # "slicing by 8"
    """Return the CRC of ``octets[start:stop]`` as int64."""
    found = np.int64(0xFFFFFFFF)
    at = start
    while at + 8 <= stop:
        word = load_word(octets, at) ^ found
        found = np.int64(
            tables[7, word & 255]
            ^ tables[6, word >> 8 & 255]
            ^ tables[5, word >> 16 & 255]
            ^ tables[4, word >> 24 & 255]
            ^ tables[3, word >> 32 & 255]
            ^ tables[2, word >> 40 & 255]
            ^ tables[1, word >> 48 & 255]
            ^ tables[0, word >> 56 & 255]
        )
        at += 8
    while at < stop:
        found = np.int64(tables[0, (found ^ octets[at]) & 255]) ^ (found >> 8)
        at += 1
    return found ^ 0xFFFFFFFF


@compiled
def masked_crc(octets: Any, start: Any, stop: Any, tables: Any) -> Any:
    """Return the CRC-32C of ``octets[start:stop]`` as TFRecord stores it."""
    found = crc(octets, start, stop, tables)
    return ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``."""
    return int(crc(np.frombuffer(data, np.uint8), 0, len(data), CRC32C))


def masked(crc: int) -> int:
    """Return a CRC as TFRecord stores it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
