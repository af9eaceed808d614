"""DQN Replay: the logs of Dopamine's circular replay buffer, one frame a row.

Layout (google/dopamine, ``circular_replay_buffer.py``, and google-research/batch_rl,
``logged_replay_buffer.py``): a checkpoint ``k`` is a set of gzip files, ``$store$_observation``
(C, H, W) uint8, ``$store$_action``, ``$store$_reward``, ``$store$_terminal`` (C,) and
``add_count`` (), each one ``.npy`` array. A row holds the frame, the action taken on it, its
reward and whether the episode ended with it. Three rows of zeros precede every episode. A log is
written when slot C-1 is still to be filled: the row that belongs there stands in the same slot of
the next checkpoint.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

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
from tianshou_ext.errors import InputError

__all__ = ["convert"]

STACK = 4
PADDING = STACK - 1  # rows of zeros before every episode
BLOCK_BYTES = 1 << 23  # of frames read at once
MAX_RATIO = 1100  # bytes of an array per byte of its file; deflate reaches 1032
FRAMES = re.compile(r"\$store\$_observation_ckpt\.(\d{1,9})\.gz")
COLUMNS = {
    "act": ("$store$_action", "iu"),
    "rew": ("$store$_reward", "fiu"),
    "terminated": ("$store$_terminal", "biu"),
}
Array = np.ndarray[Any, Any]
npy: Any = np.lib.format
T = TypeVar("T")


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    checkpoints: str | None = None,
    **options: Unpack[Options],
) -> Report:
    """Convert logs of DQN Replay (Dopamine).

    The buffer has stack_num 4 and one frame a row. Episodes go on from one checkpoint to the next.
    Where the logs stop inside an episode, its last row is truncated and never sampled.

    :param src: a replay_logs folder, or the folder of a run or game with one such folder in it.
    :param dst: the buffer file to make.
    :param checkpoints: N for those numbered below N, or A:B for those from A to below B. Default
        all.
    :raises InputError: if the logs are missing, damaged or of another format.
    """
    settings = Settings(**options)
    folder = _find(Path(src).expanduser())
    numbers = _numbers(folder, checkpoints)
    notes: list[str] = []
    parts, faults = _plan(folder, numbers, settings, notes)
    lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
    ids = np.concatenate([np.zeros(0, np.int64), *(part.ids for part in parts)])
    if faults and (settings.on_error == "stop" or len(ids) == 0):
        raise InputError(
            f"expected sound logs, got a fault in {faults[0]}; fetch that file again, or pass "
            "--on-error skip to leave such checkpoints out"
        )
    present = np.unique(ids)
    chosen = present[chosen_episodes(len(present), settings)]
    late_obs: dict[int, Array] = {}
    known = folder.name == "replay_logs"
    run, game = folder.absolute().parent, folder.absolute().parent.parent
    return write_blocks(
        _blocks(parts, faults, chosen, late_obs),
        dst,
        source="dqn-replay",
        inputs=[path for part in parts for path in part.log.files()],
        size=int(lengths[np.isin(ids, chosen)].sum()),
        settings=settings,
        stack_num=STACK,
        save_obs_next=False,
        notes=notes,
        late_obs=late_obs,
        provenance={
            "dataset": f"dqn_replay/{game.name}/{run.name}" if known else "dqn_replay",
            "game": game.name if known else None,
            "checkpoints": [part.log.number for part in parts],
            "ordered": True,
        },
    )


# Finding the logs


def _find(src: Path) -> Path:
    if src.is_file():
        raise InputError(f"expected a folder with replay logs, got the file {src}; give its folder")
    if not src.is_dir():
        raise InputError(f"expected a folder with replay logs at {src}, found none; check the path")
    places = [src, src / "replay_logs", *src.glob("*/replay_logs"), *src.glob("*/*/replay_logs")]
    found = [path for path in places if path.is_dir() and _checkpoints(path)]
    if len(found) != 1:
        runs = ", ".join(str(path) for path in sorted(found)[:5])
        raise InputError(
            f"expected one folder with files like $store$_observation_ckpt.0.gz in {src}, found "
            + (f"{len(found)}: {runs}; choose one" if found else "none; give a replay_logs folder")
        )
    return found[0]


def _checkpoints(folder: Path) -> list[int]:
    names = (FRAMES.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def _numbers(folder: Path, checkpoints: str | None) -> list[int]:
    there = _checkpoints(folder)
    if checkpoints is None:
        return there
    match = re.fullmatch(r"(?:(\d*)(:))?(\d*)", str(checkpoints))
    if not match or not (match[2] or match[3]):
        raise InputError(
            f"expected checkpoints as N or A:B with whole numbers, got {checkpoints!r}"
        )
    first = int(match[1] or 0)
    last = int(match[3]) if match[3] else there[-1] + 1
    numbers = [number for number in there if first <= number < last]
    if not numbers:
        raise InputError(
            f"expected checkpoints {checkpoints} in {folder}, found {there[0]} to {there[-1]}"
        )
    return numbers


# Reading one array


class _BadFileError(Exception):
    """A file cannot be used; the message is the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


