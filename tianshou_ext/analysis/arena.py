"""Pictures over the arena of the cellworld domain: paths, maps of cells, fields of arrows.

Each function draws into matplotlib axes and takes plain arrays, so that it serves any policy,
planner or recording.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write

__all__ = [
    "Arena",
    "arena_of",
    "draw_arena",
    "draw_cells",
    "draw_field",
    "draw_paths",
    "draw_series",
    "new_panels",
    "save_png",
]

Array = np.ndarray[Any, Any]

HEXAGON = np.array(
    [(0.0, 0.5), (0.25, 0.933), (0.75, 0.933), (1.0, 0.5), (0.75, 0.067), (0.25, 0.067)]
)
"""The arena's corners, in its canonical coordinates."""

MAX_PATHS = 100
"""Paths drawn in one panel."""


@dataclass(frozen=True)
class Arena:
    """Where one can be and where not, in canonical coordinates (0 .. 1).

    :param cells: (K, 2) centres of free cells.
    :param obstacles: (M, 2) centres of occluded cells, may be none.
    :param start, goal: (2,).
    """

    cells: Array
    obstacles: Array
    start: tuple[float, float] = (0.05, 0.5)
    goal: tuple[float, float] = (1.0, 0.5)

    def __post_init__(self) -> None:
        for name in ("cells", "obstacles"):
            points = np.asarray(getattr(self, name), np.float64).reshape(-1, 2)
            object.__setattr__(self, name, points)
        if len(self.cells) < 2 or not np.isfinite(self.cells).all():
            raise InputError(f"expected the centres of two free cells or more, got {self.cells}")

    @cached_property
    def spacing(self) -> float:
        """Distance between neighbouring cells."""
        apart = np.linalg.norm(self.cells[:, None] - self.cells[None], axis=2)
        return float(apart[apart > 0].min())

    def corners(self, centres: Any) -> Array:
        """Return the corners of cells, (K, 2) to (K, 6, 2)."""
        angles = np.radians(30 + 60 * np.arange(6))
        ring = self.spacing / np.sqrt(3) * np.column_stack([np.cos(angles), np.sin(angles)])
        corners: Array = np.asarray(centres)[:, None] + ring
        return corners


def arena_of(env: Any) -> Arena:
    """Return the arena of a ``CellworldEnv``."""
    occluded = env.loader.world.cells.occluded_cells()
    obstacles = [cell.location.get_values() for cell in occluded]
    goal = tuple(float(x) for x in env.model.goal_location)
    return Arena(np.array(env.loader.open_locations), np.array(obstacles), goal=(goal[0], goal[1]))


def new_panels(count: int, *, columns: int = 3, size: float = 4.0) -> tuple[Any, list[Any]]:
    """Return a figure and the axes of ``count`` panels.

    :raises InputError: if matplotlib is missing, or there is nothing to draw.
    """
    if count < 1:
        raise InputError("expected at least one panel to draw, got none; give runs")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            'expected matplotlib for the plot, found none; pip install "tianshou_ext[cli]"'
        ) from error
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size * columns, 0.92 * size * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, panels[:count]


