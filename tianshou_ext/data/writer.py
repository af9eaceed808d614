"""Write buffers in HDF5: Tianshou's own layout, block by block, in constant memory.

A file written here opens with ``ReplayBuffer.load_hdf5`` of both Tianshou lines and holds the
same transitions there. It differs from what ``save_hdf5`` writes in four ways:

- no pickled random state (numpy 1 cannot read numpy 2's; unpickling runs code);
- the insertion state is that of a buffer that was filled row by row, so ``prev`` and ``next``
  are right at the first and the last row;
- arrays are contiguous and uncompressed unless asked otherwise, so they can be mapped;
- the root attribute ``tianshou_ext`` carries the provenance as JSON.

Ordered frames (uint8) are stored once a step, with ``stack_num`` set and ``obs_next`` left out. A
truncated episode then ends with one extra row: its final observation, action and reward 0,
``truncated`` True. ``Replay`` never samples such a row. Shuffled transitions of stacked frames
are stored as the S+1 frames they share, ``obs`` and ``obs_next`` being views of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
from tianshou.data import Batch

from tianshou_ext import __version__
from tianshou_ext.data.disk import SyncedAhead
from tianshou_ext.data.hdf5 import FRAMES, PROVENANCE
from tianshou_ext.data.info import numbers_in
from tianshou_ext.data.replay import neighbours
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

__all__ = ["BufferWriter", "Compression", "bytes_of_row", "flat_columns", "save_buffer"]

Compression = Literal["none", "gzip", "zstd"]
CHUNK_BYTES = 1 << 18  # of a compressed chunk, about
COPY_BYTES = 1 << 25  # read at once when a file is made shorter

Columns = Mapping[str, Any]


def bytes_of_row(columns: Columns) -> int:
    """Return how many bytes one row of ``columns`` (K, ...) takes."""
    arrays = flat_columns(columns).values()
    return sum(int(values.dtype.itemsize * np.prod(values.shape[1:])) for values in arrays)


def flat_columns(columns: Columns, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """Return nested columns by path: ``{"obs": {"x": ...}}`` has the path ``obs/x``."""
    flat: dict[str, np.ndarray[Any, Any]] = {}
    for key, values in columns.items():
        if isinstance(values, Mapping | Batch):
            flat |= flat_columns(dict(values.items()), f"{prefix}{key}/")
        else:
            flat[prefix + key] = np.asarray(values)
    return flat


class BufferWriter:
    """Write a buffer block by block; the file appears only when complete.

    Use as a context manager. Rows go to ``<path>.partial``, which is renamed on a clean exit and
    removed otherwise, so an existing ``path`` is never damaged. Shapes and number types are those
    of the first block.

    :param path: the HDF5 file to make.
    :param size: number of rows, at most. Fewer may be appended; a file without compression is then
        copied once to its true length.
    :param stack_num: frames a policy sees at once; 1 for data that are not stacked.
    :param save_obs_next: store ``obs_next`` (False only for ordered data, see above).
    :param shared_frames: blocks bring ``frames`` (K, S+1, ...) in the place of ``obs`` and
        ``obs_next``, which become views of its first and last S.
    :param compression: of every column; ``none`` can be mapped, the others are read into memory.
    :param provenance: anything JSON can hold: source, command, seed, spaces, scores.
    :raises InputError: if the compression is not installed, or ``path`` is a folder.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        *,
        stack_num: int = 1,
        save_obs_next: bool = True,
        shared_frames: bool = False,
        compression: Compression = "none",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(
                f"expected a file to write, got the folder {self.path}; add a file's name"
            )
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.size = size
        self.rows = 0
        self.provenance = dict(provenance or {})
        self.compression: Compression = compression
        self._filter = _compression_options(compression)
        self._shared = shared_frames
        self._options = {
            "stack_num": stack_num,
            "ignore_obs_next": not save_obs_next,
            "save_only_last_obs": stack_num > 1,
            "sample_avail": False,
        }
        names = {"act", "rew", "terminated", "truncated"}
        if shared_frames:
            self._names = names | {FRAMES}
        else:
            self._names = names | {"obs"} | ({"obs_next"} if save_obs_next else set())
        self._columns: dict[str, tuple[tuple[int, ...], Any]] = {}  # by path: shape, dtype
        self._datasets: dict[str, h5py.Dataset] = {}  # by path

    def __enter__(self) -> BufferWriter:
        with self._one_sentence():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = h5py.File(self.partial, "w")
            except BlockingIOError as error:
                raise InputError(
                    f"expected to be the only one to write {self.path}, but another process is at "
                    "it; wait until it is done"
                ) from error
            self._disk = SyncedAhead(self.partial)
        return self

    def append(self, **columns: Any) -> None:
        """Append rows: ``obs act rew terminated truncated`` (and ``obs_next``), (K, ...) each.

        Dicts of arrays are stored as Tianshou's nested ``Batch``.

        :raises ValueError: if the columns are not those of the buffer, differ in length, shape or
            number type, or exceed its size.
        :raises OSError: if they cannot be written, for example on a full disk.
        """
        if set(columns) - {"info"} != self._names:
            raise ValueError(f"expected columns {sorted(self._names)}, got {sorted(columns)}")
        columns["rew"] = np.asarray(columns["rew"], dtype=np.float32)
        for key in ("terminated", "truncated"):
            columns[key] = np.asarray(columns[key], dtype=np.bool_)
        flat = flat_columns(columns)
        count = len(flat["rew"])
        stop = self.rows + count
        if stop > self.size or any(len(values) != count for values in flat.values()):
            lengths = {key: len(values) for key, values in flat.items()}
            raise ValueError(f"expected at most {self.size - self.rows} rows each, got {lengths}")
        flat["done"] = flat["terminated"] | flat["truncated"]
        found = {key: (values.shape[1:], values.dtype) for key, values in flat.items()}
        with self._one_sentence():
            if not self._columns:
                self._columns = found
                for key, (shape, dtype) in found.items():
                    self._datasets[key] = self._make(self._file, key, self.size, shape, dtype)
            for key in sorted({*self._columns, *found}):
                first, here = (layout.get(key) for layout in (self._columns, found))
                if first != here:
                    told = f"{_told(key, first)} as in the first block, got {_told(key, here)}"
                    raise ValueError(f"expected {told}")
            for key, values in flat.items():
                self._datasets[key][self.rows : stop] = values
            self._disk.grew(sum(values.nbytes for values in flat.values()))
        self.rows = stop

    def overwrite(self, row: int, **columns: Any) -> None:
        """Replace columns of a row that was appended; names, shapes and types as in ``append``."""
        with self._one_sentence():
            for key, values in flat_columns(columns).items():
                self._datasets[key][row] = values

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._one_sentence() if error is None else contextlib.suppress(OSError):
                self._disk.close()
            if error is None:
                with self._one_sentence():
                    self._finish()
                    self._file.close()
                    with self.partial.open("rb") as file:
                        os.fsync(file.fileno())
                    self.partial.replace(self.path)
        finally:
            # A full disk makes closing fail too; what matters then is the first error.
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
            self.partial.unlink(missing_ok=True)

    def _make(
        self, file: h5py.File, key: str, rows: int, shape: tuple[int, ...], dtype: Any
    ) -> h5py.Dataset:
        options: dict[str, Any] = {}
        if self._filter:
            row_bytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            chunk = max(1, min(rows, CHUNK_BYTES // row_bytes))
            options = {"chunks": (chunk, *shape), "maxshape": (None, *shape), **self._filter}
        dataset = file.create_dataset(_place(key), (rows, *shape), dtype, **options)
        dataset.attrs["__data_type__"] = "ndarray"
        return dataset

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"expected to write {self.path}, but that failed ({' '.join(str(error).split())}); "
                "make room or choose another folder, what was there before is untouched"
            ) from error

    def _finish(self) -> None:
        if self.rows == 0:
            raise ValueError("expected rows to write, got none; append some")
        if self.rows < self.size:
            self._shorten()
        if self._shared:
            self._make_views()
        groups = {key.rsplit("/", 1)[0] for key in self._columns if "/" in key} | {"", "info"}
        for group in groups:
            item = self._file.require_group(_place(group) if group else "_meta")
            item.attrs["__data_type__"] = "Batch"
        state = {
            "maxsize": self.rows,
            "_size": self.rows,
            "_insertion_idx": 0,
            "_ep_len": 0,
            "_ep_return": 0.0,
            "_ep_start_idx": 0,
            "stack_num": self._options["stack_num"],
            "_save_obs_next": not self._options["ignore_obs_next"],
            "_save_only_last_obs": self._options["save_only_last_obs"],
            "_sample_avail": self._options["sample_avail"],
        }
        for key, value in state.items():
            self._file.attrs[key] = value
        options = self._file.create_group("options")
        for key, value in self._options.items():
            options.attrs[key] = value
        arrays = {"last_index": np.array([self.rows - 1]), "_indices": np.arange(self.rows)}
        for key, array in arrays.items():
            self._file.create_dataset(key, data=array).attrs["__data_type__"] = "ndarray"
        provenance = {"version": __version__, "rows": self.rows, **self.provenance}
        self._file.attrs[PROVENANCE] = json.dumps(provenance)
        self._file.flush()

    def _shorten(self) -> None:
        """Cut every column to the rows that were appended."""
        if self._filter:
            for key in self._columns:
                self._file[_place(key)].resize(self.rows, axis=0)
            return
        short = self.partial.with_name(self.partial.name + ".short")
        try:
            with h5py.File(short, "w") as file:
                for key, (shape, dtype) in self._columns.items():
                    target = self._make(file, key, self.rows, shape, dtype)
                    source = self._file[_place(key)]
                    row_bytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
                    step = max(1, COPY_BYTES // row_bytes)
                    for start in range(0, self.rows, step):
                        here = slice(start, min(start + step, self.rows))
                        target[here] = source[here]
            self._file.close()
            short.replace(self.partial)
        finally:
            short.unlink(missing_ok=True)
        self._file = h5py.File(self.partial, "r+")

    def _make_views(self) -> None:
        """Make ``obs`` and ``obs_next`` views of the shared frames."""
        (many, *frame), dtype = self._columns[FRAMES]
        source = h5py.VirtualSource(".", FRAMES, (self.rows, many, *frame), dtype)
        for key, part in (("obs", slice(0, many - 1)), ("obs_next", slice(1, many))):
            layout = h5py.VirtualLayout((self.rows, many - 1, *frame), dtype)
            layout[:] = source[:, part]
            self._file.create_virtual_dataset(_place(key), layout)
            self._file[_place(key)].attrs["__data_type__"] = "ndarray"


def _told(path: str, column: tuple[tuple[int, ...], Any] | None) -> str:
    return f"{path} {list(column[0])} of {column[1]}" if column else f"no {path}"


def _place(key: str) -> str:
    return key if key == FRAMES else f"_meta/{key}"


def _compression_options(compression: Compression) -> dict[str, Any]:
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 1}
    if compression == "zstd":
        try:
            import hdf5plugin
        except ImportError as error:
            raise InputError(
                "expected the package hdf5plugin for zstd compression, found none; "
                'pip install "tianshou_ext[zstd]"'
            ) from error
        return dict(hdf5plugin.Zstd(clevel=1))
    raise InputError(f"expected the compression none, gzip or zstd, got {compression!r}")


def save_buffer(
    buffer: ReplayBuffer, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write the transitions of a buffer in memory, oldest first, as ``BufferWriter`` does.

    Episodes that the buffer cut off (still running when it was saved) become truncated. Of
    ``info``, arrays of numbers are kept; the provenance names what else was there.

    :param buffer: one that stacks uint8 frames (``stack_num`` > 1) is written with one frame a
        row; any other with ``obs_next``.
    :raises InputError: if the buffer is empty or its observations are no plain array.
    """
    if len(buffer) == 0:
        raise InputError("expected a buffer with transitions to save, got an empty one")
    if not isinstance(buffer.obs, np.ndarray):
        raise InputError(
            f"expected observations that are one array per step, got a {type(buffer.obs).__name__};"
            " flatten them first"
        )
    stacked = buffer.stack_num > 1
    rows = _all_rows(buffer)
    terminated = np.asarray(buffer.terminated[rows], dtype=bool)
    truncated = np.asarray(buffer.truncated[rows], dtype=bool)
    truncated[np.isin(rows, buffer.unfinished_index())] = True
    source_next, rows_next = buffer.obs, rows
    if buffer._save_obs_next:
        source_next = buffer.obs_next
    elif not stacked:
        rows_next = neighbours(buffer)[1][rows]
        lost = (rows_next == rows) & ~terminated  # what came next was not stored
        truncated[np.isin(rows_next, rows[lost])] = True
        rows, rows_next = rows[~lost], rows_next[~lost]
        terminated, truncated = terminated[~lost], truncated[~lost]
        if len(rows) == 0:
            raise InputError(
                "expected transitions with a known successor to save, got only truncated rows "
                "without obs_next; store obs_next"
            )
    info, left_out = numbers_in(getattr(buffer, "info", None), buffer.maxsize)
    about = {"info_left_out": left_out} if left_out else {}
    writer = BufferWriter(
        path,
        len(rows),
        stack_num=buffer.stack_num,
        save_obs_next=not stacked,
        provenance={**about, **(provenance or {})},
    )
    with writer:
        for start in range(0, len(rows), 4096):
            here = slice(start, start + 4096)
            columns = {
                "obs": buffer.obs[rows[here]],
                "act": buffer.act[rows[here]],
                "rew": buffer.rew[rows[here]],
                "terminated": terminated[here],
                "truncated": truncated[here],
            }
            if not stacked:
                columns["obs_next"] = source_next[rows_next[here]]
            if info:
                columns["info"] = Batch(info)[rows[here]]
            writer.append(**columns)


def _all_rows(buffer: ReplayBuffer) -> np.ndarray[Any, Any]:
    """Return all filled rows, oldest first within each sub-buffer."""
    parts, start = [], 0
    for sub in getattr(buffer, "buffers", [buffer]):
        order = np.arange(len(sub))
        full = len(sub) == sub.maxsize
        parts.append(start + (np.roll(order, -sub._insertion_idx) if full else order))
        start += sub.maxsize
    return np.concatenate(parts)
