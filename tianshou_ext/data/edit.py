"""Merge, split and subsample buffer files, in constant memory; no episode is cut unmarked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import BufferFile
from tianshou_ext.data.convert.common import Report, check_target
from tianshou_ext.data.rewrite import check_seed, rewrite
from tianshou_ext.data.writer import Compression
from tianshou_ext.errors import InputError

__all__ = ["merge", "split", "subsample"]

Array = np.ndarray[Any, Any]


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
        return rewrite("merge", sources, out, {}, compression=compression, progress=progress)


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
    check_seed(seed)
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
                rewrite(
                    "split",
                    [source],
                    path,
                    {"at": list(at), "part": k, "shuffle": shuffle, "seed": seed},
                    kept=_rows_of(source, mine),
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
    check_seed(seed)
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
        return rewrite(
            "subsample",
            [source],
            out,
            {way: amount, "seed": seed},
            kept=kept,
            notes=notes,
            compression=compression,
            progress=progress,
        )


class Reports(list[Report]):
    """The reports of several files, printed one after the other."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def _parts_of(file: Path, outs: list[Path], count: int) -> list[Path]:
    names = {2: ("train", "test"), 3: ("train", "val", "test")}
    if not outs and count in names:
        return [file.with_name(f"{file.stem}_{name}{file.suffix}") for name in names[count]]
    if len(outs) != count:
        raise InputError(f"expected --out with {count} files, one a part, got {len(outs)}")
    if len({out.expanduser().resolve() for out in outs}) < count:
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
