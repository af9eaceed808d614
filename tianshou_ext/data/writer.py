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
from tianshou_ext.errors import InputError

__all__ = ["BufferWriter", "Compression", "bytes_of_row", "flat_columns"]

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
        if self.path.exists() and not self.path.is_file():  # it would be replaced
            raise InputError(f"expected a file to write, got the device {self.path}; name a file")
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
        self._waiting: dict[str, np.ndarray[Any, Any]] = {}  # by path: rows of no whole chunk

    def __enter__(self) -> BufferWriter:
        with self._one_sentence():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Without a cache of chunks: one that a full disk does not take ends the process.
                self._file = h5py.File(self.partial, "w", rdcc_nbytes=0)
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
                if self._filter:
                    self._write_chunks(key, values, stop)
                else:
                    self._datasets[key][self.rows : stop] = values
            self._disk.grew(sum(values.nbytes for values in flat.values()))
        self.rows = stop

    def _write_chunks(self, key: str, values: np.ndarray[Any, Any], stop: int) -> None:
        """Write a compressed column's rows up to the last whole chunk before ``stop``."""
        dataset = self._datasets[key]
        if key in self._waiting:
            values = np.concatenate([self._waiting[key], values])
        count = stop // dataset.chunks[0] * dataset.chunks[0] - (stop - len(values))
        if count > 0:
            dataset[stop - len(values) : stop - len(values) + count] = values[:count]
        self._waiting[key] = values[max(0, count) :].copy()  # who brought them may change them

    def overwrite(self, row: int, **columns: Any) -> None:
        """Replace columns of a row that was appended; names, shapes and types as in ``append``."""
        with self._one_sentence():
            self._write_rest()
            for key, values in flat_columns(columns).items():
                self._datasets[key][row] = values

    def _write_rest(self) -> None:
        for key, values in self._waiting.items():
            self._datasets[key][self.rows - len(values) : self.rows] = values
        self._waiting.clear()

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
        self._write_rest()
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
