"""How a policy comes by its batches: from Tianshou's buffer, through staged data, normalised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from tianshou_ext.data.growing import DirectReplay, Growing, GrowingReplay
from tianshou_ext.data.mixing import MixedReplay, Mixing
from tianshou_ext.data.normalize import ObsNormalizer, RewardNormalizer
from tianshou_ext.data.replay import Replay, Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.policy.checks import check_buffer, check_data
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.learner import Learner
from tianshou_ext.processor import Precision, arithmetic, keep_freed_memory
from tianshou_ext.tianshou_api import ReplayBuffer

Staged = Replay | Growing | MixedReplay


class Staging(Learner):
    """A learner that stages a buffer once and takes its batches from there.

    :param config: the method's hyperparameters.
    :param obs_norm: normaliser applied to every observation before the networks see it.
    :param others: what ``Learner`` takes.
    """

    needs_next_act: bool = False
    """Whether batches must hold the data's action at the next observation."""
    needs_returns: ClassVar[bool] = False
    """Whether batches must hold returns to go."""

    def __init__(
        self, *, config: PolicyConfig, obs_norm: ObsNormalizer | None, **others: Any
    ) -> None:
        super().__init__(**others)
        self.config: Any = config
        self.obs_norm = obs_norm
        self.reward_norm = RewardNormalizer(config.reward_norm)
        self.precision: Precision = "fp32"
        """What gradient steps compute in."""
        self.online_steps = 0
        """Environment steps taken since it went online."""
        # What was staged: the buffer, its fill state then, and the staged data.
        self._staged: tuple[ReplayBuffer, tuple[Any, ...], Staged] | None = None

    def on_fit_start(self, replay: Replay) -> None:
        """Prepare for a data set, once, before the first gradient step on it.

        A run that goes on has been restored by then.
        """

    def returns_to_go(self, rewards: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the discounted sum (T,) of what is still to come, at each step of an episode.

        :param rewards: (T,) as the policy learns from them, all of the episode.
        """
        returns = np.array(rewards, dtype=np.float64)
        for t in range(len(returns) - 2, -1, -1):
            returns[t] += self.config.gamma * returns[t + 1]
        return returns

    def normalize(self, obs: Any) -> Tensor:
        """Turn raw observations (B, ...) into what the networks see, on the policy's device."""
        tensor = obs if isinstance(obs, Tensor) else torch.from_numpy(np.asarray(obs))
        if tensor.dtype == torch.float64:
            tensor = tensor.float()
        tensor = tensor.to(self.device)
        return tensor if self.obs_norm is None else self.obs_norm(tensor)

    def process_buffer(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """Stage the buffer; Tianshou's trainers call this once before they start."""
        if not isinstance(self._replay(buffer), Replay):
            self._staged = None  # it has grown since it was staged, and is whole again
            self._replay(buffer)
        return buffer

    @property
    def staged(self) -> Staged | None:
        """The data as they were last staged, or None."""
        return None if self._staged is None else self._staged[2]

    def go_online(self, buffer: ReplayBuffer, mixing: Mixing, *, seed: int = 0) -> None:
        """Let ``update`` on ``buffer`` learn from the staged data set too.

        :param buffer: that will be filled by acting.
        :param seed: of the part of the data set that stays, if not all does.
        :raises InputError: if no data set is staged.
        """
        data = self.staged
        if not isinstance(data, Replay):
            raise InputError(
                "expected a data set to go online from, found none staged; call process_buffer"
            )
        online = self._growing(buffer)
        mixed = MixedReplay(data, online, mixing, steps=lambda: self.online_steps, seed=seed)
        self._staged = (buffer, (), mixed)

    def _stage(self, buffer: ReplayBuffer) -> Replay:
        check_buffer(buffer)
        replay = Replay(buffer, self.device, next_act=self.needs_next_act)
        scales = bool(getattr(self, "action_scaling", True))
        check_data(replay, self.observation_space, self.action_space, scales=scales)
        self.reward_norm.to(self.device)
        self.reward_norm.fit(replay)
        replay.transform_rewards(self.reward_norm)
        if self.needs_returns:
            replay.set_returns(self.returns_to_go)
        if self.obs_norm is not None:
            self.obs_norm.fit(replay)
        return replay

    def _growing(self, buffer: ReplayBuffer) -> Growing:
        """Return a buffer that is being filled: its vectors are staged as they come."""
        options: dict[str, Any] = {"transform": self.reward_norm, "next_act": self.needs_next_act}
        if GrowingReplay.suits(buffer):
            options["returns_to_go"] = self.returns_to_go if self.needs_returns else None
            return GrowingReplay(buffer, self.device, **options)
        if self.needs_returns:
            raise InputError(
                "expected vector observations and stored next ones, to learn from returns while "
                "a buffer is being filled, got frames or a buffer without obs_next; use another"
            )
        return DirectReplay(buffer, self.device, **options)

    def _replay(self, buffer: ReplayBuffer) -> Staged:
        """Return the staged buffer; one that has grown since is staged row by row from then on."""
        fill = (buffer.maxsize, len(buffer), *np.asarray(buffer.last_index).tolist())
        if self._staged is None or self._staged[0] is not buffer:
            keep_freed_memory()
            replay = self._stage(buffer)
            self._staged = (buffer, fill, replay)
            with arithmetic(self.device, self.precision):
                self.on_fit_start(replay)
        _, fill_then, staged = self._staged
        if isinstance(staged, Replay):
            if fill == fill_then:
                return staged
            # A ring comes round to the same fill state again, so it never counts as unchanged.
            staged = self._growing(buffer)
            self._staged = (buffer, (), staged)
        staged.sync()
        return staged

    def process_fn(self, batch: Any, buffer: ReplayBuffer, indices: Any) -> Transitions:
        """Return the transitions at ``indices``, with n-step rewards; as Tianshou 1.2 calls it."""
        replay = self._replay(buffer)
        if not isinstance(replay, Replay):
            replay = self._stage(buffer)
        rows = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        return replay.gather(rows, gamma=self.config.gamma, n_step=self.config.n_step)

    def _to_transitions(self, batch: Any) -> Transitions:
        """Turn a Tianshou batch into tensors; its rewards are single steps."""
        rew = torch.as_tensor(np.asarray(batch.rew), dtype=torch.float32).to(self.device)
        rew = self.reward_norm(rew)
        discrete = isinstance(self.action_space, Discrete)
        converted = Transitions(
            obs=torch.as_tensor(np.asarray(batch.obs)),
            act=torch.as_tensor(
                np.asarray(batch.act), dtype=torch.int64 if discrete else torch.float32
            ),
            rew=rew,
            terminated=torch.as_tensor(np.asarray(batch.terminated), dtype=torch.float32),
            obs_next=torch.as_tensor(np.asarray(batch.obs_next)),
            discount=torch.full_like(rew, self.config.gamma),
        )
        return converted.to(self.device)

    def sample(self, buffer: ReplayBuffer, sample_size: int | None) -> Any:
        """Return a batch of a buffer for ``learn``; sequence models take windows, not steps."""
        return self._replay(buffer).sample(
            sample_size,
            self.generators["sample"],
            gamma=self.config.gamma,
            n_step=self.config.n_step,
        )

    def prepare(self, batch: Any) -> Any:
        """Return a batch as ``gradient_step`` takes it: of tensors, observations normalised."""
        if not isinstance(batch, Transitions):
            batch = self._to_transitions(batch)
        obs, obs_next = self.normalize(batch.obs), self.normalize(batch.obs_next)
        return replace(batch, obs=obs, obs_next=obs_next)
