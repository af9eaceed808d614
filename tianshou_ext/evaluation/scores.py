"""Normalised scores of the D4RL benchmark: 0 is the random policy, 100 the expert.

    score = 100 * (return - min) / (max - min)

The numbers are those of D4RL's own registrations (Farama-Foundation/D4RL, ``d4rl/infos.py``), in
``d4rl_reference_scores.csv`` beside this file.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tianshou_ext.errors import InputError

__all__ = [
    "Reference",
    "normalized_score",
    "reference_scores",
    "references",
    "robot_of",
    "score_function",
    "score_text",
]

# Tasks of gymnasium and gymnasium-robotics whose D4RL versions all share their reference scores.
FAMILIES = {
    "ant": "ant",
    "halfcheetah": "halfcheetah",
    "hopper": "hopper",
    "walker2d": "walker2d",
    "adroithanddoor": "door",
    "adroithandhammer": "hammer",
    "adroithandpen": "pen",
    "adroithandrelocate": "relocate",
    "frankakitchen": "kitchen",
}


@dataclass(frozen=True)
class Reference:
    """What D4RL registers about a dataset."""

    dataset: str
    """Its id."""
    minimum: float
    """Return of the random policy."""
    maximum: float
    """Return of the expert."""
    max_episode_steps: int | None
    """Time limit of its environment; None where none is registered."""
    dataset_file: str
    """Where its data are, below the address of all datasets."""


@cache
def references() -> dict[str, Reference]:
    """Return the references of all 176 ids."""
    table = files("tianshou_ext.evaluation").joinpath("d4rl_reference_scores.csv").read_text()
    return {
        row["env_id"]: Reference(
            row["env_id"],
            float(row["ref_min_score"]),
            float(row["ref_max_score"]),
            int(row["max_episode_steps"]) if row["max_episode_steps"] else None,
            row["dataset_file"],
        )
        for row in csv.DictReader(table.splitlines())
    }


def reference_scores(env_or_dataset_id: str) -> Reference:
    """Return the reference scores of a D4RL id or a gymnasium task.

    :param env_or_dataset_id: such as hopper-medium-v2, or Hopper-v4 where all D4RL ids of that
        robot share their scores. What a gymnasium task stands for is one of these ids.
    :raises InputError: if it is unknown.
    """
    table = references()
    if env_or_dataset_id in table:
        return table[env_or_dataset_id]
    task = re.fullmatch(r"([A-Za-z0-9]+)-v\d+", env_or_dataset_id)
    family = FAMILIES.get(task[1].lower()) if task else None
    if family is not None:
        return next(one for name, one in table.items() if name.startswith(f"{family}-"))
    close = difflib.get_close_matches(str(env_or_dataset_id).lower(), table, n=3, cutoff=0.5)
    near = f"; close ones are {', '.join(close)}" if close else "; one is hopper-medium-v2"
    raise InputError(
        f"expected a D4RL id or a task with reference scores, got {env_or_dataset_id!r}{near}"
    )


def robot_of(env_or_dataset_id: str) -> str | None:
    """Return the robot of a D4RL id or of a gymnasium task, in D4RL's words; None if unknown."""
    if env_or_dataset_id in references():
        return env_or_dataset_id.partition("-")[0]
    return FAMILIES.get(env_or_dataset_id.rpartition("-v")[0].lower())


def score_function(env_or_dataset_id: str) -> Callable[[float], float] | None:
    """Return the map from a return to D4RL's normalised score, or None for a task without one."""
    try:
        reference_scores(env_or_dataset_id)
    except InputError:
        return None
    return lambda value: float(normalized_score(env_or_dataset_id, value))


def normalized_score(env_or_dataset_id: str, returns: ArrayLike) -> np.ndarray[Any, Any]:
    """Return D4RL's normalised score, mostly 0 to 100.

    A standard deviation is no return: take that of the scores, not the score of that of returns.

    :param env_or_dataset_id: as in ``reference_scores``.
    :param returns: undiscounted returns of whole episodes, any shape.
    :return: scores of the same shape, float64.
    :raises InputError: if the id is unknown.
    """
    reference = reference_scores(env_or_dataset_id)
    span = reference.maximum - reference.minimum
    return 100.0 * (np.asarray(returns, dtype=np.float64) - reference.minimum) / span


def score_text(task: str, value: float) -> str:
    """Return a mean return in words, with its normalised score where the task has one."""
    try:
        return f"{value:.1f} (score {float(normalized_score(task, value)):.1f})"
    except InputError:
        return f"{value:.1f}"
