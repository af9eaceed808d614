"""Read gzip files as streams, with isal where it is installed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:  # inflates faster
    from isal import isal_zlib as fast_zlib
except ImportError:
    fast_zlib = zlib

__all__ = ["GZIP", "OUTPUT_BYTES", "GzipError", "GzipReader", "fast_zlib", "inflated"]

GZIP = b"\x1f\x8b"
INPUT_BYTES = 1 << 16  # read from the file at once
OUTPUT_BYTES = 1 << 20  # inflated at once
SEVERAL = (
    "several gzip members, where the writers of such files make one; were files joined, or one "
    "twice?"
)


class GzipError(Exception):
    """A gzip file is damaged; the message is the reason."""


class GzipReader:
    """What a gzip file of one or several members holds, as a stream.

    :param seen: filled with what is unusual about it.
    :raises GzipError: in every method, at a damage.
    :raises OSError: there, if the file cannot be read.
    """

    def __init__(self, path: Path, seen: set[str] | None = None) -> None:
        self._chunks = _chunks(path, seen)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return the next bytes; fewer only at the end."""
        out = np.empty(size, np.uint8)
        return out[: self.readinto(out.data)].tobytes()

    def readinto(self, out: memoryview) -> int:
        """Fill ``out`` with the next bytes; return how many there were."""
        filled = 0
        while filled < len(out):
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            some = self._rest[: len(out) - filled]
            out[filled : filled + len(some)] = some
            self._rest = self._rest[len(some) :]
            filled += len(some)
        return filled


def _chunks(path: Path, seen: set[str] | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from inflated(file, seen)


def inflated(file: BinaryIO, seen: set[str] | None = None) -> Iterator[bytes]:
    """Yield what a gzip file holds, up to the last byte before a damage.

    :param seen: filled with what is unusual about it.
    :raises GzipError: at the damage.
    """
    done = 0
    seen = set() if seen is None else seen
    if fast_zlib is not zlib:
        try:
            for chunk in _inflated_by(fast_zlib, file, seen):
                done += len(chunk)
                yield chunk
            return
        except GzipError:  # it gives less than there is; only zlib's state can be copied
            file.seek(0)
    for chunk in _inflated_by(zlib, file, seen):
        if len(chunk) > done:
            yield chunk[done:]
        done = max(0, done - len(chunk))


def _inflated_by(library: Any, file: BinaryIO, seen: set[str]) -> Iterator[bytes]:
    rest = b""
    while True:
        member = library.decompressobj(wbits=31)
        while not member.eof:
            rest = member.unconsumed_tail or rest or file.read(INPUT_BYTES)
            before = member.copy() if library is zlib else None
            try:
                chunk = member.decompress(rest, OUTPUT_BYTES)
            except library.error as error:
                if before is not None:
                    yield from _bytewise(before, rest)
                raise GzipError(f"a damaged gzip stream ({error})") from error
            if not chunk and not rest and not member.eof:
                raise GzipError("a truncated gzip stream")
            rest = b""
            if chunk:
                yield chunk
        rest = member.unused_data
        while not rest.strip(b"\0"):  # padding is allowed
            rest = file.read(INPUT_BYTES)
            if not rest:
                return
        rest = rest.lstrip(b"\0")
        rest += file.read(2) if len(rest) < 2 else b""
        if not rest.startswith(GZIP):
            raise GzipError("something else after the end of the gzip stream")
        seen.add(SEVERAL)


def _bytewise(member: Any, data: bytes) -> Iterator[bytes]:
    """Yield what the last input before a damage still gives."""
    try:
        for k in range(len(data)):
            rest = data[k : k + 1]
            while chunk := member.decompress(rest, OUTPUT_BYTES):
                rest = member.unconsumed_tail
                yield chunk
    except zlib.error:
        return
