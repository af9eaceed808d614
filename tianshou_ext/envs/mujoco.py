"""MuJoCo tasks by gymnasium's ids, or any other environment with vector observations.

Old ids (``Hopper-v2``, ``Hopper-v3``) need packages that no longer install. They stand for the
oldest version that runs: -v4, on gymnasium 0.28 and 1.x alike, whose observations, rewards and
ends are those of -v2 and -v3 except for contact forces (ant, humanoid) and the physics engine.

Tasks of gymnasium-robotics (PointMaze_UMaze-v3) and dm_control (dm_control/walker-walk-v0) are
known once these packages are installed. Observations of several parts are joined to one vector in
the order of gymnasium's ``flatten``, which is that of our converters of Minari and RL Unplugged.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Tuple
from gymnasium.wrappers import FlattenObservation  # type: ignore[attr-defined]
from tianshou.env import DummyVectorEnv

from tianshou_ext.errors import InputError

FIRST_VERSION = 4
"""The first version of gymnasium's own that runs on DeepMind's bindings."""
PACKAGES = {
    r"(Adroit|AntMaze_|Fetch|Franka|HandManipulate|HandReach|PointMaze_)[\w-]+": (
        "gymnasium_robotics",
        "robotics",
    ),
    r"dm_control/[\w-]+": ("shimmy", "dmc"),
}
"""Names of tasks, the package that registers them, and our extra that brings it."""
KITCHEN = '; FrankaKitchen of gymnasium-robotics 1.4.2 needs pip install "mujoco<3.12"'


def mujoco_tasks() -> list[str]:
    """Return the ids of gymnasium's MuJoCo tasks that can run here, sorted."""
    return sorted(
        task
        for task, spec in gymnasium.registry.items()
        if "mujoco" in str(spec.entry_point) and (spec.version or 0) >= FIRST_VERSION
    )


def resolve_task(task: str) -> str:
    """Return the id that ``task`` stands for, and print a line if that is another one.

    :param task: an id of gymnasium; ``Hopper-v2``, ``Hopper-v3`` and ``Hopper`` are mapped.
    :raises InputError: if no environment has that name.
    """
    register(task)
    known = mujoco_tasks()
    match = re.fullmatch(r"(?P<name>\w+?)(?:-v(?P<version>\d+))?", task)
    same = [one for one in known if match and one.rpartition("-v")[0] == match["name"]]
    if same and task not in known and int(match["version"] or 0) < FIRST_VERSION:  # type: ignore[index]
        print(f"{task} stands for {same[0]}, which runs on the mujoco package")
        return same[0]
    if task in gymnasium.registry or ":" in task:  # a colon names the module that registers it
        return task
    raise InputError(
        f"expected a task that is installed, got {task!r}; known are {', '.join(same or known)}, "
        "and what else gymnasium.make accepts"
    )


def render_by_egl() -> None:
    """Let MuJoCo render by EGL, which needs no display, unless it is told otherwise."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")


def register(task: str) -> None:
    """Let the package that has a task register it.

    :raises InputError: if the package is missing.
    """
    if task in gymnasium.registry:
        return
    for names, (package, extra) in PACKAGES.items():
        if not re.fullmatch(names, task):
            continue
        if not os.environ.get("DISPLAY"):  # dm_control looks when it is imported
            render_by_egl()
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"expected the {package} package for {task}, found none; "
                f'pip install "tianshou_ext[{extra}]"'
            ) from error
        if hasattr(gymnasium, "register_envs"):  # older ones ask packages by themselves
            gymnasium.register_envs(module)


def make_mujoco_env(
    task: str, *, render_mode: str | None = None, max_episode_steps: int | None = None
) -> gymnasium.Env[Any, Any]:
    """Make one environment.

    :param task: as ``resolve_task`` returns it.
    :param render_mode: ``rgb_array``, ``human`` or None.
    :param max_episode_steps: after which an episode is truncated; the task's own if None.
    :raises InputError: if the task is unknown or refuses to start.
    :raises ImportError: if it needs the mujoco package and that is missing.
    """
    spec = gymnasium.registry.get(task)
    if spec is not None and "mujoco" in str(spec.entry_point) and find_spec("mujoco") is None:
        raise ImportError(
            f"expected the mujoco package for {task}, found none; "
            'pip install "tianshou_ext[mujoco]"'
        )
    if render_mode == "rgb_array":
        render_by_egl()
    # An environment of one's own may know no render mode, not even None.
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    try:
        with warnings.catch_warnings():  # that there is a newer version
            warnings.simplefilter("ignore")
            env = gymnasium.make(task, disable_env_checker=True, **options)
    except Exception as error:  # whatever a task's own code raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said += f", {frame.filename}:{frame.lineno}"
        raise InputError(
            f"expected to make {task}, but that failed ({said}); use another task, such as "
            f"{', '.join(mujoco_tasks()[:8])}{KITCHEN if 'Kitchen' in task else ''}"
        ) from error
    parts = isinstance(env.observation_space, Dict | Tuple)
    return FlattenObservation(env) if parts else env


class SeededVectorEnv(DummyVectorEnv):
    """Environments that start from the same seeds whenever all of them are reset.

    So every test of a run plays the same episodes' starts, and a run that was interrupted tests
    as one that was not.
    """

    def __init__(self, env_fns: Any, seeds: list[int]) -> None:
        super().__init__(env_fns)
        self._seeds = seeds

    def reset(self, env_id: Any = None, **kwargs: Any) -> Any:
        if env_id is None:
            self.seed(self._seeds)
        return super().reset(env_id, **kwargs)


def make_mujoco_venv(
    task: str, num_envs: int, *, seed: int, max_episode_steps: int | None = None
) -> SeededVectorEnv:
    """Make environments to test in, in this process.

    :param task: as ``resolve_task`` returns it.
    :param seed: from which each environment gets its own.
    :raises InputError: if the task is unknown or ``num_envs`` is not positive.
    """
    if num_envs < 1:
        raise InputError(f"expected at least one environment, got {num_envs}; one needs 1")
    seeds = [int(one) for one in np.random.SeedSequence(seed).generate_state(num_envs)]
    make = partial(make_mujoco_env, task, max_episode_steps=max_episode_steps)
    return SeededVectorEnv([make] * num_envs, seeds)
