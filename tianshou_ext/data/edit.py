"""Merge, split, subsample and relabel buffer files, in constant memory.

Every command reads blocks of rows and writes a new file, keeping what the source is: nested
observations, frames stored once a step or shared, ``stack_num``, ``info``. No episode is ever cut
without its last row being marked: one that a file leaves unfinished becomes truncated, and so does
a row whose successor was not taken along. The provenance of the sources is kept in ``made_from``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.blocks import BufferFile, mapped_leaves
from tianshou_ext.data.convert.common import Report, announce, check_target, fingerprint
from tianshou_ext.data.writer import BufferWriter, Compression, flat_columns
from tianshou_ext.errors import InputError

__all__ = ["merge", "relabel", "split", "subsample"]

LARGEST = 1e30  # number in an option of relabel; rewards must stay within float32

Array = np.ndarray[Any, Any]


@dataclass
class _Rows:
    """Consecutive rows of a source."""

    start: int
    stop: int
    columns: dict[str, Any]
    """act, rew, terminated, truncated and obs, obs_next, frames or info; all (K, ...)."""


def merge(
    files: Sequence[Path],
    /,
    *,
    out: Path,
    compression: Compression = "none",
    progress: bool = True,
) -> Report:
    """Put buffer files behind one another.

    Of ``info``, the columns are kept that all files have alike; the notes name the others.

    :param files: two or more, with observations and actions of the same shapes and types.
    :param out: the file to make.
    :param compression: none can be mapped instead of read; gzip, zstd save disk.
    :param progress: show progress bars.
    :raises InputError: if the files do not fit together.
    """
    if len(files) < 2:
        raise InputError(f"expected two or more files to merge, got {len(files)}")
    with ExitStack() as stack:
        sources = [stack.enter_context(BufferFile(file)) for file in files]
        for source in sources[1:]:
            _check_alike(sources[0], source)
        info = _common_info(sources)
        return _write(
            "merge",
            sources,
            out,
            sum(source.rows for source in sources),
            (rows for source in sources for rows in _all_rows(source, info)),
            {},
            compression=compression,
            progress=progress,
        )


def split(
    file: Path,
    /,
    *,
    at: tuple[float, ...] = (0.9,),
    out: tuple[Path, ...] = (),
    shuffle: bool = True,
    seed: int = 0,
    compression: Compression = "none",
    progress: bool = True,
) -> Reports:
    """Split a buffer file by episodes; shuffled transitions by rows.

    :param file: the buffer file.
    :param at: shares of the episodes, one a part; what they leave makes the last part.
    :param out: a file for each part; else <stem>_train and _test (or _train, _val and _test)
        beside the source.
    :param shuffle: draw each part's episodes at random instead of cutting the file in order.
        Episodes stay in the order of the file in either case.
    :param seed: of the draw.
    :param compression: none can be mapped instead of read; gzip, zstd save disk.
    :param progress: show progress bars.
    :raises InputError: if the shares do not make parts with an episode each.
    """
    _check_seed(seed)
    shares = list(at)
    if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9 or not math.isfinite(sum(shares)):
        raise InputError(f"expected shares above 0 that make at most 1, got {at}")
    if sum(shares) < 1 - 1e-9:
        shares.append(1 - sum(shares))
    if len(shares) < 2:
        raise InputError(f"expected shares for two parts or more, got {at}; pass a smaller one")
    outs = _parts_of(Path(file), list(out), len(shares))
    with BufferFile(file) as source:
        count = len(source.episodes()[0])
        edges = np.round(np.cumsum([0, *shares]) * count).astype(np.int64)
        if (np.diff(edges) == 0).any():
            raise InputError(
                f"expected at least one episode for each of {len(shares)} parts, got {count} in "
                f"{source.path} at {at}; choose other shares"
            )
        order = np.random.default_rng(seed).permutation(count) if shuffle else np.arange(count)
        for path in outs:  # before the first part is written
            check_target(path, [source.path])
        reports = Reports()
        for k, path in enumerate(outs):
            mine = order[edges[k] : edges[k + 1]]
            reports.append(
                _write_chosen(
                    "split",
                    source,
                    path,
                    _rows_of(source, mine),
                    {"at": list(at), "part": k, "shuffle": shuffle, "seed": seed},
                    [],
                    compression=compression,
                    progress=progress,
                )
            )
    return reports


def subsample(
    file: Path,
    /,
    *,
    out: Path,
    transitions: float | None = None,
    episodes: float | None = None,
    top: float | None = None,
    bottom: float | None = None,
    seed: int = 0,
    compression: Compression = "none",
    progress: bool = True,
) -> Report:
    """Keep a part of a buffer file; exactly one way to choose it. The order of the rows stays.

    :param file: the buffer file.
    :param out: the file to make.
    :param transitions: rows to draw at random: a share below 1, or a number.
    :param episodes: episodes to draw at random: a share below 1, or a number.
    :param top: share of the episodes with the highest returns, 0.1 for the best tenth.
    :param bottom: share of the episodes with the lowest returns.
    :param seed: of the draw.
    :param compression: none can be mapped instead of read; gzip, zstd save disk.
    :param progress: show progress bars.
    :raises InputError: if nothing or more than there is would be kept.
    """
    _check_seed(seed)
    ways = {"transitions": transitions, "episodes": episodes, "top": top, "bottom": bottom}
    given = {way: amount for way, amount in ways.items() if amount is not None}
    if len(given) != 1:
        raise InputError(
            f"expected exactly one of --transitions, --episodes, --top and --bottom, got "
            f"{', '.join(given) or 'none'}"
        )
    (way, amount), *_ = given.items()
    with BufferFile(file) as source:
        draw = np.random.default_rng(seed)
        notes = []
        if way == "transitions":
            kept = _drawn_transitions(source, amount, draw)
            if source.ordered:
                notes.append("transitions drawn one by one: what looks like an episode is a piece")
        else:
            kept = _rows_of(source, _drawn_episodes(source, way, amount, draw))
        return _write_chosen(
            "subsample",
            source,
            out,
            kept,
            {way: amount, "seed": seed},
            notes,
            compression=compression,
            progress=progress,
        )


def relabel(
    file: Path,
    /,
    *,
    out: Path,
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
    reward_clip: tuple[float, float] | None = None,
    obs_noise: float = 0.0,
    act_noise: float = 0.0,
    clip_actions: bool = False,
    seed: int = 0,
    compression: Compression = "none",
    progress: bool = True,
) -> Report:
    """Change rewards, or add noise to observations or actions.

    A reward becomes clip(scale * reward + shift). Rows that are no transitions (the final
    observation of a truncated episode) keep reward and action.

    :param file: the buffer file.
    :param out: the file to make.
    :param reward_scale: factor of the rewards.
    :param reward_shift: added to the scaled rewards.
    :param reward_clip: lowest and highest reward, applied last.
    :param obs_noise: standard deviation of Gaussian noise on observations, in their units. A next
        observation gets the noise of the row it belongs to, so both still agree.
    :param act_noise: standard deviation of Gaussian noise on actions, in their units.
    :param clip_actions: keep noisy actions within the range recorded for each dimension.
    :param seed: of the noise.
    :param compression: none can be mapped instead of read; gzip, zstd save disk.
    :param progress: show progress bars.
    :raises InputError: if nothing would change, or noise is asked for on whole numbers.
    """
    _check_seed(seed)
    numbers = [reward_scale, reward_shift, obs_noise, act_noise, *(reward_clip or ())]
    if not all(abs(number) <= LARGEST for number in numbers):
        raise InputError(f"expected finite numbers of at most {LARGEST:g}, got {numbers}")
    if min(obs_noise, act_noise) < 0:
        raise InputError(f"expected noise of 0 or more, got {min(obs_noise, act_noise)}")
    if reward_clip is not None and reward_clip[0] >= reward_clip[1]:
        raise InputError(f"expected reward_clip as LOW HIGH, got {reward_clip}")
    if clip_actions and not act_noise:
        raise InputError("expected --act-noise with --clip-actions, got none")
    if (reward_scale, reward_shift, reward_clip, obs_noise, act_noise) == (1, 0, None, 0, 0):
        raise InputError("expected something to change, got no option that does")
    options = {
        "reward_scale": reward_scale,
        "reward_shift": reward_shift,
        "reward_clip": None if reward_clip is None else list(reward_clip),
        "obs_noise": obs_noise,
        "act_noise": act_noise,
        "clip_actions": clip_actions,
        "seed": seed,
    }
    with BufferFile(file) as source:
        _check_noise(source, obs_noise, act_noise)
        obs_change = _ObsNoise(source, obs_noise, seed) if obs_noise else None
        act_change = _ActNoise(source, act_noise, clip_actions, seed) if act_noise else None

        def changed() -> Iterator[_Rows]:
            for rows in _all_rows(source, source.info_specs):
                usable = source.transitions[rows.start : rows.stop]
                reward = rows.columns["rew"].astype(np.float64) * reward_scale + reward_shift
                if reward_clip is not None:
                    reward = np.clip(reward, *reward_clip)
                rows.columns["rew"] = np.where(usable, reward, rows.columns["rew"])
                if obs_change is not None:
                    obs_change.apply(rows)
                if act_change is not None:
                    act_change.apply(rows, usable)
                yield rows

        return _write(
            "relabel",
            [source],
            out,
            source.rows,
            changed(),
            {key: value for key, value in options.items() if value not in (None, False)},
            compression=compression,
            progress=progress,
        )


class Reports(list[Report]):
    """The reports of several files, printed one after the other."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}")


