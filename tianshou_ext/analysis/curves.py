"""Learning curves from the ``progress.csv`` of one or more runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import reference_scores
from tianshou_ext.files import atomic_write
from tianshou_ext.trainer import PROGRESS, read_progress


def plot_curves(
    runs: Mapping[str, Sequence[str | Path]],
    path: str | Path,
    *,
    title: str = "",
    lines: Mapping[str, float] | None = None,
    task: str | None = None,
) -> Path:
    """Draw return against gradient steps.

    :param runs: label to run folders; several folders are seeds, drawn as their mean with a band
        from the least to the greatest. One folder's band is a standard deviation over episodes.
    :param path: PNG to write.
    :param lines: label to height of horizontal lines, for example the behaviour's score.
    :param task: adds an axis with D4RL's normalised score, if the task has one.
    :raises InputError: if matplotlib is missing.
    """
    figure, axes = new_figure()
    for label, folders in runs.items():
        curves = [read_progress(Path(folder) / PROGRESS) for folder in folders]
        length = min(len(curve) for curve in curves)
        steps = [row["step"] for row in curves[0][:length]]
        means = np.array([[row["return_mean"] for row in curve[:length]] for curve in curves])
        if len(curves) > 1:
            low, high = means.min(0), means.max(0)
        else:
            spread = np.array([row["return_std"] for row in curves[0]])
            low, high = means[0] - spread, means[0] + spread
        drawn = axes.plot(steps, means.mean(0), marker="o", markersize=3, label=label)
        axes.fill_between(steps, low, high, alpha=0.2, color=drawn[0].get_color())
    for k, (label, height) in enumerate((lines or {}).items()):
        axes.axhline(height, color="grey", linestyle=("--", ":", "-.")[k % 3], label=label)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("return of a test episode")
    add_scores(axes, task)
    write_figure(figure, axes, title, path)
    return Path(path)


def plot_finetuning(
    runs: Mapping[str, Sequence[str | Path]],
    path: str | Path,
    *,
    title: str = "",
    lines: Mapping[str, float] | None = None,
    task: str | None = None,
) -> Path:
    """Draw return against environment steps, with the offline phase on the left of zero.

    The offline phase's gradient steps are drawn on the same scale, shortened to at most a third of
    the axis, and the boundary is a vertical line.

    :param runs: label to run folders, as ``plot_curves``; purely online runs start at zero.
    :param path: PNG to write.
    :param lines: label to height of horizontal lines.
    :param task: adds an axis with D4RL's normalised score, if the task has one.
    :raises InputError: if matplotlib is missing.
    """
    figure, axes = new_figure()
    curves = {
        label: [read_progress(Path(folder) / PROGRESS) for folder in folders]
        for label, folders in runs.items()
    }
    everything = [row for several in curves.values() for curve in several for row in curve]
    offline = max((row["step"] for row in everything if not row["env_step"]), default=0.0)
    online = max(row["env_step"] for row in everything)
    shrink = min(1.0, online / 2 / offline) if offline else 1.0
    for label, several in curves.items():
        length = min(len(curve) for curve in several)
        offline_steps = [row["step"] for row in several[0] if not row["env_step"]]
        boundary = max(offline_steps, default=0.0)
        places = [
            row["env_step"] or shrink * (row["step"] - boundary) for row in several[0][:length]
        ]
        means = np.array([[row["return_mean"] for row in curve[:length]] for curve in several])
        drawn = axes.plot(places, means.mean(0), marker="o", markersize=3, label=label)
        if len(several) > 1:
            colour = drawn[0].get_color()
            axes.fill_between(places, means.min(0), means.max(0), alpha=0.2, color=colour)
    for k, (label, height) in enumerate((lines or {}).items()):
        axes.axhline(height, color="grey", linestyle=("--", ":", "-.")[k % 3], label=label)
    axes.axvline(0.0, color="black", linewidth=1)
    axes.set_xlabel("environment steps")
    if offline:
        axes.set_xlabel("offline: gradient steps  |  online: environment steps")
        right = [tick for tick in axes.get_xticks() if 0 < tick <= online]
        places = [-shrink * offline, -shrink * offline / 2, 0.0, *right]
        named = [0.0, offline / 2, offline, *right]
        axes.set_xticks(places, [f"{steps:,.0f}" for steps in named])
    axes.set_ylabel("return of a test episode")
    add_scores(axes, task)
    write_figure(figure, axes, title, path)
    return Path(path)


def new_figure() -> tuple[Any, Any]:
    """Return a figure, without a window, and its axes.

    :raises InputError: if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            'expected matplotlib for the plot, found none; pip install "tianshou_ext[cli]"'
        ) from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def add_scores(axes: Any, task: str | None) -> None:
    """Add an axis of D4RL's normalised score, if the task has one."""
    if task is None:
        return
    with contextlib.suppress(InputError):  # a task without reference scores
        reference = reference_scores(task)
        low, span = reference.minimum, reference.maximum - reference.minimum
        right = axes.secondary_yaxis(
            "right",
            functions=(
                lambda y: 100 * (np.asarray(y, float) - low) / span,
                lambda y: low + np.asarray(y, float) * span / 100,
            ),
        )
        right.set_ylabel("normalised score")


def write_figure(figure: Any, axes: Any, title: str, path: str | Path) -> None:
    """Add the title and a legend below, and write the picture."""
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=150, format="png"))
