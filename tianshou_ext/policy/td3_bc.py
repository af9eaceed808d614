"""TD3+BC: TD3 whose actor is also pulled towards the data's actions.

Fujimoto, Gu: "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021,
arXiv 2106.06860. Official code: sfujim/TD3_BC@8791ad7.

    a'      = clip(pi_t(s') + clip(policy_noise n, -noise_clip, noise_clip), -1, 1),  n ~ N(0, 1)
    y       = r + gamma (1 - terminated) min_i Qt_i(s', a')
    L_critic = sum_i mean((Q_i(s, a) - y)^2)
    L_actor  = -alpha mean(Q_1(s, pi(s))) / mean(|Q_1(s, pi(s))|) + mean((pi(s) - a)^2)

where the divisor has no gradient and the last mean is over the batch and the action dimensions.
Order within a step: the critics; every ``update_actor_freq``-th step the actor with the new
critics, then all targets, ``target <- (1 - tau) target + tau source``.

Differences from the official code: the first step trains the actor (there the second does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from tianshou.exploration import GaussianNoise
from torch import Tensor, nn

from tianshou_ext.data.replay import Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import DeterministicActor, EnsembleCritic
from tianshou_ext.policy.actor_critic import ActorCriticPolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import register

NUM_CRITICS = 2
"""TD3, arXiv 1802.09477."""

DEFAULT_NOISE = 0.1
"""What Tianshou's ``exploration_noise="default"`` stands for."""


