"""Read a buffer file block by block, oldest row first, in constant memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from tianshou_ext.data.hdf5 import FLAGS, FRAMES, PLAIN, PROVENANCE, ZSTD, import_zstd, open_hdf5
from tianshou_ext.errors import InputError

__all__ = ["BufferFile", "flat_rows", "mapped_leaves"]

Array = np.ndarray[Any, Any]
Spec = tuple[tuple[int, ...], str]  # shape of one row, number type

BLOCK_BYTES = 1 << 25
BLOCK_ROWS = 1 << 16


def mapped_leaves(function: Callable[[str, Any], Any], values: Any, path: str) -> Any:
    """Return nested ``values`` with ``function(path, leaf)`` in the place of every leaf."""
    if isinstance(values, Mapping):
        return {k: mapped_leaves(function, v, f"{path}/{k}") for k, v in values.items()}
    return function(path, values)


def flat_rows(values: Array) -> Array:
    """Return ``values`` (K, ...) as (K, D), for no rows too."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


class BufferFile:
    """A buffer file of ours or Tianshou's, open for reading. Use as a context manager.

    Rows count from the oldest one: a ring is unrolled, the parts of a vector buffer follow one
    another, places never filled are left out. Rewards and flags are in memory, the rest is read
    when asked for. Nothing is unpickled.

    :raises InputError: if the file is missing, foreign, truncated or inconsistent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            raise InputError(f"expected a buffer file, got the folder {self.path}; name a file")
        self._file = open_hdf5(self.path)
        try:
            self._read_header()
        except InputError:
            self._file.close()
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._file.close()
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> InputError:
        return InputError(
            f"expected a complete Tianshou buffer in {self.path}, but reading it failed "
            f"({' '.join(str(error).split())}); make or copy it again"
        )

    def _read_header(self) -> None:
        file, attrs = self._file, self._file.attrs
        if "_meta" not in file or any(key not in attrs for key in ("maxsize", "_size")):
            raise InputError(
                f"expected a Tianshou buffer in {self.path}, got an HDF5 file with "
                f"{sorted(file)[:8]}; convert it, see tianshou-ext convert --help"
            )
        recorded = json.loads(attrs.get(PROVENANCE, "{}"))
        self.provenance: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
        for key, kind in (("notes", str), ("made_from", dict)):
            if isinstance(found := self.provenance.pop(key, None), list):
                self.provenance[key] = [item for item in found if isinstance(item, kind)]
        options = file["options"].attrs if "options" in file else {}
        self.stack_num = int(options.get("stack_num", attrs.get("stack_num", 1)))
        self._ranges = self._filled_ranges()
        self.rows = sum(stop - start for start, stop in self._ranges)
        """Filled rows."""
        self._columns: dict[str, h5py.Dataset] = {}
        self._find_columns(file["_meta"], "")
        self._info: dict[str, h5py.Dataset] = {}
        self.unread_info: list[str] = []
        """Paths in ``info`` of what cannot be read: pickled objects, texts."""
        if "info" in file["_meta"]:
            self._find_info(file["_meta"].get("info"), "info", int(attrs["maxsize"]))
        self.shared_frames = FRAMES in self._columns
        self.save_obs_next = self.shared_frames or (
            not options.get("ignore_obs_next", False)
            and any(path.split("/")[0] == "obs_next" for path in self._columns)
        )
        if not self.save_obs_next:
            for path in [p for p in self._columns if p.split("/")[0] == "obs_next"]:
                del self._columns[path]
        if self.rows == 0:
            self.rew = np.zeros(0, np.float32)
            self.terminated = self.truncated = self.done = np.zeros(0, np.bool_)
        else:
            self._check_columns(int(attrs["maxsize"]))
            self.rew = self._read(self._columns.pop("rew"), 0, self.rows)
            flags = [self._flags(key) for key in FLAGS]
            self.terminated, self.truncated, self.done = flags
        self.open_ends = np.zeros(self.rows, np.bool_)
        """(N,) the newest row of a (sub-)buffer where its episode goes on."""
        self.ends = self.terminated | self.truncated | self.done
        """(N,) last row of an episode."""
        edge = 0
        for newest in self._newest:
            edge += newest
            self.open_ends[edge - 1] = not self.ends[edge - 1]
        self.ends = self.ends | self.open_ends
        self.transitions = self.terminated | ~self.ends
        """(N,) rows that can be sampled: those whose successor is known."""
        if self.save_obs_next:
            self.transitions = np.ones(self.rows, np.bool_)
        self.ordered = bool(
            self.provenance.get("ordered", self.rows < 2 or not bool(self.ends.all()))
        )
        """Whether rows follow one another in time; shuffled ones are all ends."""

    def _filled_ranges(self) -> list[tuple[int, int]]:
        """Return the places of the rows, oldest first, and note where each sub-buffer ends."""
        attrs, file = self._file.attrs, self._file
        if "_extend_offset" in file:
            edges = [int(k) for k in file["_extend_offset"][()]]
            lengths = [int(k) for k in file["_lengths"][()]]
            newest = [int(k) for k in file["last_index"][()]]
        else:
            size, full = int(attrs["_size"]), int(attrs["maxsize"])
            edges, lengths = [0, full], [size]
            newest = [int(attrs.get("_insertion_idx", 0)) - 1 if size == full else size - 1]
        ranges, self._newest = [], []
        for start, stop, length, last in zip(edges, edges[1:], lengths, newest, strict=False):
            if not 0 <= length <= stop - start:
                raise InputError(
                    f"expected at most {stop - start} rows in a (sub-)buffer of {self.path}, got "
                    f"{length}; make or copy it again"
                )
            if length == 0:
                continue
            first = last + 1 if length == stop - start and start <= last + 1 < stop else start
            ranges += [(first, start + length), (start, first)]
            self._newest.append(length)
        return [(start, stop) for start, stop in ranges if start < stop]

    def _find_columns(self, group: h5py.Group, prefix: str) -> None:
        wanted = {"obs", "obs_next", "act", "rew", *FLAGS}
        for key, item in group.items():
            path = prefix + key
            if path.split("/")[0] not in wanted:
                continue
            if item is None:
                raise KeyError(f"{group.name}/{key} is a link to nothing")
            if isinstance(item, h5py.Group):
                self._find_columns(item, f"{path}/")
            elif item.attrs.get("__data_type__") not in PLAIN:
                raise InputError(
                    f"expected {item.name} in {self.path} to be an array of numbers, got a pickled "
                    "object, which is not loaded because unpickling can run code; save it again "
                    "as an array"
                )
            elif item.is_virtual:
                self._columns[FRAMES] = self._file[FRAMES]
            else:
                self._columns[path] = item

    def _flags(self, key: str) -> Array:
        flags = self._read(self._columns.pop(key), 0, self.rows)
        wrong = np.flatnonzero((flags != 0) & (flags != 1))
        if len(wrong):
            raise InputError(
                f"expected {key} of 0 and 1 in {self.path}, got {flags[wrong[0]]} in row "
                f"{wrong[0]}; make it again"
            )
        return flags.astype(bool)

    def _find_info(self, item: Any, path: str, size: int) -> None:
        if isinstance(item, h5py.Group):
            for key, part in item.items():
                self._find_info(part, f"{path}/{key}", size)
        elif (
            path != "info"
            and isinstance(item, h5py.Dataset)
            and item.attrs.get("__data_type__") in PLAIN
            and item.dtype.kind in "biuf"
            and (item.shape or ())[:1] == (size,)
        ):
            self._info[path] = item
        else:
            self.unread_info.append(path)

    def _check_columns(self, size: int) -> None:
        found = {path.split("/")[0] for path in self._columns}
        needed = {"act", "rew", *FLAGS} | ({FRAMES} if self.shared_frames else {"obs"})
        if not needed <= found:
            raise InputError(
                f"expected obs, act, rew, terminated, truncated and done in {self.path}, "
                f"{sorted(needed - found)} missing; make it again"
            )
        shapes = {path: column.shape for path, column in self._columns.items()}
        wrong = {path: shape for path, shape in shapes.items() if shape[:1] != (size,)}
        if wrong:
            raise InputError(
                f"expected {size} rows of each column in {self.path}, got {wrong}; make it again"
            )
        for path in ("rew", *FLAGS):
            if shapes[path] != (size,):
                raise InputError(
                    f"expected one number a step for {path} in {self.path}, got the shape "
                    f"{shapes[path]}; reshape it"
                )
        for path in (p for p in shapes if self.save_obs_next and p.split("/")[0] == "obs_next"):
            if shapes.get(path.replace("obs_next", "obs", 1)) != shapes[path]:
                raise InputError(
                    f"expected obs_next as obs in {self.path}, got {path} of {shapes[path]}; make "
                    "it again"
                )
        for path, column in self._columns.items():
            if column.dtype.kind not in "biuf":
                raise InputError(
                    f"expected numbers for {path} in {self.path}, got {column.dtype}; convert it"
                )
            plist = column.id.get_create_plist()
            if ZSTD in (plist.get_filter(k)[0] for k in range(plist.get_nfilters())):
                import_zstd(self.path)

    def __enter__(self) -> BufferFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def specs(self) -> dict[str, Spec]:
        """Shape of a row and number type of each column but rewards and flags, by path."""
        return {path: (c.shape[1:], str(c.dtype)) for path, c in sorted(self._columns.items())}

    @property
    def info_specs(self) -> dict[str, Spec]:
        """Shape of a row and number type of each column of ``info``, by path: ``info/source``."""
        return {path: (c.shape[1:], str(c.dtype)) for path, c in sorted(self._info.items())}

    def _read(self, column: h5py.Dataset, start: int, stop: int) -> Array:
        parts, before = [], 0
        try:
            for first, last in self._ranges:
                a, b = max(start - before, 0), min(stop - before, last - first)
                if a < b:
                    parts.append(column[first + a : first + b])
                before += last - first
        except OSError as error:
            raise self._broken(error) from error
        if not parts:
            return np.zeros((0, *column.shape[1:]), column.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, start: int, stop: int, *names: str) -> dict[str, Any]:
        """Return rows ``start`` to ``stop`` of the columns named, or of act, obs and obs_next.

        Where frames are shared, ``frames`` (K, S+1, ...) takes the place of obs and obs_next.
        """
        wanted = {k: c for k, c in self._columns.items() if not names or k.split("/")[0] in names}
        return self._read_nested(wanted, start, stop)

    def read_info(self, start: int, stop: int, paths: Iterable[str]) -> dict[str, Any]:
        """Return rows ``start`` to ``stop`` of columns of ``info``, below that key; {} of none."""
        return self._read_nested({path: self._info[path] for path in paths}, start, stop)

    def _read_nested(
        self, columns: Mapping[str, h5py.Dataset], start: int, stop: int
    ) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for path, column in columns.items():
            *groups, name = path.split("/")
            place = nested
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = self._read(column, start, stop)
        return nested

    def block_rows(self) -> int:
        """Return how many rows make a block of some 32 MB."""
        columns = (*self._columns.values(), *self._info.values())
        row = sum(int(np.prod(c.shape[1:]) * c.dtype.itemsize) for c in columns)
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row)))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield first row and end of consecutive blocks."""
        step = self.block_rows()
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def episodes(self) -> tuple[Array, Array]:
        """Return the episodes' first rows and ends, (E,) each."""
        stops = np.nonzero(self.ends)[0] + 1
        return np.concatenate([[0], stops[:-1]]).astype(np.int64), stops

    def returns(self) -> Array:
        """Return each episode's sum of rewards over its transitions, (E,) float64."""
        starts, _ = self.episodes()
        rewards = np.where(self.transitions, self.rew, 0).astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite rewards of both signs: NaN
            return np.add.reduceat(rewards, starts) if len(starts) else np.zeros(0)

    def lengths(self) -> Array:
        """Return each episode's number of transitions, (E,)."""
        starts, _ = self.episodes()
        counted = self.transitions.astype(np.int64)
        return np.add.reduceat(counted, starts) if len(starts) else np.zeros(0, np.int64)
