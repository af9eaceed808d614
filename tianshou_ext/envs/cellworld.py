"""Cellworld: a mouse runs through a hexagonal arena, past a robot, on gymnasium 0.28 and 1.x alike.

The simulator is the authors' own (``cellworld_gym`` 0.0.139, gymnasium ids ``CellworldBotEvade-v0``
and others). ``CellworldEnv`` puts right what keeps it from training and from being reproduced: one
observation object for all steps, angles that are never wrapped, the distance of a robot that is
out of sight, seeds without effect, state that outlives a reset, ``info`` on the last step only, and
``render``. A step is 0.25 s; an action is a place to run to, and the simulator finds the way.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch

from tianshou_ext.envs.cellworld_actions import (
    ContinuousToDiscrete,
    DiscreteToContinuous,
    checked_action,
    nearest_action,
)
from tianshou_ext.envs.cellworld_cache import check_files, import_cellworld, use_cache
from tianshou_ext.envs.cellworld_observations import (
    OBSERVATION_NAMES,
    Reward,
    clean,
    make_observation_space,
    make_reward_function,
)
from tianshou_ext.errors import InputError

__all__ = [
    "ACTIONS",
    "OBSERVATION_NAMES",
    "TASKS",
    "CellworldEnv",
    "ContinuousToDiscrete",
    "DiscreteToContinuous",
    "make_cellworld_env",
    "nearest_action",
    "use_cache",
]

Array = np.ndarray[Any, Any]

TASKS = ("BotEvade", "Oasis", "DualEvade")
ACTIONS = ("cells", "gateways", "continuous")
REWARD = {"puffed": -1.0, "finished": 1.0}

_OPTIONS = (
    "use_predator",
    "time_step",
    "point_of_view",
    "agent_render_mode",
    "prey_max_forward_speed",
    "prey_max_turning_speed",
    "predator_prey_turning_speed_ratio",
    "goal_locations",
    "goal_sequence_generator",
    "end_on_pov_goal",
    "use_other",
)


class CellworldEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One of the package's environments, repaired.

    ``info`` holds after every reset and step, as floats, ``captures`` so far, ``survived`` (1 once
    the goal was reached without a capture) and ``success`` (the package's ``is_success``: the
    same). ``model`` and ``loader`` are the package's; ``locations`` (n, 2) are the destinations of
    the discrete actions.

    :param env: the package's environment.
    :param names: of its observation's numbers.
    :param reward: as ``make_cellworld_env`` takes it.
    """

    def __init__(self, env: Any, names: Sequence[str], reward: Reward) -> None:
        super().__init__(env)
        self.model: Any = env.model
        self.loader: Any = env.loader
        self.locations: Array = np.array(env.action_list, dtype=np.float64)
        self.observation_names = tuple(names)
        self.observation_space = make_observation_space(names)
        env.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / env.time_step)}
        env.render_mode = "rgb_array" if self.model.view else None
        self.model.render = False  # which would draw ten pictures a step
        self._reward = env.reward_function = make_reward_function(reward, names, self.observe)
        self._random_state = random.Random().getstate()
        self._over = True

    def observe(self, raw: Array) -> Array:
        """Return a clean copy of the package's observations.

        :param raw: (..., 11), or as many numbers as the task has.
        :returns: float32 of the same shape: angles in -pi..pi, a hidden robot's distance 1.
        """
        return clean(raw, self.observation_names)

    @contextmanager
    def private_random(self) -> Iterator[None]:
        """Let the package, which draws from Python's global generator, draw from this env's own.

        Within, torch has one thread: in a forked process, a second one would wait for ever.
        """
        outside, threads = random.getstate(), torch.get_num_threads()
        random.setstate(self._random_state)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            self._random_state = random.getstate()
            random.setstate(outside)
            torch.set_num_threads(threads)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; the same seed starts the same one, whatever happened before.

        :raises InputError: if the seed is not an integer from 0.
        """
        if seed is not None:
            if not isinstance(seed, int | np.integer) or seed < 0:
                raise InputError(f"expected a seed from 0, got {seed!r}; pass an integer or None")
            gymnasium.Env.reset(self.unwrapped, seed=int(seed))  # gymnasium's own generator
            self._random_state = random.Random(int(seed)).getstate()
        with self.private_random():
            _forget(self.model)
            raw, _ = self.env.reset(seed=seed, options=options)
        self._over = False
        return self.observe(raw), self._info()

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Run towards a place for 0.25 s.

        :param action: an index into ``locations``, or the place itself, x and y; outside the arena
            it stands for the nearest cell.
        :raises InputError: if it is no action.
        :raises gymnasium.error.ResetNeeded: before a reset, after an episode's end and ``close``.
        """
        if self._over or not self.model.running:
            raise gymnasium.error.ResetNeeded(
                "expected reset() before this step, got none; call it"
            )
        action = checked_action(action, self.action_space)
        with self.private_random():
            raw, reward, terminated, truncated, _ = self.env.step(action)
        finished = self.observation_names.index("finished")
        if terminated and not raw[finished]:  # DualEvade looks before it ends the episode
            raw[finished] = 1.0
            reward = self._reward(raw)
        truncated = bool(truncated) and not terminated
        self._over = bool(terminated) or truncated
        return self.observe(raw), float(reward), bool(terminated), truncated, self._info()

    def _info(self) -> dict[str, Any]:
        data = getattr(self.unwrapped, "prey_data", getattr(self.model, "prey_data", self.model))
        survived = float(not self.model.running and data.puff_count == 0)
        return {"captures": float(data.puff_count), "survived": survived, "success": survived}

    def render(self) -> Any:
        """Return the arena from above, (692, 800, 3) uint8.

        :raises InputError: if the environment was made without ``render=True``.
        """
        view = self.model.view
        if view is None:
            raise InputError("expected an environment to render; make it with render=True")
        view.screen.fill(view.background_color)
        for k in view.render_steps_sequence:
            view.render_steps[k](view.screen, view.coordinate_converter)
        return np.ascontiguousarray(view.get_screen())