def _parts_of(file: Path, outs: list[Path], count: int) -> list[Path]:
    names = {2: ("train", "test"), 3: ("train", "val", "test")}
    if not outs and count in names:
        return [file.with_name(f"{file.stem}_{name}{file.suffix}") for name in names[count]]
    if len(outs) != count:
        raise InputError(f"expected --out with {count} files, one a part, got {len(outs)}")
    if len({out.absolute() for out in outs}) < count:
        raise InputError(f"expected {count} different files for the parts, got {outs}")
    return outs


def _check_alike(one: BufferFile, other: BufferFile) -> None:
    """Name the first difference between the layouts of two files, if there is one."""
    layouts = []
    for source in (one, other):
        specs = {path: f"{list(shape)} of {dtype}" for path, (shape, dtype) in source.specs.items()}
        layouts.append(
            specs | {"stack_num": source.stack_num, "stored obs_next": source.save_obs_next}
        )
    for key in dict.fromkeys([*layouts[0], *layouts[1]]):
        here, there = (layout.get(key, "none") for layout in layouts)
        if here != there:
            raise InputError(
                f"expected files alike, got {key} {here} in {one.path} and {there} in "
                f"{other.path}; convert them the same way"
            )


def _count(amount: float, total: int, what: str) -> int:
    """Return how many of ``total`` an amount is: a share below 1, or a number."""
    whole = amount >= 1
    count = int(amount) if math.isfinite(amount) and whole else 0
    if 0 < amount < 1:
        count = math.floor(amount * total + 0.5)
    if count < 1 or count > total or (whole and count != amount):
        raise InputError(
            f"expected a share above 0 and below 1 or a whole number of {what}, at least one of "
            f"the {total:,} there are, got {amount:g}"
        )
    return count


