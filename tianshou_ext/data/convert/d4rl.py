"""D4RL's HDF5 files of every generation, by path or by id, without d4rl or gym.

Layout (Farama-Foundation/D4RL, ``d4rl/offline_env.py``): ``observations actions rewards terminals``
(N, ...), one row a step, plus ``timeouts`` from v1 on and ``next_observations`` in v2. Where an
episode ends without either flag (v0) the environment's time limit says. ``infos`` and
``metadata`` are not copied.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import h5py
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
from tianshou_ext.data.defects import known_defects
from tianshou_ext.data.download import fetch
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import Reference, reference_scores, references

__all__ = ["convert"]

DATASETS = "http://rail.eecs.berkeley.edu/datasets/"  # followed by Reference.dataset_file
NEEDED = ("observations", "actions", "rewards", "terminals")
BLOCK_BYTES = 1 << 25  # of observations read at once, unless an episode is longer
MAX_RATIO = 4096  # bytes of the arrays per byte of the file; deflate reaches 1032
Array = np.ndarray[Any, Any]


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    qlearning: bool = False,
    max_episode_steps: int | None = None,
    **options: Unpack[Options],
) -> Report:
    """Convert a D4RL dataset.

    A step whose next observation is not in the file (a timeout of v0 or v1, or the end of the
    file) is left out, and the step before it becomes truncated. In antmaze only timeouts end an
    episode: its terminals stay where they are, at the goal, and each of these rows is done.

    :param src: id, such as hopper-medium-v2, or an HDF5 file. An id is looked for in
        D4RL_DATASET_DIR or ~/.d4rl/datasets, and downloaded into it.
    :param dst: the buffer file to make.
    :param qlearning: exactly the transitions of d4rl's qlearning_dataset, in float32, for
        comparisons with published numbers. Next observations are the next row's; terminals at
        timeouts are lost.
    :param max_episode_steps: where a file has no timeouts, cut episodes after so many steps; 0
        for only at terminals. Default: what D4RL registers for the id or file name.
    :raises InputError: if the dataset is missing, damaged, or of unknown episode length.
    """
    settings = Settings(**options)
    if max_episode_steps is not None and max_episode_steps < 0:
        raise InputError(f"expected --max-episode-steps of 0 or more, got {max_episode_steps}")
    path, known = _find(str(src), settings)
    with _open(path) as file:
        try:
            source = _read(path, file, known, max_episode_steps, qlearning)
        except (OSError, RuntimeError, KeyError) as error:
            raise InputError(
                f"expected sound arrays in {path}, but reading failed "
                f"({' '.join(str(error).split())}); download it again"
            ) from error
        kept, episode = _rows(source, qlearning)
        present = np.unique(episode[kept])
        if len(present) == 0:
            raise InputError(
                f"expected steps whose next observation is in {path}, got {len(kept)} rows that "
                "each end an episode without a terminal; are the timeouts right?"
            )
        chosen = present[chosen_episodes(len(present), settings)]
        notes = _notes(source, kept, episode, qlearning)
        kept &= np.isin(episode, chosen)
        name = known[0].dataset if known else path.stem
        notes += [f"known: {defect.what}; {defect.advice}" for defect in known_defects(name)]
        provenance: dict[str, Any] = {
            "dataset": name,
            "qlearning": qlearning,
            "max_episode_steps": source.limit,
            "ordered": True,
        }
        if known:
            provenance["reference_scores"] = [known[0].minimum, known[0].maximum]
        return write_blocks(
            _blocks(source, kept, episode, qlearning),
            dst,
            source="d4rl",
            inputs=[path],
            size=int(kept.sum()),
            settings=settings,
            notes=notes,
            provenance=provenance,
        )


@dataclass(frozen=True)
class _Source:
    """An open file and its flags, (N,) each."""

    path: Path
    file: h5py.File
    rewards: Array
    terminated: Array
    timeouts: Array
    """Stored, or the steps at which the time limit cut an episode."""
    limit: int | None
    """After how many steps episodes were cut, 0 for never; None if the file has timeouts."""
    goals: bool
    """Whether terminals mark rows at a goal, so that only timeouts end an episode."""
    has_next: bool

    @property
    def ends(self) -> Array:
        """Return the last rows of the episodes, (N,) bool."""
        ends = self.timeouts if self.goals else self.timeouts | self.terminated
        return np.append(ends[:-1], True)


# Finding a file


def _find(src: str, settings: Settings) -> tuple[Path, list[Reference]]:
    """Return the file and what D4RL registers for it, the id asked for first."""
    path = Path(src).expanduser()
    if path.is_dir():
        raise InputError(f"expected a D4RL file or id, got the folder {src}; give a file in it")
    if path.is_file():
        stem = path.stem.replace("_", "-")
        return path, [
            one
            for name, one in references().items()
            if name == stem or Path(one.dataset_file).name == path.name
        ]
    if path.suffix in (".hdf5", ".h5") or len(path.parts) != 1:
        raise InputError(f"expected a D4RL file at {src}, found none; check the path")
    asked = reference_scores(src)
    if asked.dataset != src:
        raise InputError(
            f"expected a D4RL id, got the task {src!r}; a dataset of it is {asked.dataset}"
        )
    same = [one for one in references().values() if one.dataset_file == asked.dataset_file]
    home = os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets"
    folder = Path(home).expanduser()
    path = folder / Path(asked.dataset_file).name
    if not path.exists():
        fetch(DATASETS + asked.dataset_file, path, progress=settings.progress)
    return path, [asked, *(one for one in same if one != asked)]


# Reading the flags


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"expected a D4RL HDF5 file at {path}, got one that cannot be opened "
            f"({' '.join(str(error).split())}); it is foreign or truncated, download it again"
        ) from error


def _read(
    path: Path,
    file: h5py.File,
    known: list[Reference],
    max_episode_steps: int | None,
    qlearning: bool,
) -> _Source:
    _check_layout(path, file)
    with np.errstate(over="ignore"):  # infinity is reported as a fault
        rewards = _vector(path, file, "rewards").astype(np.float32)
    terminated = _flags(path, file, "terminals")
    if "timeouts" not in file:
        limit = _limit(path, known, max_episode_steps, qlearning)
        timeouts = _limit_reached(terminated, limit) & ~terminated
        return _Source(
            path, file, rewards, terminated, timeouts, limit, False, "next_observations" in file
        )
    timeouts = _flags(path, file, "timeouts")
    names = f"{path.name} {' '.join(one.dataset for one in known)}"
    in_runs = bool((terminated[1:] & terminated[:-1] & ~timeouts[:-1]).any())
    goals = re.search(r"ant[-_]?maze", names, re.IGNORECASE) is not None
    goals |= "infos/goal" in file and in_runs
    return _Source(
        path, file, rewards, terminated, timeouts, None, goals, "next_observations" in file
    )


def _check_layout(path: Path, file: h5py.File) -> None:
    names = [*NEEDED, *(key for key in ("timeouts", "next_observations") if key in file)]
    missing = [key for key in names if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        hint = "this is a buffer already" if "_meta" in file else "is this a D4RL file?"
        raise InputError(
            f"expected the arrays {', '.join(NEEDED)} in {path}, {missing} missing; keys are "
            f"{sorted(file)[:12]}; {hint}"
        )
    strange = {key: str(file[key].dtype) for key in names if file[key].dtype.kind not in "biuf"}
    if strange:
        raise InputError(f"expected arrays of numbers in {path}, got {strange}; download it again")
    shapes = {key: file[key].shape for key in names}
    if not all(shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        raise InputError(
            f"expected arrays of one length in {path}, got the shapes {shapes}; download it again"
        )
    if shapes["rewards"][0] == 0:
        raise InputError(f"expected transitions in {path}, got none; download it again")
    if shapes.get("next_observations", shapes["observations"]) != shapes["observations"]:
        raise InputError(
            f"expected observations and next_observations of one shape in {path}, got "
            f"{shapes['observations']} and {shapes['next_observations']}; download it again"
        )
    claimed, there = sum(file[key].nbytes for key in names), path.stat().st_size
    if claimed > MAX_RATIO * there:
        raise InputError(
            f"expected arrays that fit into the {there} bytes of {path}, got {claimed} bytes by "
            "its headers; download it again"
        )


def _vector(path: Path, file: h5py.File, key: str) -> Array:
    """Return an array (N,) or (N, 1) as (N,)."""
    shape = file[key].shape
    if shape[1:] not in ((), (1,)):
        raise InputError(
            f"expected one number a row for {key} in {path}, got the shape {shape}; is this a "
            "D4RL file?"
        )
    values: Array = file[key][()].reshape(-1)
    return values


def _flags(path: Path, file: h5py.File, key: str) -> Array:
    values = _vector(path, file, key)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise InputError(
            f"expected {key} of 0 and 1 in {path}, got {values[wrong[0]]} in row {wrong[0]}; "
            "download it again"
        )
    return values.astype(bool)


# Which rows


def _limit(
    path: Path, known: list[Reference], max_episode_steps: int | None, qlearning: bool
) -> int:
    """Return after how many steps an episode without timeouts was cut; 0 for never."""
    if max_episode_steps is not None:
        return max_episode_steps
    if known and known[0].dataset.startswith("kitchen") and not qlearning:
        return 0  # demonstrations: each ends with a terminal, whatever its length
    # Ids that share a file of demonstrations differ in the limit; the longest fits these.
    limits = [one.max_episode_steps or 0 for one in (known[:1] if qlearning else known)]
    if not any(limits):
        raise InputError(
            f"expected timeouts in {path}, or a file name that says its time limit, found neither; "
            "pass --max-episode-steps N, or 0 if every episode ends with a terminal"
        )
    return max(limits)


def _limit_reached(terminated: Array, limit: int) -> Array:
    """Return the rows that are the ``limit``-th since an episode's start, (N,) bool."""
    rows = np.arange(len(terminated))
    if limit == 0:
        return np.zeros(len(rows), dtype=bool)
    after_terminal = np.append(False, terminated[:-1])
    first = np.maximum.accumulate(np.where(after_terminal, rows, 0))
    reached: Array = (rows - first) % limit == limit - 1
    return reached