def save_png(figure: Any, path: Path) -> bytes:
    """Write a figure as PNG and return its bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    data = buffer.getvalue()
    atomic_write(path, lambda partial: partial.write_bytes(data))
    return data


def draw_arena(axes: Any, arena: Arena, title: str = "") -> None:
    """Draw outline, obstacles, start and goal."""
    from matplotlib.collections import PolyCollection

    outline = np.concatenate([HEXAGON, HEXAGON[:1]])
    axes.plot(*outline.T, color="#444444", linewidth=1)
    if len(arena.obstacles):
        blocks = PolyCollection(list(arena.corners(arena.obstacles)), facecolor="#555555", zorder=2)
        axes.add_collection(blocks)
    axes.plot(*arena.start, marker="o", color="#2ca02c", markersize=6, zorder=5)
    axes.plot(*arena.goal, marker="*", color="#d62728", markersize=11, zorder=5)
    axes.set(xlim=(-0.03, 1.03), ylim=(0.04, 0.96), aspect="equal", title=title)
    axes.set_axis_off()


def draw_paths(
    axes: Any, arena: Arena, paths: Sequence[Any], captures: Sequence[Any], title: str = ""
) -> None:
    """Draw paths, faint where there are many, and a cross where somebody was captured.

    :param paths: (T, 2) positions of each episode; the first ``MAX_PATHS`` are drawn.
    :param captures: (C, 2) positions of captures of each episode, may be none.
    """
    draw_arena(axes, arena, title)
    alpha = float(np.clip(6 / max(1, len(paths)), 0.12, 0.8))
    for path in paths[:MAX_PATHS]:
        axes.plot(*np.asarray(path).T, color="#1f77b4", linewidth=1, alpha=alpha, zorder=3)
    for places in captures[:MAX_PATHS]:
        points = np.asarray(places).reshape(-1, 2)
        axes.plot(*points.T, "x", color="#d62728", markersize=4, alpha=0.5, zorder=4)


def draw_cells(
    axes: Any,
    arena: Arena,
    values: Any,
    label: str,
    title: str = "",
    *,
    log: tuple[float, float] | None = None,
) -> None:
    """Colour the free cells by values (K,).

    :param log: colour by the logarithm between these two; cells with 0 stay white.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm

    values = np.asarray(values, np.float64)
    if values.shape != (len(arena.cells),):
        raise InputError(
            f"expected a value for each of {len(arena.cells)} free cells, got {values.shape}"
        )
    draw_arena(axes, arena, title)
    shown = values > 0 if log else np.ones(len(values), bool)
    norm = LogNorm(*log) if log else None
    drawn = PolyCollection(list(arena.corners(arena.cells[shown])), cmap="viridis", norm=norm)
    drawn.set_array(values[shown])
    axes.add_collection(drawn)
    axes.figure.colorbar(drawn, ax=axes, label=label, shrink=0.6)


def draw_field(
    axes: Any, arena: Arena, points: Any, targets: Any, values: Any, label: str, title: str = ""
) -> None:
    """Draw an arrow from each point (B, 2) towards its target (B, 2), coloured by values (B,).

    Arrows have one length; a dot stands where point and target are the same.
    """
    points, targets = np.asarray(points, np.float64), np.asarray(targets, np.float64)
    values = np.asarray(values, np.float64)
    draw_arena(axes, arena, title)
    moves = targets - points
    far = np.linalg.norm(moves, axis=1)
    stays = far < arena.spacing / 2
    step = 0.8 * arena.spacing * moves / np.where(stays, 1, far)[:, None]
    low, high = float(values.min()), float(values.max())
    colours = {"cmap": "viridis", "clim": (low, high if high > low else low + 1e-9)}
    drawn = axes.quiver(
        *points[~stays].T,
        *step[~stays].T,
        values[~stays],
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.006,
        headwidth=4,
        pivot="mid",
        zorder=3,
        **colours,
    )
    axes.plot(*points[stays].T, ".", color="#888888", markersize=4, zorder=3)
    axes.figure.colorbar(drawn, ax=axes, label=label, shrink=0.6)


def draw_series(
    axes: Any,
    times: Any,
    curves: Mapping[str, Any],
    *,
    title: str,
    ylabel: str,
    shaded: Any = None,
    marks: Any = None,
) -> None:
    """Draw curves over time.

    :param times: (T,) seconds.
    :param curves: label to values (T,); labels that begin with ``return`` are drawn black, dashed.
    :param shaded: (T,) bool, when the robot is in sight.
    :param marks: (T,) bool, when the mouse is captured.
    """
    times = np.asarray(times, np.float64)
    for label, values in curves.items():
        style = {"color": "black", "linestyle": "--"} if label.startswith("return") else {}
        axes.plot(times, values, label=label, linewidth=1.3, **style)
    if shaded is not None:
        low, high = axes.get_ylim()
        axes.fill_between(times, low, high, where=np.asarray(shaded, bool), color="#d6272822")
        axes.set_ylim(low, high)
    if marks is not None:
        for time in times[np.asarray(marks, bool)]:
            axes.axvline(time, color="#d62728", linewidth=1)
    axes.set(xlabel="seconds", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
