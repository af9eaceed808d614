"""Critic Regularized Regression for continuous actions.

Wang et al.: "Critic Regularized Regression", NeurIPS 2020, arXiv 2006.15134. Reference code:
google-deepmind/acme, folder ``agents/jax/crr``; defaults from takuseno/d3rlpy.

    A(s, a)  = Q(s, a) - V(s),  V(s) = mean | max of Q(s, a_j),  a_j ~ pi(s), j = 1..m; no gradient
    f        = min(exp(A / beta), bound)  |  1[A > 0]  |  1
    L_actor  = -mean(f log pi(a|s))
    y        = r + gamma (1 - terminated) Qt(s', a'),  a' ~ pi_t(s'), the target policy;
               or a' of the data, ``use_sarsa_target``
    L_critic = sum_i mean((Q_i(s, a) - y)^2) / 2

Where there are several critics, Q is the least of them. Both losses are of the weights before the
step; actor and critic are copied to their targets every ``target_update_freq`` steps. pi is a
normal distribution with mean tanh(actor(s)) and a deviation of each state, as in d3rlpy; sampled
actions are clipped to [-1, 1].

To act, the paper resamples the policy by the critic (critic weighted policy): m actions, one of
which is drawn by softmax(Q / beta). That is ``critic_weighted_acting``; the mean of the policy, as
in Acme, is the default.

Differences from the paper: a plain critic, as in Acme, where the paper's is distributional; one
normal distribution on small networks, where the paper has a mixture of five on residual ones. From
Acme: not a tanh-normal distribution; its example takes the data's next action in targets, which
here is ``use_sarsa_target``. From d3rlpy: the actor's loss is of the critic before the step, not
after; sampled actions are clipped in the advantage too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.actor_critic import (
    EnsembleCritic,
    GaussianActor,
    normal_log_prob,
)
from tianshou_ext.policy.actor_critic import ActorCriticPolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import register

LOG_STD_BOUNDS = (-20.0, 2.0)
"""d3rlpy, models/builders.py."""


@dataclass(frozen=True, kw_only=True)
class CRRConfig(PolicyConfig):
    """Hyperparameters of CRR; defaults are d3rlpy's."""

    lr: float = 3e-4
    """Adam's learning rate, of actor and critics (Acme's example: 3e-5 for the actor)."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    policy_improvement_mode: Literal["exp", "binary", "all"] = "exp"
    """The weight f: exponential, indicator of a positive advantage, or 1 (cloning)."""
    ratio_upper_bound: float = 20.0
    """Largest exponential weight, above 0; paper section 3."""
    beta: float = 1.0
    """Temperature of the exponential weight, above 0, in units of return."""
    advantage: Literal["mean", "max"] = "mean"
    """What V is of the values of the sampled actions; ``max`` clones fewer actions."""
    num_value_samples: int = 4
    """Actions sampled for V, and to act by the critic, at least 1; m in the paper."""
    target_update_freq: int = 100
    """Gradient steps between copies to the target networks, at least 1."""
    use_sarsa_target: bool = False
    """Take the data's next action in targets: the behaviour's values, one step of improvement."""
    num_critics: int = 1
    """Critics whose minimum is taken, at least 1."""
    critic_weighted_acting: bool = False
    """Act by an action drawn by softmax(Q / beta) out of several of the policy's, in tests too."""

    def validate(self) -> None:
        super().validate()
        modes, mode = ("exp", "binary", "all"), self.policy_improvement_mode
        self.check(mode in modes, "policy_improvement_mode", f"one of {', '.join(modes)}")
        self.check(self.ratio_upper_bound > 0.0, "ratio_upper_bound", "above 0")
        self.check(self.beta > 0.0, "beta", "above 0")
        self.check(self.advantage in ("mean", "max"), "advantage", "one of mean, max")
        self.check(self.num_value_samples >= 1, "num_value_samples", "at least 1")
        self.check(self.target_update_freq >= 1, "target_update_freq", "at least 1")
        self.check(self.num_critics >= 1, "num_critics", "at least 1")


