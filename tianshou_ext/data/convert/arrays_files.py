"""Read files of arrays by name: .npz, .npy, .csv, .parquet, HDF5 and pickles of numpy arrays.

Arrays in .npy files and uncompressed .npz are mapped and HDF5 is read in slices, so such a source
may be larger than memory; the other kinds are read whole.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from tianshou_ext.data.convert.unpickle import load_arrays
from tianshou_ext.errors import InputError

__all__ = ["DAMAGE", "Columns", "Format", "read_tables"]

Format = Literal["auto", "npz", "npy", "csv", "parquet", "hdf5", "pickle"]
Array = np.ndarray[Any, Any]
Columns = dict[str, Any]
"""By name: something with shape, dtype and slices of rows."""
SUFFIXES: dict[str, Format] = {
    ".npz": "npz",
    ".npy": "npy",
    ".csv": "csv",
    ".parquet": "parquet",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".pkl": "pickle",
    ".pickle": "pickle",
}
CRC_BYTES = 1 << 24  # read at once
MAX_RATIO = 4096  # bytes of an HDF5 array per byte of its file; deflate reaches 1032
NOT_LOADED = object()
"""Stands in each row of an array of objects of numpy, as unpickling one can run code."""
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError),
    *(EOFError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What h5py, numpy, pandas and zipfile raise for damaged files."""


def read_tables(
    src: Path, kind: Format, opened: contextlib.ExitStack
) -> tuple[list[Columns], list[Path], bool]:
    """Return the tables of a source, its files, and whether a table is a trajectory.

    :param opened: keeps the file open that columns are read from later.
    :raises InputError: if the source is missing, damaged or of another kind.
    """
    if not src.exists():
        raise InputError(f"expected arrays at {src}, found nothing; check the path")
    if kind == "auto":
        kind = "npy" if src.is_dir() else SUFFIXES.get(src.suffix.lower(), "auto")
    if kind == "auto":
        raise InputError(
            f"expected a folder of .npy files or one of {', '.join(SUFFIXES)}, got {src.name}; "
            "pass --format if it is one under another name"
        )
    if src.is_dir() != (kind == "npy"):
        wanted = "a folder of .npy files" if kind == "npy" else f"a {kind} file"
        raise InputError(
            f"expected {wanted} at {src}, got a {'folder' if src.is_dir() else 'file'}; give the "
            "right path or --format"
        )
    files = sorted(src.glob("*.npy")) if kind == "npy" else [src]
    listed = False
    try:
        if kind == "pickle":
            tables, listed = _from_pickle(src)
        elif kind == "npy":
            tables = [{file.stem: _npy(file, 0) for file in files}]
        elif kind == "npz":
            tables = [_from_npz(src)]
        elif kind == "hdf5":
            tables = [_from_hdf5(src, opened)]
        else:
            tables = [_from_table(src, kind)]
    except InputError:
        raise
    except DAMAGE as error:
        what = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(
            f"expected {kind} in {src}, got what cannot be read as that ({what}); it is foreign or "
            "damaged, make or copy it again"
        ) from error
    tables = [{key: v for key, v in table.items() if v.shape} for table in tables]
    if not tables or not any(tables):
        raise InputError(f"expected arrays with a row per step in {src}, found none")
    return tables, files, listed


