"""Read TFRecord files and the ``tf.train.Example`` in them, without TensorFlow.

A TFRecord is a sequence of ``length (8 bytes), CRC of the length (4), data, CRC of the data (4)``,
little endian, possibly as a whole in gzip. The CRCs are CRC-32C, masked. See TensorFlow's
``core/lib/io/record_writer.cc`` and ``core/example/feature.proto``, and "Encoding" in Protocol
Buffers' documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.convert.checksums import CRC32C, masked_crc
from tianshou_ext.data.convert.compiled import compiled, load_word
from tianshou_ext.data.convert.gunzip import GZIP, OUTPUT_BYTES, GzipError, inflated
from tianshou_ext.errors import InputError

__all__ = [
    "RecordError",
    "parse_example",
    "read_batches",
    "read_records",
    "varint",
    "walk",
]

BATCH, BATCH_BYTES = 4096, 1 << 22  # records at most, bytes at least

Feature = list[bytes] | np.ndarray[Any, Any]


class RecordError(InputError):
    """A file or a record that is not what it should be.

    :param reason: what came.
    :param file: where.
    :param record: its number, counted from 0.
    """

    def __init__(self, reason: str, file: str = "", record: int | None = None) -> None:
        super().__init__(reason, file, record)
        self.reason = reason
        self.file = file
        self.record = record

    def __str__(self) -> str:
        place = f" in {self.file}" if self.file else ""
        number = "" if self.record is None else f" (record {self.record})"
        return f"expected sound TFRecords{place}, got {self.reason}{number}; replace the file"


def read_records(
    path: str | Path,
    *,
    check_crc: bool = True,
    max_bytes: int = 1 << 30,
    seen: set[str] | None = None,
) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, one by one; see ``read_batches``."""
    for data, bounds in read_batches(path, check_crc=check_crc, max_bytes=max_bytes, seen=seen):
        for start, stop in bounds.tolist():
            yield data[start:stop]