def _drawn_transitions(source: BufferFile, amount: float, draw: np.random.Generator) -> Array:
    """Return which rows to keep, (N,) bool."""
    if source.stack_num > 1 or not source.save_obs_next:
        raise InputError(
            f"expected rows that hold their whole transition to draw single ones from "
            f"{source.path}, got rows that need their neighbours (one frame a row); draw whole "
            "episodes with --episodes"
        )
    kept = np.zeros(source.rows, np.bool_)
    kept[draw.choice(source.rows, _count(amount, source.rows, "transitions"), replace=False)] = True
    return kept


def _drawn_episodes(
    source: BufferFile, way: str, amount: float, draw: np.random.Generator
) -> Array:
    """Return the numbers of the episodes to keep."""
    if not source.ordered:
        raise InputError(
            f"expected episodes in {source.path}, got shuffled transitions; draw from them with "
            "--transitions"
        )
    present = np.nonzero(source.lengths() > 0)[0]
    if way == "episodes":
        drawn: Array = draw.choice(present, _count(amount, len(present), way), replace=False)
        return drawn
    if not 0 < amount <= 1:
        raise InputError(f"expected --{way} as a share above 0 and at most 1, got {amount:g}")
    count = math.floor(amount * len(present) + 0.5)
    if count == 0:
        raise InputError(
            f"expected at least one episode to keep, got {amount:g} of {len(present)}; keep more"
        )
    returns = source.returns()[present]
    if not np.isfinite(returns).all():
        raise InputError(
            f"expected finite rewards to rank the episodes of {source.path} by, got NaN or "
            "infinite ones; repair them"
        )
    order = np.argsort(returns if way == "bottom" else -returns, kind="stable")
    best: Array = present[order[:count]]
    return best


