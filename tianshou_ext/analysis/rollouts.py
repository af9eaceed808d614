"""Episodes of policies in the cellworld: played side by side, each the same whatever is beside it.

An episode is determined by its seed: it resets the environment and whatever the player draws. So
the figures do not depend on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from tianshou_ext.analysis.divergence import mean_interval
from tianshou_ext.analysis.values import thoughts
from tianshou_ext.data.convert.common import ordered_map
from tianshou_ext.envs.cellworld import make_cellworld_env, nearest_action
from tianshou_ext.errors import InputError
from tianshou_ext.runs import Which, load_run_policy

__all__ = [
    "Episode",
    "Player",
    "goal_action",
    "play",
    "summarise",
]

Array = np.ndarray[Any, Any]
Kind = Literal["run", "goal", "random", "planner"]
MAX_STEPS = 10_000
"""Steps after which an episode without an end is an error of the environment."""


@dataclass(frozen=True)
class Player:
    """Who plays, and where; hashable, so that a process sets it up once.

    :param kind: ``run``: the policy of a run's folder; ``goal``: always the location nearest to
        the goal; ``random``: uniformly; ``planner``: TLPPO.
    :param env: arguments of ``make_cellworld_env`` as JSON.
    :param sampled: draw actions by the policy's probabilities instead of taking the likeliest.
    """

    kind: Kind
    env: str
    folder: str = ""
    which: Which = "last"
    sampled: bool = False

    def make_env(self) -> Any:
        """Return the environment."""
        return make_cellworld_env(**json.loads(self.env))


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    :param obs: (T + 1, D) with the final observation.
    :param act: (T,) or (T, A).
    :param rew: (T,)
    """

    seed: int
    obs: Array
    act: Array
    rew: Array
    terminated: bool
    captures: float
    survived: float


def goal_action(env: Any) -> int:
    """Return the action whose destination is nearest to the goal."""
    return int(nearest_action(env.locations, np.array([env.model.goal_location]))[0])


def play(
    player: Player, seeds: Sequence[int], *, jobs: int = 1, label: str = "", progress: bool = True
) -> list[Episode]:
    """Play an episode for each seed.

    :param jobs: processes; the episodes are the same for any number.
    :param label: of the progress bar.
    """
    bar = tqdm(total=len(seeds), desc=f"playing {label}".strip(), disable=not progress)
    episodes = []
    with bar:
        for episode in ordered_map(partial(_episode, player), seeds, jobs):
            episodes.append(episode)
            bar.update()
            survived = np.mean([done.survived for done in episodes])
            bar.set_postfix(survived=f"{survived:.2f}", steps=len(episode.rew))
    return episodes


def summarise(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return means with 95 % bootstrap intervals, [mean, low, high] each."""
    columns = {
        "return": [episode.rew.sum() for episode in episodes],
        "survived": [episode.survived for episode in episodes],
        "reached_goal": [float(episode.terminated) for episode in episodes],
        "captures": [episode.captures for episode in episodes],
        "length": [len(episode.rew) for episode in episodes],
    }
    figures: dict[str, Any] = {name: [*mean_interval(v)] for name, v in columns.items()}
    return {"episodes": len(episodes), **figures}


@lru_cache(maxsize=1)
def _set_up(player: Player) -> tuple[Any, Callable[[Any], Any], Any, Any]:
    """Return the environment, what chooses, and what is called at a reset and after a step."""
    torch.set_num_threads(1)
    env = player.make_env()
    if player.kind == "planner":
        from tianshou_ext.planning.tlppo import TLPPOPlanner

        planner = TLPPOPlanner(env)
        return env, lambda obs: planner.act(), lambda seed: planner.reset(), planner.observe
    if player.kind == "goal":
        nearest = goal_action(env)
        return env, lambda obs: nearest, lambda seed: None, lambda: None
    if player.kind == "random":
        # gymnasium draws from the space's own generator, which an episode's seed sets.
        return env, lambda obs: env.action_space.sample(), env.action_space.seed, lambda: None
    policy = load_run_policy(Path(player.folder), env, player.which)

    draws = policy.generators["act"]
    drawing = getattr(policy.config, "sample_actions", False)  # act() draws

    @torch.no_grad()
    def choose(obs: Any) -> Any:
        if player.sampled and not drawing:  # of the probabilities reported
            probs = torch.from_numpy(thoughts(policy, obs[None]).log_prob).exp()
            return int(torch.multinomial(probs, 1, generator=draws))
        act, _ = policy.act(policy.normalize(obs[None]), True)
        return policy.map_action(act.numpy())[0]

    return env, choose, draws.manual_seed, lambda: None


def _episode(player: Player, seed: int) -> Episode:
    env, choose, start, observe = _set_up(player)
    obs, _ = env.reset(seed=seed)
    start(seed)
    rows, acts, rews = [np.array(obs)], [], []
    for _ in range(MAX_STEPS):
        act = choose(obs)
        obs, rew, terminated, truncated, info = env.step(act)
        observe()
        rows.append(np.array(obs))
        acts.append(act)
        rews.append(float(rew))
        if terminated or truncated:
            return Episode(
                seed,
                np.stack(rows),
                np.array(acts),
                np.array(rews),
                bool(terminated),
                float(info["captures"]),
                float(info["survived"]),
            )
    raise InputError(f"expected episodes of at most {MAX_STEPS} steps, got one without an end")