def read_batches(
    path: str | Path,
    *,
    check_crc: bool = True,
    max_bytes: int = 1 << 30,
    seen: set[str] | None = None,
) -> Iterator[tuple[bytes, np.ndarray[Any, Any]]]:
    """Yield the records of a TFRecord file, plain or gzip (of one or several members).

    The intact records before a damage are all yielded. Memory is a few times the longest record.

    :param check_crc: check the records' CRCs too; those of their lengths are always checked.
    :param max_bytes: of one record; more is refused.
    :param seen: filled with what is unusual about the file.
    :return: bytes, and where in them records start and stop, (K, 2) int64.
    :raises InputError: if there is no such file.
    :raises RecordError: if the file holds no records, is foreign, truncated or damaged.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none"
        raise InputError(f"expected a TFRecord file at {path}, found {found}; check the path")
    number, data, at = 0, b"", 0
    damage: RecordError | None = None
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP
        file.seek(0)
        if is_gzip:
            chunks = inflated(file, seen)
        else:
            chunks = iter(lambda: file.read(OUTPUT_BYTES), b"")
            max_bytes = min(max_bytes, path.stat().st_size)

        def fill(size: int) -> int:
            """Read on until ``size`` bytes are there, or more; return how many are."""
            nonlocal data, at, damage
            parts, there = [data[at:]], len(data) - at
            while there < max(size, BATCH_BYTES) and not damage:
                try:
                    chunk = next(chunks, b"")
                except GzipError as error:
                    damage = RecordError(str(error))
                    break
                if not chunk:
                    break
                parts.append(chunk)
                there += len(chunk)
            data, at = b"".join(parts), 0
            if there < size and damage:
                raise damage
            return there

        try:
            while True:
                bounds = np.empty((BATCH, 2), np.int64)
                octets = np.frombuffer(data, np.uint8)
                count, at, error, length = _scan(octets, at, max_bytes, check_crc, CRC32C, bounds)
                if count:
                    yield data, bounds[:count]
                    number += count
                if error == BAD_LENGTH and number == 0:
                    reason = "a file that is no TFRecord (its first length has a wrong checksum)"
                    raise RecordError(reason, str(path))
                if error == BAD_LENGTH:
                    raise RecordError("a wrong checksum of the record's length")
                if error == TOO_LONG:
                    length %= 1 << 64
                    raise RecordError(f"a record of {length} bytes, more than the {max_bytes} here")
                if error == BAD_DATA:
                    raise RecordError("a record with a wrong checksum")
                if count == BATCH:
                    continue
                there = fill(16 + max(0, length))
                if there == 0:
                    break
                if there < 12:
                    raise RecordError(f"a file that ends {there} bytes into a record's header")
                if 0 <= length > there - 16:
                    ends = f"{there - 12} bytes into {length + 4} of data"
                    raise RecordError(f"a file that ends {ends}")
            if number == 0:
                raise RecordError("a file that holds no records", str(path))
        except RecordError as error:
            if error.file:
                raise
            raise RecordError(error.reason, str(path), number) from error


BAD_LENGTH, TOO_LONG, BAD_DATA = 1, 2, 3


@compiled
def _scan(data: Any, at: Any, max_bytes: Any, check: Any, tables: Any, bounds: Any) -> Any:
    """Find the whole records from ``at`` on.

    :param bounds: filled with where they start and stop.
    :return: how many there are, where the next one begins, what is wrong with that or 0, and its
        length, or -1 if not even that is there.
    """
    count = 0
    while count < len(bounds):
        if len(data) - at < 12:
            return count, at, 0, np.int64(-1)
        length: Any = load_word(data, at)
        if masked_crc(data, at, at + 8, tables) != _crc_at(data, at + 8):
            return count, at, BAD_LENGTH, length
        if not 0 <= length <= max_bytes:
            return count, at, TOO_LONG, length
        start, stop = at + 12, at + 12 + length
        if len(data) < stop + 4:
            return count, at, 0, length
        if check and masked_crc(data, start, stop, tables) != _crc_at(data, stop):
            return count, at, BAD_DATA, length
        bounds[count] = (start, stop)
        count, at = count + 1, stop + 4
    return count, at, 0, np.int64(-1)


@compiled
def _crc_at(data: Any, at: Any) -> Any:
    value: Any = 0
    for k in range(4):
        value |= np.int64(data[at + k]) << 8 * k
    return value


def parse_example(record: bytes) -> dict[str, Feature]:
    """Return the features of a serialized ``tf.train.Example`` by name.

    Repeated parts are merged as Protocol Buffers demand: of a name that occurs twice, the last
    entry counts; lists of one feature are joined. Unknown fields are skipped, groups refused.

    :return: a list of bytes, or an array of float32 or int64 (K,), which may be read-only; an
        empty list for a feature without a kind.
    :raises RecordError: if the bytes are no such message.
    """
    octets = np.frombuffer(record, np.uint8)
    entries, values = np.empty((32, 5), np.int64), np.empty((128, 3), np.int64)
    many, count, error = walk(octets, entries, values)
    if many > len(entries) or count > len(values):
        entries, values = np.empty((many, 5), np.int64), np.empty((count, 3), np.int64)
        many, count, error = walk(octets, entries, values)
    if error:
        raise RecordError(f"{WRONG[error]} in a tf.train.Example")
    places = values[:count].tolist()
    features: dict[str, Feature] = {}
    for key_start, key_stop, kind, first, last in entries[:many].tolist():
        try:
            key = record[key_start:key_stop].decode()
        except UnicodeDecodeError as wrong:
            raise RecordError("a name that is no UTF-8 in a tf.train.Example") from wrong
        parts = places[first:last]
        if kind == FLOATS:
            raw = b"".join([record[start:stop] for _, start, stop in parts])
            if len(raw) % 4:
                raise RecordError(f"floats of {len(raw)} bytes together in a tf.train.Example")
            features[key] = np.frombuffer(raw, "<f4")
        elif kind == INTEGERS:
            features[key] = _integers(octets, parts)
        else:
            features[key] = [record[start:stop] for _, start, stop in parts]
    return features


def _integers(octets: np.ndarray[Any, Any], parts: list[list[int]]) -> np.ndarray[Any, Any]:
    arrays = []
    for wire, start, stop in parts:
        values, error = (
            (np.array([start]), 0)
            if wire == 0
            else _unpack(octets[start:stop])  # the number itself
        )
        if error:
            raise RecordError(f"{WRONG[error]} in a tf.train.Example")
        arrays.append(values)
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


# What follows walks a message in compiled code. Exceptions there would leak memory, so positions
# below zero stand for errors.
FLOATS, INTEGERS = 2, 3  # kinds of a feature; 1 is bytes
CUT, LONG, GROUP, NUMBER = 1, 2, 3, 4
WRONG = {
    CUT: "a field that is longer than what holds it",
    LONG: "a number of more than 10 bytes",
    GROUP: "an unknown wire type",
    NUMBER: "a field without a proper number",
}


@compiled
def varint(data: Any, at: Any, stop: Any) -> Any:
    """Return a number as int64, and where the next thing starts."""
    value = np.int64(0)
    for shift in range(0, 70, 7):
        if at >= stop:
            return value, -CUT
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return value, -LONG


@compiled
def _unpack(data: Any) -> Any:
    """Return packed numbers as int64 (K,), and an error or 0."""
    values = np.empty((data < 128).sum(), np.int64)
    at = 0
    for k in range(len(values)):
        values[k], at = varint(data, at, len(data))
        if at < 0:
            return values, -at
    return values, 0 if at == len(data) else CUT


@compiled
def _field(data: Any, at: Any, stop: Any) -> Any:
    """Return a field's number, wire type, where its contents start and stop, and the next field.

    The contents of a varint (wire type 0) are in the place of the start.
    """
    tag, at = varint(data, at, stop)
    number, wire = tag >> 3, tag & 7
    start = end = at
    if at < 0:
        return number, wire, start, end, at
    if not 0 < number < 1 << 29:
        return number, wire, start, end, -NUMBER
    if wire == 0:
        start, end = varint(data, at, stop)
    elif wire == 2:
        size, start = varint(data, at, stop)
        end = start
        if start >= 0:
            end = start + size if 0 <= size <= stop - start else -CUT
    elif wire == 1 or wire == 5:
        size = 8 if wire == 1 else 4
        end = at + size if size <= stop - at else -CUT
    else:
        end = -GROUP
    return number, wire, start, end, end


@compiled
def walk(data: Any, entries: Any, values: Any) -> Any:
    """Find the features in a message, and the values in each.

    :param entries: filled with name's start and stop, kind, first and last row of ``values``.
    :param values: filled with wire type, start and stop.
    :return: how many there are of each (rows beyond the arrays' ends are not filled), and an
        error or 0.
    """
    many = count = 0
    at = 0
    while at < len(data):  # Example
        number, wire, entry, features_stop, at = _field(data, at, len(data))
        if at < 0:
            return many, count, -at
        if number != 1 or wire != 2:
            continue
        while entry < features_stop:  # Features
            number, wire, part, entry_stop, entry = _field(data, entry, features_stop)
            if entry < 0:
                return many, count, -entry
            if number != 1 or wire != 2:
                continue
            first, kind = count, 0
            key_start = key_stop = 0
            while part < entry_stop:  # an entry of the map
                number, wire, kinds, part_stop, part = _field(data, part, entry_stop)
                if part < 0:
                    return many, count, -part
                if number == 1 and wire == 2:
                    key_start, key_stop = kinds, part_stop
                if number != 2 or wire != 2:
                    continue
                while kinds < part_stop:  # Feature
                    number, wire, value, kind_stop, kinds = _field(data, kinds, part_stop)
                    if kinds < 0:
                        return many, count, -kinds
                    if wire != 2 or not 1 <= number <= 3:
                        continue
                    if number != kind:
                        count, kind = first, number
                    while value < kind_stop:  # BytesList, FloatList or Int64List
                        number, wire, start, stop, value = _field(data, value, kind_stop)
                        if value < 0:
                            return many, count, -value
                        other = (kind == FLOATS and wire == 5) or (kind == INTEGERS and wire == 0)
                        if number == 1 and (wire == 2 or other):
                            if count < len(values):
                                values[count] = (wire, start, stop)
                            count += 1
            if many < len(entries):
                entries[many] = (key_start, key_stop, kind, first, count)
            many += 1
    return many, count, 0
