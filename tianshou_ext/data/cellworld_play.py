"""Data sets of cellworld's BotEvade, made on the user's machine by the planner and by chance.

A level is a list of shares of uniformly random actions; each contributes an equal number of steps:

    random          random actions only
    planner-noisy   the planner, and a random action in every fifth step
    planner         the planner only
    mixed           the three, one after the other

The rewards are the environment's own: 1 for the goal, -1 for a capture.
``info/source`` says who chose each action: chance (0) or the planner (2).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext import __version__
from tianshou_ext.checkpoint import versions
from tianshou_ext.data.cache import cached
from tianshou_ext.data.hdf5 import read_provenance
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.envs.cellworld import make_cellworld_env
from tianshou_ext.errors import InputError
from tianshou_ext.planning.planned import PLANNER, RANDOM
from tianshou_ext.planning.tlppo import TLPPOPlanner

NOISY = 0.2
LEVELS: dict[str, tuple[float, ...]] = {
    "random": (1.0,),
    "planner-noisy": (NOISY,),
    "planner": (0.0,),
    "mixed": (1.0, NOISY, 0.0),
}
"""Level to shares of random actions."""
TASK = "cellworld"
WORLD = "21_05"
"""World of the task without one in its name."""
BLOCK = 1024
"""Rows written at once."""

Row = dict[str, Any]


def world_of(task: str) -> str:
    """Return the world that a task names: ``cellworld`` is 21_05, ``cellworld_00_00`` is 00_00.

    :raises InputError: if it names none.
    """
    name, _, world = task.partition("_")
    if name != TASK:
        raise InputError(f"expected cellworld or, with a world, cellworld_00_00, got {task!r}")
    return world or WORLD


def task_of(world: str) -> str:
    """Return the task that names a world."""
    return TASK if world == WORLD else f"{TASK}_{world}"


def level_file(
    task: str, level: str, steps: int, *, seed: int = 0, show_progress: bool = True
) -> Path:
    """Return a level's data set in the cache, collecting it if the cache has none yet.

    :raises InputError: as ``write_level``.
    """
    name = f"{task}_{level}_{steps}_seed{seed}_{__version__}.hdf5"

    def make(path: Path) -> None:
        write_level(path, task, level, steps, seed=seed, show_progress=show_progress)

    return cached(f"cellworld_data/{name}", make)


def collect_level(
    task: str, level: str, steps: int, *, seed: int, out: Path | None, progress: bool
) -> str:
    """Make a level's data set, as ``behaviour.collect`` does, and return a line on it.

    :param task: ``cellworld``, or with a world: ``cellworld_00_00``.
    :param out: the file to make; left out, one in the cache folder, made once.
    :raises InputError: as ``write_level``.
    """
    if out is None:
        path = level_file(task, level, steps, seed=seed, show_progress=progress)
    else:
        path = Path(out).expanduser()
        write_level(path, task, level, steps, seed=seed, show_progress=progress)
    about = read_provenance(path)
    if not about["episodes"]:
        return f"{path}: {steps:,} steps, no whole episode"
    return (
        f"{path}: {steps:,} steps, {about['episodes']:,} whole episodes, of which "
        f"{about['survived']:.2f} survived, with {about['captures']:.2f} captures and "
        f"{about['length']:.0f} steps each"
    )


def write_level(
    path: Path, task: str, level: str, steps: int, *, seed: int, show_progress: bool = True
) -> dict[str, Any]:
    """Collect a level's data set; the same arguments give the same rows on the same machine.

    :return: the provenance.
    :raises InputError: if there is no such level or world, or there are fewer steps than parts.
    :raises ImportError: if cellworld's packages are missing.
    """
    if level not in LEVELS:
        raise InputError(f"expected a level of {', '.join(LEVELS)} for {task}, got {level!r}")
    shares = LEVELS[level]
    if steps < len(shares):
        raise InputError(
            f"expected at least {len(shares)} steps for {task} {level}, got {steps}; ask for more"
        )
    env: Any = make_cellworld_env(world=world_of(task), fast=True)
    provenance = {
        "source": "planner and chance",
        "task": task,
        "level": level,
        "seed": seed,
        "random_shares": shares,
        "observation_space": str(env.observation_space),
        "action_space": str(env.action_space),
        "max_episode_steps": env.unwrapped.max_step,
        "versions": versions(),
        "ordered": True,
    }
    edges = np.linspace(0, steps, len(shares) + 1).astype(int)
    ends: list[Row] = []
    start = time.monotonic()
    bar = tqdm(total=steps, desc=f"{task} {level}", unit=" steps", disable=not show_progress)
    with bar, BufferWriter(path, steps, provenance=provenance) as writer:
        for k, share in enumerate(shares):
            rows = play(env, share, np.random.default_rng([seed, k]))
            left = int(edges[k + 1] - edges[k])
            while left:
                block = [next(rows) for _ in range(min(left, BLOCK))]
                left -= len(block)
                cut = block[-1]
                if not left and not cut["terminated"]:
                    cut["truncated"] = True
                ends += [row["end"] for row in block if row["end"]]
                columns = {key: np.array([row[key] for row in block]) for key in block[0]}
                columns.pop("end")
                source = columns.pop("by")
                writer.append(**columns, info={"source": source})
                bar.update(len(block))
        means = {key: float(np.mean([end[key] for end in ends])) for key in (ends or [{}])[0]}
        writer.provenance.update(
            episodes=len(ends),
            score_mean=means.pop("return", None),
            score_std=float(np.std([end["return"] for end in ends])) if ends else None,
            steps_per_second=round(steps / (time.monotonic() - start), 1),
            **means,
        )
    env.close()
    return writer.provenance


def play(env: Any, share: float, rng: np.random.Generator) -> Iterator[Row]:
    """Act for ever; yield each step as columns, ``by`` whom it was, and ``end`` of an episode.

    :param share: of random actions.
    """
    planner = TLPPOPlanner(env) if share < 1.0 else None
    while True:
        obs, info = env.reset(seed=int(rng.integers(2**31)))
        if planner is not None:
            planner.reset()
        score, length, over = 0.0, 0, False
        while not over:
            if planner is None or rng.random() < share:
                by, act = RANDOM, int(rng.integers(env.action_space.n))
            else:
                by, act = PLANNER, planner.act()
            obs_next, rew, terminated, truncated, info = env.step(act)
            if planner is not None:
                planner.observe()
            score, length, over = score + rew, length + 1, terminated or truncated
            end = {"return": score, "length": length, **info} if over else None
            yield {
                "obs": obs,
                "act": act,
                "rew": rew,
                "terminated": terminated,
                "truncated": truncated,
                "obs_next": obs_next,
                "by": np.uint8(by),
                "end": end,
            }
            obs = obs_next
