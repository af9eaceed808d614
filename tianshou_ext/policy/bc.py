"""Behavioural cloning (imitation learning, IL), for discrete and continuous actions.

    discrete:    L = mean(-log softmax(logits(s))[a])
    continuous:  L = mean((tanh(actor(s)) - a)^2), actions in [-1, 1], mean over A as well

No single paper; the settings are Tianshou's ``atari_il.py`` for frames (Adam 1e-4, batch 32).
Differences from Tianshou's ``ImitationPolicy``: cross-entropy on the logits is the same; a Box
action is compared in the policy's own range [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn
from torch.nn import functional

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.nets import Net, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register


@dataclass(frozen=True, kw_only=True)
class BCConfig(PolicyConfig):
    """Hyperparameters of behavioural cloning; it has none of its own."""


@register(
    "bc",
    title="BC (imitation, IL)",
    paper="none; baseline in arXiv 2106.01345",
    actions="both",
    needs=(),
)
class BCPolicy(OfflinePolicy):
    """Behavioural cloning; a drop-in for Tianshou 1.2's ``ImitationPolicy``.

    :param actor: ``(obs, state) -> (output, state)``; logits (B, n), or actions before tanh (B, A).
    :param optim: over the actor's parameters.
    :param options: fields of ``BCConfig``, or Tianshou's names of them.
    """

    config_class = BCConfig

    def __init__(
        self,
        *,
        actor: nn.Module,
        optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: BCConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        action_scaling: bool | None = None,
        action_bound_method: Any = "clip",
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(BCConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
        )
        self.actor = actor
        self.is_discrete = isinstance(action_space, Discrete)
        self.add_optimizer("actor", optim, actor)

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape = observation_space.shape
        discrete = isinstance(action_space, Discrete)
        width = int(action_space.n) if discrete else math.prod(action_space.shape)
        actor = Net(shape, (width,), config.hidden_sizes).to(device)
        return cls(
            actor=actor,
            optim=make_adam(actor, lr=config.lr),
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        output, _ = self.actor(obs)
        return (output.argmax(1) if self.is_discrete else torch.tanh(output)), output

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        output, _ = self.actor(batch.obs)
        if self.is_discrete:
            loss, accuracy = self.cloning_loss(output, batch.act)
            metrics = {"loss": loss, "accuracy": accuracy}
        else:
            loss = functional.mse_loss(torch.tanh(output), batch.act)
            metrics = {"loss": loss}
        self.optimize(loss, "actor")
        return metrics

    def cloning_loss(self, logits: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the data's actions and the share predicted right.

        :param logits: (B, n).
        :param act: (B,) int64.
        """
        accuracy = (logits.detach().argmax(1) == act).float().mean()
        return functional.cross_entropy(logits, act), accuracy
