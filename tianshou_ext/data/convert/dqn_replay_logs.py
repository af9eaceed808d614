"""The files of one checkpoint of DQN Replay, read as streams and never unpickled.

Layout (google/dopamine, ``circular_replay_buffer.py``, and google-research/batch_rl,
``logged_replay_buffer.py``): a checkpoint ``k`` is a set of gzip files, ``$store$_observation``
(C, H, W) uint8, ``$store$_action``, ``$store$_reward``, ``$store$_terminal`` (C,) and
``add_count`` (), each one ``.npy`` array. A row holds the frame, the action taken on it, its
reward and whether the episode ended with it.
"""

from __future__ import annotations

import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.convert.gunzip import GzipError, GzipReader

__all__ = ["COLUMNS", "BadFileError", "Log", "open_log"]

MAX_RATIO = 1100  # bytes of an array per byte of its file; deflate reaches 1032
COLUMNS = {
    "act": ("$store$_action", "iu"),
    "rew": ("$store$_reward", "fiu"),
    "terminated": ("$store$_terminal", "biu"),
}
Array = np.ndarray[Any, Any]
npy: Any = np.lib.format


class BadFileError(Exception):
    """A file cannot be used; the message is the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


class _Npy:
    """A ``.npy`` array in a gzip file, read as a stream and never unpickled.

    :raises BadFileError: in every method, if the file is missing, damaged or of another format.
    """

    def __init__(self, path: Path, kinds: str, dims: int) -> None:
        self.path = path
        self._seen: set[str] = set()
        self._stream = GzipReader(path, self._seen)
        try:
            version = npy.read_magic(self._stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            header = read(self._stream)
        except OSError as error:
            raise BadFileError(path, f"cannot be opened ({error.strerror})") from error
        except (GzipError, ValueError, SyntaxError, tokenize.TokenError) as error:
            raise BadFileError(
                path, f"no .npy array in gzip ({' '.join(str(error).split())})"
            ) from error
        self.shape, fortran, self.dtype = header
        if (
            self.dtype.kind not in kinds
            or self.dtype.itemsize > 8
            or len(self.shape) != dims
            or (fortran and dims > 1)
        ):
            raise BadFileError(
                path, f"an array of {self.dtype} with the shape {self.shape}, unlike such a log"
            )
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        if self.row_bytes * (self.shape[0] if dims else 1) > MAX_RATIO * path.stat().st_size:
            raise BadFileError(path, f"an array of the shape {self.shape}, too large for the file")

    def read(self, count: int) -> Array:
        """Return the next ``count`` rows."""
        values = np.empty((count, *self.shape[1:]), self.dtype)
        self.read_into(values)
        return values

    def read_into(self, values: Array) -> None:
        """Fill ``values`` (K, ...) with the next K rows."""
        octets = values.reshape(-1).view(np.uint8)
        try:
            if self._stream.readinto(octets.data) < len(octets):
                raise GzipError("the array ends too early")
        except (OSError, GzipError) as error:
            raise BadFileError(self.path, f"truncated or damaged ({error})") from error

    def close(self) -> set[str]:
        """Check that the file ends here and is sound; return what is unusual about it."""
        try:
            if self._stream.read(1):
                raise GzipError("more than its array")
        except (OSError, GzipError) as error:
            raise BadFileError(self.path, f"truncated or damaged ({error})") from error
        return {f"WARNING: {self.path.name} has {what}" for what in self._seen}


@dataclass(frozen=True)
class Log:
    """A checkpoint's files."""

    folder: Path
    number: int
    shape: tuple[int, ...]
    """(C, H, W)."""
    add_count: int
    unusual: set[str] = field(default_factory=set, compare=False)
    """Notes on the files, which grow as they are read."""

    @property
    def capacity(self) -> int:
        return self.shape[0]

    @property
    def cursor(self) -> int:
        """Return how many slots, from 0 on, were filled in this cycle."""
        whole = self.add_count > 0 and self.add_count % self.capacity == 0
        return self.capacity if whole else self.add_count % self.capacity

    def path(self, name: str) -> Path:
        return self.folder / f"{name}_ckpt.{self.number}.gz"

    def files(self) -> list[Path]:
        names = ["$store$_observation", "add_count", *(name for name, _ in COLUMNS.values())]
        return [self.path(name) for name in names]

    def frames(self) -> _Npy:
        """Open the frames, (C, H, W)."""
        return _Npy(self.path("$store$_observation"), "u", 3)

    def columns(self) -> dict[str, Array]:
        """Read actions, rewards and terminals, (C,) each."""
        columns = {}
        for key, (name, kinds) in COLUMNS.items():
            array = _Npy(self.path(name), kinds, 1)
            columns[key] = array.read(array.shape[0])
            self.unusual.update(array.close())
            if len(columns[key]) != self.capacity:
                raise BadFileError(
                    self.path(name), f"{len(columns[key])} rows beside {self.capacity} frames"
                )
        return columns


def open_log(folder: Path, number: int) -> Log:
    """Return a checkpoint; of its arrays, only the shape of the frames is read.

    :raises BadFileError: if one is missing, damaged or of another format.
    """
    frames = folder / f"$store$_observation_ckpt.{number}.gz"
    array = _Npy(frames, "u", 3)
    shape = array.shape
    added = _Npy(folder / f"add_count_ckpt.{number}.gz", "iu", 0)
    count = int(added.read(1).reshape(()))
    added.close()
    if count < 0 or 0 in shape or array.dtype != np.uint8:
        raise BadFileError(frames, f"{array.dtype} of the shape {shape}, {count} rows added")
    return Log(folder, number, shape, count)