def _limit_reached_in_d4rl(terminated: Array, limit: int) -> Array:
    """Return the rows that d4rl's qlearning_dataset takes for timeouts, (N,) bool.

    Its counter starts at 1 after a terminal, and at 0 after a timeout.
    """
    reached = np.zeros(len(terminated), dtype=bool)
    if limit == 0:
        return reached
    start, count = 0, 0
    for stop in [*(np.flatnonzero(terminated) + 1).tolist(), len(terminated)]:
        reached[start + (limit - 1 - count) % limit : stop : limit] = True
        count = int(not reached[stop - 1])
        start = stop
    return reached


def _rows(source: _Source, qlearning: bool) -> tuple[Array, Array]:
    """Return which rows are kept, (N,) bool, and the number of every row's episode, (N,)."""
    ends = source.ends
    episode = np.cumsum(ends) - ends
    if not qlearning:
        kept = np.ones(len(ends), bool) if source.has_next else ~ends | source.terminated
        return kept, episode
    skipped = source.timeouts
    if source.limit is not None:
        skipped = _limit_reached_in_d4rl(source.terminated, source.limit)
    return np.append(~skipped[:-1], False), episode


def _notes(source: _Source, kept: Array, episode: Array, qlearning: bool) -> list[str]:
    notes = []
    terminated, ends = source.terminated, source.ends
    if source.limit:
        notes.append(
            f"no timeouts in the file: episodes are cut after {source.limit} steps, "
            f"{int(source.timeouts.sum())} times"
        )
    if source.goals:
        inside = int((terminated & ~ends).sum())
        notes.append(
            f"only timeouts end an episode here: {inside} terminals inside of episodes are kept, "
            "done, with the next row as next observation"
        )
    if not kept.all():
        lost = len(np.unique(episode)) - len(np.unique(episode[kept]))
        why = "d4rl leaves them out" if qlearning else "what followed is not in the file"
        notes.append(
            f"{int((~kept).sum())} rows left out because {why}, {int((terminated & ~kept).sum())} "
            f"of them terminal; {lost} episodes had no others"
        )
    elif not (terminated | source.timeouts)[-1]:
        notes.append("the last episode is unfinished: its last row is truncated")
    unknown = terminated & ends & kept
    if unknown.any() and qlearning:
        notes.append(
            f"the next observation of {int(unknown.sum())} terminal rows is the next episode's "
            "first, as in d4rl: do not fit a model to these"
        )
    elif unknown.any() and not source.has_next:
        notes.append(
            f"what followed {int(unknown.sum())} terminal rows is not in the file: their next "
            "observation is their own"
        )
    return notes


