"""SAC-N: soft actor-critic with the least of N critics.

An, Moon, Kim, Song: "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble",
NeurIPS 2021, arXiv 2110.01548. Official code: snu-mllab/EDAC.

    y       = r + gamma (1 - terminated) (min_i Qt_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    L_critic = sum_i mean((Q_i(s, a) - y)^2)
    L_actor  = mean(alpha log pi(a~|s) - min_i Q_i(s, a~)),                           a~ ~ pi(s)
    L_alpha  = -log(alpha) mean(log pi(a~|s) + target entropy)
    Qt      <- (1 - tau) Qt + tau Q

Order of a step: all losses are of the weights before it, as in the official code; then the targets.
With two critics this is SAC (arXiv 1812.05905), which also trains the behaviour policies of our own
data sets online. With a large batch and few critics it is LB-SAC (arXiv 2211.11092):
``lb_sac_config``. EDAC and CQL are subclasses that add a term to the critics' loss.

Differences from the official code: with ``max_q_backup`` it takes the greatest value of the critics
themselves, we that of their targets, as CQL does; ``backup_entropy=False`` there also stops the
temperature from learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.actor_critic import (
    EnsembleCritic,
    GaussianActor,
    edac_init,
    fan_out_init,
    tanh_normal_sample,
)
from tianshou_ext.policy.actor_critic import ActorCriticPolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import register
from tianshou_ext.tianshou_api import entropy_weight

LOG_STD_BOUNDS = (-5.0, 2.0)
"""Official code, lifelong_rl/policies/models/tanh_gaussian_policy.py."""

BACKUP_ACTIONS = 10
"""Actions whose greatest value ``max_q_backup`` takes: official code of EDAC and of CQL."""

Gaussian = tuple[Tensor, Tensor]
"""Mean and deviation of actions before tanh, (B, A) each."""


@dataclass(frozen=True, kw_only=True)
class SACNConfig(PolicyConfig):
    """Hyperparameters of SAC-N; defaults are the paper's for HalfCheetah."""

    FREE_TO_CHANGE = ("small_init", "wide_init")

    lr: float = 3e-4
    """Adam's learning rate of the critics, and of actor and temperature without ``actor_lr``."""
    actor_lr: float | None = None
    """Adam's learning rate of actor and temperature; ``lr`` if None."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "none"
    """``standard``: by the data's mean and std; ``none``: as they are."""
    num_critics: int = 10
    """Critics whose minimum is taken, at least 1; N in the paper."""
    tau: float = 0.005
    """Share of the critics in their targets after each step, in (0, 1]."""
    init_alpha: float = 1.0
    """Initial temperature, above 0."""
    auto_alpha: bool = True
    """Learn the temperature."""
    target_entropy: float | None = None
    """Entropy that the temperature aims at; minus the number of action dimensions if None."""
    backup_entropy: bool = True
    """Count the next action's entropy as reward in the critics' target."""
    max_q_backup: bool = False
    """Take the greatest value of 10 next actions as the target, without entropy; EDAC on Adroit."""
    layer_norm: Literal["none", "before", "after"] = "none"
    """Layer normalisation in the critics, before or after each ReLU."""
    small_init: bool = True
    """Initialise hidden biases with 0.1 and the heads near zero, as the official code does."""
    wide_init: bool = False
    """Draw the critics' first weights by their outputs, not inputs; LB-SAC. Their values differ
    more then: 16 times as much with layers of 256."""

    def validate(self) -> None:
        super().validate()
        self.check(self.actor_lr is None or self.actor_lr > 0.0, "actor_lr", "above 0")
        self.check(self.num_critics >= 1, "num_critics", "at least 1")
        self.check(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")
        self.check(self.init_alpha > 0.0, "init_alpha", "above 0")
        norms = ("none", "before", "after")
        self.check(self.layer_norm in norms, "layer_norm", f"one of {', '.join(norms)}")


@register(
    "sac_n",
    title="SAC-N",
    paper="arXiv 2110.01548",
    actions="continuous",
    needs=("reward", "next observation"),
)
class SACNPolicy(ActorCriticPolicy):
    """SAC-N.

    :param actor: ``(obs, state) -> ((mean, std), state)``, (B, A) each, before tanh.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's.
    :param actor_optim, critic_optim, critic2_optim: over the parameters of each. The temperature
        has an Adam of its own, with the config's learning rate.
    :param alpha: as Tianshou's SAC takes it, in the place of the config's fields.
    :param options: fields of the method's config, or Tianshou's names of them.
    """

    config_class = SACNConfig

    def __init__(self, *, alpha: Any = None, **kwargs: Any) -> None:
        lr = None
        if alpha is not None:
            kwargs["init_alpha"], kwargs["target_entropy"], lr = entropy_weight(alpha)
            kwargs["auto_alpha"] = lr is not None
        super().__init__(**kwargs)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(self.config.init_alpha)))
        lr = lr or self.config.actor_lr or self.config.lr
        self.optimizers["alpha"] = torch.optim.Adam([self.log_alpha], lr=lr)
        entropy = self.config.target_entropy
        act_dim = math.prod(self.action_space.shape or ())
        self.target_entropy = -float(act_dim) if entropy is None else entropy

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        actor = GaussianActor(obs_shape, act_dim, hidden, log_std_bounds=LOG_STD_BOUNDS)
        critic = EnsembleCritic(
            obs_shape, act_dim, hidden, config.num_critics, layer_norm=config.layer_norm
        )
        if config.wide_init:
            fan_out_init(critic)
        if config.small_init:
            edac_init(actor, critic)
        return {"actor": actor, "critic": critic}

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        (mean, std), _ = self.actor(obs)
        if deterministic:
            return torch.tanh(mean), mean
        return torch.tanh(mean + std * self.act_noise(mean)), mean

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        alpha = self.log_alpha.detach().exp()
        policy: Gaussian = self.actor(batch.obs)[0]
        with torch.no_grad():
            policy_next: Gaussian = self.actor(batch.obs_next)[0]
        act, log_prob = tanh_normal_sample(*policy, self.randn_like(policy[0]))  # (B, A), (B,)
        q_act = self.frozen(self.critic)(batch.obs, act).amin(0)  # (B,)
        actor_loss = self.actor_loss(batch, policy, alpha * log_prob, q_act)
        target = self.critic_targets(batch, policy_next, alpha)
        q, terms = self.critic_terms(batch, policy, policy_next)  # (N, B)
        critic_loss = self.critic_loss(q, target)
        loss = actor_loss + critic_loss + sum(terms.values())
        if self.config.auto_alpha:
            loss = loss - self.log_alpha * (log_prob.detach().mean() + self.target_entropy)
        self.optimize(loss)
        self.move_targets(self.config.tau)
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            **{f"loss/{name}": term for name, term in terms.items()},
            "alpha": alpha,
            "entropy": -log_prob.mean(),
            "q/data": q.mean(),
            "q/policy": q_act.mean(),
        }

    def actor_loss(
        self, batch: Transitions, policy: Gaussian, cost: Tensor, q_act: Tensor
    ) -> Tensor:
        """Return the actor's loss.

        :param policy: at the observations.
        :param cost: (B,) temperature times log-density of an action of the policy.
        :param q_act: (B,) the least value of that action.
        """
        return (cost - q_act).mean()

    @torch.no_grad()
    def critic_targets(self, batch: Transitions, policy_next: Gaussian, alpha: Tensor) -> Tensor:
        """Return y, (B,).

        :param policy_next: at the next observations.
        :param alpha: temperature.
        """
        mean, std = policy_next
        if self.config.max_q_backup:
            noise = self.randn(len(mean), BACKUP_ACTIONS, mean.shape[1])
            acts, _ = tanh_normal_sample(mean.unsqueeze(1), std.unsqueeze(1), noise)  # (B, 10, A)
            v = self.critic_target.values(batch.obs_next, acts).amax(2).amin(0)
        else:
            act, log_prob = tanh_normal_sample(mean, std, self.randn_like(mean))
            v = self.critic_target(batch.obs_next, act).amin(0)
            if self.config.backup_entropy:
                v = v - alpha * log_prob
        return batch.rew + batch.discount * (1.0 - batch.terminated) * v

    def critic_terms(
        self, batch: Transitions, policy: Gaussian, policy_next: Gaussian
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the values of the data's actions, (N, B), and what else is minimised, by name.

        :param policy, policy_next: at the observations and the next ones.
        """
        return self.critic(batch.obs, batch.act), {}


def lb_sac_config(batch_size: int = 10_000, **options: Any) -> SACNConfig:
    """Return LB-SAC: SAC-N with few critics, whose learning rate grows with the root of the batch.

    arXiv 2211.11092: ``lr = 3e-4 sqrt(batch_size / 256)``. The critics start with the weights of
    the official code (tinkoff-ai/lb-sac, networks.py) and of CORL.
    """
    lr = 3e-4 * math.sqrt(batch_size / 256)
    ours = {"lr": lr, "num_critics": 4, "small_init": False, "wide_init": True}
    return SACNConfig(**{**ours, **options})
