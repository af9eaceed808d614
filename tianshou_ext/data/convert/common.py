"""What the converters share: options, the report, faults, and writing blocks of rows.

A converter reads its source block by block (usually an episode a block) and hands the blocks to
``write_blocks``, which checks them, applies the common options and writes the buffer file.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.convert.check import wrong_with
from tianshou_ext.data.writer import BufferWriter, Compression, bytes_of_row
from tianshou_ext.errors import InputError

__all__ = [
    "Block",
    "Fault",
    "Options",
    "Report",
    "Settings",
    "check_target",
    "chosen_episodes",
    "fingerprint",
    "ordered_map",
    "write_blocks",
]

TItem = TypeVar("TItem")
TResult = TypeVar("TResult")
OnError = Literal["stop", "skip"]


class Options(TypedDict, total=False):
    """Options of every converter."""

    fraction: float
    """Share of the episodes to keep, evenly spread over the source, 0 to 1. Default 1."""
    episodes: str
    """Episodes to keep: N for the first N, or A:B. Default all."""
    clip_rewards: bool
    """Clip rewards to [-1, 1]. Default no."""
    compression: Compression
    """none can be mapped instead of read; gzip, zstd save disk. Default none."""
    on_error: OnError
    """stop refuses a source with a fault; skip leaves out faulty records and names them in the
    report. Default stop."""
    jobs: int
    """Processes. Default 1."""
    progress: bool
    """Show progress bars. Default yes."""


@dataclass(frozen=True)
class Settings:
    """``Options`` with the defaults filled in and checked.

    :raises InputError: if a value is out of range.
    """

    fraction: float = 1.0
    episodes: str | None = None
    clip_rewards: bool = False
    compression: Compression = "none"
    on_error: OnError = "stop"
    jobs: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"expected a fraction above 0 and at most 1, got {self.fraction}")
        if self.jobs < 1:
            raise InputError(f"expected at least one job, got {self.jobs}")
        for name, allowed in (
            ("on_error", ("stop", "skip")),
            ("compression", ("none", "gzip", "zstd")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"expected {name} to be one of {allowed}, got {value!r}")


@dataclass(frozen=True)
class Fault:
    """Something wrong in a source."""

    file: str
    record: str
    """Which record or episode: "record 17", "episode_3"; empty if it is the whole file."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.record else ''}{self.record}: {self.reason}"


@dataclass
class Block:
    """Consecutive rows, as ``BufferWriter.append`` takes them, and where they come from.

    Rows of different blocks never belong to one episode, unless ``continued``: the last row of a
    block must be ``terminated`` or ``truncated`` (shuffled transitions: every row is one or the
    other).
    """

    columns: dict[str, Any]
    file: str
    record: str
    continued: bool = False
    """The next block goes on with the last episode, so the last row needs no flag."""
    numbers: np.ndarray[Any, Any] | None = None
    """(K,) the rows' numbers in the source, where it counts rows and not records."""


@dataclass
class Report:
    """What a conversion did; printing it gives a summary."""

    source: str
    """The converter: d4rl, minari, ..."""
    dst: Path
    rows: int = 0
    episodes: int = 0
    """0 for shuffled transitions, which have none."""
    terminated: int = 0
    truncated: int = 0
    both_flags: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """Known defects, repairs, things to know."""
    faults: list[Fault] = field(default_factory=list)
    """Records left out."""

    def count(self, columns: Mapping[str, Any], ordered: bool) -> None:
        """Take in rows that were written.

        :param ordered: whether they follow one another in time; else they make no episodes.
        """
        terminated, truncated = (np.asarray(columns[k], bool) for k in ("terminated", "truncated"))
        self.rows += len(terminated)
        self.terminated += int(terminated.sum())
        self.truncated += int(truncated.sum())
        self.both_flags += int((terminated & truncated).sum())
        if ordered:
            self.episodes += int((terminated | truncated).sum())

    def __str__(self) -> str:
        rate = self.rows / max(self.seconds, 1e-9)
        order = f"{self.episodes:,} episodes" if self.episodes else "shuffled"
        lines = [
            f"{self.dst}: {self.rows:,} rows, {order}, {self.terminated:,} "
            f"terminated, {self.truncated:,} truncated, from {self.source} in {self.seconds:.1f} s "
            f"({rate:,.0f} rows/s)",
            *(f"note: {note}" for note in self.notes),
            *(f"left out: {fault}" for fault in self.faults[:20]),
        ]
        if len(self.faults) > 20:
            lines.append(f"left out: {len(self.faults) - 20} more")
        return "\n".join(lines)


