"""Adaptive BC: TD3+BC with ten critics, and a weight of cloning that returns control online.

Zhao, Boney, Ilin, Kannala, Pajarinen: "Adaptive Behavior Cloning Regularization for Stable
Offline-to-Online Reinforcement Learning", arXiv 2210.13846. Official code:
zhaoyi11/adaptive_bc@a10943b.

    a'       = clip(pi_t(s') + clip(policy_noise n, -noise_clip, noise_clip), -1, 1),  n ~ N(0, 1)
    y        = r + gamma (1 - terminated) min_{i in M} Qt_i(s', a'),  M: 2 of 10, drawn at each step
    L_critic = mean_i mean((Q_i(s, a) - y)^2)
    L_actor  = -mean(Q(s, pi(s))) / mean(|Q(s, pi(s))|) + alpha mean((pi(s) - a)^2),  Q = mean_i Q_i

where the divisor has no gradient and the last mean is over the batch and the action dimensions.
Order within a step as in TD3+BC. At the end of each training episode online, of T steps and
return R (0 and 1 are those of a random and an expert policy):

    alpha   <- clip(alpha + T (-kp (target_return - R_avg) + kd max(0, R_avg - R)),
                    0, alpha_online)
    R_avg   <- 0.95 R_avg + 0.05 R

so that cloning fades while returns are below the target, and comes back after a drop.

Differences from the official code: the first step trains the actor (there the second). R_avg
starts from the last test before the online phase, or without one from the first training episode
(there, from one episode without noise). The greatest reward that stands in for an
expert's return is the data's unless it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.data.replay import Replay, Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import DeterministicActor, EnsembleCritic, linear_layers
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.td3_bc import TD3BCPolicy, TD3Config

AVERAGE_RATE = 0.05
"""Share of a new return in the running average: official code."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveBCConfig(TD3Config):
    """Hyperparameters of Adaptive BC; defaults are the official ones for locomotion."""

    lr: float = 3e-4
    """Adam's learning rate, of the critics too unless they have their own."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "none"
    """``standard``: by the data's mean and std; ``none``: as they are."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions inside training steps, at least 0."""
    alpha: float = 0.4
    """Weight of cloning against the values offline, at least 0."""
    alpha_online: float | None = None
    """Its start and its greatest value online, at least 0; ``alpha`` if None."""
    num_critics: int = 10
    """Critics, at least ``subset_size``."""
    subset_size: int = 2
    """Critics whose least value is the target's, at least 1, drawn at each gradient step."""
    kp: float = 3e-5
    """What a step takes from alpha for a return of 1 that lacks, at least 0."""
    kd: float = 1e-4
    """What a step adds to alpha for a return of 1 below the average, at least 0."""
    target_return: float = 1.05
    """Return that is aimed at, where an expert's is 1."""
    return_low: float | None = None
    """Return that counts as 0: a random policy's; together with ``return_high``."""
    return_high: float | None = None
    """Return that counts as 1: an expert's. Without both, 0 and ``r_max`` times
    ``episode_length`` count as 0 and 1."""
    r_max: float | None = None
    """Greatest reward of a step, above 0; the data's if None."""
    episode_length: int = 1000
    """Steps of a whole episode, at least 1, for ``r_max`` only."""

    def validate(self) -> None:
        super().validate()
        for name in ("alpha", "kp", "kd"):
            self.check(getattr(self, name) >= 0.0, name, "at least 0")
        self.check(
            self.alpha_online is None or self.alpha_online >= 0.0, "alpha_online", "at least 0"
        )
        self.check(self.subset_size >= 1, "subset_size", "at least 1")
        enough = self.num_critics >= self.subset_size
        self.check(enough, "num_critics", f"at least subset_size, {self.subset_size}")
        low, high = self.return_low, self.return_high
        pair = (low is None) == (high is None)
        self.check(pair, "return_high", f"and return_low both or neither, not only one ({low})")
        above = low is None or high is None or high > low
        self.check(above, "return_high", f"above return_low, {low}")
        self.check(self.r_max is None or self.r_max > 0.0, "r_max", "above 0")
        self.check(self.episode_length >= 1, "episode_length", "at least 1")


