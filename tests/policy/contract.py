"""What the contract tests need: every way of using every method, and updates outside a trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch
from torch import Tensor, nn

from tianshou_ext.data.replay import Transitions
from tianshou_ext.policy import METHODS, OfflinePolicy
from tianshou_ext.tianshou_api import ReplayBuffer, training_step

KINDS = {"discrete": ["discrete"], "continuous": ["continuous"], "both": ["discrete", "continuous"]}


@dataclass(frozen=True)
class Setting:
    """A method with a kind of observations and of actions."""

    name: str
    obs: str
    actions: str

    def __str__(self) -> str:
        return f"{self.name}-{self.obs}-{self.actions}"

    @property
    def kinds(self) -> tuple[str, str, str]:
        """Arguments of ``make_policy``."""
        return self.name, self.obs, self.actions

    @property
    def has_td_target(self) -> bool:
        return "next observation" in METHODS[self.name].needs

    @property
    def learns_from_time_outs(self) -> bool:
        """Whether rows cut by time are kept: no action follows them that a method could need."""
        return self.has_td_target and not METHODS[self.name].policy_class.needs_next_act


SETTINGS = [
    Setting(name, obs, actions)
    for name, method in METHODS.items()
    for obs in ("vector", "pixel")
    for actions in KINDS[method.actions]
]


def update(
    policy: OfflinePolicy, buffer: ReplayBuffer, times: int = 1, sample_size: int = 8
) -> list[dict[str, float]]:
    """Take gradient steps and return their metrics."""
    with training_step(policy):
        return [
            policy.update(buffer=buffer, sample_size=sample_size).get_loss_stats_dict()
            for _ in range(times)
        ]


def random_obs(policy: OfflinePolicy, count: int, seed: int = 3) -> Any:
    """Return raw observations of the policy's space."""
    rng = np.random.default_rng(seed)
    shape = (count, *policy.observation_space.shape)
    if policy.observation_space.dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.normal(size=shape).astype(np.float32)


def choose(policy: OfflinePolicy, obs: Any) -> Batch:
    """Return what the policy answers to raw observations."""
    return policy(Batch(obs=obs, info={}))


def same(a: Any, b: Any) -> bool:
    """Whether two nested states hold the same, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def ended_rows(setting: Setting, end: str, next_value: float) -> ReplayBuffer:
    """Return 12 transitions that each end an episode.

    :param end: ``terminated`` or ``truncated``.
    :param next_value: every ``obs_next`` is filled with it.
    """
    rng = np.random.default_rng(5)
    buffer = ReplayBuffer(12)
    shape, dtype = ((4, 44, 44), np.uint8) if setting.obs == "pixel" else ((3,), np.float32)
    for _ in range(12):
        discrete = setting.actions == "discrete"
        buffer.add(
            Batch(
                obs=rng.integers(0, 200, shape).astype(dtype),
                act=int(rng.integers(4)) if discrete else rng.uniform(-1, 1, 2),
                rew=float(rng.normal()),
                terminated=end == "terminated",
                truncated=end == "truncated",
                obs_next=np.full(shape, next_value, dtype),
                info={},
            )
        )
    return buffer


class Lookup(nn.Module):
    """A network that is a table: its output for state s is row s, (..., S, *output).

    :param rows: the table; tensors in a tuple give a tuple of outputs.
    :param axis: of the states.
    """

    def __init__(self, *rows: Any, axis: int = 0) -> None:
        super().__init__()
        self.rows = nn.ParameterList([torch.tensor(r, dtype=torch.float32) for r in rows])
        self.axis = axis

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Any, Any]:
        index = obs[:, 0].long()
        outputs = tuple(row.index_select(self.axis, index) for row in self.rows)
        return (outputs[0] if len(outputs) == 1 else outputs), state


def transitions(
    obs: list[int],
    act: list[Any],
    rew: list[float],
    terminated: list[bool],
    obs_next: list[int],
    discount: float = 0.5,
) -> Transitions:
    """Return transitions between numbered states."""
    return Transitions(
        obs=torch.tensor(obs, dtype=torch.float32).unsqueeze(1),
        act=torch.tensor(act),
        rew=torch.tensor(rew, dtype=torch.float32),
        terminated=torch.tensor(terminated, dtype=torch.float32),
        obs_next=torch.tensor(obs_next, dtype=torch.float32).unsqueeze(1),
        discount=torch.full((len(obs),), discount),
    )


def sgd(*modules: nn.Module, lr: float = 1.0) -> torch.optim.Optimizer:
    """Return plain gradient descent, so that a step is the gradient."""
    return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=lr)