class _Npy:
    """A ``.npy`` array in a gzip file, read as a stream and never unpickled.

    :raises _BadFileError: in every method, if the file is missing, damaged or of another format.
    """

    def __init__(self, path: Path, kinds: str, dims: int) -> None:
        self.path = path
        try:
            self._file = gzip.GzipFile(path, "rb")
        except OSError as error:
            raise _BadFileError(path, f"cannot be opened ({error.strerror})") from error
        try:
            version = npy.read_magic(self._file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            header = read(self._file)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise _BadFileError(
                path, f"no .npy array in gzip ({' '.join(str(error).split())})"
            ) from error
        self.shape, fortran, self.dtype = header
        if (
            self.dtype.kind not in kinds
            or self.dtype.itemsize > 8
            or len(self.shape) != dims
            or (fortran and dims > 1)
        ):
            raise _BadFileError(
                path, f"an array of {self.dtype} with the shape {self.shape}, unlike such a log"
            )
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        if self.row_bytes * (self.shape[0] if dims else 1) > MAX_RATIO * path.stat().st_size:
            raise _BadFileError(path, f"an array of the shape {self.shape}, too large for the file")

    def read(self, count: int) -> Array:
        """Return the next ``count`` rows."""
        values = np.empty((count, *self.shape[1:]), self.dtype)
        octets, filled = values.reshape(-1).view(np.uint8), 0
        try:
            while filled < len(octets):
                got = self._file.readinto(octets[filled:].data)
                if not got:
                    raise EOFError("the array ends too early")
                filled += got
        except (OSError, EOFError, zlib.error) as error:
            raise _BadFileError(self.path, f"truncated or damaged ({error})") from error
        return values

    def close(self) -> None:
        """Check that the file ends here and is sound."""
        try:
            if self._file.read(1):
                raise OSError("more than its array")
        except (OSError, EOFError, zlib.error) as error:
            raise _BadFileError(self.path, f"truncated or damaged ({error})") from error
        self._file.close()


def _whole(path: Path, kinds: str, dims: int = 1) -> Array:
    array = _Npy(path, kinds, dims)
    values = array.read(array.shape[0] if dims else 1)
    array.close()
    return values


# One log, and what of it is played


@dataclass(frozen=True)
class _Log:
    """A checkpoint's files."""

    folder: Path
    number: int
    shape: tuple[int, ...]
    """(C, H, W)."""
    add_count: int

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

    def columns(self) -> dict[str, Array]:
        """Read actions, rewards and terminals, (C,) each."""
        columns = {}
        for key, (name, kinds) in COLUMNS.items():
            columns[key] = _whole(self.path(name), kinds)
            if len(columns[key]) != self.capacity:
                raise _BadFileError(
                    self.path(name), f"{len(columns[key])} rows beside {self.capacity} frames"
                )
        return columns


@dataclass(frozen=True)
class _Part:
    """What of a log is played, in the order of play.

    ``lead`` says that the row in the last slot comes first: it was missing in the log before.
    """

    log: _Log
    lead: bool
    padding: int
    """Rows of padding still to come at the start."""
    begins: bool
    """Whether the first row played begins an episode."""
    first_id: int
    """Number of the episode that the first row played belongs to."""
    ids: Array
    """Episodes in this log, (E,)."""
    lengths: Array
    """Their rows in it, (E,)."""
    cut: bool = False
    """Whether the log of the row after the last one is not there."""

    def slots(self) -> Array:
        """Return the filled slots in the order of play."""
        slots = np.arange(self.log.cursor)
        return np.append(self.log.capacity - 1, slots) if self.lead else slots

    def is_padding(self, terminated: Array) -> Array:
        """Return which of ``slots`` are padding; ``terminated`` are the terminals there."""
        count = len(terminated)
        after = np.flatnonzero(terminated)[:, None] + 1 + np.arange(PADDING)
        padding = np.zeros(count + PADDING + 1, dtype=bool)
        padding[: self.padding] = True
        padding[after] = True
        return padding[:count]

    def next_padding(self, terminated: Array) -> int:
        """Return how many rows of padding the next log begins with."""
        count, ends = len(terminated), np.flatnonzero(terminated)
        left = ends[-1] + 1 + PADDING - count if len(ends) else self.padding - count
        return max(0, int(left))

    def episodes(self, played: Array) -> Array:
        """Return the episodes of the rows that are played, whose terminals are ``played``."""
        begins = np.append(self.begins, played[:-1])
        ids: Array = np.cumsum(begins[: len(played)]) - self.begins + self.first_id
        return ids


def _open_log(folder: Path, number: int) -> _Log:
    frames = folder / f"$store$_observation_ckpt.{number}.gz"
    array = _Npy(frames, "u", 3)
    shape = array.shape
    count = int(_whole(folder / f"add_count_ckpt.{number}.gz", "iu", 0).reshape(()))
    if count < 0 or 0 in shape or array.dtype != np.uint8:
        raise _BadFileError(frames, f"{array.dtype} of the shape {shape}, {count} rows added")
    return _Log(folder, number, shape, count)


def _plan(
    folder: Path, numbers: list[int], settings: Settings, notes: list[str]
) -> tuple[list[_Part], list[Fault]]:
    """Decide what is played, from all but the frames; those too if faults are to be left out."""
    parts: list[_Part] = []
    faults: list[Fault] = []
    before: tuple[_Log, dict[str, Array]] | None = None
    padding, begins, count, dropped = 0, True, 0, 0
    for number in numbers:
        try:
            log = _open_log(folder, number)
            columns = log.columns()
            if parts and log.shape[1:] != parts[0].log.shape[1:]:
                path = log.path("$store$_observation")
                raise _BadFileError(path, f"frames of the shape {log.shape[1:]}, unlike the others")
            follows = before is not None and _follows(*before, log, columns)
            if follows and log.add_count == log.capacity - 1:
                notes.append(f"checkpoint {number} repeats the one before and is left out")
                continue
            if not follows:
                padding, begins = _padding_at_start(log, columns), True
                if parts:
                    parts[-1] = replace(parts[-1], cut=True)
                if number > 0:
                    notes.append(
                        f"checkpoint {number} goes on with none that is there: its first episode "
                        "lacks its beginning"
                    )
            lead = follows and before is not None and before[0].cursor == log.capacity - 1
            none = np.zeros(0, np.int64)
            first_id = count if begins else count - 1
            part = _Part(log, lead, padding, begins, first_id, none, none)
            terminated = columns["terminated"][part.slots()].astype(bool)
            is_padding = _check_columns(part, columns)
            if settings.on_error == "skip":
                for _ in _frames(part, is_padding):
                    pass
        except _BadFileError as error:
            faults.append(Fault(str(error.path), "", str(error)))
            before = None
            continue
        before, padding = (log, columns), part.next_padding(terminated)
        dropped += int(is_padding.sum())
        played = terminated[~is_padding]
        if len(played) == 0:
            continue
        ids, lengths = np.unique(part.episodes(played), return_counts=True)
        parts.append(replace(part, ids=ids, lengths=lengths))
        count, begins = int(ids[-1]) + 1, bool(played[-1])
    if parts:
        parts[-1] = replace(parts[-1], cut=True)
    notes += [
        f"{dropped} rows of padding before the episodes left out",
        "rewards were clipped to [-1, 1] by the logger",
        "the time limit of 27,000 steps is stored as a terminal, so it is terminated",
    ]
    return parts, faults


def _follows(
    before: _Log, columns_before: dict[str, Array], log: _Log, columns: dict[str, Array]
) -> bool:
    """Return whether a log goes on where another one stopped."""
    capacity = log.capacity
    if (before.number + 1, before.capacity) != (log.number, capacity):
        return False
    if before.cursor < capacity - 1:
        return False
    if log.add_count >= capacity:
        return log.add_count == before.add_count + capacity
    # The last log of a run counts from the start of its cycle; the rest is of the cycle before.
    old = slice(0 if log.cursor == capacity - 1 else log.cursor, capacity - 1)
    return all(np.array_equal(columns[key][old], columns_before[key][old]) for key in columns)


def _padding_at_start(log: _Log, columns: dict[str, Array]) -> int:
    """Return how many rows of padding a log that follows none begins with."""
    if log.number == 0 and log.add_count <= log.capacity:
        return PADDING
    if columns["terminated"][-1]:  # the row before slot 0
        return PADDING
    # Rest of the padding that the log before began. A black frame that was played, within the
    # first two rows of an episode that is cut anyway, costs no more than itself.
    frames = _Npy(log.path("$store$_observation"), "u", 3).read(min(PADDING - 1, log.cursor))
    blank = ~frames.reshape(len(frames), -1).any(1)
    for values in columns.values():
        blank &= values[: len(blank)] == 0
    return int(np.cumprod(blank).sum())


def _check_columns(part: _Part, columns: dict[str, Array]) -> Array:
    """Return which of the part's slots are padding, if what stands in them can be.

    What stands in others is no matter: a log's last slot may hold whatever was in memory.
    """
    slots, log = part.slots(), part.log
    terminated = columns["terminated"][slots]
    if not np.isfinite(columns["rew"][slots]).all():
        raise _BadFileError(log.path("$store$_reward"), "rewards that are NaN or infinite")
    if ((terminated != 0) & (terminated != 1)).any():
        raise _BadFileError(log.path("$store$_terminal"), "terminals other than 0 and 1")
    is_padding = part.is_padding(terminated)
    for key, (name, _) in COLUMNS.items():
        wrong = slots[is_padding][columns[key][slots[is_padding]] != 0]
        if len(wrong):
            raise _BadFileError(log.path(name), _no_padding(wrong[0]))
    return is_padding


def _no_padding(slot: int) -> str:
    return (
        f"slot {slot} is not zero, but the {PADDING} rows before an episode are in logs of {STACK} "
        "stacked frames"
    )


# Reading the frames


def _frames(part: _Part, is_padding: Array) -> Iterator[tuple[int, Array]]:
    """Yield the frames of ``part.slots()`` block by block, with the place of the first of them.

    The row that leads, place 0, comes last: its frame stands at the end of the file.

    :raises _BadFileError: if the file is damaged, or padding is not black.
    """
    log, lead = part.log, int(part.lead)
    frames = _Npy(log.path("$store$_observation"), "u", 3)
    step = max(1, BLOCK_BYTES // max(1, frames.row_bytes))
    for slot in range(0, log.capacity, step):
        block = frames.read(min(step, log.capacity - slot))
        filled = block[: max(0, log.cursor - slot)]
        if len(filled):
            yield lead + slot, _black(part, is_padding, lead + slot, filled)
    frames.close()
    if lead:
        yield 0, _black(part, is_padding, 0, block[-1:])


def _black(part: _Part, is_padding: Array, place: int, frames: Array) -> Array:
    padding = np.flatnonzero(is_padding[place : place + len(frames)])
    for k in padding:
        if frames[k].any():
            slot = part.slots()[place + k]
            raise _BadFileError(part.log.path("$store$_observation"), _no_padding(slot))
    return frames


def _blocks(
    parts: list[_Part], faults: list[Fault], chosen: Array, late_obs: dict[int, Array]
) -> Iterator[Block | Fault]:
    """Yield the rows of the chosen episodes."""
    yield from faults
    row = 0
    for part in parts:
        try:
            columns = {key: values[part.slots()] for key, values in part.log.columns().items()}
            columns["act"] = columns["act"].astype(np.int64)
            terminated = columns["terminated"] = columns["terminated"].astype(bool)
            is_padding = part.is_padding(terminated)
            wanted = ~is_padding
            wanted[wanted] = np.isin(part.episodes(terminated[wanted]), chosen)
            columns["truncated"] = np.zeros(len(wanted), bool)
            if part.cut:
                last = np.flatnonzero(~is_padding)[-1]
                columns["truncated"][last] = not terminated[last]
            if not wanted.any():
                continue
            lead_row = row
            if part.lead and wanted[0]:
                blank = np.zeros((1, *part.log.shape[1:]), np.uint8)
                yield _block(part, columns, wanted, 0, blank)
                row += 1
            for place, frames in _ahead(_frames(part, is_padding)):
                if part.lead and place == 0:
                    if wanted[0]:
                        late_obs[lead_row] = frames[0]
                elif wanted[place : place + len(frames)].any():
                    block = _block(part, columns, wanted, place, frames)
                    yield block
                    row += len(block.columns["rew"])
        except _BadFileError as error:
            yield Fault(str(error.path), "", str(error))
            return  # only if faults stop, or the file has changed since


def _block(
    part: _Part, columns: dict[str, Array], wanted: Array, place: int, frames: Array
) -> Block:
    """Return the wanted rows among those from ``place`` on, whose frames these are."""
    here = place + np.flatnonzero(wanted[place : place + len(frames)])
    found = {key: values[here] for key, values in columns.items()}
    found["obs"] = frames if len(here) == len(frames) else frames[here - place]
    done = found["terminated"][-1] or found["truncated"][-1]
    file = str(part.log.path("$store$_observation"))
    return Block(found, file, f"{len(here)} rows from row {here[0]}", continued=not done)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Take the next item in a thread while the last one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
