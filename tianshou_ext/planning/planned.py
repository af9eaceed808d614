"""Environments that a planner looks into, and the rows of a buffer that it chose.

A planner needs the environment itself, where a policy only gets observations. ``PlannedEnv`` sits
around one environment of a vector environment, tells its planner of every reset and step, whoever
acts, and writes into ``info`` which environment it is: that is how a policy finds the planner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from tianshou_ext.data.growing import Growing
from tianshou_ext.data.mixing import MixedReplay
from tianshou_ext.data.replay import Transitions, filled_rows
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

if TYPE_CHECKING:
    from tianshou_ext.policy.base import OfflinePolicy

Array = np.ndarray[Any, Any]

SLOT = "planner_slot"
"""In ``info``: the number of a planned environment, counted from 1; 0 or nothing in others."""
RANDOM, AGENT, PLANNER = range(3)
"""Who chose an action, in ``buffer.policy.source``; at the beginning of a run it may be chance."""


class Planner(Protocol):
    """What chooses actions by looking into its environment."""

    def reset(self) -> None:
        """Begin an episode, after the environment was reset."""

    def observe(self) -> None:
        """Take in the environment's last step; not all of its actions were the planner's."""

    def act(self) -> Any:
        """Return an action of the environment."""


class PlannedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with its planner.

    :param slot: its number, from 1.
    :param on_end: called at an episode's end with this environment and ``info``.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        planner: Planner,
        slot: int,
        on_end: Callable[[PlannedEnv, dict[str, Any]], None],
    ) -> None:
        super().__init__(env)
        self.planner, self.slot, self.on_end = planner, slot, on_end
        self.error: Exception | None = None
        self._start()

    def _start(self) -> None:
        self.begun = False
        """Whether somebody has chosen the episode's first action."""
        self.rate = 0.0
        self.episode_planned = False
        self.planned, self.steps, self.episode_return = 0, 0, 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._start()
        self.error = None
        self._tell(self.planner.reset)
        return obs, {**info, SLOT: self.slot}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, rew, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.episode_return += float(rew)
        self._tell(self.planner.observe)
        if terminated or truncated:
            self.on_end(self, info)
        return obs, rew, terminated, truncated, {**info, SLOT: self.slot}

    def _tell(self, call: Callable[[], None]) -> None:
        """Let the planner know; what goes wrong in it is no fault of the environment."""
        try:
            call()
        except Exception as error:
            self.error = error

    def plan(self) -> Array:
        """Return the planner's action, in the action space's type.

        :raises Exception: whatever the planner raised, now or at an earlier step of the episode.
        :raises InputError: if it is no action.
        """
        if self.error is not None:
            raise self.error
        given, space = self.planner.act(), self.env.action_space
        act = np.asarray(given).astype(space.dtype, casting="same_kind")
        if not space.contains(act if act.ndim else act[()]):
            raise InputError(f"expected an action of {space} of the planner, got {given!r}")
        return act


class TestedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment in which the agent is tested alone.

    :param on_end: called with an episode's return and the last ``info``.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], on_end: Callable[[float, dict[str, Any]], None]
    ) -> None:
        super().__init__(env)
        self.on_end = on_end
        self.episode_return = 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.episode_return = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, rew, terminated, truncated, info = self.env.step(action)
        self.episode_return += float(rew)
        if terminated or truncated:
            self.on_end(self.episode_return, info)
        return obs, rew, terminated, truncated, info


def workers_of(envs: Any) -> list[Any]:
    """Return the workers of vector environments that run in this process.

    :raises InputError: if they run in others.
    """
    inner = envs
    while not hasattr(inner, "workers") and hasattr(inner, "venv"):
        inner = inner.venv
    workers = list(getattr(inner, "workers", []))
    if not workers or not all(
        isinstance(getattr(one, "env", None), gymnasium.Env) for one in workers
    ):
        raise InputError(
            "expected vector environments in this process, for a planner looks into them, got "
            f"{type(envs).__name__}; use tianshou.env.DummyVectorEnv"
        )
    return workers


def bare(env: Any) -> Any:
    """Return an environment without what an earlier call put around it."""
    while isinstance(env, PlannedEnv | TestedEnv):
        env = env.env
    return env


def sources(buffer: ReplayBuffer) -> Array | None:
    """Return who chose the action of each row: RANDOM, AGENT or PLANNER.

    :return: (maxsize,) uint8, the buffer's own memory; None if nobody noted it.
    """
    noted = buffer._meta.get("policy")
    if noted is None or "source" not in noted.get_keys():
        return None
    column: Array = noted.source
    return column


def learn_from(agent: OfflinePolicy, buffer: ReplayBuffer, who: str) -> None:
    """Let an agent sample, of a buffer that is being filled, only what one of the two chose.

    :param who: ``planner`` or ``agent``.
    :raises InputError: if there are no such rows yet, nor a data set.
    """
    source = PLANNER if who == "planner" else AGENT
    if agent._staged is None or agent._staged[0] is not buffer:
        agent.process_buffer(buffer)
    staged = agent.staged
    if isinstance(staged, MixedReplay):
        if not isinstance(staged.online, ChosenRows):
            staged.online = ChosenRows(staged.online, source)
        return
    if not isinstance(staged, ChosenRows):
        growing = staged if isinstance(staged, Growing) else agent._growing(buffer)
        staged = ChosenRows(growing, source)
        agent._staged = (buffer, (), staged)
    staged.sync()
    if not len(staged):
        raise InputError(
            f"expected transitions of the {who} to learn from, got none yet; begin with a data "
            "set, with steps of acting alone, or store all"
        )


class ChosenRows(Growing):
    """Those rows of a buffer that is being filled whose actions were chosen by one.

    Rewards of several steps are still summed over all rows.

    :param source: AGENT or PLANNER.
    """

    def __init__(self, growing: Growing, source: int) -> None:
        self.growing, self.buffer, self.source = growing, growing.buffer, source
        self._chosen = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def sync(self) -> None:
        self.growing.sync()
        rows = filled_rows(self.growing.buffer)
        self._chosen = torch.from_numpy(rows[self._mine(rows)])

    def rows(self, numbers: Tensor) -> Tensor:
        return self._chosen[numbers]

    def rows_by_age(self, ages: Tensor) -> Tensor:
        rows = self.growing.rows_by_age(torch.arange(len(self.growing)))
        return rows[torch.from_numpy(self._mine(rows.numpy()))][ages]

    def _mine(self, rows: Array) -> Array:
        noted = sources(self.growing.buffer)
        return np.zeros(len(rows), bool) if noted is None else noted[rows] == self.source

    def gather(self, rows: Tensor, *, gamma: float = 0.99, n_step: int = 1) -> Transitions:
        return self.growing.gather(rows, gamma=gamma, n_step=n_step)