# Blocks of whole episodes


def _blocks(
    source: _Source, kept: Array, episode: Array, qlearning: bool
) -> Iterator[Block | Fault]:
    """Yield the kept rows, many episodes a block; one a block where something is wrong."""
    rows = np.flatnonzero(kept)
    ends = source.ends
    followed = np.append(kept[1:], False) & ~ends
    truncated = source.timeouts | ~(followed | source.terminated)
    stored_next = source.has_next and not qlearning
    next_row = np.arange(1, len(kept) + 1)
    if not qlearning:
        next_row -= ends  # read only where the step is terminal

    def block(start: int, stop: int) -> Block:
        """Read the kept ones of the rows from ``start`` to ``stop``, whole episodes."""
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        start, stop = int(here[0]), int(here[-1]) + 1
        obs = _numbers(source, "observations", start, stop + (not stored_next), qlearning)
        if stored_next:
            obs_next = _numbers(source, "next_observations", start, stop, qlearning)[here - start]
        else:
            obs_next = obs[next_row[here] - start]
        columns = {
            "obs": obs[here - start],
            "act": _numbers(source, "actions", start, stop, qlearning)[here - start],
            "rew": source.rewards[here],
            "terminated": source.terminated[here],
            "truncated": truncated[here],
            "obs_next": obs_next,
        }
        return Block(columns, str(source.path), f"rows {start} to {stop - 1}", numbers=here)

    for group in _groups(source, episode[rows], rows):
        try:
            whole = block(group[0], group[-1])
            sound = all(np.isfinite(values).all() for values in whole.columns.values())
        except OSError:
            sound = False
        if sound:
            yield whole
            continue
        for start, stop in itertools.pairwise(group):
            try:
                yield block(start, stop)
            except OSError as error:
                reason = f"cannot be read ({' '.join(str(error).split())})"
                yield Fault(str(source.path), f"rows {start} to {stop - 1}", reason)


def _groups(source: _Source, episode: Array, rows: Array) -> Iterator[list[int]]:
    """Yield the edges of consecutive episodes that are read together."""
    observations = source.file["observations"]
    row_bytes = observations.dtype.itemsize * int(np.prod(observations.shape[1:]))
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    edges = [*rows[np.flatnonzero(np.diff(episode, prepend=-1))].tolist(), int(rows[-1]) + 1]
    group = edges[:1]
    for edge, after in itertools.pairwise(edges[1:] + edges[-1:]):
        group.append(edge)
        if after - group[0] > step:
            yield group
            group = [edge]
    if len(group) > 1:
        yield group


def _numbers(source: _Source, key: str, start: int, stop: int, qlearning: bool) -> Array:
    """Read rows; float64 becomes float32, whole-numbered actions int64."""
    values: Array = source.file[key][start:stop]
    if qlearning or values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity is reported as a fault
            return values.astype(np.float32, copy=False)
    if key == "actions":
        return values.astype(np.int64)
    return values
