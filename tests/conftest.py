"""Tiny buffers and policies that all tests share: fixed seeds, CPU, one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch

from tianshou_ext.policy import METHODS, OfflinePolicy
from tianshou_ext.tianshou_api import ReplayBuffer

torch.set_num_threads(1)
CELLWORLD = Path(__file__).parents[2] / "shared/data/cellworld"  # not in a user's checkout
if CELLWORLD.exists():
    os.environ.setdefault("CELLWORLD_CACHE", str(CELLWORLD))

OBS_SIZE = 3
NUM_ACTIONS = 4
ACT_SIZE = 2
FRAME = (44, 44)
STACK = 4

SPACES: dict[str, Any] = {
    "vector": Box(-np.inf, np.inf, (OBS_SIZE,), np.float32),
    "pixel": Box(0, 255, (STACK, *FRAME), np.uint8),
    "discrete": Discrete(NUM_ACTIONS),
    "continuous": Box(-2.0, 4.0, (ACT_SIZE,), np.float32),
}
"""Kinds of observations and of actions."""

EPISODES = ((7, "terminated"), (5, "truncated"), (9, "terminated"), (6, "truncated"))
"""Length and end of each episode of the vector buffers."""

SMALL = {
    "hidden_sizes": (16,),
    "vae_hidden_sizes": (16,),
    "vae_steps": 5,
    "num_quantiles": 8,
    "embed_dim": 16,
    "context_len": 4,
    "warmup_steps": 2,
    "target_update_freq": 3,
    "lr": 1e-2,
}
"""Config fields that make any method small, where it has them."""


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)


def make_vector_buffer(actions: str = "discrete") -> ReplayBuffer:
    """Return a full buffer of ``EPISODES``, filled row by row."""
    rng = np.random.default_rng(7)
    buffer = ReplayBuffer(sum(length for length, _ in EPISODES))
    for length, end in EPISODES:
        obs = rng.normal(size=(length + 1, OBS_SIZE)).astype(np.float32)
        for t in range(length):
            last = t == length - 1
            buffer.add(
                Batch(
                    obs=obs[t],
                    act=random_action(rng, actions),
                    rew=float(rng.normal()),
                    terminated=last and end == "terminated",
                    truncated=last and end == "truncated",
                    obs_next=obs[t + 1],
                    info={},
                )
            )
    return buffer


def make_pixel_buffer(actions: str = "discrete") -> ReplayBuffer:
    """Return 3 episodes of uint8 frames, one a row; the truncated one has an extra last row."""
    rng = np.random.default_rng(8)
    episodes = ((6, "terminated"), (5, "truncated"), (7, "terminated"))
    rows = sum(length + (end == "truncated") for length, end in episodes)
    buffer = ReplayBuffer(rows, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True)
    for length, end in episodes:
        frames = rng.integers(0, 256, (length + 1, *FRAME), dtype=np.uint8)
        for t in range(length + (end == "truncated")):
            stacked = np.stack([frames[max(0, t - k)] for k in range(STACK)][::-1])
            extra = t == length
            buffer.add(
                Batch(
                    obs=stacked,
                    act=random_action(rng, actions),
                    rew=0.0 if extra else float(rng.normal()),
                    terminated=end == "terminated" and t == length - 1,
                    truncated=extra,
                    obs_next=stacked,
                    info={},
                )
            )
    return buffer


def random_action(rng: np.random.Generator, actions: str) -> Any:
    """Return one action as a logger stores it: an int, or numbers in [-1, 1]."""
    if actions == "discrete":
        return int(rng.integers(NUM_ACTIONS))
    return rng.uniform(-1.0, 1.0, ACT_SIZE).astype(np.float32)


def small_options(name: str) -> dict[str, Any]:
    """Return the config fields of ``SMALL`` that a method has."""
    known = {f.name for f in fields(METHODS[name].config_class)}
    return {key: value for key, value in SMALL.items() if key in known}


def build_policy(
    name: str, obs: str = "vector", actions: str = "discrete", *, seed: int = 0, **options: Any
) -> OfflinePolicy:
    """Build a small policy for a kind of observations and actions."""
    chosen = {**small_options(name), **options}
    policy_class = METHODS[name].policy_class
    return policy_class.build(SPACES[obs], SPACES[actions], seed=seed, **chosen)


@pytest.fixture
def discrete_buffer() -> ReplayBuffer:
    return make_vector_buffer("discrete")


@pytest.fixture
def continuous_buffer() -> ReplayBuffer:
    return make_vector_buffer("continuous")


@pytest.fixture
def pixel_buffer() -> ReplayBuffer:
    return make_pixel_buffer()


@pytest.fixture
def make_buffer() -> Callable[[str, str], ReplayBuffer]:
    """Return the maker of a buffer: kind of observations, kind of actions."""

    def make(obs: str, actions: str) -> ReplayBuffer:
        return make_pixel_buffer(actions) if obs == "pixel" else make_vector_buffer(actions)

    return make


@pytest.fixture
def make_policy() -> Callable[..., OfflinePolicy]:
    """Return ``build_policy``: method, kind of observations, kind of actions, options."""
    return build_policy


@pytest.fixture
def cartpole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


@pytest.fixture
def cartpole_buffer(cartpole: gymnasium.Env[Any, Any]) -> ReplayBuffer:
    """Return 200 random steps of CartPole."""
    rng = np.random.default_rng(2)
    buffer = ReplayBuffer(200)
    obs, _ = cartpole.reset(seed=2)
    for _ in range(200):
        act = int(rng.integers(2))
        obs_next, rew, terminated, truncated, _ = cartpole.step(act)
        row = Batch(obs=obs, act=act, rew=float(rew), obs_next=obs_next, info={})
        row.update(terminated=terminated, truncated=truncated)
        buffer.add(row)
        obs = cartpole.reset()[0] if terminated or truncated else obs_next
    return buffer