@register(
    "crr",
    title="CRR (exp, binary)",
    paper="arXiv 2006.15134",
    actions="continuous",
    needs=("reward", "next observation"),
)
class CRRPolicy(ActorCriticPolicy):
    """CRR.

    :param actor: ``(obs, state) -> ((mean, std), state)``, (B, A) each, of the actions themselves.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's.
    :param actor_optim, critic_optim, critic2_optim: over the parameters of each.
    :param options: fields of ``CRRConfig``, or Tianshou's names of them.
    """

    config_class = CRRConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.actor_target = self.add_target(self.actor)
        self.needs_next_act = self.config.use_sarsa_target

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        actor = GaussianActor(
            obs_shape, act_dim, hidden, log_std_bounds=LOG_STD_BOUNDS, tanh_mean=True
        )
        critic = EnsembleCritic(obs_shape, act_dim, hidden, config.num_critics)
        return {"actor": actor, "critic": critic}

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        (mean, std), _ = self.actor(obs)
        if self.config.critic_weighted_acting:
            several = mean.unsqueeze(1).expand(-1, self.config.num_value_samples, -1)  # (B, K, A)
            acts = (several + std.unsqueeze(1) * self.act_noise(several)).clamp(-1.0, 1.0)
            q = self.critic.values(obs, acts).amin(0)  # (B, K)
            probs = (q / self.config.beta).softmax(1).cpu()
            chosen = torch.multinomial(probs, 1, generator=self.generators["act"])  # (B, 1)
            index = chosen.unsqueeze(2).to(acts.device).expand(-1, 1, acts.shape[2])
            return acts.gather(1, index).squeeze(1), mean
        act = mean if deterministic else mean + std * self.act_noise(mean)
        return act.clamp(-1.0, 1.0), mean

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        self.update_targets(self.config.target_update_freq)
        target = self.critic_targets(batch)
        q = self.critic(batch.obs, batch.act)  # (N, B)
        critic_loss = self.critic_loss(q, target)
        (mean, std), _ = self.actor(batch.obs)
        weight = self.weights(self.advantages(batch.obs, q, mean, std))  # (B,)
        actor_loss = self.actor_loss(mean, std, batch.act, weight)
        self.optimize(actor_loss + critic_loss, "actor", "critic")
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "weight/mean": weight.mean(),
            "q/data": q.mean(),
            "std": std.mean(),
        }

    @torch.no_grad()
    def critic_targets(self, batch: Transitions) -> Tensor:
        """Return y, (B,)."""
        act, known = batch.act_next, batch.has_act_next
        if act is None or known is not None:
            (mean, std), _ = self.actor_target(batch.obs_next)
            drawn = (mean + std * self.randn_like(mean)).clamp(-1.0, 1.0)
            act = drawn if act is None or known is None else torch.where(known[:, None], act, drawn)
        q: Tensor = self.critic_target(batch.obs_next, act).amin(0)  # (B,)
        return batch.rew + batch.discount * (1.0 - batch.terminated) * q

    @torch.no_grad()
    def advantages(self, obs: Tensor, q: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return how much better the data's actions are than the policy's, (B,).

        :param q: (N, B) values of the data's actions.
        :param mean, std: (B, A) of the policy at ``obs``.
        """
        noise = self.randn(len(mean), self.config.num_value_samples, mean.shape[1])  # (B, K, A)
        acts = (mean.unsqueeze(1) + std.unsqueeze(1) * noise).clamp(-1.0, 1.0)
        values = self.critic.values(obs, acts).amin(0)  # (B, K)
        v = values.mean(1) if self.config.advantage == "mean" else values.amax(1)  # (B,)
        return q.amin(0) - v

    @torch.no_grad()
    def weights(self, adv: Tensor) -> Tensor:
        """Return f of the advantages, (B,) each."""
        if self.config.policy_improvement_mode == "exp":
            weight: Tensor = (adv / self.config.beta).exp()
            return weight.clamp(max=self.config.ratio_upper_bound)
        if self.config.policy_improvement_mode == "binary":
            return (adv > 0.0).float()
        return torch.ones_like(adv)

    @staticmethod
    def actor_loss(mean: Tensor, std: Tensor, act: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted cloning loss.

        :param mean, std: (B, A) of the policy.
        :param act: (B, A) of the data.
        :param weight: (B,) without gradient.
        """
        return -(weight * normal_log_prob(mean, std, act)).mean()

    @staticmethod
    def critic_loss(q: Tensor, target: Tensor) -> Tensor:
        """Return half the squared TD error, summed over critics, mean over the batch.

        :param q: (N, B).
        :param target: (B,) without gradient.
        """
        return 0.5 * (q - target).square().mean(1).sum()