def _npy(path: Path, offset: int) -> Array:
    """Map the array that starts at a byte of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        shape, fortran, dtype = _npy_header(path, file)
        start = file.tell()
    if dtype.hasobject:
        return _not_loaded(shape)
    needed = math.prod(shape) * dtype.itemsize
    if start + needed > path.stat().st_size:
        raise InputError(
            f"expected {needed} bytes of numbers in {path}, got a file that ends before; it is "
            "truncated, make or copy it again"
        )
    if needed == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _npy_header(path: Path, file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy: Any = np.lib.format  # untyped beside numpy 1
    version = npy.read_magic(file)
    read = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise InputError(f"expected .npy of version 1 or 2 in {path}, got {version}; save it again")
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise InputError(f"expected an array in {path}, got one of the shape {shape}")
    return shape, fortran, dtype


def _not_loaded(shape: tuple[int, ...]) -> Array:
    """Return what stands for an array of Python objects, which is only named if it is asked for."""
    one = np.empty((), object)
    one[()] = NOT_LOADED
    return np.broadcast_to(one, shape[:1])  # takes no memory, whatever a damaged header says


def _from_npz(path: Path) -> Columns:
    columns: Columns = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            if info.compress_type == zipfile.ZIP_STORED:
                with path.open("rb") as file:
                    file.seek(info.header_offset + 26)
                    lengths = struct.unpack("<HH", file.read(4))
                start = info.header_offset + 30 + sum(lengths)
                columns[name] = _npy(path, start)
                _check_crc(path, start, info)
                continue
            with archive.open(info) as member:
                shape, fortran, dtype = _npy_header(path, member)
                if dtype.hasobject:
                    columns[name] = _not_loaded(shape)
                    continue
                needed = math.prod(shape) * dtype.itemsize
                if needed > info.file_size or info.file_size > MAX_RATIO * info.compress_size:
                    raise InputError(
                        f"expected {name} in {path} to hold {needed} bytes, got fewer; make or "
                        "copy the file again"
                    )
                data = member.read()[:needed]  # to the end, where the checksum is compared
            columns[name] = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return columns


def _check_crc(path: Path, start: int, info: zipfile.ZipInfo) -> None:
    """Check the bytes of a member that is not compressed, and so is mapped.

    :raises InputError: if they do not have the archive's checksum.
    """
    crc, left = 0, info.file_size
    with path.open("rb") as file:
        file.seek(start)
        while left and (data := file.read(min(left, CRC_BYTES))):
            crc, left = zlib.crc32(data, crc), left - len(data)
    if left or crc != info.CRC:
        raise InputError(
            f"expected {info.filename} in {path} to have the archive's checksum, got another; the "
            "file is damaged, make or copy it again"
        )


def _from_hdf5(path: Path, opened: contextlib.ExitStack) -> Columns:
    columns: Columns = {}
    size = path.stat().st_size
    file = opened.enter_context(h5py.File(path, "r"))
    for name, item in _hdf5_datasets(file):
        if item.shape:
            if item.nbytes > MAX_RATIO * size:
                raise InputError(
                    f"expected {name} in {path} to fit in the file, got {item.nbytes} bytes; make "
                    "or copy it again"
                )
            columns[name] = item
    return columns


def _hdf5_datasets(
    group: Any, prefix: str = "", above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield the data sets of a group and of those in it, those that soft links lead to as well.

    Links into other files, which may be anywhere, are not followed, nor links to groups.
    """
    for key in group:
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            continue
        item = group.get(key)  # None if a link leads nowhere
        name = prefix + key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        is_inside = isinstance(link, h5py.HardLink) and item not in (*above, group)
        if isinstance(item, h5py.Dataset):
            yield name, item
        elif isinstance(item, h5py.Group) and is_inside:
            yield from _hdf5_datasets(item, f"{name}/", (*above, group))


def _from_table(path: Path, kind: Format) -> Columns:
    import pandas

    if kind == "csv":
        frame = pandas.read_csv(path, low_memory=False)
        if not isinstance(frame.index, pandas.RangeIndex):  # pandas made one of the first columns
            raise InputError(
                f"expected a name for each column of {path}, got {frame.index.nlevels} values a "
                f"row more than the {len(frame.columns)} names in its first line; complete that, "
                "or remove separators at the ends of the rows"
            )
    else:
        try:
            frame = pandas.read_parquet(path, "pyarrow", page_checksum_verification=True)
        except ImportError as error:
            raise ImportError(
                f"expected the package pyarrow to read {path}, found none that loads; pip install "
                "pyarrow"
            ) from error
    if frame.empty:
        raise InputError(f"expected rows in {path}, got none below the names of the columns")
    columns: Columns = {}
    for key in frame:
        values = frame[key].to_numpy()
        if values.dtype == object and isinstance(values[0], np.ndarray):
            with contextlib.suppress(ValueError):  # of unequal length: an error if it is asked for
                values = np.stack(values)
        columns[str(key)] = values
    return columns


def _from_pickle(path: Path) -> tuple[list[Columns], bool]:
    """Return the table that a dict or tuple of arrays is, or one for each dict of a list."""
    found = load_arrays(path)
    if isinstance(found, list | tuple) and found and isinstance(found[0], dict):
        if not all(isinstance(one, dict) for one in found):
            raise InputError(f"expected a list of dicts in {path}, got other things among them")
        return [_flat(one) for one in found], True
    if isinstance(found, list | tuple):
        found = dict(enumerate(found))
    if not isinstance(found, dict):
        raise InputError(
            f"expected a dict of arrays or a list of such in {path}, got a {type(found).__name__}"
        )
    return [_flat(found)], False


def _flat(nested: Mapping[Any, Any], prefix: str = "") -> Columns:
    columns: Columns = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            columns |= _flat(value, f"{prefix}{key}/")
        else:
            try:
                columns[f"{prefix}{key}"] = np.asarray(value)
            except ValueError:  # of unequal length: an error if it is asked for
                columns[f"{prefix}{key}"] = np.zeros(len(value), object)
    return columns
