"""The files of cellworld's worlds, and its packages made fit to use.

The packages (cellworld 0.0.398, cellworld_game 0.0.193, cellworld_gym 0.0.139) read a world's
cells, paths and visibility as JSON files from the folder ``$CELLWORLD_CACHE``, which is looked up
once, when cellworld is imported; what is not there is asked from the web, without a timeout. The
files have no licence, so none comes with this package: ``use_cache`` fetches them once from the
commit named below.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib
import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write

COMMIT = "c4c61106578238d2975be99d1c7a8c0ce071362b"
SOURCE = f"https://raw.githubusercontent.com/germanespinosa/cellworld_data/{COMMIT}"
"""Where the files come from: the authors' repository."""

TIMEOUT = 20.0  # seconds without a byte
VARIABLE = "CELLWORLD_CACHE"
_BLOCK = 20


def world_files(world: str) -> tuple[str, ...]:
    """Return the paths below the cache of the files that ``world`` needs."""
    name = f"hexagonal.{world}"
    return (
        "world_configuration/hexagonal",
        "world_implementation/hexagonal.canonical",
        *(f"cell_group/{name}.{kind}" for kind in ("occlusions", "spawn_locations", "lppo")),
        f"paths/{name}.astar",
        f"graph/{name}.cell_visibility",
        f"graph/{name}.options",
        f"world_statistics/{name}",
    )


def use_cache(world: str | None = None) -> Path:
    """Let cellworld read its files from one folder, and from nowhere else; return that folder.

    The folder is ``$CELLWORLD_CACHE``, or ``cellworld`` in the cache of this package. Call this
    before anything imports cellworld; if that has happened, cellworld is told the folder now.

    :param world: whose files are fetched where they are missing; None fetches nothing.
    :raises InputError: if there is no such world, or its files are missing and cannot be fetched.
    """
    given = os.environ.get(VARIABLE)
    if given:
        folder = Path(given).expanduser().absolute()
    else:
        from tianshou_ext.data.cache import cache_folder

        folder = (cache_folder() / "cellworld").absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder in {VARIABLE}, got the file {folder}; name a folder")
    os.environ[VARIABLE] = str(folder)
    if "cellworld.util" in sys.modules:
        _bind(sys.modules["cellworld.util"], folder)
    if world is not None:
        _fetch_world(world, folder)
    return folder


def _fetch_world(world: str, folder: Path) -> None:
    if not (isinstance(world, str) and re.fullmatch(r"\w+", world)):
        raise InputError(f"expected a world such as '21_05' or '00_00', got {world!r}; use one")
    missing = [name for name in world_files(world) if not (folder / name).is_file()]
    for name in tqdm(missing, desc=f"world {world}", leave=False, disable=not missing):
        try:
            _fetch(name, folder)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                raise InputError(
                    f"expected a world such as '21_05' or '00_00', got {world!r}, of which neither "
                    f"{folder} nor {SOURCE} has {name}; use another world"
                ) from error
            missing = [name for name in missing if not (folder / name).is_file()]
            reason = " ".join(str(error).split()) or type(error).__name__
            found = sorted(
                path.name.split(".")[1] for path in folder.glob("paths/hexagonal.*.astar")
            )
            raise InputError(
                f"expected the files of world {world!r} below {folder}, but {', '.join(missing)} "
                f"are missing and could not be fetched from {SOURCE} ({reason}); connect to the "
                f"internet once, or set {VARIABLE} to a folder that has them, or use another world "
                f"(that folder has {', '.join(found) or 'none'})"
            ) from error


def _fetch(name: str, folder: Path) -> None:
    with urllib.request.urlopen(f"{SOURCE}/{name}", timeout=TIMEOUT) as answer:
        data = answer.read()
    json.loads(data)  # what a captive portal sends is no JSON
    atomic_write(folder / name, lambda partial: partial.write_bytes(data))


def check_files(world: str) -> None:
    """Say which file of a world is no JSON.

    :raises InputError: if one is not.
    """
    folder = use_cache()
    for name in world_files(world):
        try:
            json.loads((folder / name).read_bytes())
        except ValueError as error:
            raise InputError(
                f"expected JSON in {folder / name}, got something else; delete it to fetch it again"
            ) from error


