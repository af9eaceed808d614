"""Minari datasets: HDF5 without the minari package, Arrow and Parquet with pyarrow.

Layout (Farama Minari 0.4 and 0.5, ``minari/dataset/_storages``). HDF5: ``main_data.hdf5`` with a
group ``episode_<i>`` each: ``observations`` (T+1, ...), ``actions``, ``rewards``,
``terminations``, ``truncations`` (T, ...); a Dict is a group, a Tuple a group of ``_index_<i>``.
Arrow and Parquet: a folder ``<i>`` an episode, every column T+1 rows long, the last row of all but
the observations being padding. Metadata are in ``metadata.json`` (0.5) or in the root attributes
of the HDF5 file (0.4).
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    ordered_map,
    write_blocks,
)
from tianshou_ext.errors import InputError

__all__ = ["convert"]

MAIN_FILE = "main_data.hdf5"
COLUMNAR = ("arrow", "parquet")
FLAT = ("rewards", "terminations", "truncations")
LOSSY = "episodes hold images that were stored as JPEG, which loses detail"
DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError, MemoryError)
"""What h5py raises for damaged files."""
MAX_RATIO = 4096  # bytes of a column per byte of its file; deflate reaches 1032
Array = np.ndarray[Any, Any]
Space = dict[str, Any]


def convert(
    src: str | Path, dst: str | Path, /, *, flatten: bool = False, **options: Unpack[Options]
) -> Report:
    """Convert a Minari dataset.

    An episode's last row with neither flag becomes truncated. Dict and Tuple observations become
    Tianshou's nested Batch unless flattened, and so do such actions unless all parts are boxes.
    float64 becomes float32; discrete actions count from 0.

    :param src: dataset id, such as mujoco/hopper/medium-v0, or its folder or main_data.hdf5.
    :param dst: the buffer file to make.
    :param flatten: make observations, and actions that are a Dict or Tuple, one vector each, as
        gymnasium's flatten does.
    :raises InputError: if the dataset is missing, damaged, or holds what a buffer cannot.
    """
    settings = Settings(**options)
    source = _open(src)
    _check_spaces(source)
    lengths = _steps(source)
    kept = chosen_episodes(len(lengths), settings)
    names = [source.episodes[k] for k in kept]
    seen: Counter[str] = Counter()
    notes = [*_notes(source, sum(lengths))]

    def blocks() -> Iterator[Block | Fault]:
        read = partial(_episode, source, flatten)
        for name, (columns, found) in zip(
            names, ordered_map(read, names, settings.jobs), strict=True
        ):
            seen.update(found)
            where = str(source.folder), f"episode {name}"
            yield Fault(*where, columns) if isinstance(columns, str) else Block(columns, *where)
        notes.extend(f"{count} {what}" for what, count in seen.items())

    order = _layout(source.observations) if flatten else None
    return write_blocks(
        blocks(),
        dst,
        source="minari",
        inputs=source.files(),
        size=max(1, sum(lengths[k] for k in kept)),  # if none can be read, the fault says why
        settings=settings,
        notes=notes,
        provenance={
            "dataset": _said(source.metadata, "dataset_id"),
            "task": _task(source.metadata),
            "algorithm": _said(source.metadata, "algorithm_name"),
            "minari_version": _said(source.metadata, "minari_version"),
            "observation_space": _brief(source.observations),
            "action_space": _brief(source.actions),
            "observation_order": order,
            "action_order": _layout(source.actions) if _joins_actions(source, flatten) else None,
            "action_start": _starts(source.actions),
            "ordered": True,
        },
    )


# Finding and opening a dataset


@dataclass(frozen=True)
class _Source:
    """A dataset on disk."""

    folder: Path
    main: Path | None
    """The HDF5 file; None if the episodes are folders of Arrow or Parquet files."""
    metadata: Mapping[str, Any]
    episodes: Sequence[int]
    observations: Space = field(default_factory=dict)
    actions: Space = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Return the files that are read."""
        if self.main is not None:
            known = (self.main, self.folder / "metadata.json")
            return [path for path in known if path.exists()]
        parts = (p for k in self.episodes for p in (self.folder / str(k)).iterdir() if p.is_file())
        return [*sorted(parts), self.folder / "metadata.json"]


def _open(src: str | Path) -> _Source:
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
    source = _Source(folder, main, metadata, episodes)
    return _with_spaces(source)


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


def _said(metadata: Mapping[str, Any], key: str) -> str | None:
    return str(metadata[key])[:200] if metadata.get(key) else None


