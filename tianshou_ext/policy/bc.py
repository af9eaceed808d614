"""Behavioural cloning (imitation learning, IL), for discrete and continuous actions.

    discrete:                L = mean(-log softmax(logits(s))[a])
    continuous:              L = mean((actor(s) - a)^2), a in [-1, 1], mean over A as well
    continuous, stochastic:  L = mean(-log N(a; tanh(mean(s)), std^2)), one std for all states

No single paper; the settings are Tianshou's ``atari_il.py`` for frames (Adam 1e-4, batch 32). The
third form, for continuous actions, is what the weighted methods (IQL, CRR, AWAC) come to when all
weights are 1; the distribution is not squashed, so that actions at the bounds have a finite loss.
%BC is this method on the best episodes: ``tianshou_ext.data.select.top_episodes``.

Our own actor ends in tanh. Differences from Tianshou's ``ImitationPolicy``: none in the losses; a
Box action is compared in the policy's own range [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from gymnasium.spaces import Discrete
from torch import Tensor, nn
from torch.nn import functional

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import DeterministicActor, GaussianActor, normal_log_prob
from tianshou_ext.nn.nets import Net, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register

LOG_STD_BOUNDS = (-5.0, 2.0)
"""IQL's: official code, learner.py and policy.py."""


@dataclass(frozen=True, kw_only=True)
class BCConfig(PolicyConfig):
    """Hyperparameters of behavioural cloning."""

    stochastic: bool = False
    """Clone continuous actions by a normal distribution, not by a squared error."""
    sample_actions: bool = False
    """Draw actions where it acts alone too, instead of taking the likeliest."""


@register(
    "bc",
    title="BC (imitation, IL)",
    paper="none; baseline in arXiv 2106.01345",
    actions="both",
    needs=(),
)
class BCPolicy(OfflinePolicy):
    """Behavioural cloning; a drop-in for Tianshou 1.2's ``ImitationPolicy``.

    :param actor: ``(obs, state) -> (output, state)``; logits (B, n), or actions (B, A), which are
        clipped to [-1, 1] where they act, or the pair of mean and standard deviation, (B, A) each,
        if ``stochastic``.
    :param optim: over the actor's parameters.
    :param options: fields of ``BCConfig``, or Tianshou's names of them.
    :raises InputError: if ``stochastic`` is set for discrete actions.
    """

    config_class = BCConfig
    learns_online = False

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
        if self.is_discrete and self.config.stochastic:
            raise InputError(
                f"expected continuous actions for stochastic cloning, got {action_space}; "
                "leave stochastic out, discrete actions are cloned by a distribution anyway"
            )
        self.add_optimizer("actor", optim, actor)

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape, hidden = observation_space.shape, config.hidden_sizes
        discrete = isinstance(action_space, Discrete)
        width = int(action_space.n) if discrete else math.prod(action_space.shape)
        actor: nn.Module
        if config.stochastic and not discrete:
            actor = GaussianActor(
                shape,
                width,
                hidden,
                log_std_bounds=LOG_STD_BOUNDS,
                state_dependent_std=False,
                tanh_mean=True,
            )
        elif discrete:
            actor = Net(shape, (width,), hidden)
        else:
            actor = DeterministicActor(shape, width, hidden)
        actor = actor.to(device)
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
        deterministic = deterministic and not self.config.sample_actions
        if self.is_discrete:
            return output.argmax(1) if deterministic else self.draw_actions(output), output
        if not self.config.stochastic:
            return output.clamp(-1.0, 1.0), output
        mean, std = output
        act = mean if deterministic else mean + std * self.act_noise(mean)
        return act.clamp(-1.0, 1.0), mean

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        output, _ = self.actor(batch.obs)
        if self.is_discrete:
            loss, accuracy = self.cloning_loss(output, batch.act)
            metrics = {"loss": loss, "accuracy": accuracy}
        elif self.config.stochastic:
            mean, std = output
            loss = self.likelihood_loss(mean, std, batch.act)
            metrics = {"loss": loss, "std": std.mean()}
        else:
            loss = functional.mse_loss(output, batch.act)
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

    @staticmethod
    def likelihood_loss(mean: Tensor, std: Tensor, act: Tensor) -> Tensor:
        """Return the mean negative log-density of the data's actions, (B, A) each."""
        return -normal_log_prob(mean, std, act).mean()