@register(
    "adaptive_bc",
    title="Adaptive BC",
    paper="arXiv 2210.13846",
    actions="continuous",
    needs=("reward", "next observation"),
)
class AdaptiveBCPolicy(TD3BCPolicy):
    """REDQ with Adaptive BC; constructed as ``TD3BCPolicy``."""

    config_class = AdaptiveBCConfig
    actor_member = None
    online_mixing: ClassVar[Mixing] = Mixing(data_share=0.05)
    online_update_per_step: ClassVar[float] = 10.0
    alpha: Tensor
    average_return: Tensor
    has_average: Tensor
    data_range: Tensor
    has_range: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.critic.num < self.config.subset_size:
            raise InputError(
                f"expected at least subset_size critics, {self.config.subset_size}, got "
                f"{self.critic.num}; pass more of them, or a smaller subset_size"
            )
        # Buffers are part of every checkpoint.
        self.register_buffer("alpha", torch.tensor(float(self.config.alpha)))
        self.register_buffer("average_return", torch.tensor(0.0))
        self.register_buffer("has_average", torch.tensor(False))
        self.register_buffer("data_range", torch.tensor([0.0, 1.0]))
        self.register_buffer("has_range", torch.tensor(False))
        self._has_data = False

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        critic = EnsembleCritic(obs_shape, act_dim, hidden, config.num_critics)
        redq_init(critic)
        return {"actor": DeterministicActor(obs_shape, act_dim, hidden), "critic": critic}

    # ---- a step ---------------------------------------------------------------------------

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        return {**super().gradient_step(batch), "alpha": self.alpha}

    def next_value(self, batch: Transitions, act: Tensor) -> Tensor:
        q = self.critic_target(batch.obs_next, act)  # (N, B)
        chosen = self.rand(len(q)).argsort()[: self.config.subset_size]
        return self.least_of(q, chosen)

    @staticmethod
    def least_of(q: Tensor, chosen: Tensor) -> Tensor:
        """Return the least of the chosen (M,) critics' values (N, B): (B,)."""
        return q.index_select(0, chosen).amin(0)

    @staticmethod
    def critic_loss(q: Tensor, target: Tensor) -> Tensor:
        """Return the squared TD error, mean over critics and batch, as the official code.

        :param q: (N, B).
        :param target: (B,) without gradient.
        """
        return (q - target).square().mean()

    def actor_loss(self, act: Tensor, data_act: Tensor, q: Tensor) -> Tensor:
        """Return the distance to the data's actions against the normalised value.

        :param act: (B, A) of the actor.
        :param data_act: (B, A) of the data.
        :param q: (N, B) values of ``act``; their mean over critics counts.
        """
        value = q.mean(0)
        distance = (act - data_act).square().mean()
        return self.alpha * distance - value.mean() / value.abs().mean().detach()

    # ---- the controller -------------------------------------------------------------------

    def on_fit_start(self, replay: Replay) -> None:
        """Note what whole episodes of the data's greatest reward would return."""
        if not (self._has_data or self.num_updates or self.online_steps):
            # Weights to start from bring the numbers of the run that they are from.
            self.alpha.fill_(self.config.alpha)
            self.has_average.fill_(False)
            self.has_range.fill_(False)
        self._has_data = True
        if bool(self.has_range):
            return
        norm = self.reward_norm
        rewards = replay.rew[replay.rows.to(replay.rew.device)] / norm.scale + norm.shift
        low, high = (float(x) * self.config.episode_length for x in rewards.aminmax())
        if low or high:  # where no reward is above 0, no return is, and 0 is the best
            self.data_range.copy_(torch.tensor([0.0, high] if high > 0.0 else [low, 0.0]))
            self.has_range.fill_(True)

    @property
    def return_range(self) -> tuple[float, float]:
        """The returns that count as 0 and 1."""
        config = self.config
        if config.return_low is not None:
            return config.return_low, config.return_high
        if config.r_max is not None:
            return 0.0, config.r_max * config.episode_length
        low, high = self.data_range.tolist()
        return low, high

    def normalized_return(self, episode_return: float) -> float:
        """Return 0 for a random policy's return and 1 for an expert's.

        :raises InputError: if the return is not finite.
        """
        if not math.isfinite(episode_return):
            raise InputError(
                f"expected a finite return of an episode, got {episode_return}; the environment "
                "or the policy has failed there"
            )
        low, high = self.return_range
        return (episode_return - low) / (high - low)

    def set_average_return(self, episode_return: float) -> None:
        """Let the running average start from a return, as of a test before the online phase."""
        self.average_return.fill_(self.normalized_return(episode_return))
        self.has_average.fill_(True)

    def on_online_start(self, test_return: float | None) -> None:
        """Start from the weight of cloning that the online phase begins with."""
        self.alpha.fill_(self.alpha_ceiling)
        if test_return is not None:
            self.set_average_return(test_return)

    @property
    def alpha_ceiling(self) -> float:
        """The greatest alpha online."""
        ceiling = self.config.alpha_online
        return float(self.config.alpha if ceiling is None else ceiling)

    def on_episode_end(self, episode_return: float, length: int) -> None:
        """Adapt alpha, then the running average.

        :param episode_return: in rewards of the environment.
        :param length: environment steps T, at least 1.
        :raises InputError: if the return is not finite.
        """
        config, current = self.config, self.normalized_return(episode_return)
        if not bool(self.has_average):
            self.set_average_return(episode_return)
        average = float(self.average_return)  # of before this episode
        shortfall, drop = config.target_return - average, max(0.0, average - current)
        alpha = float(self.alpha) + length * (config.kd * drop - config.kp * shortfall)
        self.alpha.fill_(min(max(alpha, 0.0), self.alpha_ceiling))
        self.average_return.fill_((1.0 - AVERAGE_RATE) * average + AVERAGE_RATE * current)


@torch.no_grad()
def redq_init(critic: nn.Module) -> None:
    """Draw weights of fully connected layers from a truncated normal, biases 0: official code."""
    for layer in linear_layers(critic):
        std = 1.0 / (2.0 * math.sqrt(layer.weight.shape[-2]))  # of (N, inputs, outputs)
        nn.init.trunc_normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
