"""What of DQN Replay's logs is played, in which order, and which rows are padding.

Three rows of zeros precede every episode. A log is written when slot C-1 is still to be filled:
the row that belongs there stands in the same slot of the next checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.convert.check import MAX_ACTIONS
from tianshou_ext.data.convert.common import Fault, Settings
from tianshou_ext.data.convert.dqn_replay_logs import COLUMNS, BadFileError, Log, open_log

__all__ = ["STACK", "Part", "frames_of", "plan"]

STACK = 4
PADDING = STACK - 1  # rows of zeros before every episode
BLOCK_BYTES = 1 << 23  # of frames read at once
Array = np.ndarray[Any, Any]


def plan(
    folder: Path, numbers: list[int], settings: Settings, notes: list[str]
) -> tuple[list[Part], list[Fault]]:
    """Decide what is played, from all but the frames; those too if faults are to be left out."""
    parts: list[Part] = []
    faults: list[Fault] = []
    before: tuple[Log, dict[str, Array]] | None = None
    padding, begins, count, dropped, largest = 0, True, 0, 0, 0.0
    for number in numbers:
        try:
            log = open_log(folder, number)
            columns = log.columns()
            if parts and log.shape[1:] != parts[0].log.shape[1:]:
                path = log.path("$store$_observation")
                raise BadFileError(path, f"frames of the shape {log.shape[1:]}, unlike the others")
            follows = before is not None and _follows(*before, log, columns)
            if follows and log.add_count == log.capacity - 1:
                notes.append(f"checkpoint {number} repeats the one before and is left out")
                continue
            if not follows:
                padding, begins = _padding_at_start(log, columns), True
                if parts:
                    parts[-1] = replace(parts[-1], cut=True)
            lead = follows and before is not None and before[0].cursor == log.capacity - 1
            none = np.zeros(0, np.int64)
            first_id = count if begins else count - 1
            part = Part(log, lead, padding, begins, first_id, none, none)
            terminated = columns["terminated"][part.slots()].astype(bool)
            is_padding = _check_columns(part, columns)
            if settings.on_error == "skip":
                for _ in frames_of(part, is_padding, ~is_padding):
                    pass
        except BadFileError as error:
            faults.append(Fault(str(error.path), "", str(error)))
            before = None
            continue
        if not follows and number > 0:
            notes.append(
                f"checkpoint {number} goes on with none that is there: its first episode lacks its "
                "beginning"
            )
        before, padding = (log, columns), part.next_padding(terminated)
        dropped += int(is_padding.sum())
        largest = max(largest, np.abs(columns["rew"][part.slots()]).max(initial=0))
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
        "rewards were clipped to [-1, 1] by the logger"
        if largest <= 1
        else f"WARNING: rewards of up to {largest:g}, where the logger clips to [-1, 1]",
        "the time limit of 27,000 steps is stored as a terminal, so it is terminated",
    ]
    return parts, faults


def _follows(
    before: Log, columns_before: dict[str, Array], log: Log, columns: dict[str, Array]
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


def _padding_at_start(log: Log, columns: dict[str, Array]) -> int:
    """Return how many rows of padding a log that follows none begins with."""
    if log.number == 0 and log.add_count <= log.capacity:
        return PADDING
    if columns["terminated"][-1]:  # the row before slot 0
        return PADDING
    # Rest of the padding that the log before began. A black frame that was played, within the
    # first two rows of an episode that is cut anyway, costs no more than itself.
    frames = log.frames().read(min(PADDING - 1, log.cursor))
    blank = ~frames.any((1, 2))
    for values in columns.values():
        blank &= values[: len(blank)] == 0
    return int(np.cumprod(blank).sum())


@dataclass(frozen=True)
class Part:
    """What of a log is played, in the order of play.

    ``lead`` says that the row in the last slot comes first: it was missing in the log before.
    """

    log: Log
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


def _check_columns(part: Part, columns: dict[str, Array]) -> Array:
    """Return which of the part's slots are padding, if what stands in them can be.

    What stands in others is no matter: a log's last slot may hold whatever was in memory.
    """
    slots, log = part.slots(), part.log
    terminated = columns["terminated"][slots]
    act, rew = columns["act"][slots], columns["rew"][slots]
    for key, wrong, what in (
        ("rew", ~np.isfinite(rew), "the reward is NaN or infinite"),
        ("terminated", (terminated != 0) & (terminated != 1), "the terminal is not 0 or 1"),
        ("act", (act < 0) | (act >= MAX_ACTIONS), f"the action is not 0 to {MAX_ACTIONS - 1}"),
    ):
        if wrong.any():
            slot = slots[np.argmax(wrong)]
            raise BadFileError(log.path(COLUMNS[key][0]), f"{what} in slot {slot}")
    is_padding = part.is_padding(terminated)
    for key, (name, _) in COLUMNS.items():
        wrong = slots[is_padding][columns[key][slots[is_padding]] != 0]
        if len(wrong):
            raise BadFileError(log.path(name), _no_padding(wrong[0]))
    return is_padding


def _no_padding(slot: int) -> str:
    return (
        f"slot {slot} is not zero, but the {PADDING} rows before an episode are in logs of {STACK} "
        "stacked frames"
    )


def frames_of(part: Part, is_padding: Array, wanted: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the frames of the wanted among ``part.slots()`` block by block, after their places.

    The row that leads, place 0, comes last: its frame stands at the end of the file. A block is
    overwritten when the one after the next is taken.

    :param wanted: none of the padding.
    :raises BadFileError: if the file is damaged, or padding is not black.
    """
    log, lead = part.log, int(part.lead)
    frames = log.frames()
    step = min(log.capacity, max(1, BLOCK_BYTES // frames.row_bytes))
    block, other = np.empty((2, step, *frames.shape[1:]), np.uint8)
    for slot in range(0, log.capacity, step):
        count = 0
        here = lead + np.arange(slot, min(slot + step, log.cursor))
        for first, last in _runs(wanted[here]):
            rows = block[count : count + last - first]
            frames.read_into(rows)
            if wanted[here[first]]:
                count += last - first
            else:
                _check_black(part, is_padding, here[first], rows)
        if count:
            yield here[wanted[here]], block[:count]
            block, other = other, block
        if len(here) < min(step, log.capacity - slot):  # the rest is of the cycle before
            rows = block[len(here) : min(step, log.capacity - slot)]
            frames.read_into(rows)
    log.unusual.update(frames.close())
    if lead and wanted[0]:
        yield np.zeros(1, np.int64), rows[-1:]
    elif lead:
        _check_black(part, is_padding, 0, rows[-1:])


def _runs(flags: Array) -> Array:
    """Return where runs of equal flags start and stop, (R, 2)."""
    edges = np.flatnonzero(np.diff(flags)) + 1
    runs: Array = np.stack([np.append(0, edges), np.append(edges, len(flags))], 1)
    return runs[: len(flags)]


def _check_black(part: Part, is_padding: Array, place: int, frames: Array) -> None:
    for k in np.flatnonzero(is_padding[place : place + len(frames)]):
        if frames[k].any():
            slot = part.slots()[place + k]
            raise BadFileError(part.log.path("$store$_observation"), _no_padding(slot))
