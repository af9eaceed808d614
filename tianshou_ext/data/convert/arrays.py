"""Your own arrays: .npz, .npy, .csv, .parquet, HDF5 and pickles of numpy arrays.

Rows are steps in order. Columns are found by their usual names or named with ``--map``. Arrays in
.npy files and uncompressed .npz are mapped and HDF5 is read in slices, so such a source may be
larger than memory; the other kinds are read whole.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import h5py
import numpy as np

from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Options,
    Report,
    Settings,
    chosen_episodes,
    write_blocks,
)
from tianshou_ext.data.convert.unpickle import load_arrays
from tianshou_ext.errors import InputError

__all__ = ["convert"]

Format = Literal["auto", "npz", "npy", "csv", "parquet", "hdf5", "pickle"]
Array = np.ndarray[Any, Any]

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
NAMES = {
    "obs": ("obs", "observation", "observations", "state", "states"),
    "act": ("act", "acts", "action", "actions"),
    "rew": ("rew", "rews", "reward", "rewards"),
    "terminated": ("terminated", "terminations", "terminal", "terminals", "is_terminal"),
    "truncated": ("truncated", "truncations", "timeout", "timeouts"),
    "done": ("done", "dones"),
    "discount": ("discount", "discounts"),
    "obs_next": (
        *("obs_next", "next_obs", "next_observation", "next_observations"),
        *("next_state", "next_states"),
    ),
    "episode": ("episode", "episodes", "episode_id", "episode_ids", "traj_id"),
}
"""What is stored, and the names it is recognised by, upper or lower case alike."""
BLOCK_BYTES = 1 << 24
BLOCK_ROWS = 1 << 14
MAX_RATIO = 4096  # bytes of an HDF5 array per byte of its file; deflate reaches 1032
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError),
    *(EOFError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What h5py, numpy, pandas and zipfile raise for damaged files."""
HOW = "name them with --map obs=KEY act=KEY rew=KEY terminated=KEY"


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    map: tuple[str, ...] = (),
    format: Format = "auto",
    stack_num: int = 1,
    one_episode: bool = False,
    episode_length: int | None = None,
    **options: Unpack[Options],
) -> Report:
    """Convert your own arrays.

    Rows are steps in order; a row whose successor is not the row below it is marked as truncated
    if that can be seen from stored next observations. Without them, a row leads to the row below,
    and the last row of an episode that did not terminate is left out.

    :param src: .npz, .csv, .parquet, .hdf5, .pkl, or a folder of .npy files.
    :param dst: the buffer file to make.
    :param map: which column is what, such as obs=x,y act=u rew=r terminated=done; of obs act rew
        terminated truncated done discount obs_next episode.
    :param format: kind of the source; by its suffix if auto.
    :param stack_num: for observations that are single uint8 frames (N, H, W): store one frame a
        step, of which a policy sees so many at once.
    :param one_episode: all rows are one episode.
    :param episode_length: steps after which an episode was cut off, if nothing else says so.
    :raises InputError: if the source is missing, damaged, or it is not clear what its columns are.
    """
    settings = Settings(**options)
    if stack_num < 1 or (episode_length is not None and episode_length < 1):
        raise InputError(
            f"expected --stack-num and --episode-length of at least 1, got {stack_num} and "
            f"{episode_length}"
        )
    src = Path(src).expanduser()
    with contextlib.ExitStack() as opened:
        sources, files, listed = _read(src, format, opened)
        keys = _resolve(src, list(sources[0]), _parsed(map))
        single = one_episode or listed
        reading = _Reading(keys, stack_num, single, episode_length, listed)
        tables = _tables(src, sources, reading)
        whole = [entry for entry in tables if isinstance(entry, _Table)]
        episodes = [
            (entry, a, b) if isinstance(entry, _Table) else entry
            for entry in tables
            for a, b in (entry.episodes() if isinstance(entry, _Table) else [(0, 0)])
        ]
        if not whole:
            assert isinstance(tables[0], Fault)
            raise InputError(f"expected arrays of steps in {src}, got a fault in {tables[0]}")
        if not episodes:
            raise InputError(
                f"expected transitions in {src}, got only episodes of one step that did not "
                "terminate, and no obs_next; give it with --map obs_next=KEY"
            )
        chosen = [episodes[k] for k in chosen_episodes(len(episodes), settings)]
        counts = [e[0].rows_of(*e[1:]) for e in chosen if not isinstance(e, Fault)]
        return write_blocks(
            _blocks(src, chosen),
            dst,
            source="arrays",
            inputs=files,
            size=max(1, sum(counts)),
            settings=settings,
            stack_num=stack_num,
            save_obs_next=stack_num == 1,
            notes=_notes(reading, whole),
            provenance={
                "columns": keys,
                "observation": whole[0].about("obs"),
                "action": whole[0].about("act"),
                "ordered": 2 * sum(t.breaks for t in whole) <= sum(t.rows for t in whole),
            },
        )


