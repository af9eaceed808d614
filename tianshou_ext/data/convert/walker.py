"""Walker logs: ``collected_data/walker_{walk,run}-td3-*/data/episode_<number>_<steps>.npz``.

Layout: ``observation`` (T+1, 24), ``action`` (T+1, 6), ``reward`` and ``discount`` (T+1, 1) of one
episode of dm_control's walker. As collected ("raw"), row t holds the action and the reward that
led to its observation, and row 0 a zero action. A script of that project makes a second layout
("shifted"): action and reward one row up, zeros in the last row. Discounts stay where they were.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Options,
    Report,
    Settings,
    chosen_episodes,
    ordered_map,
    write_blocks,
)
from tianshou_ext.errors import InputError

__all__ = ["convert"]

NAME = re.compile(r"episode_(\d{1,9})_(\d{1,9})\.npz")
TASK = re.compile(r"walker_(walk|run)")
BITS = {"walk": 0.0, "run": 1.0}
MAX_RATIO = 1100  # bytes of an array per byte of its file; deflate reaches 1032
Array = np.ndarray[Any, Any]


def convert(
    src: str | Path, dst: str | Path, /, *, task_bit: bool = False, **options: Unpack[Options]
) -> Report:
    """Convert walker episodes in npz files, raw or shifted, told apart file by file.

    Episodes end by time, so they are truncated; where a discount is 0, terminated.

    :param src: a data folder with episode_*.npz, the folder around it, or one around several such
        folders, which are joined.
    :param dst: the buffer file to make.
    :param task_bit: append one column to the observations, 0 for walk and 1 for run, as
        multi-task policies need it. The task is taken from the folder's name.
    :raises InputError: if there are no such files, or they are damaged or ambiguous.
    """
    settings = Settings(**options)
    folders = _find(Path(src).expanduser())
    tasks = {folder: _task(folder) for folder in folders}
    if task_bit and None in tasks.values():
        unknown = next(folder for folder, task in tasks.items() if task is None)
        raise InputError(
            f"expected walker_walk or walker_run in the name of {unknown} for its task's bit; "
            "rename the folder, or leave out --task-bit"
        )
    files = [path for folder in folders for path in _episodes(folder)]
    files = [files[k] for k in chosen_episodes(len(files), settings)]
    notes: list[str] = []
    provenance: dict[str, Any] = {
        "dataset": "+".join(_name(folder) for folder in folders),
        "tasks": sorted({f"walker_{task}" for task in tasks.values() if task}),
        "task_bit": task_bit,
        "ordered": True,
    }

    def blocks() -> Iterator[Block | Fault]:
        layouts: Counter[str] = Counter()
        read = partial(_episode, {folder: BITS[task] for folder, task in tasks.items() if task})
        if not task_bit:
            read = partial(_episode, {})
        for path, found in zip(files, ordered_map(read, files, settings.jobs), strict=True):
            if isinstance(found, str):
                yield Fault(str(path), "", found)
                continue
            layout, columns = found
            layouts[layout] += 1
            yield Block(columns, str(path), "")
        provenance["layouts"] = dict(layouts)
        for layout, count in sorted(layouts.items()):
            notes.append(f"{count} files are {layout}: {MEANING[layout]}")
        if task_bit:
            notes.append("appended to observations: the task's bit, walk 0, run 1")
        elif len({*tasks.values()}) > 1:
            notes.append(
                "episodes of several tasks are joined, and observations do not tell them apart; "
                "--task-bit appends a column that does"
            )

    return write_blocks(
        blocks(),
        dst,
        source="walker",
        inputs=files,
        size=sum(_steps(path) for path in files),
        settings=settings,
        notes=notes,
        provenance=provenance,
    )


MEANING = {
    "raw": "action and reward led to the observation of their row, and are moved to the one before",
    "shifted": "action and reward belong to their row, and the padded last row is left out",
}


def _find(src: Path) -> list[Path]:
    if src.is_file():
        raise InputError(f"expected a folder of episodes, got the file {src}; give its folder")
    if not src.is_dir():
        raise InputError(f"expected a folder of episodes at {src}, found none; check the path")
    for places in ([src], [src / "data"], sorted(src.glob("*/data")), sorted(src.glob("*"))):
        folders = [folder for folder in places if folder.is_dir() and _episodes(folder)]
        if folders:
            return folders
    raise InputError(
        f"expected files like episode_000950_1000.npz in {src} or data folders in it, found none; "
        "give the folder that holds them"
    )


def _episodes(folder: Path) -> list[Path]:
    """Return the files of a folder, by the number of their episode."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_file()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _name(folder: Path) -> str:
    folder = folder.absolute()
    return folder.parent.name if folder.name == "data" else folder.name


