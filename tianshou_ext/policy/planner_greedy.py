"""Planner-greedy exploration: a planner acts at first, and hands over to the agent that learns.

From the README of hanshuo-shuo/Cellworld_Offline (offline RL with planner-greedy exploration), not
from a paper; its nearest relative is DAgger's mixture of expert and learner (arXiv 1011.0686). With
probability p the planner chooses an action, else the agent; p goes down over time (``Schedule``).
All goes into one buffer, with who chose it, and the agent learns from that buffer as it learns from
a data set. It is tested alone.

The policy is the agent to a trainer: learning, counters, optimizers and checkpoints are the
agent's. It adds the mixture, and its state to the checkpoint. Our own choices, where the README
says nothing: the three schedules, the mixture by step or by whole episode, and what is learned
from.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from tianshou.data import Batch
from torch import Tensor

from tianshou_ext.errors import InputError
from tianshou_ext.planning.handover import Handover
from tianshou_ext.planning.planned import (
    AGENT,
    PLANNER,
    RANDOM,
    SLOT,
    PlannedEnv,
    Planner,
    TestedEnv,
    bare,
    learn_from,
    sources,
    workers_of,
)
from tianshou_ext.planning.schedule import Schedule
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import method_name
from tianshou_ext.tianshou_api import BasePolicy, ReplayBuffer, training_step

__all__ = ["PlannerGreedyConfig", "PlannerGreedyPolicy"]

Array = np.ndarray[Any, Any]
Mixture = Literal["step", "episode"]
Store = Literal["all", "planner", "agent"]


def _agents(name: str, doc: str) -> Any:
    """Return a property that is the agent's."""

    def read(policy: Any) -> Any:
        return getattr(policy.agent, name)

    def write(policy: Any, value: Any) -> None:
        setattr(policy.agent, name, value)

    return property(read, write, doc=doc)


@dataclass(frozen=True, kw_only=True)
class PlannerGreedyConfig(PolicyConfig):
    """The agent's settings and those of the mixture, for the checkpoint."""

    method: str = ""
    """The agent's."""
    agent: dict[str, Any] = field(default_factory=dict)
    """All of its settings."""
    schedule: dict[str, Any] = field(default_factory=dict)
    mixture: Mixture = "step"
    store: Store = "all"