# Reading files


Columns = dict[str, Any]  # by name: something with shape, dtype and slices of rows


def _read(
    src: Path, kind: Format, opened: contextlib.ExitStack
) -> tuple[list[Columns], list[Path], bool]:
    """Return the tables of a source, its files, and whether a table is a trajectory."""
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
    if dtype.hasobject:
        raise InputError(
            f"expected numbers in {path}, got an array of Python objects, which is not loaded "
            "because unpickling can run code; save one plain array a column"
        )
    return shape, fortran, dtype


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
                columns[name] = _npy(path, info.header_offset + 30 + sum(lengths))
                continue
            with archive.open(info) as member:
                shape, fortran, dtype = _npy_header(path, member)
                needed = math.prod(shape) * dtype.itemsize
                if needed > info.file_size or info.file_size > MAX_RATIO * info.compress_size:
                    raise InputError(
                        f"expected {name} in {path} to hold {needed} bytes, got fewer; make or "
                        "copy the file again"
                    )
                data = member.read(needed)
            columns[name] = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return columns


def _from_hdf5(path: Path, opened: contextlib.ExitStack) -> Columns:
    columns: Columns = {}
    size = path.stat().st_size

    def visit(name: str | bytes, item: Any) -> None:
        name = name if isinstance(name, str) else name.decode("utf-8", "replace")
        if isinstance(item, h5py.Dataset) and item.shape:
            if item.nbytes > MAX_RATIO * size:
                raise InputError(
                    f"expected {name} in {path} to fit in the file, got {item.nbytes} bytes; make "
                    "or copy it again"
                )
            columns[name] = item

    opened.enter_context(h5py.File(path, "r")).visititems(visit)
    return columns


def _from_table(path: Path, kind: Format) -> Columns:
    import pandas

    if kind == "csv":
        frame = pandas.read_csv(path, low_memory=False)
    else:
        try:
            frame = pandas.read_parquet(path)
        except ImportError as error:
            raise ImportError(
                f"expected the package pyarrow to read {path}, found none that loads; pip install "
                "pyarrow"
            ) from error
    columns: Columns = {}
    for key in frame:
        values = frame[key].to_numpy()
        if values.dtype == object and len(values) and isinstance(values[0], np.ndarray):
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


# Which column is what