@dataclass(frozen=True, kw_only=True)
class TD3Config(PolicyConfig):
    """Hyperparameters of TD3 that its offline variants share."""

    critic_lr: float | None = None
    """Adam's learning rate for the critics, above 0; ``lr`` if None."""
    tau: float = 0.005
    """Share of actor and critics in their targets at each move, in (0, 1]."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions, at least 0; actions span [-1, 1]."""
    noise_clip: float = 0.5
    """Bound of that noise, at least 0; 0 is no bound, as in Tianshou."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor and the targets to the next, at least 1."""
    exploration_noise: float = 0.0
    """Deviation of the noise that a collector adds to actions online, at least 0."""

    def validate(self) -> None:
        super().validate()
        self.check(self.critic_lr is None or self.critic_lr > 0.0, "critic_lr", "above 0")
        self.check(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")
        for name in ("policy_noise", "noise_clip", "exploration_noise"):
            self.check(getattr(self, name) >= 0.0, name, "at least 0")
        self.check(self.update_actor_freq >= 1, "update_actor_freq", "at least 1")


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(TD3Config):
    """Hyperparameters of TD3+BC; defaults are the paper's."""

    lr: float = 3e-4
    """Adam's learning rate, of the critics too unless they have their own."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    exploration_noise: float = 0.1
    """Deviation of the noise that a collector adds to actions online, at least 0; TD3's."""
    alpha: float = 2.5
    """Weight of the values against cloning, at least 0; 0 is cloning."""

    def validate(self) -> None:
        super().validate()
        self.check(self.alpha >= 0.0, "alpha", "at least 0")


@register(
    "td3_bc",
    title="TD3+BC",
    paper="arXiv 2106.06860",
    actions="continuous",
    needs=("reward", "next observation"),
)
class TD3BCPolicy(ActorCriticPolicy):
    """TD3+BC; a drop-in for Tianshou 1.2's ``TD3BCPolicy`` and 2.x's ``TD3BC``.

    :param actor: ``(obs, state) -> ((B, A) actions, state)``; actions beyond [-1, 1] are clipped
        where they act.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's; ``critic`` is alone without it. (Tianshou's copy of
        the first learns the same numbers.)
    :param actor_optim, critic_optim, critic2_optim: over the parameters of each.
    :param policy: instead of ``actor`` and the spaces, Tianshou 2.x's
        ``ContinuousDeterministicPolicy``, which holds them.
    :param policy_optim: instead of ``actor_optim``.
    :param options: fields of the config, or Tianshou's names of them; ``exploration_noise`` may be
        Tianshou's ``GaussianNoise`` too.
    """

    config_class: ClassVar[type[PolicyConfig]] = TD3BCConfig
    actor_member: ClassVar[int | None] = 0
    """The critic that the actor's loss asks; None asks all."""

    def __init__(self, *, policy: Any = None, **kwargs: Any) -> None:
        held = getattr(policy, "exploration_noise", None)
        if held is not None or (policy is not None and "config" not in kwargs):
            kwargs.setdefault("exploration_noise", held)
        if "exploration_noise" in kwargs:
            kwargs["exploration_noise"] = noise_deviation(kwargs["exploration_noise"])
        super().__init__(policy=policy, **kwargs)
        self.actor_target = self.add_target(self.actor)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        critic = EnsembleCritic(obs_shape, act_dim, hidden, NUM_CRITICS)
        return {"actor": DeterministicActor(obs_shape, act_dim, hidden), "critic": critic}

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        act, _ = self.actor(obs)
        return act.clamp(-1.0, 1.0), act

    def exploration_noise(self, act: Any, batch: Any) -> Any:
        """Add Gaussian noise to actions (B, A), within [-1, 1]; a collector asks for it."""
        deviation = self.config.exploration_noise
        if deviation == 0.0:
            return act
        noise = self.act_noise(torch.as_tensor(act)).numpy()
        return np.clip(act + deviation * noise, -1.0, 1.0)

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        target = self.critic_targets(batch)
        q = self.critic(batch.obs, batch.act)  # (N, B)
        critic_loss = self.critic_loss(q, target)
        metrics = {"loss/critic": critic_loss.detach(), "q/data": q.detach().mean()}
        self.optimize(critic_loss, "critic")
        if self.num_updates % self.config.update_actor_freq == 0:
            act, _ = self.actor(batch.obs)
            q_act = self.frozen(self.critic)(batch.obs, act, self.actor_member)  # (1 or N, B)
            actor_loss = self.actor_loss(act, batch.act, q_act)
            metrics |= {
                "loss/actor": actor_loss.detach(),
                "q/policy": q_act.detach().mean(),
                "bc_error": (act.detach() - batch.act).square().mean(),
            }
            self.optimize(actor_loss, "actor")
            self.move_targets(self.config.tau)
        return metrics

    @torch.no_grad()
    def critic_targets(self, batch: Transitions) -> Tensor:
        """Return y, (B,)."""
        act, _ = self.actor_target(batch.obs_next)
        noise = self.config.policy_noise * self.randn_like(act)
        if self.config.noise_clip > 0.0:
            noise = noise.clamp(-self.config.noise_clip, self.config.noise_clip)
        value = self.next_value(batch, (act + noise).clamp(-1.0, 1.0))
        return batch.rew + batch.discount * (1.0 - batch.terminated) * value

    def next_value(self, batch: Transitions, act: Tensor) -> Tensor:
        """Return the value (B,) of actions (B, A) at the next observations."""
        value: Tensor = self.critic_target(batch.obs_next, act).amin(0)
        return value

    def actor_loss(self, act: Tensor, data_act: Tensor, q: Tensor) -> Tensor:
        """Return the normalised value of the actor's actions against their distance to the data's.

        :param act: (B, A) of the actor.
        :param data_act: (B, A) of the data.
        :param q: (1 or N, B) values of ``act``; the first critic's count.
        """
        weight: Tensor = self.config.alpha / q[0].abs().mean().detach()
        return -weight * q[0].mean() + (act - data_act).square().mean()


def noise_deviation(noise: Any) -> float:
    """Return the deviation of exploration noise in any of Tianshou's spellings.

    :param noise: a number, ``GaussianNoise``, ``default``, or None for none.
    :raises InputError: if it is another kind of noise.
    """
    if noise is None:
        return 0.0
    if isinstance(noise, str) and noise == "default":
        return DEFAULT_NOISE
    if isinstance(noise, GaussianNoise) and noise._mu == 0.0:
        return float(noise._sigma)
    if isinstance(noise, Real):
        return float(noise)
    raise InputError(
        f"expected exploration_noise as a number or as GaussianNoise with mean 0, got {noise}; "
        "pass the standard deviation"
    )