def _rows_of(source: BufferFile, episodes: Array) -> Array:
    """Return which rows belong to ``episodes``, (N,) bool."""
    starts, stops = source.episodes()
    chosen = np.zeros(len(starts), np.bool_)
    chosen[episodes] = True
    return np.repeat(chosen, stops - starts)


def _common_info(sources: Sequence[BufferFile]) -> list[str]:
    """Return the columns of ``info`` that all files have, with the same shape and type."""
    first, *others = [source.info_specs for source in sources]
    return [path for path, spec in first.items() if all(o.get(path) == spec for o in others)]


def _info_notes(sources: Sequence[BufferFile]) -> Iterator[str]:
    """Name the columns of ``info`` that are left out."""
    unread = {path for source in sources for path in source.unread_info}
    if unread:
        yield f"info that is no array of numbers left out: {', '.join(sorted(unread))}"
    differ = {path for source in sources for path in source.info_specs} - {*_common_info(sources)}
    if differ:
        yield f"info that not all files have alike left out: {', '.join(sorted(differ))}"


def _all_rows(source: BufferFile, info: Iterable[str]) -> Iterator[_Rows]:
    return _chosen_rows(source, np.ones(source.rows, np.bool_), info)


def _chosen_rows(source: BufferFile, kept: Array, info: Iterable[str]) -> Iterator[_Rows]:
    """Yield the kept rows block by block; where what follows is left out, truncated.

    :param info: which columns of it to take along.
    """
    unmarked = source.ends & ~(source.terminated | source.truncated)
    followed = np.append(kept[1:], False) | source.ends
    truncated = source.truncated | unmarked | (~followed & ~source.terminated)
    for start, stop in source.blocks():
        rows = np.nonzero(kept[start:stop])[0]
        if len(rows) == 0:
            continue
        start, stop, rows = start + rows[0], start + rows[-1] + 1, rows - rows[0]
        columns = {
            **source.read(start, stop),
            **source.read_info(start, stop, info),
            "rew": source.rew[start:stop],
            "terminated": source.terminated[start:stop],
            "truncated": truncated[start:stop],
        }
        if len(rows) < stop - start:
            columns = {key: _picked(values, rows) for key, values in columns.items()}
        yield _Rows(int(start), int(stop), columns)


def _picked(values: Any, rows: Array) -> Any:
    return mapped_leaves(lambda _, leaf: leaf[rows], values, "")


def _write_chosen(
    command: str,
    source: BufferFile,
    out: Path,
    kept: Array,
    options: Mapping[str, Any],
    notes: Sequence[str],
    **how: Any,
) -> Report:
    blocks = _chosen_rows(source, kept, source.info_specs)
    return _write(command, [source], out, int(kept.sum()), blocks, options, notes, **how)


def _write(
    command: str,
    sources: Sequence[BufferFile],
    out: Path,
    size: int,
    blocks: Iterable[_Rows],
    options: Mapping[str, Any],
    notes: Sequence[str] = (),
    *,
    compression: Compression,
    progress: bool,
) -> Report:
    began = time.monotonic()
    out = Path(out).expanduser()
    first = sources[0]
    check_target(out, [source.path for source in sources])
    if size == 0:
        raise InputError(f"expected rows in {first.path}, got an empty buffer")
    notes = [*notes, *_info_notes(sources)]
    report = Report(command, out, notes=notes)
    ordered = all(source.ordered for source in sources)
    writer = BufferWriter(
        out,
        size,
        stack_num=first.stack_num,
        save_obs_next=first.save_obs_next,
        shared_frames=first.shared_frames,
        compression=compression,
        provenance=_provenance(command, sources, options, notes),
    )
    bar = tqdm(total=size, desc=command, unit=" rows", unit_scale=True, disable=not progress)
    with bar, writer:
        for rows in blocks:
            if report.rows == 0:
                announce(writer, rows.columns, size, bar if progress else None)
            writer.append(**rows.columns)
            bar.update(writer.rows - report.rows)
            report.count(rows.columns, ordered)
        writer.provenance["episodes"] = report.episodes
    report.seconds = time.monotonic() - began
    return report