def _task(folder: Path) -> str | None:
    match = TASK.search(_name(folder))
    return match[1] if match else None


def _steps(path: Path) -> int:
    """Return how many steps the name says, and the file can hold."""
    match = NAME.fullmatch(path.name)
    return min(int(match[2]), MAX_RATIO * path.stat().st_size) if match else 0


def _episode(bits: dict[Path, float], path: Path) -> tuple[str, dict[str, Array]] | str:
    """Return layout and columns of an episode, or what is wrong with it."""
    try:
        obs, act, rew, discount = _read(path)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError) as error:
        return f"cannot be read ({' '.join(str(error).split())[:200]})"
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        return f"is no sound npz file ({' '.join(str(error).split())[:200]})"
    rows = len(obs)
    if rows != _steps(path) + 1:
        return f"holds {rows} rows, but its name says {_steps(path)} steps and so one row more"
    if rows < 2:
        return "has no step"
    arrays = {"observation": obs, "action": act, "reward": rew, "discount": discount}
    for key, values in arrays.items():
        if not np.isfinite(values).all():
            row = np.argmin(np.isfinite(values.reshape(rows, -1)).all(1))
            return f"{key} is NaN or infinite in row {row}"
    if (discount < 0).any() or (discount > 1).any():
        return f"discounts go from {discount.min():g} to {discount.max():g}, expected 0 to 1"
    raw, shifted = not act[0].any(), not act[-1].any()
    if raw == shifted:
        return (
            f"the first and the last action are {'both' if raw else 'both not'} zero, so it cannot "
            "be told whether action and reward are one row late; leave the file out"
        )
    if path.parent in bits:
        obs = np.column_stack([obs, np.full(rows, bits[path.parent], np.float32)])
    here = slice(1, None) if raw else slice(None, -1)
    terminated = discount[1:] == 0
    truncated = ~terminated & (np.arange(rows - 1) == rows - 2)
    columns = {
        "obs": obs[:-1],
        "act": act[here],
        "rew": rew[here],
        "terminated": terminated,
        "truncated": truncated,
        "obs_next": obs[1:],
    }
    return "raw" if raw else "shifted", columns


def _read(path: Path) -> list[Array]:
    """Return observations (R, D), actions (R, A), rewards and discounts (R,), all float32.

    :raises ValueError: if they are of another shape or kind.
    """
    arrays = []
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_RATIO * path.stat().st_size:
            raise ValueError("more data than the file can hold")
        for key in ("observation", "action", "reward", "discount"):
            if f"{key}.npy" not in archive.namelist():
                raise ValueError(f"there is no {key}, keys are {sorted(archive.namelist())[:8]}")
            array = np.load(io.BytesIO(archive.read(f"{key}.npy")), allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError(f"{key} is no array of real numbers")
            with np.errstate(over="ignore"):  # infinity is reported as a fault
                arrays.append(array.astype(np.float32))
    obs, act, rew, discount = arrays
    rows = obs.shape[0] if obs.ndim else 0
    shapes = [array.shape for array in arrays]
    if obs.ndim != 2 or act.ndim != 2 or {rew.shape, discount.shape} - {(rows,), (rows, 1)}:
        raise ValueError(f"the shapes are {shapes}, not rows of observations and actions")
    if len(act) != rows:
        raise ValueError(f"arrays of unequal length, {shapes}")
    return [obs, act, rew.reshape(-1), discount.reshape(-1)]
