"""Implicit Q-Learning for continuous actions.

Kostrikov, Nair, Levine: "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022,
arXiv 2110.06169. Official code: ikostrikov/implicit_q_learning.

    q        = min_i Qt_i(s, a)                                        targets, no gradient
    L_value  = mean(|expectile - 1[q < V(s)]| (q - V(s))^2)
    L_actor  = -mean(min(exp(inv_temperature (q - V(s))), 100) log pi(a|s))
    L_critic = sum_i mean((Q_i(s, a) - y)^2),  y = r + gamma (1 - terminated) V(s')
    Qt      <- (1 - tau) Qt + tau Q

Order within a step as in the official code: V, then the actor and the critic with the new V, then
the targets. pi is a normal distribution with mean tanh(actor(s)) and a deviation that is the same
in all states; it is not squashed, and actions are clipped to [-1, 1] when acting. Fully connected
weights start orthogonal. Rewards are scaled so that the returns of the data span 1000.

The paper takes the actor's learning rate to 0 along a cosine: ``CosineDecay`` over
``policy.optimizers["actor"]``, which the example switches on.

On Adroit and Kitchen a tenth of the actor's hidden units are dropped in its loss (``dropout``).

Differences from the paper: none known. On frames, which the paper has none of, the critics share
their convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNorm, RewardNorm
from tianshou_ext.data.replay import Transitions
from tianshou_ext.losses import expectile_loss
from tianshou_ext.nn.actor_critic import (
    EnsembleCritic,
    GaussianActor,
    normal_log_prob,
    orthogonal_init,
)
from tianshou_ext.nn.nets import Net
from tianshou_ext.policy.actor_critic import ActorCriticPolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import register

LOG_STD_BOUNDS = (-5.0, 2.0)
"""Official code, learner.py and policy.py."""

MAX_WEIGHT = 100.0
"""Largest cloning weight: official code, actor.py."""


@dataclass(frozen=True, kw_only=True)
class IQLConfig(PolicyConfig):
    """Hyperparameters of IQL; defaults are the paper's for locomotion."""

    lr: float = 3e-4
    """Adam's learning rate, of actor, critics and value."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "none"
    """``standard``: by the data's mean and std (CORL); ``none``: as they are (official code)."""
    reward_norm: RewardNorm = "return_range"
    """``return_range``: returns span 1000 (locomotion); ``minus_one``: less 1 (AntMaze)."""
    expectile: float = 0.7
    """In (0, 1); tau in the paper. 0.5 is the mean over the data's actions; 0.9 on AntMaze."""
    inv_temperature: float = 3.0
    """At least 0; beta in the paper. 0 is cloning; 10 on AntMaze, 0.5 on Adroit and Kitchen."""
    tau: float = 0.005
    """Share of the critics in their targets after each step, in (0, 1]."""
    num_critics: int = 2
    """Critics whose minimum is taken, at least 1."""
    dropout: float = 0.0
    """Share of the actor's hidden units dropped while it learns; 0.1 on Adroit and Kitchen."""

    def validate(self) -> None:
        super().validate()
        self.check(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)")
        self.check(0.0 < self.expectile < 1.0, "expectile", "in (0, 1)")
        self.check(self.inv_temperature >= 0.0, "inv_temperature", "at least 0")
        self.check(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")
        self.check(self.num_critics >= 1, "num_critics", "at least 1")


@register(
    "iql",
    title="IQL",
    paper="arXiv 2110.06169",
    actions="continuous",
    needs=("reward", "next observation"),
)
class IQLPolicy(ActorCriticPolicy):
    """IQL.

    :param actor: ``(obs, state) -> ((mean, std), state)``, (B, A) each, of the actions themselves;
        a ``GaussianActor`` where units are to be dropped.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's.
    :param value: ``(obs, state) -> ((B, 1) values, state)``.
    :param actor_optim, critic_optim, critic2_optim, value_optim: over the parameters of each.
    :param options: fields of ``IQLConfig``, or Tianshou's names of them.
    """

    config_class = IQLConfig

    def __init__(self, *, value: nn.Module, value_optim: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_can_drop()
        self.value = value
        self.add_optimizer("value", value_optim, value)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        actor = GaussianActor(
            obs_shape,
            act_dim,
            hidden,
            log_std_bounds=LOG_STD_BOUNDS,
            state_dependent_std=False,
            tanh_mean=True,
        )
        critic = EnsembleCritic(obs_shape, act_dim, hidden, config.num_critics)
        value = Net(obs_shape, (1,), hidden)
        orthogonal_init(actor, critic, value)
        return {"actor": actor, "critic": critic, "value": value}

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        (mean, std), _ = self.actor(obs)
        act = mean if deterministic else mean + std * self.act_noise(mean)
        return act.clamp(-1.0, 1.0), mean

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        q_target = self.target_q(batch)  # (B,)
        value_loss = self.value_loss(self.value(batch.obs)[0].squeeze(1), q_target)
        self.optimize(value_loss, "value")
        with torch.no_grad():
            v = self.value(batch.obs)[0].squeeze(1)  # (B,)
            v_next = self.value(batch.obs_next)[0].squeeze(1)  # (B,)
        mean, std = self.dropped(self.actor, batch.obs)
        actor_loss = self.actor_loss(mean, std, batch.act, q_target - v)
        q = self.critic(batch.obs, batch.act)  # (N, B)
        target = batch.rew + batch.discount * (1.0 - batch.terminated) * v_next
        critic_loss = self.critic_loss(q, target)
        self.optimize(actor_loss + critic_loss, "actor", "critic")
        self.move_targets(self.config.tau)
        return {
            "loss/value": value_loss,
            "loss/actor": actor_loss,
            "loss/critic": critic_loss,
            "v/mean": v.mean(),
            "adv/mean": (q_target - v).mean(),
            "q/data": q.mean(),
            "std": std.mean(),
        }

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """Return the least target value of the data's actions, (B,)."""
        least: Tensor = self.critic_target(batch.obs, batch.act).amin(0)
        return least

    def value_loss(self, v: Tensor, q: Tensor) -> Tensor:
        """Return the expectile regression of V on q, (B,) each; q without gradient."""
        return expectile_loss(q - v, self.config.expectile).mean()

    def actor_loss(self, mean: Tensor, std: Tensor, act: Tensor, adv: Tensor) -> Tensor:
        """Return the advantage-weighted cloning loss.

        :param mean, std: (B, A) of the policy.
        :param act: (B, A) of the data.
        :param adv: (B,) without gradient.
        """
        weight: Tensor = (self.config.inv_temperature * adv).exp().clamp(max=MAX_WEIGHT)
        return -(weight * normal_log_prob(mean, std, act)).mean()