def _provenance(
    command: str, sources: Sequence[BufferFile], options: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """Return what the sources agree on, and each of theirs in ``made_from``."""
    first, *others = [source.provenance for source in sources]
    own = {"version", "rows", "left_out"}
    shared = {
        key: value
        for key, value in first.items()
        if key not in own and all(key in other and other[key] == value for other in others)
    }
    all_notes = [n for source in sources for n in source.provenance.get("notes", [])] + [*notes]
    return {
        **shared,
        "source": command,
        "options": dict(options),
        "notes": list(dict.fromkeys(all_notes)),
        "ordered": all(source.ordered for source in sources),
        "inputs": fingerprint([source.path for source in sources]),
        "made_from": [
            {"file": source.path.name, "provenance": source.provenance} for source in sources
        ],
    }


def _check_noise(source: BufferFile, obs_noise: float, act_noise: float) -> None:
    for noise, names in ((obs_noise, ("obs", "obs_next", "frames")), (act_noise, ("act",))):
        for path, (_, dtype) in source.specs.items():
            if noise and path.split("/")[0] in names and np.dtype(dtype).kind != "f":
                raise InputError(
                    f"expected floats to add noise to, got {path} of {dtype} in {source.path}; "
                    "leave the noise out"
                )


class _ObsNoise:
    """Adds noise to observations; the same to a row and to the next observation before it."""

    def __init__(self, source: BufferFile, std: float, seed: int) -> None:
        self.source, self.std = source, std
        paths = [path for path in source.specs if path.split("/")[0] == "obs"]
        seeds = np.random.SeedSequence(seed).spawn(2 * len(paths))
        draws = [np.random.default_rng(one) for one in seeds]
        self._of_rows = dict(zip(paths, draws[::2], strict=True))
        self._of_ends = dict(zip(paths, draws[1::2], strict=True))
        self._upcoming: dict[str, Array] = {}  # noise of the row after the block, (1, ...)

    def apply(self, rows: _Rows) -> None:
        """Change ``rows``, which must come block by block."""
        following: dict[str, Array] = {}
        ends = self.source.ends[rows.start : rows.stop]

        def on_obs(path: str, values: Array) -> Array:
            shape = values.shape[1:]
            if path not in self._upcoming:
                self._upcoming[path] = self._of_rows[path].normal(0, self.std, (1, *shape))
            fresh = self._of_rows[path].normal(0, self.std, values.shape)
            noise = np.concatenate([self._upcoming[path], fresh])
            self._upcoming[path] = noise[-1:]
            following[path] = noise[1:].copy()
            after_ends = self._of_ends[path].normal(0, self.std, (int(ends.sum()), *shape))
            following[path][ends] = after_ends
            noisy: Array = values + noise[:-1].astype(values.dtype)
            return noisy

        def on_obs_next(path: str, values: Array) -> Array:
            noise = following[path.replace("obs_next", "obs", 1)]
            noisy: Array = values + noise.astype(values.dtype)
            return noisy

        rows.columns["obs"] = mapped_leaves(on_obs, rows.columns["obs"], "obs")
        if "obs_next" in rows.columns:
            rows.columns["obs_next"] = mapped_leaves(
                on_obs_next, rows.columns["obs_next"], "obs_next"
            )


class _ActNoise:
    """Adds noise to actions."""

    def __init__(self, source: BufferFile, std: float, clip: bool, seed: int) -> None:
        self.std = std
        self._draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1 << 16,)))
        self._low: dict[str, Array] = {}
        self._high: dict[str, Array] = {}
        if clip:
            for start, stop in source.blocks():
                usable = source.transitions[start:stop]
                for path, values in flat_columns(source.read(start, stop, "act")).items():
                    if usable.any():
                        low, high = values[usable].min(0), values[usable].max(0)
                        self._low[path] = np.minimum(self._low.get(path, low), low)
                        self._high[path] = np.maximum(self._high.get(path, high), high)

    def apply(self, rows: _Rows, usable: Array) -> None:
        """Change those of ``rows`` that are transitions."""

        def noisy(path: str, values: Array) -> Array:
            noise = self._draw.normal(0, self.std, values.shape)
            changed: Array = values + noise.astype(values.dtype)
            if path in self._low:
                changed = np.clip(changed, self._low[path], self._high[path])
            changed[~usable] = values[~usable]
            return changed

        rows.columns["act"] = mapped_leaves(noisy, rows.columns["act"], "act")
