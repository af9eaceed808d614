"""DQN Replay: the logs of Dopamine's circular replay buffer, one frame a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tianshou_ext.data.convert.dqn_replay_logs import BadFileError
from tianshou_ext.data.convert.dqn_replay_plan import STACK, Part, frames_of, plan
from tianshou_ext.errors import InputError

__all__ = ["convert"]

FILE = re.compile(
    r"(?:\$store\$_(?:observation|action|reward|terminal)|add_count)_ckpt\.(\d{1,9})\.gz"
)
Array = np.ndarray[Any, Any]
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
    parts, faults = plan(folder, numbers, settings, notes)
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
        _blocks(parts, faults, chosen, late_obs, notes),
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
    """Return the checkpoints of which some file is there."""
    names = (FILE.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in names if match})


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


def _blocks(
    parts: list[Part],
    faults: list[Fault],
    chosen: Array,
    late_obs: dict[int, Array],
    notes: list[str],
) -> Iterator[Block | Fault]:
    """Yield the rows of the chosen episodes; what is unusual about the files goes to ``notes``."""
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
                yield _block(part, columns, np.zeros(1, np.int64), blank)
                row += 1
            for places, frames in _ahead(frames_of(part, is_padding, wanted)):
                if part.lead and places[0] == 0:
                    late_obs[lead_row] = frames[0].copy()
                else:
                    yield _block(part, columns, places, frames)
                    row += len(places)
            notes += sorted(part.log.unusual)
        except BadFileError as error:
            yield Fault(str(error.path), "", str(error))
            return  # only if faults stop, or the file has changed since


def _block(part: Part, columns: dict[str, Array], places: Array, frames: Array) -> Block:
    """Return the rows at these places, which have these frames."""
    found = {key: values[places] for key, values in columns.items()}
    done = found["terminated"][-1] or found["truncated"][-1]
    file = str(part.log.path("$store$_observation"))
    name = f"{len(places)} rows from row {places[0]}"
    return Block({**found, "obs": frames}, file, name, continued=not done)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Take the next item in a thread while the last one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
