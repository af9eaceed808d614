"""Data sets in the manner of D4RL, made on the user's machine by packaged behaviour policies.

A level is a list of policies that contribute an equal share of the steps each:

    random          uniformly random actions
    medium          the snapshot of SAC's training whose return is nearest a third of the expert's
    medium-replay   random, then a series of snapshots up to medium: it stands in for the replay
                    buffer of that training, which is not packaged
    medium-expert   medium, then expert
    expert          the last snapshot

All act stochastically, as they did in training. ``tianshou_ext/behaviour/<task>/manifest.json``
says how they were trained and what they score; ``tools/pack_behaviour.py`` writes it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tianshou_ext
from tianshou_ext.checkpoint import versions
from tianshou_ext.data.cache import cached
from tianshou_ext.data.hdf5 import read_provenance
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.envs.mujoco import make_mujoco_env, resolve_task
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import score_text
from tianshou_ext.policy.checks import check_spaces

__all__ = [
    "LEVELS",
    "Behaviour",
    "NumpyActor",
    "chooser",
    "collect",
    "find_behaviour",
    "level_file",
    "play_episodes",
]

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert")
RANDOM = "random"
"""The name of uniformly random actions among the snapshots of a level."""
FOLDER = Path(tianshou_ext.__file__).parent / "behaviour"
BLOCK = 4096
"""Rows written at once."""
GRID = 2.0**-12
"""Multiples of this are what a policy's activations are rounded to. Its float16 weights are such of
2^-24, so sums of products have 36 binary places: exact in float64 up to 2^17, in any order."""
COLLECTION = 2
"""To be counted up with changes by which the same arguments give other data."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Behaviour:
    """The behaviour policies of a task.

    :param folder: with the snapshots; None if there are none.
    :param facts: of the manifest: how they were trained, and a score for each.
    :param levels: level to names of snapshots.
    """

    folder: Path | None
    facts: dict[str, Any]
    levels: dict[str, list[str]]

    @property
    def digest(self) -> str:
        """What changes when a level's data do, 8 characters."""
        text = json.dumps([self.facts, self.levels, COLLECTION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def policies(self, task: str, level: str) -> list[str]:
        """Return the names of a level's snapshots.

        :raises InputError: if the task lacks the level.
        """
        if level not in self.levels:
            hint = "" if self.folder else "; for a task without behaviour policies bring a data set"
            raise InputError(
                f"expected a level that {task} has ({', '.join(self.levels)}), got {level!r}{hint}"
            )
        return self.levels[level]


def find_behaviour(task: str) -> Behaviour:
    """Return the behaviour policies packaged for a task; ``random`` is there for every task.

    :raises InputError: if the manifest cannot be read.
    """
    folder = FOLDER / task.rpartition("-v")[0].lower()
    path = folder / "manifest.json"
    if not path.exists():
        return Behaviour(None, {}, {RANDOM: [RANDOM]})
    try:
        facts = json.loads(path.read_text())
        levels = {RANDOM: [RANDOM], **facts.pop("levels")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected a manifest of behaviour policies at {path}, got a file that cannot be read "
            f"as one ({error}); install tianshou_ext again"
        ) from error
    return Behaviour(folder, facts, {one: levels[one] for one in LEVELS if one in levels})


class NumpyActor:
    """A ``GaussianActor`` with tanh, sampled one observation at a time in numpy.

    Processors add up products in different orders; an action that is off by the last bit soon
    leads to another episode. So that all machines make the same data, sums are exact (``GRID``).

    :param weights: its ``state_dict``, in float16 for exact sums.
    :param log_std_bounds: to which the logarithm of the deviation is clamped.
    """

    def __init__(self, weights: dict[str, Array], log_std_bounds: tuple[float, float]) -> None:
        names = sorted(
            (key.removesuffix(".weight") for key in weights if key.endswith(".weight")),
            key=lambda name: (name == "head", int(name.rpartition(".")[2]) if "." in name else 0),
        )
        self._layers = [
            tuple(np.asarray(weights[f"{name}.{kind}"], np.float64) for kind in ("weight", "bias"))
            for name in names
        ]
        self._bounds = log_std_bounds

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of an observation and of an action."""
        return self._layers[0][0].shape[1], self._layers[-1][0].shape[0] // 2

    def __call__(self, obs: Array, noise: Array) -> Array:
        """Return an action (A,) float32 in [-1, 1].

        :param obs: (D,) float32.
        :param noise: (A,) standard normal numbers; zeros give the mode.
        """
        x = obs.astype(np.float64)
        for weight, bias in self._layers[:-1]:
            x = np.maximum(weight @ _on_grid(x) + bias, 0.0)
        weight, bias = self._layers[-1]
        mean, log_std = np.split(weight @ _on_grid(x) + bias, 2)
        act: Array = np.tanh(mean + np.exp(np.clip(log_std, *self._bounds)) * noise)
        return act.astype(np.float32)


def _on_grid(x: Array) -> Array:
    rounded: Array = np.rint(x / GRID) * GRID
    return rounded


def load_actor(behaviour: Behaviour, snapshot: str, env: Any) -> NumpyActor:
    """Read a snapshot's actor.

    :raises InputError: if the file is missing or damaged, or is not of the environment's spaces.
    :raises ImportError: if the safetensors package is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            "expected the safetensors package for behaviour policies, found none; "
            'pip install "tianshou_ext[mujoco]"'
        ) from error
    path = Path(str(behaviour.folder)) / f"{snapshot}.safetensors"
    try:
        actor = NumpyActor(load_file(path), tuple(behaviour.facts["log_std_bounds"]))
        found = actor.sizes
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise InputError(
            f"expected the weights of a behaviour policy at {path}, got none that can be read "
            f"({error}); install tianshou_ext again"
        ) from error
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    if found != sizes:
        raise InputError(
            f"expected an environment of {found[0]} observed numbers and {found[1]} actions for "
            f"{path.parent.name}'s behaviour policies, got {sizes[0]} and {sizes[1]}; use the task "
            f"{behaviour.facts.get('task')}"
        )
    return actor


def chooser(
    behaviour: Behaviour, snapshot: str, env: Any, rng: np.random.Generator
) -> Callable[[Array], Array]:
    """Return what chooses actions (A,) in [-1, 1] for observations (D,)."""
    size = env.action_space.shape[0]
    if snapshot == RANDOM:
        return lambda obs: rng.uniform(-1.0, 1.0, size).astype(np.float32)
    actor = load_actor(behaviour, snapshot, env)
    return lambda obs: actor(obs, rng.standard_normal(size, np.float32))


def transitions(
    env: Any, choose: Callable[[Array], Array], rng: np.random.Generator
) -> Iterator[tuple[Array, Array, float, bool, bool, Array]]:
    """Act for ever; yield obs, act, rew, terminated, truncated, obs_next of each step.

    :param choose: from an observation (D,) float32 to an action (A,) in [-1, 1].
    :param rng: of the environment's seed.
    """
    low, high = env.action_space.low, env.action_space.high
    obs = np.asarray(env.reset(seed=int(rng.integers(2**31)))[0], np.float32)
    while True:
        act = choose(obs)
        # In double precision, an action of a range of [-1, 1] is carried out as it is.
        scaled = (low + (high - low) * (act.astype(np.float64) + 1.0) / 2.0).astype(low.dtype)
        found, rew, terminated, truncated, _ = env.step(scaled)
        obs_next = np.asarray(found, np.float32)
        yield obs, act, float(rew), bool(terminated), bool(truncated), obs_next
        over = terminated or truncated
        obs = np.asarray(env.reset()[0], np.float32) if over else obs_next


def play_episodes(
    env: Any, choose: Callable[[Array], Array], episodes: int, rng: np.random.Generator
) -> list[float]:
    """Return the returns of ``episodes`` episodes; parameters as those of ``transitions``."""
    returns, score = [], 0.0
    for _, _, rew, terminated, truncated, _ in transitions(env, choose, rng):
        score += rew
        if terminated or truncated:
            returns.append(score)
            score = 0.0
            if len(returns) == episodes:
                break
    return returns


def play(
    env: Any,
    choose: Callable[[Array], Array],
    steps: int,
    rng: np.random.Generator,
    write: Callable[[dict[str, Array]], Any],
) -> list[float]:
    """Act for ``steps`` steps; the episode that they cut is truncated.

    :param write: called with blocks of rows, as ``BufferWriter.append`` takes them.
    :return: the returns of the episodes that came to their own end.
    """
    returns, score = [], 0.0
    rows: dict[str, Array] = {}
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    played = itertools.islice(transitions(env, choose, rng), steps)
    for step, (obs, act, rew, terminated, truncated, obs_next) in enumerate(played):
        row = step % BLOCK
        if row == 0:
            rows = _empty_rows(min(BLOCK, steps - step), *sizes)
        over = terminated or truncated
        rows["obs"][row], rows["act"][row], rows["rew"][row] = obs, act, rew
        rows["terminated"][row], rows["obs_next"][row] = terminated, obs_next
        rows["truncated"][row] = truncated or (step == steps - 1 and not over)
        score += rew
        if over:
            returns.append(score)
            score = 0.0
        if row == len(rows["rew"]) - 1:
            write(rows)
    return returns


def _empty_rows(count: int, obs_size: int, act_size: int) -> dict[str, Array]:
    return {
        "obs": np.empty((count, obs_size), np.float32),
        "act": np.empty((count, act_size), np.float32),
        "rew": np.empty(count, np.float32),
        "terminated": np.empty(count, bool),
        "truncated": np.empty(count, bool),
        "obs_next": np.empty((count, obs_size), np.float32),
    }


def level_file(
    task: str, level: str, steps: int, *, seed: int = 0, show_progress: bool = True
) -> Path:
    """Return a level's data set in the cache, collecting it if the cache has none yet.

    :raises InputError: as ``write_level``.
    """
    behaviour = find_behaviour(task)
    behaviour.policies(task, level)
    name = f"{task.replace('/', '_')}_{level}_{steps}_seed{seed}_{behaviour.digest}.hdf5"

    def make(path: Path) -> None:
        print(f"collecting {steps:,} steps of {task} {level} to {path}")
        write_level(path, task, level, steps, seed=seed, show_progress=show_progress)

    return cached(f"mujoco/{name}", make)


def write_level(
    path: Path, task: str, level: str, steps: int, *, seed: int, show_progress: bool = True
) -> dict[str, Any]:
    """Collect a level's data set; the same arguments and versions give the same bytes.

    :return: the provenance.
    :raises InputError: if the task lacks the level or is not of vectors and bounded actions, or
        there are fewer steps than policies.
    """
    behaviour = find_behaviour(task)
    policies = behaviour.policies(task, level)
    if steps < len(policies):
        raise InputError(
            f"expected at least a step for each of the {len(policies)} policies of {task} {level}, "
            f"got {steps}; ask for more"
        )
    env: Any = make_mujoco_env(task)
    check_spaces(env.observation_space, env.action_space, "continuous")
    if len(env.observation_space.shape or ()) != 1:
        raise InputError(
            f"expected observations that are a vector, got {env.observation_space} of {task}; use "
            "another task"
        )
    provenance = {
        "source": "behaviour policies",
        "task": task,
        "level": level,
        "seed": seed,
        "policies": policies,
        "behaviour": behaviour.facts,
        "observation_space": str(env.observation_space),
        "action_space": str(env.action_space),
        "max_episode_steps": env.spec.max_episode_steps if env.spec else None,
        "versions": {**versions(), "mujoco": version("mujoco") if find_spec("mujoco") else None},
        "ordered": True,
    }
    if level == "medium-replay":
        provenance["notes"] = [
            "snapshots from random to medium stand in for the replay buffer of medium's training"
        ]
    edges = np.linspace(0, steps, len(policies) + 1).astype(int)
    returns: list[float] = []
    bar = tqdm(total=steps, desc=f"{task} {level}", unit=" steps", disable=not show_progress)
    with bar, BufferWriter(path, steps, provenance=provenance) as writer:

        def write(rows: dict[str, Array]) -> None:
            writer.append(**rows)
            bar.update(len(rows["rew"]))

        for k, snapshot in enumerate(policies):
            rng = np.random.default_rng([seed, k])
            choose = chooser(behaviour, snapshot, env, rng)
            returns += play(env, choose, int(edges[k + 1] - edges[k]), rng, write)
            if returns:
                bar.set_postfix_str(f"return {np.mean(returns):.0f}")
        writer.provenance.update(
            episodes=len(returns),
            score_mean=float(np.mean(returns)) if returns else None,
            score_std=float(np.std(returns)) if returns else None,
        )
    env.close()
    return writer.provenance


def collect(
    *,
    task: str = "Hopper-v4",
    level: str = "medium",
    steps: int = 1_000_000,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> str:
    """Collect a data set in the manner of D4RL with the packaged behaviour policies.

    :param task: Hopper-v4, Walker2d-v4, HalfCheetah-v4; others have the level random only;
        cellworld, or with a world cellworld_00_00.
    :param level: random, medium, medium-replay, medium-expert or expert; of cellworld random,
        planner, planner-noisy or mixed.
    :param steps: transitions.
    :param seed: of the environment and the policies' noise.
    :param out: the buffer file to make; left out, one in the cache folder, made once.
    :param progress: show a progress bar.
    :raises InputError: if the task lacks the level, or the seed is negative.
    """
    if seed < 0:
        raise InputError(f"expected a seed of at least 0, got {seed}; change it")
    if task.startswith("cellworld"):
        from tianshou_ext.data.cellworld_play import collect_level

        return collect_level(task, level, steps, seed=seed, out=out, progress=progress)
    task = resolve_task(task)
    if out is None:
        path = level_file(task, level, steps, seed=seed, show_progress=progress)
    else:
        path = Path(out).expanduser()
        write_level(path, task, level, steps, seed=seed, show_progress=progress)
    about = read_provenance(path)
    mean, std = about["score_mean"], about["score_std"]
    scored = f"{score_text(task, mean)} ± {std:.1f}" if about["episodes"] else "of none"
    return f"{path}: {steps:,} steps, {about['episodes']:,} whole episodes, return {scored}"
