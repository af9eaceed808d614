"""Data sets by name: a level of our own, a D4RL id, a Minari id, or a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py

from tianshou_ext.data.behaviour import LEVELS, level_file
from tianshou_ext.data.cache import cached
from tianshou_ext.data.convert import d4rl, minari
from tianshou_ext.data.convert.minari_files import open_dataset
from tianshou_ext.data.convert.minari_spaces import (
    bounds_to_scale,
    is_nested,
    leaves,
    parse_space,
)
from tianshou_ext.data.hdf5 import read_provenance
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import references

__all__ = ["dataset_file"]


def dataset_file(dataset: str, task: str, steps: int, *, show_progress: bool = True) -> Path:
    """Return the buffer file of a data set, made or converted into the cache on first use.

    :param dataset: a level (``medium``), a buffer file, a D4RL file or id (``hopper-medium-v2``),
        or a Minari dataset's folder or id (``mujoco/hopper/medium-v0``).
    :param task: whose level is meant.
    :param steps: of a level's data set.
    :raises InputError: if it is none of these, cannot be fetched, or is damaged.
    """
    path = Path(dataset).expanduser()
    if dataset and path.exists():
        convert = _converter(path)
        if convert is None:
            return path
        about = path.stat()
        facts = f"{path.absolute()} {about.st_size} {about.st_mtime_ns}"
        name = f"files/{path.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.hdf5"
        return _converted(convert, str(path), name, show_progress)
    if dataset in LEVELS:
        return level_file(task, dataset, steps, show_progress=show_progress)
    if dataset in references():
        return _converted(d4rl.convert, dataset, f"d4rl/{dataset}.hdf5", show_progress)
    if re.fullmatch(r"[\w-]+(/[\w-]+)+-v\d+", dataset):
        name = f"minari/{dataset.replace('/', '_')}.hdf5"
        return _converted(_convert_minari, dataset, name, show_progress)
    raise InputError(
        f"expected a data set, got {dataset!r}, which is no level ({', '.join(LEVELS)}), no file, "
        "no D4RL id such as hopper-medium-v2 and no Minari id such as mujoco/hopper/medium-v0; "
        "check the spelling"
    )


def _converter(path: Path) -> Callable[..., Any] | None:
    """Return what converts a file or folder; None for what is, or should be, a buffer."""
    if path.is_dir():
        return _convert_minari
    try:
        with h5py.File(path, "r") as file:
            keys = set(file)
    except OSError:
        return None  # reading it as a buffer says what is wrong
    if "_meta" in keys:
        return None
    if "observations" in keys:
        return d4rl.convert
    return _convert_minari if any(key.startswith("episode_") for key in keys) else None


def _convert_minari(source: str, path: Path, *, progress: bool) -> Any:
    """Convert a Minari dataset; observations of several parts are joined, as those of tasks are."""
    joined = is_nested(open_dataset(source).observations)
    return minari.convert(source, path, flatten=joined, progress=progress)


def _converted(convert: Callable[..., Any], source: str, name: str, show_progress: bool) -> Path:
    def make(path: Path) -> None:
        try:
            print(convert(source, path, progress=show_progress))
        except InputError as error:
            # What it says to pass are options of the command, which an example does not take.
            kind = "d4rl" if convert is d4rl.convert else "minari"
            command = f"tianshou-ext convert {kind} {source} FILE"
            raise InputError(f"{error} (converted by itself: {command})") from error

    path = cached(name, make)
    if _is_outdated(read_provenance(path)):
        make(path)  # which replaces it when it is complete
    return path


def _is_outdated(about: Mapping[str, Any]) -> bool:
    """Return whether a file was made before nested observations were joined, or actions scaled."""
    if "subspaces" in (about.get("observation_space") or {}) and not about["observation_order"]:
        return True
    if about.get("source") != "minari" or "actions_scaled" in about:
        return False
    try:
        actions = parse_space(about["action_space"])
    except (KeyError, TypeError, ValueError):  # guessed from the data, without bounds
        return False
    return any(bounds_to_scale(leaf) for _, leaf in leaves(actions))