def _bind(util: ModuleType, folder: Path) -> None:
    """Give cellworld its folder, and take away its way to the web."""

    def get(uri: str, *_: Any, **__: Any) -> NoReturn:
        name = uri.partition("/master/")[2] or uri
        raise InputError(
            f"expected {name} below {folder}, found none; set {VARIABLE} to a folder that has it"
        )

    vars(util).update(cellworld_cache_folder=str(folder), requests=SimpleNamespace(get=get))


@functools.cache
def import_cellworld() -> ModuleType:
    """Import cellworld's packages silently, bound to the cache and repaired; return cellworld_gym.

    Repaired are the map from points to cells, which took 9 GB and half a minute and is the same;
    a world that is loaded again, which is now shared; and the use of a GPU, which is slower.

    :raises ImportError: if the packages are missing.
    """
    folder = use_cache()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            _without_scipy_stats(),
        ):
            warnings.simplefilter("ignore")
            gym = importlib.import_module("cellworld_gym")
            points = importlib.import_module("cellworld_game.torch.points").Points
            loader = importlib.import_module("cellworld_game.cellworld_loader").CellWorldLoader
            _bind(importlib.import_module("cellworld.util"), folder)
    except ImportError as error:
        raise ImportError(
            f"expected the cellworld-gym package, but {error.name!r} cannot be imported; "
            'pip install "tianshou_ext[cellworld]"'
        ) from error
    import torch

    for name, module in list(sys.modules.items()):
        if name.startswith("cellworld_") and hasattr(module, "default_device"):
            vars(module)["default_device"] = torch.device("cpu")
    points.__init__ = _init_points
    loader.__init__ = _once_per_world(loader.__init__)
    return gym


@contextlib.contextmanager
def _without_scipy_stats() -> Iterator[None]:
    """Spare an import of half a second: cellworld takes one function of it and never calls it."""
    name = "scipy.stats"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in = ModuleType(name)
    vars(stand_in)["entropy"] = None  # cellworld.info then defines another of that name
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _init_points(self: Any, point_list: list[tuple[float, float] | None]) -> None:
    self.point_list = point_list
    self.definition = 1000
    self.point_map = nearest_map(point_list, self.definition)


def nearest_map(points: list[tuple[float, float] | None], definition: int) -> np.ndarray[Any, Any]:
    """Return the index of the nearest point for each square of the unit square's grid.

    The same numbers as the package's, whose float32 arithmetic this repeats: of equally near ones
    the first. A point is only compared in those blocks of the grid where it can be the nearest.

    :param points: n points; None stands for (-1, -1).
    :param definition: squares along a side, a multiple of 20.
    """
    grid = np.arange(definition, dtype=np.float32) / np.float32(definition)
    grid = (grid + np.float32(1 / definition / 2)).reshape(-1, _BLOCK)  # (blocks, 20)
    centre = grid.mean(axis=1, dtype=np.float64)
    where = np.array([point or (-1.0, -1.0) for point in points], dtype=np.float32)  # (n, 2)
    away = np.hypot(
        centre[:, None, None] - where[:, 0], centre[None, :, None] - where[:, 1]
    )  # (blocks, blocks, n)
    reach = away.min(axis=2) + 1.5 * _BLOCK / definition  # over a block's diagonal
    best = np.full((len(grid), len(grid), _BLOCK, _BLOCK), np.inf, dtype=np.float32)
    nearest = np.zeros(best.shape, dtype=np.int64)
    for i in range(len(points)):
        rows, columns = np.nonzero(away[:, :, i] <= reach)
        x2, y2 = (grid - where[i, 0]) ** 2, (grid - where[i, 1]) ** 2
        distance = x2[rows][:, :, None] + y2[columns][:, None, :]
        closer = distance < best[rows, columns]
        best[rows, columns] = np.where(closer, distance, best[rows, columns])
        nearest[rows, columns] = np.where(closer, i, nearest[rows, columns])
    return nearest.transpose(0, 2, 1, 3).reshape(definition, definition)


def _once_per_world(load: Any) -> Any:
    """Return a loader's ``__init__`` that reads each world once; its parts are then shared."""
    worlds: dict[str, dict[str, Any]] = {}

    def init(self: Any, world_name: str) -> None:
        if world_name not in worlds:
            load(self, world_name)
            worlds[world_name] = dict(vars(self))
        vars(self).update(worlds[world_name])

    return init