def chosen_episodes(count: int, settings: Settings) -> np.ndarray[Any, Any]:
    """Return which of ``count`` episodes the options ask for, ascending, (K,) int64.

    :raises InputError: if that are none, or ``episodes`` is no N or A:B.
    """
    first, last = 0, count
    if settings.episodes is not None:
        parts = str(settings.episodes).split(":")
        try:
            numbers = [int(part) if part else None for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or any(n is not None and n < 0 for n in numbers):
            raise InputError(
                f"expected episodes as N or A:B with whole numbers, got {settings.episodes!r}"
            )
        if len(numbers) == 1:
            last = min(count, numbers[0] or 0)
        else:
            first = numbers[0] or 0
            last = count if numbers[1] is None else min(count, numbers[1])
    among = np.arange(first, max(first, last))
    places = np.arange(len(among) + 1) * settings.fraction + 1e-9
    kept = among[np.diff(np.floor(places)) > 0]
    if len(kept) == 0:
        raise InputError(
            f"expected at least one episode to convert, got none of {count} with fraction "
            f"{settings.fraction:g} and episodes {settings.episodes}; ask for more"
        )
    return kept


def check_target(dst: Path, inputs: Iterable[Path]) -> None:
    """Check that writing ``dst`` replaces no source.

    :raises InputError: if it is one of ``inputs``, or a folder.
    """
    if dst.is_dir():
        raise InputError(f"expected a file to write, got the folder {dst}; name a file in it")
    if dst.exists() and any(dst.samefile(path) for path in inputs):
        raise InputError(f"expected another file to write than to read, got {dst} for both")


def fingerprint(paths: Sequence[Path]) -> dict[str, Any]:
    """Return number, bytes and one SHA-256 of the input files, for the provenance."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            if len(paths) == 1:
                digest = hashlib.file_digest(file, "sha256")
            else:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        size += path.stat().st_size
    return {"files": len(paths), "bytes": size, "sha256": digest.hexdigest()}


def _begin_work() -> None:
    """Set a process up: Ctrl-C is the parent's to handle, and none outlives a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def ordered_map(
    function: Callable[[TItem], TResult], items: Iterable[TItem], jobs: int
) -> Iterator[TResult]:
    """Apply a picklable function to items, in order, in ``jobs`` processes.

    At most two results a process wait to be taken, so memory stays bounded.

    :raises OSError: if a process is killed.
    """
    if jobs == 1:
        yield from map(function, items)
        return
    # A forked child of a process with threads (torch's, TensorFlow's) can hang; the server that
    # forks the workers has none, and has done the slow imports once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(jobs, context, _begin_work) as pool:
        waiting: list[Future[TResult]] = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * jobs:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BrokenProcessPool as error:
            raise OSError(
                f"expected {jobs} processes to work to the end, but one was killed or could not "
                "start; pass --jobs 1 or make room in memory, and in a script of your own convert "
                'below if __name__ == "__main__"'
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def write_blocks(
    blocks: Iterable[Block | Fault],
    dst: str | Path,
    *,
    source: str,
    inputs: Sequence[Path],
    size: int,
    settings: Settings,
    stack_num: int = 1,
    save_obs_next: bool = True,
    shared_frames: bool = False,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    late_obs: Mapping[int, Any] | None = None,
) -> Report:
    """Check blocks and write them as one buffer file.

    :param blocks: in the order of the file; a ``Fault`` in the place of a block that could not
        be read.
    :param inputs: the files of the source, for their checksum.
    :param size: rows at most; exact if it can be, else the file is copied once at the end.
    :param notes: known defects and repairs, kept in the report and the provenance; a list may
        still grow while the blocks are read, and so may ``provenance``.
    :param late_obs: observations that a source brings after their row was yielded, by the number
        of that row; grows while the blocks are read, none of which may then be left out.
    :raises InputError: if there is a fault and ``on_error`` is stop, or no row is left, or
        ``dst`` is a folder or one of the inputs.
    :raises OSError: if the disk has no room.
    """
    start = time.monotonic()
    report = Report(source, Path(dst).expanduser())
    check_target(report.dst, inputs)
    if size == 0:
        raise InputError(f"expected transitions to convert to {dst}, got none")
    writer = BufferWriter(
        report.dst,
        size,
        stack_num=stack_num,
        save_obs_next=save_obs_next,
        shared_frames=shared_frames,
        compression=settings.compression,
    )
    ordered = (provenance or {}).get("ordered", True)
    checksum = fingerprint(inputs)
    bar = tqdm(
        total=size,
        desc=f"converting {source}",
        unit=" rows",
        unit_scale=True,
        disable=not settings.progress,
    )

    def refuse(fault: Fault) -> None:
        if settings.on_error == "stop":
            raise InputError(
                f"expected sound records, got a fault in {fault}; repair the source, or pass "
                "--on-error skip to leave such records out"
            )
        report.faults.append(fault)

    with bar, writer:
        for block in blocks:
            fault = block if isinstance(block, Fault) else check_block(block)
            if fault is not None:
                refuse(fault)
                continue
            assert isinstance(block, Block)
            columns = block.columns
            if report.rows == 0:
                announce(writer, columns, size, bar if settings.progress else None)
            if settings.clip_rewards:
                columns["rew"] = np.clip(columns["rew"], -1, 1)
            try:
                writer.append(**columns)
            except ValueError as error:  # of another shape or type than the first block
                refuse(Fault(block.file, block.record, str(error)))
                continue
            bar.update(writer.rows - report.rows)
            report.count(columns, ordered)
        if report.rows == 0:
            raise InputError(
                f"expected sound records to convert to {dst}, got none; the first fault is "
                f"{report.faults[0] if report.faults else 'that the source is empty'}"
            )
        for row, obs in (late_obs or {}).items():
            writer.overwrite(row, obs=obs)
        report.notes += notes
        if not report.terminated and not any("d_t = 0" in note for note in report.notes):
            report.notes.append(
                "no row is terminated, so every target bootstraps: right where episodes end by "
                "time only, else the terminals were lost"
            )
        if report.both_flags:
            report.notes.append(
                f"{report.both_flags} rows are both terminated and truncated, kept so: a target "
                "does not bootstrap there"
            )
        writer.provenance.update(
            source=source,
            inputs=checksum,
            episodes=report.episodes,
            notes=report.notes,
            left_out=[str(fault) for fault in report.faults[:100]],
            options={
                "fraction": settings.fraction,
                "episodes": settings.episodes,
                "clip_rewards": settings.clip_rewards,
            },
            **(provenance or {}),
        )
    report.seconds = time.monotonic() - start
    return report


def announce(writer: BufferWriter, columns: Mapping[str, Any], size: int, bar: Any) -> None:
    """Say how many bytes are needed, before they are used."""
    needed = bytes_of_row(columns) * size
    folder = writer.path.absolute().parent
    free = shutil.disk_usage(folder).free
    if writer.compression == "none" and needed > free:
        raise OSError(
            f"expected {needed / 1e9:.2f} GB of room in {folder}, got {free / 1e9:.2f} GB; make "
            "room, choose another folder, or pass --compression gzip"
        )
    if bar is not None:
        bar.write(f"{writer.path}: {size:,} rows, {needed / 1e6:,.1f} MB before compression")


def check_block(block: Block) -> Fault | None:
    """Return what would ruin training on a block, or None."""
    reason = wrong_with(block.columns, block.numbers, ends=not block.continued)
    return None if reason is None else Fault(block.file, block.record, reason)
