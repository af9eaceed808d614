"""Critic Regularized Regression for discrete actions.

Wang et al.: "Critic Regularized Regression", NeurIPS 2020, arXiv 2006.15134. Reference code:
google-deepmind/acme, folder ``agents/jax/crr``.

    V(s)     = sum_a pi(a|s) Q(s, a)                        exact, where the paper samples
    A(s, a)  = Q(s, a) - V(s)                               no gradient
    f        = 1[A > 0]  |  min(exp(A / beta), bound)  |  1
    L_actor  = mean(-f log pi(a|s))
    y        = r + gamma (1 - terminated) sum_a' pi_t(a'|s') Q_t(s', a')
    L_critic = mean((Q(s, a) - y)^2) / 2
    L        = L_actor + L_critic + min_q_weight * mean(logsumexp_a Q(s, a) - Q(s, a_data))

The last term is Tianshou's addition (CQL); 0, the paper's CRR, is the default here.

Differences from the paper: expectations over actions are exact; the critic is a plain one, as in
Acme, where the paper's is distributional; on frames actor and critic share the convolutions.
Differences from Tianshou's ``DiscreteCRRPolicy``: its advantage has shape (B, 1) against a (B,)
log-probability, so every action is weighted by every other sample's advantage; it lets the actor's
loss change the critic; it takes time-outs for terminals. All three are put right here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.losses import conservative_loss
from tianshou_ext.nn.nets import MultiHeadNet, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register


@dataclass(frozen=True, kw_only=True)
class DiscreteCRRConfig(PolicyConfig):
    """Hyperparameters of discrete CRR; defaults from Tianshou's ``atari_crr.py`` but the last."""

    policy_improvement_mode: Literal["exp", "binary", "all"] = "exp"
    """The weight f: exponential, indicator of a positive advantage, or 1 (cloning)."""
    ratio_upper_bound: float = 20.0
    """Largest exponential weight, above 0; paper section 3."""
    beta: float = 1.0
    """Temperature of the exponential weight, above 0, in units of return."""
    target_update_freq: int = 500
    """Gradient steps between copies to the target networks (100 in the paper)."""
    min_q_weight: float = 0.0
    """Weight of the added conservative term (10 in Tianshou's example)."""
    sample_actions: bool = False
    """Draw actions where it acts alone too, instead of taking the likeliest."""

    def validate(self) -> None:
        super().validate()
        modes = ("exp", "binary", "all")
        mode = self.policy_improvement_mode
        self.check(mode in modes, "policy_improvement_mode", f"one of {', '.join(modes)}")
        self.check(self.ratio_upper_bound > 0, "ratio_upper_bound", "above 0")
        self.check(self.beta > 0, "beta", "above 0")
        self.check(self.target_update_freq >= 1, "target_update_freq", "at least 1")
        self.check(self.min_q_weight >= 0.0, "min_q_weight", "at least 0")


@register(
    "discrete_crr",
    title="CRR (exp, binary; optional CQL term)",
    paper="arXiv 2006.15134",
    actions="discrete",
    needs=("reward", "next observation"),
)
class DiscreteCRRPolicy(OfflinePolicy):
    """Discrete CRR; a drop-in for Tianshou 1.2's class of the same name.

    :param actor: ``(obs, state) -> ((B, A) logits, state)``; without a critic, logits and values,
        ``(obs, state) -> (((B, A), (B, A)), state)``.
    :param critic: ``obs -> (B, A)`` values, as Tianshou's critics, or ``(values, state)``.
    :param optim: over the parameters of both, each once.
    :param options: fields of ``DiscreteCRRConfig``, or Tianshou's names of them.
    """

    config_class = DiscreteCRRConfig

    def __init__(
        self,
        *,
        actor: nn.Module,
        critic: nn.Module | None = None,
        optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: DiscreteCRRConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(DiscreteCRRConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.actor = actor
        self.critic = critic
        self.add_optimizer("actor_critic", optim, *filter(None, (actor, critic)))
        self.actor_target = self.add_target(actor)
        self.critic_target = None if critic is None else self.add_target(critic)

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape, num_actions = observation_space.shape, int(action_space.n)
        actor = MultiHeadNet(shape, [(num_actions,), (num_actions,)], config.hidden_sizes)
        actor.to(device)
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
        logits, _ = self.logits_and_values(self.actor, self.critic, obs)
        if deterministic and not self.config.sample_actions:
            return logits.argmax(1), logits
        return self.draw_actions(logits), logits

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        self.update_targets(self.config.target_update_freq)
        target = self.target_q(batch)
        logits, q = self.logits_and_values(self.actor, self.critic, batch.obs)
        actor_loss, weight = self.actor_loss(logits, q, batch.act)
        critic_loss = self.critic_loss(q, batch.act, target)
        loss = actor_loss + critic_loss
        metrics = {"loss/actor": actor_loss, "loss/critic": critic_loss, "weight/mean": weight}
        if self.config.min_q_weight > 0:
            metrics["loss/min_q"] = conservative_loss(q, batch.act).mean()
            loss = loss + self.config.min_q_weight * metrics["loss/min_q"]
        self.optimize(loss, "actor_critic")
        return {"loss": loss, **metrics, "q/mean": q.detach().mean()}

    @staticmethod
    def logits_and_values(
        actor: nn.Module, critic: nn.Module | None, obs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's logits and the critic's values, (B, A) each."""
        output, _ = actor(obs)
        if critic is None:
            logits, q = output
            return logits, q
        values = critic(obs)
        return output, values[0] if isinstance(values, tuple) else values

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """Return the TD targets y, (B,)."""
        logits, q = self.logits_and_values(self.actor_target, self.critic_target, batch.obs_next)
        value_next = (logits.softmax(1) * q).sum(1)  # (B,)
        return batch.rew + batch.discount * (1.0 - batch.terminated) * value_next

    def weights(self, logits: Tensor, q: Tensor, act: Tensor) -> Tensor:
        """Return f for each sample, (B,), without gradient."""
        with torch.no_grad():
            value = (logits.softmax(1) * q).sum(1)  # (B,)
            adv = q.gather(1, act.unsqueeze(1)).squeeze(1) - value  # (B,)
            if self.config.policy_improvement_mode == "exp":
                weight: Tensor = (adv / self.config.beta).exp()
                return weight.clamp(max=self.config.ratio_upper_bound)
            if self.config.policy_improvement_mode == "binary":
                return (adv > 0).float()
            return torch.ones_like(adv)

    def actor_loss(self, logits: Tensor, q: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted cloning loss and the mean weight.

        :param logits: (B, A).
        :param q: (B, A); gets no gradient.
        :param act: (B,) int64.
        """
        weight = self.weights(logits, q, act)  # (B,)
        log_prob = logits.log_softmax(1).gather(1, act.unsqueeze(1)).squeeze(1)  # (B,)
        return -(weight * log_prob).mean(), weight.mean()

    @staticmethod
    def critic_loss(q: Tensor, act: Tensor, target: Tensor) -> Tensor:
        """Return half the mean squared TD error (the factor is Acme's)."""
        chosen = q.gather(1, act.unsqueeze(1)).squeeze(1)  # (B,)
        return 0.5 * (chosen - target).square().mean()