def _task(metadata: Mapping[str, Any]) -> str | None:
    try:
        return str(json.loads(metadata["env_spec"])["id"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _notes(source: _Source, steps: int) -> Iterator[str]:
    found = {"total_steps": steps, "total_episodes": len(source.episodes)}
    for key, count in found.items():
        said = source.metadata.get(key)
        if said is not None and str(said) != str(count):
            yield f"the metadata say {key} {str(said)[:20]}, the data hold {count}"
    if starts := _starts(source.actions):
        yield f"actions counted from {starts}, now from 0"
    if source.observations.get("guessed") or source.actions.get("guessed"):
        yield "the metadata name no spaces: taken from the data, and discrete actions from 0"


def _steps(source: _Source) -> list[int]:
    """Return how many steps the episodes have; 0 for one of which that cannot be said."""
    counts = []
    if source.main is None:
        for episode in source.episodes:
            try:
                about = _read_json(source.folder / str(episode) / "metadata.json")
                counts.append(max(0, int(about["total_steps"])))
            except (InputError, KeyError, ValueError, TypeError):
                counts.append(0)
        return counts
    with h5py.File(source.main, "r") as file:
        for episode in source.episodes:
            try:
                counts.append(int(_dataset(file[f"episode_{episode}/rewards"]).shape[0]))
            except DAMAGE:
                counts.append(0)
    return counts


# Spaces, as Minari writes them in JSON


def _with_spaces(source: _Source) -> _Source:
    spaces = {}
    for key, group in (("observation_space", "observations"), ("action_space", "actions")):
        try:
            said = source.metadata.get(key)
            said = json.loads(said) if isinstance(said, str) else said
            spaces[group] = _space(said) if said else _guessed(source, group)
        except (*DAMAGE, AttributeError) as error:
            raise InputError(
                f"expected the {key} of {source.folder} as Minari writes it, got what cannot be "
                f"read ({type(error).__name__} {' '.join(str(error).split())[:80]}); download the "
                "dataset again"
            ) from error
    return _Source(source.folder, source.main, source.metadata, source.episodes, **spaces)


def _space(said: Any, depth: int = 0) -> Space:
    """Check a space and put its parts in gymnasium's order: the keys of a Dict sorted."""
    kind = said["type"]
    if depth > 8:
        raise ValueError("nested too deeply")
    if kind == "Dict":
        parts = {
            key: _space(said["subspaces"][key], depth + 1) for key in sorted(said["subspaces"])
        }
    elif kind == "Tuple":
        parts = {str(k): _space(part, depth + 1) for k, part in enumerate(said["subspaces"])}
    else:
        checked: Space = {"type": kind}
        if kind == "Box":
            checked |= {"shape": [int(n) for n in said["shape"]], "dtype": str(said["dtype"])}
            if np.dtype(checked["dtype"]).kind not in "biuf":
                raise ValueError(f"a Box of {checked['dtype']}")
            checked |= {key: _bound(said.get(key)) for key in ("low", "high")}
        elif kind == "Discrete":
            checked |= {"shape": [], "n": int(said["n"]), "start": int(said.get("start", 0))}
        elif kind == "MultiDiscrete":
            nvec = np.asarray(said["nvec"], np.int64)
            start = np.broadcast_to(np.asarray(said.get("start", 0), np.int64), nvec.shape)
            checked |= {"shape": list(nvec.shape), "nvec": nvec.tolist(), "start": start.tolist()}
        elif kind == "MultiBinary":
            checked |= {"shape": np.atleast_1d(said["n"]).tolist()}
        elif kind == "Text":
            checked |= {"shape": [int(said["max_length"])], "charset": str(said["charset"])}
        else:
            raise ValueError(f"a space of the type {str(kind)[:40]}, which no array can hold")
        return checked
    if not parts:
        raise ValueError(f"an empty {kind}")
    return {"type": kind, "parts": parts}


def _bound(values: Any) -> Any:
    """Return the bounds of a Box, as one number if all are the same."""
    if values is None:
        return None
    array = np.asarray(values, np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else array.tolist()


def _guessed(source: _Source, group: str) -> Space:
    """Make a space from what the first episode holds."""
    if source.main is None:
        raise ValueError("it is missing")
    with h5py.File(source.main, "r") as file:
        return _guess(file[f"episode_{source.episodes[0]}/{group}"]) | {"guessed": True}


def _guess(item: Any) -> Space:
    if isinstance(item, h5py.Group):
        is_tuple = all(key.startswith("_index_") for key in item)
        parts = {
            key.removeprefix("_index_") if is_tuple else key: _guess(item[key]) for key in item
        }
        if not parts:
            raise ValueError("an empty group")
        order = sorted(parts, key=int) if is_tuple else sorted(parts)
        return {
            "type": "Tuple" if is_tuple else "Dict",
            "parts": {key: parts[key] for key in order},
        }
    if item.dtype.kind not in "biuf":
        raise ValueError(f"{item.name} holds {item.dtype}, and no space says what that is")
    shape = list(item.shape[1:])
    if item.dtype.kind in "iu" and not shape:
        return {"type": "Discrete", "shape": [], "n": None, "start": 0}
    return {"type": "Box", "shape": shape, "dtype": str(item.dtype), "low": None, "high": None}


def _is_nested(space: Space) -> bool:
    return "parts" in space


def _leaves(space: Space, path: str = "") -> Iterator[tuple[str, Space]]:
    """Yield the plain spaces in the order in which gymnasium's flatten joins them."""
    if _is_nested(space):
        for key, part in space["parts"].items():
            yield from _leaves(part, f"{path}/{key}" if path else key)
    else:
        yield path, space


def _layout(space: Space) -> list[list[Any]]:
    """Return name and width of every part of a flattened observation or action."""
    return [[path, _width(leaf)] for path, leaf in _leaves(space)]


def _width(leaf: Space) -> int:
    if leaf["type"] == "Discrete":
        return int(leaf["n"])
    if leaf["type"] == "MultiDiscrete":
        return int(np.sum(leaf["nvec"]))
    return int(np.prod(leaf["shape"]))


def _starts(space: Space) -> Any:
    """Return what discrete actions count from, None if that is 0 or they are not discrete."""
    start = space.get("start")
    return start if start is not None and np.any(start) else None


def _brief(space: Space) -> Space:
    """Return a space as Minari writes it, for the provenance; bounds only if they are short."""
    if _is_nested(space):
        parts = {key: _brief(part) for key, part in space["parts"].items()}
        is_tuple = space["type"] == "Tuple"
        return {"type": space["type"], "subspaces": [*parts.values()] if is_tuple else parts}
    return {key: value for key, value in space.items() if not _is_long(value)}


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and np.size(value) > 1024


def _check_spaces(source: _Source) -> None:
    """Refuse text as actions.

    :raises InputError: if a part of them is text.
    """
    kinds = {path: leaf["type"] for path, leaf in _leaves(source.actions)}
    if "Text" in kinds.values():
        raise InputError(
            f"expected actions that are numbers in {source.folder}, got {kinds}; choose a dataset "
            "without text actions"
        )


def _joins_actions(source: _Source, flatten: bool) -> bool:
    """Return whether the parts of an action become one vector: boxes always do."""
    boxes = all(leaf["type"] == "Box" for _, leaf in _leaves(source.actions))
    return _is_nested(source.actions) and (flatten or boxes)


# Reading an episode


def _episode(
    source: _Source, flatten: bool, episode: int
) -> tuple[dict[str, Any] | str, list[str]]:
    """Return the columns of an episode, or what is wrong with it, and what should be noted."""
    noted: list[str] = []
    try:
        raw = (_read_hdf5 if source.main else _read_columnar)(source, episode)
        return _columns(source, raw, flatten, noted), noted
    except InputError as error:
        return str(error), []
    except DAMAGE as error:
        return f"it cannot be read ({' '.join(str(error).split())[:200]})", []


def _columns(
    source: _Source, raw: dict[str, Any], flatten: bool, noted: list[str]
) -> dict[str, Any]:
    rew = _vector("rewards", raw["rewards"]).astype(np.float32)
    terminated, truncated = (_flags(key, raw[key]) for key in ("terminations", "truncations"))
    act = _decoded(source.actions, raw["actions"], "actions", noted)
    obs = _decoded(source.observations, raw["observations"], "observations", noted)
    if _joins_actions(source, flatten):
        act = _joined(source.actions, act)
    else:
        act = _from_zero(source.actions, act)
    if flatten:
        obs = _joined(source.observations, obs)
    steps = len(rew)
    lengths = {"rewards": steps, "actions": len(next(_parts(act)))}
    lengths |= {"terminations": len(terminated), "truncations": len(truncated)}
    rows = {len(part) for part in _parts(obs)}
    if {*lengths.values()} != {steps} or rows not in ({steps + 1}, {steps}):
        raise InputError(
            f"columns of unequal length, {lengths} and {sorted(rows)} observations, of which there "
            f"should be {steps + 1}"
        )
    if steps == 0:
        raise InputError("no steps")
    if (terminated | truncated)[:-1].any():
        noted.append("episodes have an end flag before their last step, and are cut there")
    if rows == {steps}:
        # What the last step led to was not stored: only a true end can do without.
        if terminated[-1]:
            obs = _each(lambda part: np.concatenate([part, part[-1:]]), obs)
            noted.append("episodes lack the observation after their terminal step: repeated")
        else:
            steps -= 1
            act = _each(lambda part: part[:steps], act)
            rew, terminated, truncated = (column[:steps] for column in (rew, terminated, truncated))
            if steps == 0:
                raise InputError("a single step, of which the next observation is missing")
            truncated[-1] |= not terminated[-1]
            noted.append("episodes lack their last observation: the last step is left out")
    elif not (terminated[-1] or truncated[-1]):
        truncated[-1] = True
        noted.append("episodes end without a flag: their last step is truncated")
    return {
        "obs": _each(lambda part: part[:-1], obs),
        "act": act,
        "rew": rew,
        "terminated": terminated,
        "truncated": truncated,
        "obs_next": _each(lambda part: part[1:], obs),
    }


def _read_hdf5(source: _Source, episode: int) -> dict[str, Any]:
    with h5py.File(source.main, "r") as file:
        group = file[f"episode_{episode}"]
        return {
            "observations": _tree(source.observations, _member(group, "observations")),
            "actions": _tree(source.actions, _member(group, "actions")),
            **{key: _dataset(_member(group, key))[()] for key in FLAT},
        }


def _tree(space: Space, item: Any) -> Any:
    """Read a dataset, or a group and all below it."""
    if _is_nested(space):
        prefix = "_index_" if space["type"] == "Tuple" else ""
        return {
            key: _tree(part, _member(item, prefix + key)) for key, part in space["parts"].items()
        }
    return _dataset(item)[()]


def _member(group: Any, key: str) -> Any:
    if not isinstance(group, h5py.Group):
        raise InputError(f"{group.name} is an array, expected a group with {key!r}")
    if key not in group:
        raise InputError(f"{group.name} lacks {key!r}, it has {list(group)[:12]}")
    return group[key]


def _dataset(item: Any) -> Any:
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.ndim == 0:
        raise InputError(f"{item.name} is no array with a row per step")
    if item.nbytes > MAX_RATIO * Path(item.file.filename).stat().st_size:
        raise InputError(f"{item.name} claims {item.nbytes} bytes, more than its file can hold")
    return item


def _read_columnar(source: _Source, episode: int) -> dict[str, Any]:
    try:
        import pyarrow
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            "expected the package pyarrow for a Minari dataset in Arrow or Parquet, found none "
            "that loads; pip install pyarrow"
        ) from error
    try:
        table = pyarrow.dataset.dataset(
            source.folder / str(episode),
            format=source.metadata["data_format"],
            ignore_prefixes=["_", ".", "metadata.json"],
        ).to_table()
        columns: dict[str, Any] = {}
        for key in ("observations", "actions", *FLAT):
            if key not in table.column_names:
                raise InputError(f"it lacks {key!r}, it has {table.column_names}")
            columns[key] = pyarrow.concat_arrays(table.column(key).chunks)
        # The last row holds an observation only, the rest of it is padding.
        return {
            "observations": _arrow_tree(source.observations, columns["observations"]),
            "actions": _arrow_tree(source.actions, columns["actions"], slice(-1)),
            **{key: columns[key].to_numpy(zero_copy_only=False)[:-1] for key in FLAT},
        }
    except pyarrow.ArrowException as error:
        raise InputError(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error


def _arrow_tree(space: Space, values: Any, rows: slice = slice(None)) -> Any:
    """Return an Arrow column, or a struct and all below it, as numpy arrays."""
    if values.null_count and space["type"] != "Text":
        raise InputError(f"{values.null_count} values are missing")
    if _is_nested(space):
        return {
            key: _arrow_tree(part, values.field(key), rows) for key, part in space["parts"].items()
        }
    if hasattr(values, "flatten") and hasattr(values.type, "list_size"):
        values = values.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, *space["shape"])[rows]
    return values.to_numpy(zero_copy_only=False)[rows]


# Numbers out of what was stored


def _decoded(space: Space, stored: Any, path: str, noted: list[str]) -> Any:
    """Return stored values as arrays (T, ...) of the space's shape, nested as it is."""
    if _is_nested(space):
        parts = space["parts"].items()
        return {key: _decoded(part, stored[key], f"{path}/{key}", noted) for key, part in parts}
    kind, shape = space["type"], tuple(space["shape"])
    if kind == "Text":
        return _codes(space, stored, path)
    if kind == "Box" and space["dtype"] == "uint8" and len(shape) in (2, 3):
        is_matrix = stored.ndim == 2 and stored.dtype == np.uint8
        if stored.dtype == object or is_matrix:
            if LOSSY not in noted:
                noted.append(LOSSY)
            return _images(stored, shape, path)
    if stored.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {stored.dtype}, not numbers")
    if int(np.prod(stored.shape[1:])) != int(np.prod(shape)):
        raise InputError(f"{path} has the shape {stored.shape[1:]} a step, its space says {shape}")
    values = stored.reshape(len(stored), *shape)
    wanted = np.dtype(space["dtype"] if kind == "Box" else np.int64)
    if not np.can_cast(values.dtype, wanted, "same_kind"):
        raise InputError(f"{path} holds {values.dtype}, its {kind} says {wanted}")
    if kind == "Box":
        wanted = np.dtype(np.float32) if wanted.kind == "f" and wanted.itemsize > 4 else wanted
        with np.errstate(over="ignore"):  # infinite values are reported as such later
            return values.astype(wanted, copy=False)
    low = np.asarray(space.get("start", 0), np.int64)
    count = 2 if kind == "MultiBinary" else space["n"] if kind == "Discrete" else space["nvec"]
    values = values.astype(np.int64)
    if count is not None and ((values < low) | (values >= low + np.asarray(count))).any():
        raise InputError(f"{path} holds values outside its {kind} space")
    return values.astype(np.int8) if kind == "MultiBinary" else values


def _images(stored: Array, shape: tuple[int, ...], path: str) -> Array:
    """Decode JPEG frames; one of another size than the space says is not opened."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "expected the package Pillow for images stored as JPEG, found none; pip install pillow"
        ) from error
    frames = np.empty((len(stored), *shape), np.uint8)
    for row, data in enumerate(stored):
        image = Image.open(io.BytesIO(bytes(data)), formats=("JPEG",))
        if (image.height, image.width) != shape[:2] or len(image.getbands()) != (*shape, 1)[2]:
            raise InputError(
                f"{path} holds an image of {image.height}x{image.width}x{len(image.getbands())}, "
                f"its space says {shape}"
            )
        frames[row] = np.asarray(image).reshape(shape)
    return frames


def _codes(space: Space, stored: Any, path: str) -> Array:
    """Return texts as numbers (T, max_length), as gymnasium's flatten does."""
    charset = space["charset"]
    numbers = {char: number for number, char in enumerate(charset)}
    codes = np.full((len(stored), *space["shape"]), len(set(charset)), np.int32)
    for row, text in enumerate(stored):
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if not isinstance(text, str) or len(text) > codes.shape[1] or not {*text} <= {*charset}:
            raise InputError(f"{path} holds a text outside its space in row {row}")
        codes[row, : len(text)] = [numbers[char] for char in text]
    return codes


def _joined(space: Space, values: Any) -> Array:
    """Return (T, D): the parts of a space as gymnasium's flatten joins them."""
    parts = [
        _flat(leaf, part) for (_, leaf), part in zip(_leaves(space), _parts(values), strict=True)
    ]
    joined = np.concatenate(parts, axis=1)
    return joined.astype(np.float32) if joined.dtype == np.float64 else joined


def _from_zero(space: Space, values: Any) -> Any:
    """Return discrete actions counted from 0, others as they are."""
    if _is_nested(space):
        return {key: _from_zero(part, values[key]) for key, part in space["parts"].items()}
    return values - np.asarray(space["start"], np.int64) if "start" in space else values


def _flat(leaf: Space, values: Array) -> Array:
    rows = len(values)
    if leaf["type"] not in ("Discrete", "MultiDiscrete"):
        return values.reshape(rows, -1)
    counts = np.atleast_1d(leaf["n"] if leaf["type"] == "Discrete" else leaf["nvec"]).reshape(-1)
    start = np.asarray(leaf["start"], np.int64)
    places = (values - start).reshape(rows, -1) + np.cumsum([0, *counts[:-1]])
    one_hot = np.zeros((rows, int(counts.sum())), np.int64)
    np.put_along_axis(one_hot, places, 1, axis=1)
    return one_hot


def _parts(values: Any) -> Iterator[Array]:
    if isinstance(values, Mapping):
        for part in values.values():
            yield from _parts(part)
    else:
        yield values


def _each(function: Callable[[Array], Array], values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _each(function, part) for key, part in values.items()}
    return function(values)


def _vector(key: str, stored: Array) -> Array:
    if stored.dtype.kind not in "biuf" or stored.size != len(stored):
        raise InputError(f"{key} are {stored.dtype} of the shape {stored.shape}, expected (T,)")
    return stored.reshape(-1)


def _flags(key: str, stored: Array) -> Array:
    flags = _vector(key, stored)
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"{key} hold something else than 0 and 1")
    return flags.astype(bool)
