"""Look through a buffer file for what would ruin training, before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.blocks import BufferFile, flat_rows
from tianshou_ext.data.defects import Defect, known_defects
from tianshou_ext.data.hdf5 import FRAMES
from tianshou_ext.data.report import draw, new_figure, report_lines
from tianshou_ext.data.writer import flat_columns
from tianshou_ext.errors import InputError

__all__ = ["Finding", "Inspection", "inspect"]

Array = np.ndarray[Any, Any]
Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")

LARGE_ROW = 4096  # bytes of an observation from which only a part of the rows is looked at
RUN = 256  # rows looked at together where only a part is
SCALE_BYTES = 1 << 26  # of observations that say how large a usual step is
# A step is a jump where it is so many times the step that 90 % of the steps stay below: in one
# dimension, or on average (at most 5 each) of MANY. On MuJoCo's Hopper, HalfCheetah, Walker2d and
# Ant, random play, these find 99 % of the resets and nothing else.
JUMP, JOINT_JUMP, MANY = 10.0, 1.5, 8
WIDE = 256  # dimensions up to which each has its own figures
DISAGREE = 0.01  # share of next observations that differ from the next row, for an error
DISTINCT = 10_000  # whole numbers that are still counted one by one
SHOWN = 5  # rows named
KEPT_ACTIONS = 100_000  # for the picture


@dataclass(frozen=True)
class Finding:
    """Something to know about a file.

    ``error`` would ruin training, ``warning`` may, ``note`` does not.
    """

    severity: Severity
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}; {self.advice}"


@dataclass
class Inspection:
    """What is in a buffer file; printing it gives the report."""

    file: Path
    figures: dict[str, Any] = field(default_factory=dict)
    """All numbers, as JSON can hold them."""
    findings: list[Finding] = field(default_factory=list)
    """Worst first."""
    as_json: bool = False

    @property
    def exit_code(self) -> int:
        """1 if something would ruin training, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def __str__(self) -> str:
        if not self.as_json:
            found = [str(finding) for finding in self.findings] or ["nothing wrong found"]
            return "\n".join([*report_lines(self.file, self.figures), "", *found])
        report = {
            "file": str(self.file),
            **self.figures,
            "findings": [vars(finding) for finding in self.findings],
            "exit_code": self.exit_code,
        }
        return dumps(report, allow_nan=False)


def inspect(
    file: Path,
    /,
    *,
    plot: Path | None = None,
    json: bool = False,
    frames: int = 20_000,
    progress: bool = True,
) -> Inspection:
    """Look through a buffer file: what is in it, what is wrong with it, what to do.

    The exit code is 1 if something would ruin training, 2 if the file cannot be read, else 0.
    Rows are numbered from the oldest one.

    :param file: a buffer file of tianshou_ext or Tianshou.
    :param plot: make a picture of returns, lengths and actions here, for example plot.png.
    :param json: print one JSON object with all numbers.
    :param frames: rows to look at, in evenly spaced runs, where an observation takes more than
        4 kB; 0 for all.
    :param progress: show a progress bar.
    :raises InputError: if the file cannot be read.
    """
    if frames < 0:
        raise InputError(f"expected frames of 0 (all) or more, got {frames}")
    if plot is not None:
        new_figure(plot)  # fails here, not after the file is read
    with BufferFile(file) as source:
        found = Inspection(source.path, as_json=json)
        figures, findings = found.figures, found.findings
        figures |= _head(source)
        if source.rows == 0:
            findings.append(Finding("error", "the buffer is empty", "fill it"))
            return found
        findings += _look_at_flags(source, figures)
        findings += _look_at_rewards(source, figures)
        actions, of_actions = _look_at_actions(source, figures)
        findings += of_actions
        findings += _look_at_observations(source, figures, frames, progress)
        findings += [
            _of_defect(defect, _origins(source.provenance, source.path.name))
            for defect in known_defects(_names(source.provenance, source.path.name))
        ]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        if plot is not None:
            draw(plot, source, actions)
    return found


def _of_defect(defect: Defect, origins: list[tuple[str, str]]) -> Finding:
    """Return the finding; a file made from several is repaired if each that has the defect is.

    :param origins: names and converter of each file at the start.
    """
    with_it = [converter for names, converter in origins if defect in known_defects(names)]
    converters = {*with_it} or {converter for _, converter in origins}
    if defect.repaired_by and converters == {defect.repaired_by}:
        return Finding("note", f"known, repaired: {defect.what}", "nothing: it was converted so")
    severity: Severity = "warning" if defect.ruins_training else "note"
    return Finding(severity, f"known: {defect.what}", defect.advice)


