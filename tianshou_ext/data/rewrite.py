"""Write rows of buffer files into a new one, block by block, for merge, split, subsample, relabel.

What the sources are stays: nested observations, frames stored once a step or shared,
``stack_num``, ``info``. No episode is ever cut without its last row being marked: one that a file
leaves unfinished becomes truncated, and so does a row whose successor was not taken along. The
provenance of the sources is kept in ``made_from``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.blocks import BufferFile, mapped_leaves
from tianshou_ext.data.convert.common import Report, announce, check_target, fingerprint
from tianshou_ext.data.writer import BufferWriter, Compression
from tianshou_ext.errors import InputError

__all__ = ["Rows", "check_seed", "rewrite"]

Array = np.ndarray[Any, Any]


@dataclass
class Rows:
    """Consecutive rows of a source."""

    start: int
    stop: int
    columns: dict[str, Any]
    """act, rew, terminated, truncated and obs, obs_next, frames or info; all (K, ...)."""


def check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}")


def rewrite(
    command: str,
    sources: Sequence[BufferFile],
    out: Path,
    options: Mapping[str, Any],
    *,
    kept: Array | None = None,
    change: Callable[[Rows], None] | None = None,
    notes: Sequence[str] = (),
    compression: Compression,
    progress: bool,
) -> Report:
    """Write the rows of ``sources``, of the same layout, one source behind the other.

    :param command: who asks, for the report and the provenance.
    :param options: of the command, for the provenance.
    :param kept: which of all rows to write, (N,) bool; all if None.
    :param change: changes the columns of rows in place, before they are written.
    :param notes: for the report and the provenance.
    :raises InputError: if there are no rows, or ``out`` is a folder or one of the sources.
    """
    began = time.monotonic()
    out = Path(out).expanduser()
    first = sources[0]
    check_target(out, [source.path for source in sources])
    edges = np.cumsum([source.rows for source in sources])
    kept = np.ones(edges[-1], np.bool_) if kept is None else kept
    size = int(kept.sum())
    if size == 0:
        raise InputError(f"expected rows in {first.path}, got an empty buffer")
    info = _common_info(sources)
    notes = [*notes, *_info_notes(sources, info)]
    ordered = all(source.ordered for source in sources)
    notes += [
        f"{source.path.name} holds episodes, but other files shuffled transitions: all its rows "
        "that are not terminated are truncated, as theirs are"
        for source in sources
        if source.ordered and not ordered
    ]
    unsound = ~np.isfinite(np.concatenate([source.rew for source in sources])[kept])
    if unsound.any():
        notes.append(f"{unsound.sum()} rewards of the source are NaN or infinite: repair them")
    report = Report(command, out, notes=notes)
    writer = BufferWriter(
        out,
        size,
        stack_num=first.stack_num,
        save_obs_next=first.save_obs_next,
        shared_frames=first.shared_frames,
        compression=compression,
        provenance=_provenance(command, sources, options, notes),
    )
    parts = zip(sources, np.split(kept, edges[:-1]), strict=True)
    blocks = (rows for source, part in parts for rows in _chosen_rows(source, part, info, ordered))
    bar = tqdm(total=size, desc=command, unit=" rows", unit_scale=True, disable=not progress)
    with bar, writer:
        for rows in blocks:
            if change is not None:
                change(rows)
            if report.rows == 0:
                announce(writer, rows.columns, size, bar if progress else None)
            writer.append(**rows.columns)
            bar.update(writer.rows - report.rows)
            report.count(rows.columns, ordered)
        writer.provenance["episodes"] = report.episodes
    report.seconds = time.monotonic() - began
    return report


def _chosen_rows(
    source: BufferFile, kept: Array, info: Iterable[str], ordered: bool
) -> Iterator[Rows]:
    """Yield the kept rows block by block; where what follows is left out, truncated.

    :param info: which columns of it to take along.
    :param ordered: whether all sources are; among shuffled rows, no row leads to the next.
    """
    unmarked = source.ends & ~(source.terminated | source.truncated)
    followed = np.append(kept[1:], False) | source.ends
    truncated = source.truncated | unmarked | (~followed & ~source.terminated)
    if source.ordered and not ordered:
        truncated |= ~source.terminated
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
            columns = _picked(columns, rows)
        yield Rows(int(start), int(stop), columns)


def _picked(columns: dict[str, Any], rows: Array) -> dict[str, Any]:
    picked: dict[str, Any] = mapped_leaves(lambda _, leaf: leaf[rows], columns, "")
    return picked


def _common_info(sources: Sequence[BufferFile]) -> list[str]:
    """Return the columns of ``info`` that all files have, with the same shape and type."""
    first, *others = [source.info_specs for source in sources]
    return [path for path, spec in first.items() if all(o.get(path) == spec for o in others)]


def _info_notes(sources: Sequence[BufferFile], kept: Iterable[str]) -> Iterator[str]:
    """Name the columns of ``info`` that are left out."""
    unread = {path for source in sources for path in source.unread_info}
    if unread:
        yield f"info that is no array of numbers left out: {', '.join(sorted(unread))}"
    differ = {path for source in sources for path in source.info_specs} - {*kept}
    if differ:
        yield f"info that not all files have alike left out: {', '.join(sorted(differ))}"


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
