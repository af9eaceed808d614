"""Scores of runs over seeds: what stands in a table, from the ``progress.csv`` of each run.

A run's score is the mean over its last tests, of one that went online those online; never its best
one. Over seeds: interquartile mean with a stratified bootstrap interval of 95 % (Agarwal et al.,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021, arXiv
2108.13264), computed by rliable.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import normalized_score
from tianshou_ext.files import atomic_write
from tianshou_ext.trainer import FACTS, PROGRESS, read_facts, read_progress

SETTINGS = ("update_per_epoch", "transitions", "optimism")
FREE = ("max_epoch", "episode_per_test", "seed")
"""Of a run, by which runs are told apart; and of acting, by which they are not."""
LAST = 10
"""Tests at the end of a run that make its score."""


@dataclass
class Group:
    """Runs that differ in their seed only.

    :param facts: task, dataset, label, number of gradient steps and of environment steps (0
        without an online phase), settings of the method, all the same in the runs.
    :param scores: of each run.
    :param special: the settings in which other runs of the same label on the same data differ.
    """

    facts: dict[str, Any]
    normalised: bool
    scores: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    seeds: list[int | str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    special: dict[str, Any] = field(default_factory=dict)
    iqm: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)


@dataclass
class Summary:
    """A row for each group of runs; prints as a Markdown table.

    :param left_out: what could not be read as a run, and why.
    """

    groups: list[Group]
    left_out: list[str]

    def __str__(self) -> str:
        lines = [
            "| task | data | method | steps | acted | seeds | IQM (95 %) | each | last test "
            "| best test |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for group in self.groups:
            facts, spread = group.facts, f"{group.interval[0]:.1f} to {group.interval[1]:.1f}"
            iqm = f"{group.iqm:.1f} ({spread})" if len(group.scores) > 1 else f"{group.iqm:.1f}"
            special = ", ".join(f"{key} {value}" for key, value in group.special.items())
            cells = [
                facts["task"],
                facts["dataset"],
                f"{facts['label']} ({special})" if special else facts["label"],
                f"{facts['steps']:,}",
                f"{facts['env_steps']:,}",
                ", ".join(map(str, group.seeds)),
                iqm if group.normalised else f"{iqm} (returns)",
                *(", ".join(f"{x:.1f}" for x in s) for s in (group.scores, group.last, group.best)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"\nleft out: {one}" for one in self.left_out]
        return "\n".join(lines)


def report(runs: Sequence[Path], /, *, json_out: Path | None = None) -> Summary:
    """Print a table of runs: interquartile mean over seeds, and its interval.

    :param runs: folders of runs, or folders that hold some.
    :param json_out: write the numbers to this file too.
    :raises InputError: if there is no run, or one seed of a row twice, or several seeds and
        rliable is missing.
    """
    folders = sorted({path.parent for run in runs for path in Path(run).rglob(PROGRESS)})
    groups: dict[str, Group] = {}
    left_out: list[str] = []
    for folder in folders:
        try:
            rows = read_progress(folder / PROGRESS)
            if len(rows) < 2:  # no test after training has begun
                continue
            facts = _facts(folder, rows[-1])
            online = [row for row in rows if row.get("env_step", 0)]
            returns = np.array([row["return_mean"] for row in online or rows[1:]])
        except (ValueError, KeyError, TypeError) as error:
            left_out.append(f"{folder}, which is no run or a damaged one ({error!r})")
            continue
        try:
            scores, normalised = normalized_score(facts["task"], returns), True
        except InputError:
            scores, normalised = returns, False
        seed = facts.pop("seed")
        group = groups.setdefault(json.dumps(facts, sort_keys=True), Group(facts, normalised))
        if seed in group.seeds:
            raise InputError(
                f"expected one run for each seed, got seed {seed} of the same method, settings, "
                f"data and steps in {group.folders[group.seeds.index(seed)]} and {folder}; give "
                "the folders that are meant"
            )
        group.scores.append(float(scores[-LAST:].mean()))
        group.last.append(float(scores[-1]))
        group.best.append(float(scores.max()))
        group.seeds.append(seed)
        group.folders.append(str(folder))
    if not groups:
        also = f" ({'; '.join(left_out)})" if left_out else ""
        raise InputError(
            f"expected runs with tests under {', '.join(map(str, runs))}, found none{also}; give "
            f"folders that hold a {PROGRESS}"
        )
    for group in groups.values():
        only = group.scores[0]
        single = len(group.scores) == 1
        group.iqm, group.interval = (
            (only, (only, only)) if single else interquartile_mean(group.scores)
        )
    name_differences([*groups.values()])
    summary = Summary([*groups.values()], left_out)
    if json_out is not None:
        text = json.dumps([vars(group) for group in summary.groups], indent=1)
        atomic_write(json_out, lambda partial: partial.write_text(text))
    return summary


def _facts(folder: Path, end: Mapping[str, float]) -> dict[str, Any]:
    """Return what a run says about itself; runs of other origin go by their folder.

    :param end: the last row of its progress.
    """
    about: dict[str, Any] = defaultdict(str)
    if (folder / FACTS).exists():
        about |= read_facts(folder)
    seed = about.get("seed")
    if seed is None:  # as of a run that code of one's own began
        seed = int(folder.name) if folder.name.isdigit() else folder.name
    return {
        "task": about["task"] or folder.parent.name,
        "dataset": about["dataset"],
        "label": about["label"] or about["method"],
        "steps": int(end["step"]),
        "env_steps": int(end.get("env_step", 0)),
        "settings": {
            **{name: about[name] for name in SETTINGS if about.get(name) is not None},
            **(about["mixing"] or {}),
            **{key: one for key, one in (about["online"] or {}).items() if key not in FREE},
            **(about["config"] or {}),
            "batch_size": about["batch_size"],
            "precision": about["precision"] or "fp32",
        },
        "seed": seed,
    }


def name_differences(groups: Sequence[Group]) -> None:
    """Note in ``special`` in which settings groups of one label on the same data differ."""
    for group in groups:
        same = ("task", "dataset", "label")
        others = [o for o in groups if all(o.facts[key] == group.facts[key] for key in same)]
        settings = group.facts["settings"]
        group.special = {
            key: value
            for key, value in settings.items()
            if any(other.facts["settings"].get(key) != value for other in others)
        }


def interquartile_mean(
    scores: Sequence[float], *, repetitions: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the interquartile mean of runs (R,) and its 95 % bootstrap interval.

    :param repetitions: bootstrap samples.
    :param seed: of these samples.
    :raises InputError: if rliable is missing.
    """
    try:
        from rliable import library, metrics
    except ImportError as error:
        raise InputError(
            "expected the rliable package for intervals over seeds, found none; "
            'pip install "tianshou_ext[report]"'
        ) from error
    values = {"runs": np.asarray(scores, dtype=np.float64)[:, None]}
    before = np.random.get_state()  # noqa: NPY002, which is where rliable draws from
    np.random.seed(seed)  # noqa: NPY002
    points, intervals = library.get_interval_estimates(
        values, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=repetitions
    )
    np.random.set_state(before)  # noqa: NPY002
    low, high = intervals["runs"][:, 0]
    return float(points["runs"][0]), (float(low), float(high))