def _forget(model: Any) -> None:
    """Clear what the package keeps over a reset."""
    model.time = 0.0
    model.puff_cool_down = 0
    for agent in model.agents.values():
        agent.new_destination = None
        agent.destination_wait = agent.navigation_plan_update_wait = 0
        agent.dynamics = type(agent.dynamics)(0, 0)
    for name in ("prey_data", "prey_data_1", "prey_data_2"):
        if hasattr(model, name):
            getattr(model, name).reset()
    if hasattr(model, "goal_achieved_time"):  # Oasis keeps these in the model
        model.puffed = False
        model.goal_achieved_time = 0
        model.predator_prey_distance = 1


@contextmanager
def _off_screen(view: Any) -> Iterator[None]:
    """Let the package draw on a surface in memory: no window, no display, no sound."""
    pygame = view.pygame
    view.pygame = SimpleNamespace(
        init=lambda: None,
        display=SimpleNamespace(set_mode=pygame.Surface),
        time=pygame.time,
        key=SimpleNamespace(get_pressed=dict),
    )
    try:
        yield
    finally:
        view.pygame = pygame


def make_cellworld_env(
    task: str = "BotEvade",
    world: str = "21_05",
    actions: str = "cells",
    *,
    fast: bool = False,
    reward: Reward | None = None,
    max_steps: int = 300,
    robot_speed_ratio: float = 0.15,
    render: bool = False,
    **options: Any,
) -> CellworldEnv:
    """Make one environment.

    :param task: ``BotEvade``; or ``Oasis``, which needs ``goal_locations=[(x, y), ...]``, at least
        three, or ``DualEvade``.
    :param world: two numbers, such as ``21_05``, or ``00_00`` without obstacles.
    :param actions: where to run to: one of all free ``cells``, one of a few ``gateways``, or
        ``continuous`` x and y.
    :param fast: eight times the speed, see ``cellworld_fast``: the same numbers, by arithmetic that
        is not the package's own; for training.
    :param reward: coefficient by name of observation, or [coefficient, offset]; or a function of
        the package's observation. By default -1 for a capture and 1 for the goal.
    :param max_steps: after which an episode is truncated.
    :param robot_speed_ratio: the robot's speed over the mouse's.
    :param render: whether ``render()`` will be called.
    :param options: further ones of the package's environment, such as ``use_predator=False``.
    :raises InputError: if one of these is none of the known, or the world cannot be had.
    :raises ImportError: if the packages are missing.
    """
    if task not in TASKS:
        why = " (whose observation spoils its own belief)" if task == "BotEvadeBelief" else ""
        raise InputError(
            f"expected a task of {', '.join(TASKS)}, got {task!r}{why}; use one of them"
        )
    if actions not in (ACTIONS if task == "BotEvade" else ACTIONS[:2]):
        raise InputError(
            f"expected actions of {', '.join(ACTIONS if task == 'BotEvade' else ACTIONS[:2])} for "
            f"{task}, got {actions!r}; use one of these"
        )
    for name, value, least in (
        ("max_steps", max_steps, 1),
        ("robot_speed_ratio", robot_speed_ratio, 0),
    ):
        if not isinstance(value, int | float | np.number) or not least <= value < math.inf:
            raise InputError(f"expected {name} of at least {least}, got {value!r}")
    package = import_cellworld().envs
    use_cache(world)
    base_class = getattr(package, f"{task}Env")
    known = [one for one in inspect.signature(base_class).parameters if one in _OPTIONS]
    if unknown := [one for one in options if one not in known]:
        raise InputError(
            f"expected options among {', '.join(known)} for {task}, got {', '.join(unknown)}"
        )
    if task == "Oasis" and len(options.get("goal_locations", ())) < 3:
        raise InputError("expected goal_locations=[(x, y), ...] of at least three places for Oasis")
    if actions == "continuous":
        options["action_type"] = base_class.ActionType.CONTINUOUS
    options = {"use_predator": True, "use_lppos": actions == "gateways", **options}
    with _off_screen(importlib.import_module("cellworld_game.view")):
        try:
            base = base_class(world_name=world, max_step=max_steps, render=render, **options)
        except ValueError:
            check_files(world)
            raise
    if len(base.action_list) == 0:
        raise InputError(f"expected a world with {actions}, got {world!r}, which has none")
    if base.model.use_predator:
        speed = list(base.model.agents.values())[-1].max_forward_speed  # of a mouse
        base.model.predator.max_forward_speed = speed * robot_speed_ratio
    if fast:
        importlib.import_module("tianshou_ext.envs.cellworld_fast").accelerate(base.model)
    names = getattr(package, f"{task}Observation").fields
    return CellworldEnv(base, names, REWARD if reward is None else reward)
