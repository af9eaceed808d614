"""Find and open a Minari dataset, in either of its layouts.

Layouts (Farama Minari 0.4 and 0.5, ``minari/dataset/_storages``). HDF5: ``main_data.hdf5`` with a
group ``episode_<i>`` each. Arrow and Parquet: a folder ``<i>`` an episode. Metadata are in
``metadata.json`` (0.5) or in the root attributes of the HDF5 file (0.4).
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tianshou_ext.data.convert.minari_spaces import Space, guess_space, parse_space
from tianshou_ext.errors import InputError

__all__ = ["DAMAGE", "Source", "checked_dataset", "count_steps", "open_dataset", "steps_said"]

MAIN_FILE = "main_data.hdf5"
COLUMNAR = ("arrow", "parquet")
DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError, MemoryError)
"""What h5py raises for damaged files."""
MAX_RATIO = 4096  # bytes of a column per byte of its file; deflate reaches 1032


@dataclass(frozen=True)
class Source:
    """A dataset on disk."""

    folder: Path
    main: Path | None
    """The HDF5 file; None if the episodes are folders of Arrow or Parquet files."""
    metadata: Mapping[str, Any]
    episodes: Sequence[int]
    observations: Space
    actions: Space

    def files(self) -> list[Path]:
        """Return the files that are read."""
        if self.main is not None:
            known = (self.main, self.folder / "metadata.json")
            return [path for path in known if path.exists()]
        parts = (p for k in self.episodes for p in (self.folder / str(k)).iterdir() if p.is_file())
        return [*sorted(parts), self.folder / "metadata.json"]


def open_dataset(src: str | Path) -> Source:
    """Find a dataset by its path or id, downloading it if need be, and read what it says.

    :raises InputError: if there is none, or what it says cannot be read.
    """
    folder = _find(str(src))
    main: Path | None = folder / MAIN_FILE
    if folder.is_file():
        folder, main = folder.parent, folder
    about = folder / "metadata.json"
    metadata = _read_json(about) if about.exists() else {}
    kind = str(metadata.get("data_format", "hdf5"))
    if kind in COLUMNAR:
        main = None
        names = [p.name for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
    elif kind == "hdf5":
        try:
            with h5py.File(main, "r") as file:
                names = [_text(name) for name in file]
                metadata = {**{k: _text(v) for k, v in file.attrs.items()}, **metadata}
        except DAMAGE as error:
            raise InputError(
                f"expected a Minari dataset in {main}, got a file that cannot be opened "
                f"({' '.join(str(error).split())}); it is foreign or truncated, download it again"
            ) from error
    else:
        raise InputError(
            f"expected a Minari dataset of the format hdf5, arrow or parquet in {folder}, got "
            f"{kind!r:.40}; convert it with the minari package"
        )
    numbers = (re.fullmatch(r"(?:episode_)?(\d{1,12})", name) for name in names)
    episodes = sorted(int(match[1]) for match in numbers if match)
    if not episodes:
        raise InputError(
            f"expected episodes in {main or folder}, got {sorted(names)[:8]}; give the folder of "
            "a Minari dataset"
        )
    spaces = _spaces(folder, main, metadata, episodes[0])
    return Source(folder, main, metadata, episodes, **spaces)


def _spaces(
    folder: Path, main: Path | None, metadata: Mapping[str, Any], episode: int
) -> dict[str, Space]:
    """Return the spaces of observations and actions, guessed from an episode if not said."""
    spaces = {}
    for key, group in (("observation_space", "observations"), ("action_space", "actions")):
        try:
            said = metadata.get(key)
            said = json.loads(said) if isinstance(said, str) else said
            spaces[group] = parse_space(said) if said else _guessed(main, episode, group)
        except (*DAMAGE, AttributeError, OverflowError) as error:
            raise InputError(
                f"expected the {key} of {folder} as Minari writes it, got what cannot be "
                f"read ({type(error).__name__} {' '.join(str(error).split())[:80]}); download the "
                "dataset again"
            ) from error
    return spaces


def _guessed(main: Path | None, episode: int, group: str) -> Space:
    """Make a space from what an episode holds."""
    if main is None:
        raise ValueError("it is missing")
    with h5py.File(main, "r") as file:
        return guess_space(file[f"episode_{episode}/{group}"]) | {"guessed": True}


def _find(src: str) -> Path:
    """Return the data folder or the HDF5 file that a path or a dataset id means."""
    home = os.environ.get("MINARI_DATASETS_PATH")
    store = Path(home) if home else Path.home() / ".minari" / "datasets"
    path = Path(src).expanduser()
    if path.is_file():
        return path
    places = [path / "data", path, store / src / "data", store / src]
    for place in places:
        if (place / MAIN_FILE).is_file() or (place / "metadata.json").is_file():
            return place
    if path.exists():
        raise InputError(
            f"expected a Minari dataset in {src}, found neither {MAIN_FILE} nor metadata.json; "
            "give the dataset's folder or its id"
        )
    if re.fullmatch(r"[\w-]+(/[\w-]+)*-v\d+", src) is None:
        raise InputError(
            f"expected a Minari dataset, got {src!r}, which is neither a path nor an id such as "
            "mujoco/hopper/medium-v0; check the spelling"
        )
    try:
        minari = importlib.import_module("minari")
    except ImportError as error:
        raise InputError(
            f"expected the Minari dataset {src} in {store}, found none; pip install "
            '"tianshou_ext[minari]" to have it downloaded, or set MINARI_DATASETS_PATH'
        ) from error
    try:
        minari.download_dataset(src)
    except Exception as error:  # whatever network and server make of it
        raise InputError(
            f"expected to download the Minari dataset {src}, but that failed "
            f"({' '.join(str(error).split())[:200]}); check the id and the network"
        ) from error
    place = store / src / "data"
    if not place.is_dir():
        raise InputError(f"expected the download of {src} in {place}, found none; give its folder")
    return place


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected JSON in {path}, got what cannot be read "
            f"({' '.join(str(error).split())[:100]}); download the dataset again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"expected a JSON object in {path}, got a {type(found).__name__}")
    return found


def _text(value: Any) -> Any:
    """Return an HDF5 attribute as something JSON can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def steps_said(source: Source, episode: int) -> int:
    """Return how many steps an episode of Arrow or Parquet files has by its metadata.

    :raises InputError: if they do not say.
    """
    about = source.folder / str(episode) / "metadata.json"
    try:
        return max(0, int(_read_json(about)["total_steps"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError("its metadata.json is missing, damaged or without total_steps") from error


def count_steps(source: Source) -> list[int]:
    """Return how many steps the episodes have; 0 for one of which that cannot be said."""
    counts = []
    if source.main is None:
        for episode in source.episodes:
            try:
                counts.append(steps_said(source, episode))
            except InputError:
                counts.append(0)
        return counts
    with h5py.File(source.main, "r") as file:
        for episode in source.episodes:
            try:
                counts.append(int(checked_dataset(file[f"episode_{episode}/rewards"]).shape[0]))
            except DAMAGE:
                counts.append(0)
    return counts


def checked_dataset(item: Any) -> Any:
    """Return a dataset of HDF5 with a row a step.

    :raises InputError: if it is none, or larger than its file.
    """
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.ndim == 0:
        raise InputError(f"{item.name} is no array with a row per step")
    if item.nbytes > MAX_RATIO * Path(item.file.filename).stat().st_size:
        raise InputError(f"{item.name} claims {item.nbytes} bytes, more than its file can hold")
    return item