def _parsed(map: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys asked for by what they are: ``obs=x,y`` is ``{"obs": ["x", "y"]}``."""
    asked: dict[str, list[str]] = {}
    for item in map:
        name, equals, keys = item.partition("=")
        if name not in NAMES or not equals or name in asked:
            raise InputError(
                f"expected --map as NAME=KEY or NAME=KEY,KEY, once each of {', '.join(NAMES)}, got "
                f"{item!r}"
            )
        asked[name] = [key for key in keys.split(",") if key]
    return asked


def _resolve(src: Path, keys: list[str], asked: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the keys of every column.

    :raises InputError: if one of obs, act and rew is not found, or several could be a column.
    """
    found: dict[str, list[str]] = {}
    listed = f"{', '.join(keys[:40])}{' ...' if len(keys) > 40 else ''}"
    for name, wanted in asked.items():
        groups = [[key] if key in keys else _numbered(keys, key) for key in wanted]
        if not all(groups):
            raise InputError(
                f"expected {name} in the columns {wanted} of {src}, found {listed}; correct --map"
            )
        found[name] = [key for group in groups for key in group]
    taken = {key for group in found.values() for key in group}
    free = [key for key in keys if key not in taken]
    for name, usual in NAMES.items():
        if name in asked:
            continue
        groups = [[key] for key in free if key.rsplit("/", 1)[-1].lower() in usual]
        groups = [group for group in groups if "/" not in group[0]] or groups
        groups += [group for group in (_numbered(free, one) for one in usual) if group]
        if len(groups) > 1:
            raise InputError(
                f"expected one column that can be {name} in {src}, got "
                f"{' and '.join(','.join(group) for group in groups)}; choose with --map {name}=KEY"
            )
        if groups:
            found[name] = groups[0]
    missing = [name for name in ("obs", "act", "rew") if not found.get(name)]
    if missing:
        raise InputError(
            f"expected columns that are {' and '.join(missing)} in {src}, found {listed}; {HOW}"
        )
    return {name: group for name, group in found.items() if group}


def _numbered(keys: Sequence[str], prefix: str) -> list[str]:
    """Return ``prefix_0, prefix_1, ...`` in the order of the numbers."""
    pattern = re.compile(re.escape(prefix) + r"[_.\[-]?(\d{1,9})\]?", re.IGNORECASE)
    matches = [match for match in map(pattern.fullmatch, keys) if match]
    group = sorted(matches, key=lambda match: int(match[1]))
    numbers = [int(match[1]) for match in group]
    if numbers and numbers != [*range(numbers[0], numbers[0] + len(numbers))]:
        raise InputError(
            f"expected {prefix} columns numbered without gaps, got {numbers[:20]}; name the ones "
            "to use with --map"
        )
    return [match[0] for match in group]


# Rows and episodes


@dataclass(frozen=True)
class _Reading:
    """How tables are read."""

    keys: dict[str, list[str]]
    stack_num: int
    single: bool
    """Every table is one episode."""
    episode_length: int | None
    trajectories: bool
    """There is a table for every episode."""


class _Column:
    """One column of a table: an array, or several side by side."""

    def __init__(self, name: str, table: Columns, keys: Sequence[str]) -> None:
        absent = [key for key in keys if key not in table]
        if absent:
            raise InputError(f"{absent[0]} is missing, there are {', '.join([*table][:20])}")
        self.name, self.keys, self.parts = name, keys, [table[key] for key in keys]
        lengths = {key: len(part) for key, part in zip(keys, self.parts, strict=True)}
        if len({*lengths.values()}) > 1:
            raise InputError(f"columns of unequal length, {lengths}")
        self.rows = len(self.parts[0])
        for key, part in zip(keys, self.parts, strict=True):
            if part.dtype.kind not in "biuf" and name != "episode":
                raise InputError(f"{key} holds {part.dtype}, not numbers")

    def read(self, start: int, stop: int) -> Array:
        """Return rows as they are stored in a buffer."""
        rows = [np.asarray(part[start:stop]) for part in self.parts]
        if len(rows) > 1:
            rows = [
                np.concatenate(
                    [part.reshape(len(part), math.prod(part.shape[1:])) for part in rows], axis=1
                )
            ]
        return _as_stored(self.name, rows[0])

    def whole(self) -> Array:
        """Return all rows of a column with one number a row."""
        values = np.asarray(self.parts[0][:])
        if len(self.parts) > 1 or values.size != len(values):
            raise InputError(f"{self.name} holds {values.shape[1:]} a row, expected one number")
        return values.reshape(-1)

    def flags(self) -> Array:
        values = self.whole()
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if len(wrong):
            raise InputError(
                f"{self.keys[0]} is {values[wrong[0]]} in row {wrong[0]}, expected 0 or 1"
            )
        return values.astype(bool)


def _wide(part: Array) -> Array:
    return part.reshape(len(part), math.prod(part.shape[1:]))


def _as_stored(name: str, values: Array) -> Array:
    if name == "rew":
        if values.size != len(values):
            raise InputError(f"rew holds {values.shape[1:]} a row, expected one number")
        values = values.reshape(-1)
    elif name == "act" and values.dtype.kind in "biu":
        flat = values.ndim == 2 and values.shape[1] == 1
        values = (values[:, 0] if flat else values).astype(np.int64)
    elif values.dtype.kind == "f" and values.ndim == 1:
        values = values[:, None]
    if name == "rew" or (values.dtype.kind == "f" and values.dtype.itemsize > 4):
        with np.errstate(over="ignore"):  # infinite values are reported as such later
            values = values.astype(np.float32)
    # Rows of a map may be in another byte order.
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


class _Table:
    """Rows with their episodes.

    ``last`` marks the rows that end an episode. Where next observations are stored, ``breaks``
    counts the rows among them of which only those say so, and ``resets`` the cut-off rows that
    lead to the row below all the same.

    :raises InputError: if columns do not fit together; half a sentence.
    """

    def __init__(self, table: Columns, reading: _Reading, record: str) -> None:
        self.record = record
        keys = reading.keys
        columns = {name: _Column(name, table, keys[name]) for name in keys}
        self.obs, self.act, self.rew = (columns[name] for name in ("obs", "act", "rew"))
        self.obs_next = columns.get("obs_next")
        self.stacked = reading.stack_num > 1
        self.rows = self.rew.rows
        lengths = {name: column.rows for name, column in columns.items()}
        steps = {length for name, length in lengths.items() if name != "obs"}
        spare = self.obs.rows - self.rows
        # An episode on its own may bring the observation after its last step.
        if steps != {self.rows} or spare not in ((0, 1) if reading.single else (0,)):
            raise InputError(f"columns of unequal length, {lengths}")
        if self.rows == 0:
            raise InputError("no rows")
        self.has_final = self.obs_next is None and spare == 1
        self._check_shapes()
        flags = {
            name: columns[name].flags()
            for name in ("terminated", "truncated", "done")
            if name in columns
        }
        none = np.zeros(self.rows, bool)
        done = flags.get("done", none)
        if "terminated" in flags:
            self.terminated = flags["terminated"]
        elif "done" in flags:
            self.terminated = done & ~flags.get("truncated", none)
        elif "discount" in columns:
            self.terminated = columns["discount"].whole() == 0
        else:
            self.terminated = none
        self.truncated = flags.get("truncated", none) | (done & ~self.terminated)
        self.last = self.terminated | self.truncated
        if "episode" in columns:
            self.last |= _changes(columns["episode"].whole())
        if reading.episode_length:
            self._cut(reading.episode_length)
        self.unfinished = int(not self.last[-1])
        self.last[-1] = True
        self.at_once = max(1, min(BLOCK_ROWS, BLOCK_BYTES // self.obs.read(0, 1).nbytes))
        self.breaks = self.resets = 0
        if self.obs_next is not None:
            self._mark_breaks()
        self.truncated = self.truncated | (self.last & ~self.terminated)
        lost = self.last & ~self.terminated & (self.obs_next is None)
        lost[-1] &= not self.has_final
        self.lost = lost
        """Rows whose next observation is not known though they need one."""

    def _check_shapes(self) -> None:
        shapes = {
            column.name: column.read(0, 1).shape[1:] for column in (self.obs, self.act, self.rew)
        }
        if empty := [name for name, shape in shapes.items() if math.prod(shape) == 0]:
            raise InputError(f"{empty[0]} holds no numbers, its shape is (N, 0)")
        if self.obs_next and self.obs_next.read(0, 1).shape[1:] != shapes["obs"]:
            raise InputError(
                f"obs_next has the shape {self.obs_next.read(0, 1).shape[1:]}, obs {shapes['obs']}"
            )
        if self.stacked and (self.obs.read(0, 1).dtype != np.uint8 or len(shapes["obs"]) != 2):
            raise InputError(
                "with --stack-num observations should be single uint8 frames (N, H, W), they are "
                f"{self.obs.read(0, 1).dtype} of the shape (N, {str(shapes['obs'])[1:]}"
            )

    def _cut(self, length: int) -> None:
        """End episodes that are longer."""
        stops = np.flatnonzero(self.last) + 1
        for start, stop in itertools.pairwise([0, *stops.tolist(), self.rows]):
            self.last[start + length - 1 : stop : length] = True

    def _mark_breaks(self) -> None:
        """End an episode at every row that does not lead to the row below."""
        assert self.obs_next is not None
        cut = self.last & ~self.terminated
        for start in range(0, self.rows - 1, self.at_once):
            stop = min(start + self.at_once, self.rows - 1)
            differ = self.obs_next.read(start, stop) != self.obs.read(start + 1, stop + 1)
            differ = _wide(differ).any(1)
            self.breaks += int((differ & ~self.last[start:stop]).sum())
            self.resets += int((~differ & cut[start:stop]).sum())
            self.last[start:stop] |= differ

    def about(self, name: str) -> dict[str, Any]:
        """Return what a column looks like, and the order of its parts, for the provenance."""
        column: _Column = getattr(self, name)
        one = column.read(0, 1)
        widths = [int(math.prod(part.shape[1:])) for part in column.parts]
        order = [[key, width] for key, width in zip(column.keys, widths, strict=True)]
        return {"shape": list(one.shape[1:]), "dtype": str(one.dtype), "order": order}

    def spec(self) -> list[Any]:
        return [(c.read(0, 1).shape[1:], c.read(0, 1).dtype) for c in (self.obs, self.act)]

    def episodes(self) -> list[tuple[int, int]]:
        """Return first row and row after the last of every episode that is not lost entirely."""
        stops = np.flatnonzero(self.last) + 1
        starts = np.concatenate([[0], stops[:-1]])
        some = ~self.lost[stops - 1] | (stops - starts > 1) | self.stacked
        return [*zip(starts[some].tolist(), stops[some].tolist(), strict=True)]

    def rows_of(self, start: int, stop: int) -> int:
        """Return how many rows of a buffer a number of whole episodes take."""
        if self.stacked:
            return stop - start + int(self._extra(start, stop).sum())
        return stop - start - int(self.lost[start:stop].sum())

    def _extra(self, start: int, stop: int) -> Array:
        """Whether a row of frames is followed by one more: the final observation."""
        here = slice(start, stop)
        extra: Array = self.last[here] & ~self.terminated[here] & ~self.lost[here]
        return extra

    def block(self, start: int, stop: int) -> dict[str, Any]:
        """Return the columns of whole episodes."""
        here = slice(start, stop)
        obs, act, rew = (column.read(start, stop) for column in (self.obs, self.act, self.rew))
        if act.dtype.kind == "i" and (act < 0).any():
            row = start + int(np.nonzero(act < 0)[0][0])
            raise InputError(
                f"act is negative in row {row}; whole numbers are taken as discrete actions from "
                "0, so store continuous ones as floats"
            )
        terminated, truncated = self.terminated[here].copy(), self.truncated[here].copy()
        if self.stacked:
            return self._frames(start, stop, obs, act, rew, terminated, truncated)
        lost, last = self.lost[here], self.last[here]
        if self.obs_next is not None:
            obs_next = self.obs_next.read(start, stop).astype(obs.dtype, copy=False)
        else:
            after = min(stop + 1, self.obs.rows)
            obs_next = np.concatenate([obs[1:], self.obs.read(stop, after), obs[-1:]])[: len(obs)]
            closed = last & terminated
            closed[-1] &= not (self.has_final and stop == self.rows)
            obs_next[closed] = obs[closed]  # never used: nothing follows
        truncated[:-1] |= lost[1:] & ~last[:-1]
        columns = {
            "obs": obs,
            "act": act,
            "rew": rew,
            "terminated": terminated,
            "truncated": truncated,
            "obs_next": obs_next,
        }
        return {key: values[~lost] for key, values in columns.items()} if lost.any() else columns

    def _frames(
        self,
        start: int,
        stop: int,
        obs: Array,
        act: Array,
        rew: Array,
        terminated: Array,
        truncated: Array,
    ) -> dict[str, Any]:
        """Put the final observation of a truncated episode into a row of its own."""
        extra = np.flatnonzero(self._extra(start, stop))
        truncated[extra] = False
        if self.obs_next is not None:
            final = [self.obs_next.read(start + k, start + k + 1)[0] for k in extra.tolist()]
        else:
            final = [self.obs.read(self.rows, self.rows + 1)[0] for _ in extra]
        frames = np.array(final, obs.dtype).reshape(len(extra), *obs.shape[1:])
        return {
            "obs": np.insert(obs, extra + 1, frames, axis=0),
            "act": np.insert(act, extra + 1, 0, axis=0),
            "rew": np.insert(rew, extra + 1, 0),
            "terminated": np.insert(terminated, extra + 1, False),
            "truncated": np.insert(truncated, extra + 1, True),
        }


def _changes(episode: Array) -> Array:
    """Return which rows are the last of their episode, by its number or name."""
    if episode.dtype.kind == "f" and not np.isfinite(episode).all():
        raise InputError("episode is NaN or infinite in some rows")
    last = np.append(episode[1:] != episode[:-1], True)
    if len({*episode.tolist()}) < last.sum():
        raise InputError(
            "the rows of an episode stand apart, others are between them; sort the rows by episode"
        )
    return last


def _tables(src: Path, sources: list[Columns], reading: _Reading) -> list[_Table | Fault]:
    """Return the tables; of several, a faulty one is a fault, a single one is refused."""
    keys = reading.keys
    knows = {"terminated", "truncated", "done", "discount", "episode", "obs_next"} & keys.keys()
    if not knows and not reading.single and reading.episode_length is None:
        raise InputError(
            f"expected {src} to say where episodes end, found obs, act and rew only; give a flag "
            "or episode column with --map, or pass --episode-length or --one-episode"
        )
    tables: list[_Table | Fault] = []
    spec: list[Any] | None = None
    for number, source in enumerate(sources):
        record = f"episode {number}" if reading.trajectories else ""
        try:
            table = _Table(source, reading, record)
            spec = spec or table.spec()
            if table.spec() != spec:
                raise InputError(f"obs and act are {table.spec()}, before they were {spec}")
            tables.append(table)
        except DAMAGE as error:
            what = " ".join(str(error).split())[:300]
            if not reading.trajectories:
                raise InputError(
                    f"expected arrays of steps in {src}, but {what}; repair the source or choose "
                    "other columns with --map"
                ) from error
            tables.append(Fault(str(src), record, what))
    return tables


def _notes(reading: _Reading, tables: Sequence[_Table]) -> list[str]:
    """Say what was taken for granted, and what was left out."""
    keys, stored = reading.keys, "obs_next" in reading.keys
    notes = []
    if "done" in keys and not {"terminated", "truncated"} & keys.keys():
        notes.append(
            "done is taken as terminated, since there is no truncated: if episodes were also cut "
            "off by a time limit, their values are WRONG; give those rows with --map truncated=KEY"
        )
    elif not {"terminated", "done", "discount"} & keys.keys():
        notes.append("no column says where episodes terminate: taken as never")
    elif (
        not stored
        and not {"truncated", "episode"} & keys.keys()
        and not (reading.single or reading.episode_length)
    ):
        notes.append(
            "no column says where episodes were cut off: if any were, the observation after the "
            "cut is WRONG; give --map truncated=KEY or episode=KEY, or --episode-length"
        )
    lost = sum(int(table.lost.sum()) for table in tables)
    breaks = sum(table.breaks for table in tables)
    closed = sum(int((table.last & table.terminated).sum()) for table in tables)
    if breaks:
        notes.append(
            f"{breaks} rows do not lead to the row below them, by their obs_next: marked truncated"
        )
    if resets := sum(table.resets for table in tables):
        notes.append(
            f"{resets} cut-off rows have the first observation of the next episode as obs_next: if "
            "it was logged after an automatic reset, their targets are WRONG"
        )
    if lost and reading.stack_num == 1:
        notes.append(f"{lost} last rows of cut-off episodes left out: what followed is not stored")
    elif lost:
        notes.append(
            f"{lost} last rows of cut-off episodes cannot be sampled: what followed is not stored"
        )
    if closed and not stored and reading.stack_num == 1:
        notes.append("obs_next of terminal rows is not stored: their own observation stands there")
    if unfinished := sum(table.unfinished for table in tables):
        notes.append(f"{unfinished} episodes end without a flag: truncated")
    if reading.stack_num == 1 and len(tables[0].about("obs")["shape"]) == 2:
        notes.append("frames are stored one by one; for a stack of them pass --stack-num 4")
    return notes


def _blocks(
    src: Path, chosen: Sequence[tuple[_Table, int, int] | Fault]
) -> Iterator[Block | Fault]:
    """Read whole episodes, many short ones at once; alone if one of them is faulty."""
    waiting: list[tuple[_Table, int, int]] = []
    for entry in chosen:
        if waiting and not _joins(waiting, entry):
            yield from _read_blocks(src, waiting)
            waiting = []
        if isinstance(entry, Fault):
            yield entry
        else:
            waiting.append(entry)
    if waiting:
        yield from _read_blocks(src, waiting)


def _joins(waiting: Sequence[tuple[_Table, int, int]], entry: Any) -> bool:
    table, start, stop = waiting[0][0], waiting[0][1], waiting[-1][2]
    if isinstance(entry, Fault) or entry[0] is not table or entry[1] != stop:
        return False
    return bool(entry[2] - start <= table.at_once)


def _read_blocks(src: Path, episodes: Sequence[tuple[_Table, int, int]]) -> Iterator[Block | Fault]:
    table, start, stop = episodes[0][0], episodes[0][1], episodes[-1][2]
    record = f"{table.record}{table.record and ', '}rows {start} to {stop - 1}"
    try:
        columns = table.block(start, stop)
    except DAMAGE as error:
        if len(episodes) == 1:
            yield Fault(str(src), record, " ".join(str(error).split())[:300])
            return
        columns = None
    if columns is None or (len(episodes) > 1 and not _finite(columns)):
        for episode in episodes:
            yield from _read_blocks(src, [episode])
    else:
        yield Block(columns, str(src), record)


def _finite(columns: Mapping[str, Array]) -> bool:
    return all(np.isfinite(values).all() for values in columns.values() if values.dtype.kind == "f")