class PlannerGreedyPolicy(BasePolicy):
    """An agent that a planner shows, less and less often, what to do.

    Call ``attach`` with the training environments; in others the agent acts alone.

    :param planner: makes the planner of an environment; or a list of planners, one for each.
    :param agent: any policy of this package; it learns on as it did before.
    :param schedule: the planner's rate over time.
    :param mixture: choose who acts for each ``step`` or for each whole ``episode``.
    :param store: whose transitions the agent learns from: ``all``, the ``planner``'s or the
        ``agent``'s. The buffer has all of them.
    :param time_limit: seconds; where the planner takes longer the agent acts, so that a run is
        repeatable only if that does not happen. None waits for it.
    :param seed: of the draws of who acts.
    :raises InputError: if something is of another kind, or the agent cannot learn from a choice.
    """

    learns_online: ClassVar[bool] = True

    def __init__(
        self,
        planner: Callable[[Any], Planner] | Sequence[Planner],
        agent: OfflinePolicy,
        schedule: Schedule,
        *,
        mixture: Mixture = "step",
        store: Store = "all",
        time_limit: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        _check(agent, schedule, planner, mixture, store, time_limit)
        super().__init__(
            action_space=agent.action_space,
            observation_space=agent.observation_space,
            action_scaling=agent.action_scaling,
            action_bound_method=agent.action_bound_method,
            lr_scheduler=agent.lr_scheduler,
        )
        self.agent = agent
        self.schedule, self.mixture, self.store = schedule, mixture, store
        self.time_limit = time_limit
        shared = {one.name: getattr(agent.config, one.name) for one in fields(PolicyConfig)}
        self.config = PlannerGreedyConfig(
            **shared,
            method=method_name(agent),
            agent=asdict(agent.config),
            schedule=asdict(schedule),
            mixture=mixture,
            store=store,
        )
        state = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0]
        self._draws = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        self.handover = Handover(schedule)
        self._planner = planner
        self._envs: list[PlannedEnv] = []
        self._by_planner: Array | None = None  # rows of the last batch
        self._buffer: ReplayBuffer | None = None
        self._restored: Array | None = None

    # ---- the trainer's side: the agent's, but for the state of the mixture ------------------

    def __getattr__(self, name: str) -> Any:
        """Return what is the agent's: optimizers, normalisers, hooks of trainers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("agent"), name)

    num_updates = _agents("num_updates", "Gradient steps of the agent.")
    online_steps = _agents("online_steps", "Environment steps since the agent went online.")
    eps = _agents("eps", "The agent's share of uniformly random actions.")
    on_progress = _agents("on_progress", "Called now and then while the agent prepares.")
    show_progress = _agents("show_progress", "Whether that shows a bar.")
    metrics_interval = _agents("metrics_interval", "Gradient steps between two of its metrics.")

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """The agent's, and the one that draws who acts."""
        return {**self.agent.generators, "planner": self._draws}

    @property
    def metrics(self) -> dict[str, float]:
        """The agent's, and what ``Handover.report`` says, with ``planner_greedy/`` before it."""
        mixed = {f"planner_greedy/{key}": value for key, value in self.handover.report().items()}
        return {**self.agent.metrics, **mixed}

    @metrics.setter
    def metrics(self, values: dict[str, float]) -> None:
        own = "planner_greedy/"
        self.agent.metrics = {key: x for key, x in values.items() if not key.startswith(own)}

    def process_buffer(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """Stage a data set."""
        return self.agent.process_buffer(buffer)

    def process_fn(self, batch: Any, buffer: ReplayBuffer, indices: Any) -> Any:
        """Return transitions as the agent takes them."""
        return self.agent.process_fn(batch, buffer, indices)

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Let the agent take one gradient step on a batch."""
        self.handover.testing = False
        return self.agent.learn(batch, *args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Let the agent sample a batch and take one gradient step on it.

        :raises RuntimeError: outside a training step, as Tianshou does.
        :raises InputError: if there are no rows yet of whom it is to learn from.
        """
        for value in args:
            kwargs["buffer" if isinstance(value, ReplayBuffer) else "sample_size"] = value
        if not self.is_within_training_step:
            return self.agent.update(**kwargs)  # which refuses
        self.handover.testing = False
        buffer = kwargs.get("buffer")
        if buffer is not None and sources(buffer) is not None:  # no data set
            self._meet(buffer)
        with training_step(self.agent):
            return self.agent.update(**kwargs)

    def _meet(self, buffer: ReplayBuffer) -> None:
        """Take notice of the buffer that is being filled."""
        self._buffer, restored = buffer, self._restored
        if restored is not None and len(restored) == buffer.maxsize:
            column = buffer._meta.policy.source
            column[column == RANDOM] = restored[column == RANDOM]
            self._restored = None
        if self.store != "all":
            learn_from(self.agent, buffer, self.store)

    def get_extra_state(self) -> Tensor:
        """Return who chose the actions in the buffer, which is saved without it."""
        column = None if self._buffer is None else sources(self._buffer)
        return torch.zeros(0, dtype=torch.uint8) if column is None else torch.tensor(column)

    def set_extra_state(self, state: Tensor) -> None:
        self._restored = state.cpu().numpy() if len(state) else None

    # ---- acting -----------------------------------------------------------------------------

    def attach(self, train_envs: Any, test_envs: Any = None) -> None:
        """Give each training environment its planner.

        :param train_envs: Tianshou vector environments in this process (``DummyVectorEnv``).
        :param test_envs: in which the agent is tested alone; a schedule by performance goes by
            what it scores there.
        :raises InputError: if they are in other processes, or not as many as the planners.
        """
        workers = workers_of(train_envs)
        testers = [] if test_envs is None else workers_of(test_envs)
        if any(one is other for one in workers for other in testers):
            raise InputError(
                "expected test environments of their own, got those that the planner acts in; "
                "make others"
            )
        if callable(self._planner):
            planners = [self._planner(bare(one.env)) for one in workers]
        else:
            planners = list(self._planner)
        if len(planners) != len(workers):
            raise InputError(
                f"expected a planner for each of {len(workers)} environments, got "
                f"{len(planners)}; give as many, or a function that makes them"
            )
        self._envs = [
            PlannedEnv(bare(worker.env), planner, k + 1, self._episode_over)
            for k, (worker, planner) in enumerate(zip(workers, planners, strict=True))
        ]
        for worker, env in zip(workers, self._envs, strict=True):
            worker.env = env
        for worker in testers:
            worker.env = TestedEnv(bare(worker.env), self._test_over)

    @torch.no_grad()
    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Batch:
        """Choose actions: the agent's or, in attached environments, the planner's at its rate.

        :return: with ``policy.source`` (B,), who chose each action.
        """
        training = self.is_within_training_step
        if training and not self._envs:
            raise InputError(
                "expected environments with planners to train in, got none; call attach"
            )
        with training_step(self.agent) if training else contextlib.nullcontext():
            out = self.agent.forward(batch, state, **kwargs)
        self._by_planner = None
        info = getattr(batch, "info", None)
        if not isinstance(info, Batch) or SLOT not in info.get_keys():
            return out
        self.handover.testing = False
        act = np.array(out.act)
        source = np.full(len(act), AGENT, np.uint8)
        for row, slot in enumerate(np.asarray(info[SLOT], np.int64)):
            planned = self._decide(self._envs[slot - 1]) if slot else None
            if planned is not None:
                act[row], source[row] = planned, PLANNER
        out.act, out.policy = act, Batch(source=source)
        self._by_planner = source == PLANNER
        return out

    def exploration_noise(self, act: Any, batch: Any) -> Any:
        """Add the agent's noise to the agent's actions."""
        noisy = self.agent.exploration_noise(act, batch)
        if self._by_planner is None:
            return noisy
        mine = self._by_planner.reshape(-1, *[1] * (np.ndim(act) - 1))
        return np.where(mine, act, noisy)

    def _decide(self, env: PlannedEnv) -> Any:
        """Return the planner's action of a step, or None if it is the agent's turn."""
        by_episode = self.mixture == "episode"
        if not env.begun:
            env.begun = True
            if by_episode or self.schedule.unit == "episodes":
                env.rate = self.handover.next_rate()
            if by_episode:
                env.episode_planned = self._draw() < env.rate
            self.handover.count("episodes")
        if self.mixture == "step" and self.schedule.unit == "steps":
            env.rate = self.handover.next_rate()
        planner = env.episode_planned if by_episode else self._draw() < env.rate
        self.handover.count("steps")
        act = self._ask(env) if planner else None
        env.planned += act is not None
        self.handover.count("agent" if act is None else "planner")
        return act

    def _ask(self, env: PlannedEnv) -> Any:
        """Return the planner's action as the buffer holds it; None if it fails or is late."""
        start = time.perf_counter()
        try:
            act = env.plan()
        except Exception as error:
            if not self.handover.count("failed"):
                warnings.warn(
                    f"the planner failed ({type(error).__name__}: {error}); the agent acts in its "
                    "place, further failures are only counted",
                    stacklevel=2,
                )
            return None
        if self.time_limit is not None and time.perf_counter() - start > self.time_limit:
            if not self.handover.count("late"):
                warnings.warn(
                    f"the planner took longer than {self.time_limit:g} s; the agent acts in its "
                    "place, further delays are only counted",
                    stacklevel=2,
                )
            return None
        return np.asarray(self.map_action_inverse(act[None]))[0]

    def _draw(self) -> float:
        return float(torch.rand((), generator=self._draws, dtype=torch.float64))

    @property
    def rate(self) -> float:
        """The planner's rate at this moment, in [0, 1]."""
        return self.handover.rate

    def _episode_over(self, env: PlannedEnv, info: dict[str, Any]) -> None:
        if env.begun:  # not by random steps
            score = self.handover.score(env.episode_return, info)
            self.handover.episode_over(env.planned, env.steps, score)

    def _test_over(self, episode_return: float, info: dict[str, Any]) -> None:
        self.handover.test_over(self.handover.score(episode_return, info), self.num_updates)


def _check(
    agent: Any, schedule: Any, planner: Any, mixture: str, store: str, time_limit: float | None
) -> None:
    for what, value, kind in (
        ("a policy of this package as agent", agent, OfflinePolicy),
        ("a Schedule as schedule", schedule, Schedule),
    ):
        if not isinstance(value, kind):
            raise InputError(f"expected {what}, got {type(value).__name__}; make one")
    if not callable(planner) and not isinstance(planner, Sequence):
        raise InputError(
            "expected a function that makes the planner of an environment, or a list of planners, "
            f"got {type(planner).__name__}; put it into a list"
        )
    for name, value, kinds in (("mixture", mixture, Mixture), ("store", store, Store)):
        if value not in get_args(kinds):
            raise InputError(f"expected {name} of {', '.join(get_args(kinds))}, got {value!r}")
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"expected a time_limit above 0 seconds, got {time_limit}; change it")
    if store != "all" and type(agent).sample is not OfflinePolicy.sample:
        raise InputError(
            f"expected store 'all' with {method_name(agent)}, which learns from whole episodes, "
            f"got {store!r}; change it"
        )
