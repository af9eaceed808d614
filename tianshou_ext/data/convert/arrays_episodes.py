"""The rows of a table of arrays, their episodes, and the transitions that these make.

Rows are steps in order. A row leads to the row below it unless it ends an episode, or its stored
next observation says otherwise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import flat_rows
from tianshou_ext.data.convert.arrays_columns import Column
from tianshou_ext.data.convert.arrays_files import Columns
from tianshou_ext.errors import InputError

__all__ = ["Reading", "Table"]

Array = np.ndarray[Any, Any]
BLOCK_BYTES = 1 << 24
BLOCK_ROWS = 1 << 14


@dataclass(frozen=True)
class Reading:
    """How tables are read."""

    keys: dict[str, list[str]]
    stack_num: int
    single: bool
    """Every table is one episode."""
    episode_length: int | None
    trajectories: bool
    """There is a table for every episode."""


class Table:
    """Rows with their episodes.

    ``last`` marks the rows that end an episode. Where next observations are stored, ``breaks``
    counts the rows among them of which only those say so, and ``resets`` the cut-off rows that
    lead to the row below all the same.

    :raises InputError: if columns do not fit together; half a sentence.
    """

    def __init__(self, table: Columns, reading: Reading, record: str) -> None:
        self.record = record
        keys = reading.keys
        columns = {name: Column(name, table, keys[name]) for name in keys}
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
            self.terminated = columns["discount"].discounts() == 0
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
            differ = flat_rows(differ).any(1)
            self.breaks += int((differ & ~self.last[start:stop]).sum())
            self.resets += int((~differ & cut[start:stop]).sum())
            self.last[start:stop] |= differ

    def about(self, name: str) -> dict[str, Any]:
        """Return what a column looks like, and the order of its parts, for the provenance."""
        column: Column = getattr(self, name)
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

    def numbers(self, start: int, stop: int) -> Array:
        """Return the row of the table that each row of ``block`` is, or follows as its end."""
        rows = np.arange(start, stop)
        if self.stacked:
            extra = np.flatnonzero(self._extra(start, stop))
            return np.insert(rows, extra + 1, rows[extra])
        return rows[~self.lost[start:stop]]

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
