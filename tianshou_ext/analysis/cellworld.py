"""How like a mouse, and how good: a report on policies trained in the cellworld.

A run's folder holds, beside the checkpoint, what ``keep_for_report`` put there: the mouse episodes
that were held out, and the arguments of the environment. So a run can be reported on anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tianshou_ext.analysis.arena import Arena, arena_of, save_png
from tianshou_ext.analysis.cellworld_pictures import PICTURES, VALUE_PICTURES
from tianshou_ext.analysis.cellworld_tables import (
    LIKENESS,
    QUALITY,
    SEEDS,
    VALUES,
    likeness_table,
    quality_table,
    seeds_table,
    softmax_note,
    values_table,
)
from tianshou_ext.analysis.divergence import cell_counts, counts
from tianshou_ext.analysis.likeness import Mouse, Subject, add_values, measure, references
from tianshou_ext.analysis.page import Page
from tianshou_ext.analysis.rollouts import Player, goal_action, play
from tianshou_ext.analysis.values import thoughts
from tianshou_ext.checkpoint import versions
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.save import save_buffer
from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write
from tianshou_ext.runs import Which, load_run_policy
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import read_facts

__all__ = ["CellworldReport", "keep_for_report", "report"]

SETTINGS = "cellworld.json"
HELD_OUT = "held_out.hdf5"


@dataclass
class CellworldReport:
    """What was found; prints as Markdown tables."""

    folder: Path
    figures: dict[str, Any]

    def __str__(self) -> str:
        lines: list[str] = []
        tables = (quality_table(self.figures), likeness_table(self.figures))
        for header, rows in filter(None, (*tables, seeds_table(self.figures))):
            lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines.append("")
        return "\n".join([*lines, str(self.folder / "report.html")])


def keep_for_report(
    folder: Path,
    env_options: Mapping[str, Any],
    train: ReplayBuffer,
    held_out: ReplayBuffer,
    env: Any,
    about: Mapping[str, Any],
) -> None:
    """Put into a run's folder what ``report`` needs beside the checkpoint.

    :param env_options: arguments of ``make_cellworld_env``, as JSON can hold them.
    :param env: made with these; its actions must be discrete.
    :param train: the mouse episodes that are not held out.
    :param about: facts on the mice, the same for runs that hold out the same episodes.
    """
    cells = np.array(env.loader.open_locations)
    settings = {
        "env": dict(env_options),
        "data": dict(about),
        "trained_actions": counts(np.asarray(train.act), len(env.locations)).tolist(),
        "trained_cells": cell_counts(np.asarray(train.obs)[:, :2], cells).tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_buffer(held_out, folder / HELD_OUT)
    _write_json(folder / SETTINGS, settings)


def report(
    runs: Sequence[Path],
    /,
    *,
    out: Path | None = None,
    episodes: int = 100,
    seed: int = 0,
    fast: bool = False,
    sampled: bool = False,
    which: Which = "last",
    also: tuple[Literal["goal", "random", "planner"], ...] = ("goal",),
    jobs: int = 1,
    progress: bool = True,
) -> CellworldReport:
    """Compare policies with a mouse, and their scores; draw paths, maps, fields and values.

    :param runs: folders of runs on the cellworld, or folders that hold some.
    :param out: folder of the report; else report/ in the first run's folder.
    :param episodes: to play for each policy.
    :param seed: of the first episode; the others count up.
    :param fast: play in the environment of ``fast=True``: the same numbers, by its own arithmetic.
    :param sampled: draw actions from all policies, also from those that take the likeliest.
    :param which: the policy as the run left it, or at its best test.
    :param also: play these too: always the goal, random actions, the planner.
    :param jobs: processes that play; the figures are the same for any number.
    :param progress: show progress bars.
    :raises InputError: if there is no run, or runs differ in environment or held-out episodes.
    """
    if episodes < 1 or jobs < 1:
        raise InputError(f"expected an episode and a job at least, got {episodes} and {jobs}")
    folders = sorted({path.parent for run in runs for path in Path(run).rglob(SETTINGS)})
    if not folders:
        raise InputError(
            f"expected runs on the cellworld under {', '.join(map(str, runs))}, found none; give "
            f"folders that hold a {SETTINGS}"
        )
    settings = _settings(folders)
    out = folders[0] / "report" if out is None else Path(out)
    options = json.dumps({**settings["env"], "fast": fast})
    players = {
        label: Player("run", options, str(folder), which, sampled)
        for label, folder in _labels(folders).items()
    }
    players |= {kind: Player(kind, options) for kind in also}
    env = next(iter(players.values())).make_env()
    arena = arena_of(env)
    mouse = Mouse.from_buffer(load_buffer(folders[0] / HELD_OUT), settings, arena.cells)
    subjects = []
    for label, player in players.items():
        seeds = range(seed, seed + episodes)
        subject = Subject(label, player, [])
        if player.kind == "run":  # before playing, which takes long: a faulty run is told at once
            subject.policy = load_run_policy(Path(player.folder), env, which)
            subject.mind = thoughts(subject.policy, mouse.obs)
            subject.act = subject.mind.act
        elif player.kind == "goal":
            subject.act = np.full(len(mouse.act), goal_action(env))
        subjects.append(subject)
    for subject in subjects:
        subject.episodes = play(
            subject.player, seeds, jobs=jobs, label=subject.label, progress=progress
        )
        subject.figures = measure(subject, mouse)
    for subject in subjects:
        add_values(subject, subjects, mouse)
    figures = {
        "env": json.loads(options),
        "data": settings["data"],
        "seeds": [seed, seed + episodes - 1],
        "sampled": sampled,
        "which": which,
        "mouse": references(mouse),
        "policies": {
            subject.label: {**_about(subject.player), **subject.figures} for subject in subjects
        },
        "versions": versions(),
    }
    _write_json(out / "report.json", figures)
    write_page(out, figures, subjects, mouse, arena, env.locations)
    return CellworldReport(out, figures)


def write_page(
    out: Path,
    figures: Mapping[str, Any],
    subjects: Sequence[Subject],
    mouse: Mouse,
    arena: Arena,
    locations: Any,
) -> None:
    """Draw every picture into ``out`` as PNG, and write ``report.html`` with all of them inside.

    :param locations: (A, 2) destinations of the actions.
    """
    env, held, played = figures["env"], figures["mouse"]["held_out"], figures["seeds"]
    drawn = (
        "drawn" if figures["sampled"] else "the likeliest, or drawn where a run's config says so"
    )
    weights = "at its best test" if figures["which"] == "best" else "at its end"
    page = Page(f"Cellworld {env.get('world', '')}: how like a mouse, and how good")
    page.text(
        f"Held out: {held['episodes']} pieces of mouse episodes, {held['transitions']:,} "
        f"transitions, {held['reached_goal']} times the goal, {held['captures']} captures. Played: "
        f"seeds {played[0]} to {played[1]}, actions {drawn}, weights of a run {weights}."
    )
    page.text(f"Environment: {env}. Mice: {figures['data']}. Versions: {figures['versions']}.")
    page.heading("How good")
    page.text(QUALITY)
    page.table(*quality_table(figures))
    seeds = seeds_table(figures)
    if seeds is not None:
        page.heading("Over seeds")
        page.text(SEEDS)
        page.table(*seeds)
    page.heading("How like a mouse")
    page.text(LIKENESS)
    page.table(*likeness_table(figures))
    page.text(softmax_note(len(locations)))
    pictures = dict(PICTURES)
    values = values_table(figures)
    if values is not None:
        page.heading("Q and V")
        page.text(VALUES)
        page.table(*values)
        pictures |= VALUE_PICTURES
    page.heading("Pictures")
    for name, (draw, caption) in pictures.items():
        figure = draw(subjects, mouse, arena, locations)
        page.picture(save_png(figure, out / f"{name}.png"), caption)
    page.write(out / "report.html")


def _settings(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what all runs have in common."""
    first: dict[str, Any] = read_facts(folders[0], SETTINGS)
    for folder in folders[1:]:
        other = read_facts(folder, SETTINGS)
        for part in ("env", "data"):
            if other[part] != first[part]:
                raise InputError(
                    f"expected runs in one environment with the same episodes held out, got "
                    f"{first[part]} in {folders[0]} and {other[part]} in {folder}; report on them "
                    "separately"
                )
    return first


