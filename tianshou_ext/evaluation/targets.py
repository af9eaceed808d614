"""What a policy that acts for a return gets, for each of several returns asked for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import score_text
from tianshou_ext.experiment import make_test_collector
from tianshou_ext.files import atomic_write
from tianshou_ext.policy.in_context import InContextPolicy

TARGETS = "targets.csv"
COLUMNS = ("target_return", "return_mean", "return_std", "episodes")


def play_targets(
    policy: InContextPolicy, envs: Any, targets: Sequence[float], episodes: int
) -> list[dict[str, float]]:
    """Play episodes for each return asked for; the policy asks for what it did before, then.

    :param envs: vectorised environments.
    :param episodes: of each target, at least 1.
    :return: a row per target: target_return, return_mean, return_std, episodes.
    :raises InputError: if a number is out of range.
    """
    if episodes < 1:
        raise InputError(f"expected at least one episode of each target, got {episodes}; change it")
    collector, before = make_test_collector(policy, envs), policy.asked
    rows = []
    try:
        for target in targets:
            policy.set_target_return(target)
            collector.reset()
            stats = collector.collect(n_episode=episodes)
            values = (target, stats.returns.mean(), stats.returns.std(), len(stats.returns))
            rows.append(dict(zip(COLUMNS, map(float, values), strict=True)))
    finally:
        policy.asked = before
    return rows


def report_targets(
    policy: InContextPolicy,
    envs: Any,
    targets: Sequence[float],
    episodes: int,
    *,
    folder: Path,
    task: str,
) -> list[dict[str, float]]:
    """Play as ``play_targets``, print a line per target, and write ``targets.csv``.

    :param folder: of the run.
    :param task: for the normalised score.
    """
    rows = play_targets(policy, envs, targets, episodes)
    best = max(row["return_mean"] for row in rows)
    for row in rows:
        better = " <- the best" if row["return_mean"] == best and len(rows) > 1 else ""
        print(
            f"asked for {row['target_return']:g}: return {score_text(task, row['return_mean'])} ± "
            f"{row['return_std']:.1f} over {row['episodes']:.0f} episodes{better}"
        )

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(folder / TARGETS, write)
    return rows
