"""What ``inspect`` finds in the observations, row by row and from one row to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.blocks import BufferFile, flat_rows
from tianshou_ext.data.findings import SHOWN, WIDE, Finding, Spread, some_rows
from tianshou_ext.data.hdf5 import FRAMES
from tianshou_ext.data.writer import flat_columns

__all__ = ["look_at_observations"]

Array = np.ndarray[Any, Any]
LARGE_ROW = 4096  # bytes of an observation from which only a part of the rows is looked at
RUN = 256  # rows looked at together where only a part is
SCALE_BYTES = 1 << 26  # of observations that say how large a usual step is
# A step is a jump where it is so many times the step that 90 % of the steps stay below: in one
# dimension, or on average (at most 5 each) of MANY. On MuJoCo's Hopper, HalfCheetah, Walker2d and
# Ant, random play, these find 99 % of the resets and nothing else.
JUMP, JOINT_JUMP, MANY = 10.0, 1.5, 8
DISAGREE = 0.01  # share of next observations that differ from the next row, for an error


def look_at_observations(
    source: BufferFile, figures: dict[str, Any], frames: int, progress: bool
) -> Iterator[Finding]:
    """Put the figures of the observations into ``figures``, and yield what is wrong with them.

    :param frames: rows to look at where an observation is large; 0 for all.
    """
    sampled = frames and _obs_row_bytes(source) > LARGE_ROW
    runs = _runs(source, frames if sampled else source.rows)
    looked = sum(stop - start for start, stop in runs)
    seen = _Watch(source)
    with tqdm(
        total=looked, desc="looking", unit=" rows", unit_scale=True, disable=not progress
    ) as bar:
        for start, stop in runs:
            seen.add(start, stop)
            bar.update(stop - start)
    seen.jumps.sort(key=lambda jump: (-jump[0], jump[1]))
    jumps = [row for _, row in seen.jumps]
    repeated, unlike = seen.repeats / max(seen.pairs, 1), seen.differ / max(seen.compared, 1)
    figures["looked_at"] = looked
    figures["observation"] = {path: spread.figures() for path, spread in seen.spreads.items()}
    figures["repeats"] = {"pairs": seen.pairs, "equal": seen.repeats, "share": repeated}
    figures["obs_next"] = {
        "compared": seen.compared,
        "differ": seen.differ,
        "share": unlike,
        "first_rows": seen.first_differ[:SHOWN],
    }
    figures["jumps"] = {"count": len(jumps), "rows": jumps[:100]}
    for path, spread in seen.spreads.items():
        yield from _of_range(path, spread)
    if seen.differ:
        yield Finding(
            "error" if unlike > DISAGREE else "warning",
            f"obs_next differs from the next row's obs in {100 * unlike:.3g} % of "
            f"{seen.compared:,} rows inside episodes ({some_rows(seen.first_differ)})",
            "rows are shuffled, or an episode's end is not flagged there: mark these rows "
            "truncated, or convert again",
        )
    if seen.loops > 0.5 * seen.cuts:
        yield Finding(
            "warning",
            f"{seen.loops:,} of {seen.cuts:,} truncated rows have their own obs as obs_next",
            "targets there bootstrap from the wrong place: store the real final observation, or "
            "leave these rows out",
        )
    if jumps:
        yield Finding(
            "warning",
            f"obs jumps after {len(jumps):,} rows, most after {some_rows(jumps)}",
            "look at these rows: a reset without an end flag looks like this, a collision or a new "
            "goal may too",
        )
    if repeated > 0.01:
        yield Finding(
            "warning" if repeated > 0.5 else "note",
            f"{100 * repeated:.3g} % of consecutive rows have equal obs",
            "padding or repeated logging, if the environment does not stand still that often",
        )


def _of_range(path: str, spread: Spread) -> Iterator[Finding]:
    yield from spread.not_finite(path)
    if path.split("/")[0] == "obs_next" or not spread.constant():
        return
    if spread.constant() == spread.low.size:
        yield Finding("error", f"{path} never changes", "check that the right column was converted")
    elif spread.low.size <= WIDE:
        yield Finding(
            "note",
            f"{spread.constant()} of {spread.low.size} dimensions of {path} never change",
            "harmless, unless the environment changes them later",
        )


class _Watch:
    """What is counted over the observations."""

    def __init__(self, source: BufferFile) -> None:
        self.source = source
        self.scales = _usual_steps(source)
        self.spreads: dict[str, Spread] = {}
        self.pairs = self.repeats = 0  # neighbours, and those that are equal
        self.compared = self.differ = 0  # next observations, and those unlike the next row
        self.first_differ: list[int] = []
        self.cuts = self.loops = 0  # truncated rows, and those that lead to themselves
        self.jumps: list[tuple[float, int]] = []

    def add(self, start: int, stop: int) -> None:
        """Look at rows ``start`` to ``stop``, and at the row that follows."""
        source = self.source
        columns = source.read(start, min(stop + 1, source.rows), "obs", "obs_next", FRAMES)
        if FRAMES in columns:
            frames = columns.pop(FRAMES)
            columns = {"obs": frames[:, :-1], "obs_next": frames[:, 1:]}
        now = flat_columns({"obs": columns["obs"]})
        later = flat_columns({"obs": columns["obs_next"]}) if "obs_next" in columns else {}
        count, rows = stop - start, np.arange(start, stop)
        for path, values in flat_columns(columns).items():
            self.spreads.setdefault(path, Spread()).add(values[:count], rows)
        following = len(next(iter(now.values()))) - 1  # rows whose next row was read
        goes_on = ~source.ends[start : start + following]
        beside = goes_on if source.ordered else np.ones_like(goes_on)
        same, agree = np.ones((2, following), np.bool_)
        moves = np.zeros(following)
        for path, values in now.items():
            same &= _equal_rows(values[1:], values[:-1])
            if later:
                agree &= _close_rows(later[path][:following], values[1:])
            if path in self.scales:
                moves = np.maximum(moves, _moves(values, self.scales[path]))
        self.pairs += int(beside.sum())
        self.repeats += int((same & beside).sum())
        far = np.nonzero((moves > 1) & goes_on)[0]
        self.jumps += [(float(moves[k]), start + int(k)) for k in far]
        if later and source.ordered:
            wrong = np.nonzero(~agree & goes_on)[0]
            self.compared += int(goes_on.sum())
            self.differ += len(wrong)
            self.first_differ += (start + wrong[: SHOWN + 1]).tolist()
            cut = source.truncated[start:stop] & ~source.terminated[start:stop]
            stays = np.ones(int(cut.sum()), np.bool_)
            for path, values in now.items():
                stays &= _equal_rows(later[path][:count][cut], values[:count][cut])
            self.cuts += len(stays)
            self.loops += int(stays.sum())


def _usual_steps(source: BufferFile) -> dict[str, Array]:
    """Return the step that 90 % of the steps stay below, per dimension, of float columns."""
    steps: dict[str, list[Array]] = {}
    floats = [k for k, (_, dtype) in source.specs.items() if np.dtype(dtype).kind == "f"]
    if not source.ordered or not any(path.split("/")[0] == "obs" for path in floats):
        return {}
    for start, stop in _runs(source, SCALE_BYTES // max(1, _obs_row_bytes(source))):
        stop = min(stop + 1, source.rows)
        goes_on = ~source.ends[start : stop - 1]
        for path, values in flat_columns(source.read(start, stop, "obs")).items():
            if path in floats:
                flat = flat_rows(values)
                steps.setdefault(path, []).append(np.abs(np.diff(flat, axis=0))[goes_on])
    scales = {}
    for path, parts in steps.items():
        taken = np.concatenate(parts)
        taken = taken[np.isfinite(taken).all(1)]
        if len(taken):
            scale = np.quantile(taken, 0.9, axis=0)
            scales[path] = np.where(scale > 0, scale, np.inf)  # rarely changes: a goal, a switch
    return scales


def _moves(values: Array, scale: Array) -> Array:
    """Return how much further than usual each step goes, (K-1,); above 1 is a jump.

    That is: far in one dimension, or clearly further than usual in all together. A reset moves
    them all, though none may go further than it sometimes does.
    """
    moving = np.isfinite(scale)
    with np.errstate(invalid="ignore"):
        ratio = np.abs(np.diff(flat_rows(values)[:, moving], axis=0)) / scale[moving]
    ratio = np.nan_to_num(ratio, posinf=0.0)
    if not moving.any():
        return np.zeros(len(ratio))
    moves: Array = ratio.max(1) / JUMP
    if moving.sum() >= MANY:
        moves = np.maximum(moves, np.minimum(ratio, 5).mean(1) / JOINT_JUMP)
    return moves


def _runs(source: BufferFile, budget: int) -> list[tuple[int, int]]:
    """Return evenly spaced runs of ``RUN`` rows, ``budget`` rows in all, or all blocks."""
    if budget >= source.rows:
        return list(source.blocks())
    count = max(1, budget // RUN)
    length = min(RUN, budget)
    starts = np.linspace(0, source.rows - length, count).astype(np.int64)
    return [(int(start), int(start) + length) for start in np.unique(starts)]


def _obs_row_bytes(source: BufferFile) -> int:
    names = ("obs", FRAMES)
    specs = [spec for path, spec in source.specs.items() if path.split("/")[0] in names]
    return sum(int(np.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in specs)


def _equal_rows(one: Array, other: Array) -> Array:
    equal: Array = flat_rows(one == other).all(1)
    return equal


def _close_rows(one: Array, other: Array) -> Array:
    """Compare rows; floats to the last digits, since some logs mix precisions."""
    if one.dtype.kind != "f":
        return _equal_rows(one, other)
    close = np.isclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)
    near: Array = flat_rows(close).all(1)
    return near