def _labels(folders: Sequence[Path]) -> dict[str, Path]:
    """Name runs by method; where that is not enough by what differs in settings, seed, folder."""
    facts = [read_facts(folder) for folder in folders]
    names = [str(fact.get("label") or fact["method"]) for fact in facts]
    for extra in (_differing(names, facts), [f"seed {fact.get('seed', 0)}" for fact in facts]):
        if len(set(names)) < len(names):
            names = [f"{name} {more}".strip() for name, more in zip(names, extra, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} in {folder}" for name, folder in zip(names, folders, strict=True)]
    return dict(zip(names, folders, strict=True))


def _differing(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run the settings in which runs of its name differ."""
    said = []
    for name, fact in zip(names, facts, strict=True):
        alike = [f["config"] for n, f in zip(names, facts, strict=True) if n == name]
        differ = {k: v for k, v in fact["config"].items() if any(o.get(k) != v for o in alike)}
        said.append(", ".join(f"{key} {value}" for key, value in differ.items()))
    return said


def _about(player: Player) -> dict[str, Any]:
    """Return the facts of a run that stand beside its figures."""
    if player.kind != "run":
        return {}
    facts = read_facts(Path(player.folder))
    names = ("method", "dataset", "config", "seed", "max_epoch", "update_per_epoch", "batch_size")
    return {"folder": player.folder} | {name: facts.get(name) for name in names}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    atomic_write(path, lambda partial: partial.write_text(text))
