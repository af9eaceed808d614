"""Your own arrays: .npz, .npy, .csv, .parquet, HDF5 and pickles of numpy arrays.

Columns are found by their usual names or named with ``--map``. A pickled list of trajectories may
be converted without its faulty ones; any other source with a fault is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tianshou_ext.data.convert.arrays_columns import find_columns, parse_map
from tianshou_ext.data.convert.arrays_episodes import Reading, Table
from tianshou_ext.data.convert.arrays_files import DAMAGE, Columns, Format, read_tables
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

Array = np.ndarray[Any, Any]


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
        sources, files, listed = read_tables(src, format, opened)
        keys = find_columns(src, list(sources[0]), parse_map(map))
        single = one_episode or listed
        reading = Reading(keys, stack_num, single, episode_length, listed)
        tables = _tables(src, sources, reading)
        whole = [entry for entry in tables if isinstance(entry, Table)]
        episodes = [
            (entry, a, b) if isinstance(entry, Table) else entry
            for entry in tables
            for a, b in (entry.episodes() if isinstance(entry, Table) else [(0, 0)])
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


def _tables(src: Path, sources: list[Columns], reading: Reading) -> list[Table | Fault]:
    """Return the tables; of several, a faulty one is a fault, a single one is refused."""
    keys = reading.keys
    knows = {"terminated", "truncated", "done", "discount", "episode", "obs_next"} & keys.keys()
    if not knows and not reading.single and reading.episode_length is None:
        raise InputError(
            f"expected {src} to say where episodes end, found obs, act and rew only; give a flag "
            "or episode column with --map, or pass --episode-length or --one-episode"
        )
    tables: list[Table | Fault] = []
    spec: list[Any] | None = None
    for number, source in enumerate(sources):
        record = f"episode {number}" if reading.trajectories else ""
        try:
            table = Table(source, reading, record)
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


def _notes(reading: Reading, tables: Sequence[Table]) -> list[str]:
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


def _blocks(src: Path, chosen: Sequence[tuple[Table, int, int] | Fault]) -> Iterator[Block | Fault]:
    """Read whole episodes, many short ones at once; alone if one of them is faulty."""
    waiting: list[tuple[Table, int, int]] = []
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


def _joins(waiting: Sequence[tuple[Table, int, int]], entry: Any) -> bool:
    table, start, stop = waiting[0][0], waiting[0][1], waiting[-1][2]
    if isinstance(entry, Fault) or entry[0] is not table or entry[1] != stop:
        return False
    return bool(entry[2] - start <= table.at_once)


def _read_blocks(src: Path, episodes: Sequence[tuple[Table, int, int]]) -> Iterator[Block | Fault]:
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
        yield Block(columns, str(src), record, numbers=table.numbers(start, stop))


def _finite(columns: Mapping[str, Array]) -> bool:
    return all(np.isfinite(values).all() for values in columns.values() if values.dtype.kind == "f")