def _head(source: BufferFile) -> dict[str, Any]:
    return {
        "bytes": source.path.stat().st_size,
        "rows": source.rows,
        "transitions": int(source.transitions.sum()),
        "ordered": source.ordered,
        "stack_num": source.stack_num,
        "stores_obs_next": source.save_obs_next,
        "shared_frames": source.shared_frames,
        "columns": {k: {"shape": list(s), "dtype": d} for k, (s, d) in source.specs.items()},
        "provenance": source.provenance,
    }


def _names(provenance: Mapping[str, Any], file: str) -> str:
    """Return the names a file goes by, those of the files it was made from included."""
    names = [value for value in provenance.values() if isinstance(value, str) and len(value) < 200]
    names += [_names(*parent) for parent in _parents(provenance)]
    return " ".join([*names, file])


def _origins(provenance: Mapping[str, Any], file: str) -> list[tuple[str, str]]:
    """Return names and converter of each file that a file was first made from, or its own."""
    parents = _parents(provenance)
    if not parents:
        return [(_names(provenance, file), str(provenance.get("source")))]
    return [origin for parent in parents for origin in _origins(*parent)]


def _parents(provenance: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Return provenance and name of each file that a file was edited from."""
    parents = [parent for parent in provenance.get("made_from", []) if isinstance(parent, dict)]
    return [(parent.get("provenance", {}), str(parent.get("file", ""))) for parent in parents]


def _some(rows: Any) -> str:
    """Name the first rows of many."""
    shown = ", ".join(f"{row:,}" for row in list(rows)[:SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > SHOWN else ''}"


def _summary(values: Array) -> dict[str, Any]:
    """Return mean, spread, quantiles and histogram of the finite ``values`` (N,)."""
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) == 0:
        return {"count": 0}
    quantiles = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9))
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, 11 if high > low else 2)
    if np.array_equal(values, np.round(values)) and abs(low) + abs(high) < 1e15:
        width = np.ceil((high - low + 1) / 10)
        edges = np.arange(low, high + 1 + width, width)
    counts = np.histogram(values, edges)[0] if high > low else np.array([len(values)])
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": low,
        "max": high,
        "quantiles": dict(zip(("10", "25", "50", "75", "90"), quantiles.tolist(), strict=True)),
        "histogram": {"counts": counts.tolist(), "edges": edges[: len(counts) + 1].tolist()},
    }


def _look_at_flags(source: BufferFile, figures: dict[str, Any]) -> Iterator[Finding]:
    terminated, truncated, done = source.terminated, source.truncated, source.done
    figures["terminated"] = int(terminated.sum())
    figures["truncated"] = int(truncated.sum())
    figures["both_flags"] = int((terminated & truncated).sum())
    figures["unfinished"] = int(source.open_ends.sum())
    figures["episodes"] = None  # shuffled transitions have none
    if figures["transitions"] == 0:
        yield Finding(
            "error",
            "no row can be sampled: all are truncated, and what came next is not stored",
            "store obs_next, or the observation after each episode as one more row",
        )
    unmarked = np.nonzero((terminated | truncated) & ~done)[0]
    if len(unmarked):
        yield Finding(
            "error",
            f"{len(unmarked):,} rows end an episode but are not done ({_some(unmarked)}), so "
            "stacks and n-step rewards run over the border",
            "set done to terminated or truncated",
        )
    unexplained = np.nonzero(done & ~(terminated | truncated))[0]
    if len(unexplained):
        yield Finding(
            "warning",
            f"{len(unexplained):,} rows are done but neither terminated nor truncated "
            f"({_some(unexplained)})",
            "set the flag that is meant: a target bootstraps over them as over truncated rows",
        )
    if figures["both_flags"]:
        rows = np.nonzero(terminated & truncated)[0]
        yield Finding(
            "warning",
            f"{len(rows):,} rows are both terminated and truncated ({_some(rows)})",
            "check that these episodes truly ended there: a target does not bootstrap from them",
        )
    if not terminated.any():
        yield Finding(
            "warning",
            "no row is terminated",
            "right where episodes end by time only; else the terminals were lost, look at the "
            "source",
        )
    if figures["unfinished"]:
        rows = np.nonzero(source.open_ends)[0]
        yield Finding(
            "warning",
            f"the last episode is unfinished: {_some(rows)} ends the data without a flag",
            "mark it truncated (merge, split and subsample do)",
        )
    if not source.ordered:
        loose = np.nonzero(~source.ends)[0]
        if len(loose):
            yield Finding(
                "error",
                f"the rows are shuffled, but {len(loose):,} end no episode ({_some(loose)}), so "
                "stacks and n-step rewards chain rows that do not belong together",
                "mark every row terminated or truncated",
            )
        yield Finding(
            "note",
            "the rows are shuffled transitions: no episodes, returns, duplicates or jumps",
            "train with n_step 1; sets chosen by return need ordered data",
        )
        return
    lengths = source.lengths()
    figures["episodes"] = len(lengths)
    figures["return"] = _summary(source.returns())
    figures["length"] = _summary(lengths)
    short = int(((lengths == 1) & terminated[source.ends]).sum())
    if short > 0.05 * len(lengths) and len(lengths) > 1:
        yield Finding(
            "warning",
            f"{short:,} of {len(lengths):,} episodes are a single terminated transition",
            "check the flags: some logs mark every row at the goal as terminal",
        )


def _look_at_rewards(source: BufferFile, figures: dict[str, Any]) -> Iterator[Finding]:
    rewards = np.asarray(source.rew, np.float64)
    bad = np.nonzero(~np.isfinite(rewards))[0]
    if len(bad):
        yield Finding(
            "error",
            f"{len(bad):,} rewards are NaN or infinite ({_some(bad)})",
            "repair the source and convert again",
        )
    rewards = rewards[source.transitions & np.isfinite(rewards)]
    figures["reward"] = _summary(rewards)
    figures["reward"]["not_finite"] = len(bad)
    if len(rewards) == 0:
        return
    figures["reward"]["nonzero"] = float((rewards != 0).mean())
    if len(rewards) > 1 and rewards.min() == rewards.max():
        yield Finding(
            "warning",
            f"every reward is {rewards[0]:g}",
            "look at the source: nothing but an episode's length can be learned from these",
        )


def _look_at_actions(
    source: BufferFile, figures: dict[str, Any]
) -> tuple[dict[str, Array], list[Finding]]:
    """Return up to ``KEPT_ACTIONS`` evenly spaced actions by path, and what was found."""
    every = -(-source.rows // KEPT_ACTIONS)
    kept: dict[str, list[Array]] = {}
    counts: dict[str, dict[int, int]] = {}
    spreads: dict[str, _Spread] = {}
    for start, stop in source.blocks():
        rows = start + np.nonzero(source.transitions[start:stop])[0]
        for path, values in flat_columns(source.read(start, stop, "act")).items():
            values = values[rows - start]
            kept.setdefault(path, []).append(values[::every])
            if values.ndim == 1 and values.dtype.kind in "iu":
                known = counts.setdefault(path, {})
                if len(known) <= DISTINCT:
                    for value, times in zip(*np.unique(values, return_counts=True), strict=True):
                        known[int(value)] = known.get(int(value), 0) + int(times)
            else:
                spreads.setdefault(path, _Spread()).add(values, rows)
    findings: list[Finding] = []
    figures["action"] = {}
    for path, known in counts.items():
        figures["action"][path] = {"counts": {str(k): known[k] for k in sorted(known)}}
        findings += _of_discrete(path, known)
    for path, spread in spreads.items():
        figures["action"][path] = spread.figures()
        findings += _of_continuous(path, spread)
    return {path: np.concatenate(parts) for path, parts in kept.items()}, findings


def _of_discrete(path: str, counts: Mapping[int, int]) -> Iterator[Finding]:
    if not counts:
        return
    if len(counts) > DISTINCT:
        yield Finding(
            "warning",
            f"{path} has more than {DISTINCT:,} different whole numbers",
            "store continuous actions as floats",
        )
        return
    if min(counts) < 0:
        yield Finding(
            "error",
            f"{path} holds negative actions, down to {min(counts)}",
            "number the actions from 0",
        )
        return
    never = sorted(set(range(max(counts) + 1)) - set(counts)) if max(counts) <= DISTINCT else []
    if max(counts) > DISTINCT or never:
        yield Finding(
            "note",
            f"{path} goes up to {max(counts)}, but only {len(counts)} actions occur"
            + (f", never {', '.join(map(str, never[:SHOWN]))}" if never else ""),
            "values of actions without data are guesses; check that actions are numbered from 0",
        )
    if len(counts) == 1:
        yield Finding(
            "warning", f"{path} is always {max(counts)}", "there is no other action to compare with"
        )


def _of_continuous(path: str, spread: _Spread) -> Iterator[Finding]:
    if spread.bad:
        yield Finding(
            "error",
            f"{path} is NaN or infinite in {spread.bad:,} rows ({_some(spread.bad_rows)})",
            "repair the source and convert again",
        )
    if spread.seen and np.max(spread.outside) > 0:
        share = 100 * np.max(spread.outside) / spread.seen
        yield Finding(
            "warning",
            f"{path} leaves [-1, 1], in up to {share:.2g} % of the rows of a dimension",
            "policies act in [-1, 1]: scale the actions by the bounds of the action space",
        )
    if spread.constant():
        yield Finding(
            "warning",
            f"{spread.constant()} dimensions of {path} never change",
            "check that the right columns were converted",
        )


class _Spread:
    """Range of every dimension of a column, and the rows that are not finite."""

    def __init__(self) -> None:
        self.seen = self.bad = 0
        self.bad_rows: list[int] = []
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)
        self.at_bounds: Any = 0
        self.outside: Any = 0

    def add(self, values: Array, rows: Array) -> None:
        """Take in ``values`` (K, ...) of ``rows`` (K,)."""
        flat = flat_rows(values)
        if values.dtype.kind == "f":
            finite = np.isfinite(flat).all(1)
            self.bad += int((~finite).sum())
            self.bad_rows += rows[~finite][: SHOWN + 1].tolist()
            flat = flat if finite.all() else flat[finite]
        if flat.size == 0:
            return
        low, high = flat.min(0), flat.max(0)
        self.low = np.minimum(self.low, low) if self.seen else low
        self.high = np.maximum(self.high, high) if self.seen else high
        self.seen += len(flat)
        if values.dtype.kind == "f":
            self.at_bounds = self.at_bounds + (np.abs(np.abs(flat) - 1) <= 1e-6).sum(0)
            self.outside = self.outside + (np.abs(flat) > 1 + 1e-6).sum(0)

    def constant(self) -> int:
        """Return how many dimensions never change."""
        return int((self.low == self.high).sum()) if self.seen > 1 else 0

    def figures(self) -> dict[str, Any]:
        """Return range and share of rows at -1 or 1 and beyond, per dimension; wide ones in all."""
        if not self.seen:
            return {"not_finite": self.bad}
        found: dict[str, Any] = {"min": self.low, "max": self.high}
        if len(self.low) > WIDE:
            found = {"min": self.low.min(), "max": self.high.max()}
        elif not np.isscalar(self.at_bounds):
            found["at_bounds"] = self.at_bounds / self.seen
            found["outside"] = self.outside / self.seen
        plain = {key: np.asarray(values).tolist() for key, values in found.items()}
        return {**plain, "constant_dimensions": self.constant(), "not_finite": self.bad}


def _obs_row_bytes(source: BufferFile) -> int:
    names = ("obs", FRAMES)
    specs = [spec for path, spec in source.specs.items() if path.split("/")[0] in names]
    return sum(int(np.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in specs)


def _runs(source: BufferFile, budget: int) -> list[tuple[int, int]]:
    """Return evenly spaced runs of ``RUN`` rows, ``budget`` rows in all, or all blocks."""
    if budget >= source.rows:
        return list(source.blocks())
    count = max(1, budget // RUN)
    length = min(RUN, budget)
    starts = np.linspace(0, source.rows - length, count).astype(np.int64)
    return [(int(start), int(start) + length) for start in np.unique(starts)]


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


class _Watch:
    """What is counted over the observations."""

    def __init__(self, source: BufferFile) -> None:
        self.source = source
        self.scales = _usual_steps(source)
        self.spreads: dict[str, _Spread] = {}
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
            self.spreads.setdefault(path, _Spread()).add(values[:count], rows)
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


def _look_at_observations(
    source: BufferFile, figures: dict[str, Any], frames: int, progress: bool
) -> Iterator[Finding]:
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
            f"obs_next differs from the next row's obs in {100 * unlike:.2g} % of "
            f"{seen.compared:,} rows inside episodes ({_some(seen.first_differ)})",
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
            f"obs jumps after {len(jumps):,} rows, most after {_some(jumps)}",
            "look at these rows: a reset without an end flag looks like this, a collision or a new "
            "goal may too",
        )
    if repeated > 0.01:
        yield Finding(
            "warning" if repeated > 0.5 else "note",
            f"{100 * repeated:.2g} % of consecutive rows have equal obs",
            "padding or repeated logging, if the environment does not stand still that often",
        )


def _of_range(path: str, spread: _Spread) -> Iterator[Finding]:
    if spread.bad:
        yield Finding(
            "error",
            f"{path} is NaN or infinite in {spread.bad:,} rows ({_some(spread.bad_rows)})",
            "repair the source and convert again",
        )
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
