"""Implicit Q-Learning for discrete actions.

Kostrikov, Nair, Levine: "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022,
arXiv 2110.06169. Official code: ikostrikov/implicit_q_learning (continuous actions).

    q       = min_i Qt_i(s, a)                                         targets, no gradient
    L_value = mean(|expectile - 1[q < V(s)]| (q - V(s))^2)
    L_actor = -mean(min(exp(inv_temperature (q - V(s))), 100) log pi(a|s))
    L_critic = sum_i mean((Q_i(s, a) - y)^2),  y = r + gamma (1 - terminated) V(s')
    Qt      <- (1 - tau) Qt + tau Q

Order within a step as in the official code: V, then the actor and the critic with the new V, then
the targets.

Differences from the paper: actions are discrete, so Q(s) gives all values and the actor is a
softmax; the paper publishes no discrete variant and no Atari settings. On frames the two critics
share their convolutions. The learning rate is constant (the paper decays the actor's offline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.losses import expectile_loss
from tianshou_ext.nn.nets import EnsembleNet, Net, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register

MAX_WEIGHT = 100.0
"""Largest cloning weight: official code, actor.py."""


@dataclass(frozen=True, kw_only=True)
class DiscreteIQLConfig(PolicyConfig):
    """Hyperparameters of discrete IQL; expectile, temperature and tau are the paper's."""

    expectile: float = 0.7
    """In (0, 1); tau in the paper. 0.5 is the mean over the data's actions."""
    inv_temperature: float = 3.0
    """At least 0; beta in the paper. 0 is cloning."""
    tau: float = 0.005
    """Share of the critic in its target after each step, in (0, 1]."""
    num_critics: int = 2
    """Critics whose minimum is taken, at least 1."""
    sample_actions: bool = False
    """Draw actions where it acts alone too, instead of taking the likeliest."""

    def validate(self) -> None:
        super().validate()
        self.check(0.0 < self.expectile < 1.0, "expectile", "in (0, 1)")
        self.check(self.inv_temperature >= 0, "inv_temperature", "at least 0")
        self.check(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")
        self.check(self.num_critics >= 1, "num_critics", "at least 1")


@register(
    "discrete_iql",
    title="IQL",
    paper="arXiv 2110.06169",
    actions="discrete",
    needs=("reward", "next observation"),
)
class DiscreteIQLPolicy(OfflinePolicy):
    """Discrete IQL.

    :param actor: ``(obs, state) -> ((B, A) logits, state)``.
    :param critic: ``(obs, state) -> ((N, B, A) values, state)``.
    :param value: ``(obs, state) -> ((B, 1) values, state)``.
    :param actor_optim, critic_optim, value_optim: over the parameters of each.
    :param options: fields of ``DiscreteIQLConfig``, or Tianshou's names of them.
    """

    config_class = DiscreteIQLConfig

    def __init__(
        self,
        *,
        actor: nn.Module,
        actor_optim: Any,
        critic: nn.Module,
        critic_optim: Any,
        value: nn.Module,
        value_optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: DiscreteIQLConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(DiscreteIQLConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.actor = actor
        self.critic = critic
        self.value = value
        self.add_optimizer("actor", actor_optim, actor)
        self.add_optimizer("critic", critic_optim, critic)
        self.add_optimizer("value", value_optim, value)
        self.critic_target = self.add_target(critic)

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape, num_actions = observation_space.shape, int(action_space.n)
        hidden = config.hidden_sizes
        actor = Net(shape, (num_actions,), hidden).to(device)
        critic = EnsembleNet(shape, num_actions, hidden, config.num_critics).to(device)
        value = Net(shape, (1,), hidden).to(device)
        return cls(
            actor=actor,
            actor_optim=make_adam(actor, lr=config.lr),
            critic=critic,
            critic_optim=make_adam(critic, lr=config.lr),
            value=value,
            value_optim=make_adam(value, lr=config.lr),
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        logits, _ = self.actor(obs)
        if deterministic and not self.config.sample_actions:
            return logits.argmax(1), logits
        return self.draw_actions(logits), logits

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        q = self.target_q(batch)  # (B,)
        value_loss = self.value_loss(self.value(batch.obs)[0].squeeze(1), q)
        self.optimize(value_loss, "value")
        with torch.no_grad():
            v = self.value(batch.obs)[0].squeeze(1)  # (B,)
            v_next = self.value(batch.obs_next)[0].squeeze(1)  # (B,)
        actor_loss = self.actor_loss(self.actor(batch.obs)[0], batch.act, q - v)
        self.optimize(actor_loss, "actor")
        target = batch.rew + batch.discount * (1.0 - batch.terminated) * v_next
        critic_loss = self.critic_loss(self.critic(batch.obs)[0], batch.act, target)
        self.optimize(critic_loss, "critic")
        self.move_targets(self.config.tau)
        return {
            "loss/value": value_loss,
            "loss/actor": actor_loss,
            "loss/critic": critic_loss,
            "v/mean": v.mean(),
            "adv/mean": (q - v).mean(),
        }

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """Return the least target value of the data's actions, (B,)."""
        q, _ = self.critic_target(batch.obs)  # (N, B, A)
        index = batch.act.view(1, -1, 1).expand(len(q), -1, 1)
        least: Tensor = q.gather(2, index).squeeze(2).amin(0)
        return least

    def value_loss(self, v: Tensor, q: Tensor) -> Tensor:
        """Return the expectile regression of V on q, (B,) each; q without gradient."""
        return expectile_loss(q - v, self.config.expectile).mean()

    def actor_loss(self, logits: Tensor, act: Tensor, adv: Tensor) -> Tensor:
        """Return the advantage-weighted cloning loss.

        :param logits: (B, A).
        :param act: (B,) int64.
        :param adv: (B,) without gradient.
        """
        weight: Tensor = (self.config.inv_temperature * adv).exp().clamp(max=MAX_WEIGHT)
        log_prob = logits.log_softmax(1).gather(1, act.unsqueeze(1)).squeeze(1)  # (B,)
        return -(weight * log_prob).mean()

    @staticmethod
    def critic_loss(q: Tensor, act: Tensor, target: Tensor) -> Tensor:
        """Return the squared TD error, summed over critics, mean over the batch.

        :param q: (N, B, A).
        :param act: (B,) int64.
        :param target: (B,) without gradient.
        """
        index = act.view(1, -1, 1).expand(len(q), -1, 1)
        chosen = q.gather(2, index).squeeze(2)  # (N, B)
        return (chosen - target).square().mean(1).sum()
