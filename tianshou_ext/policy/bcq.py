"""Batch-Constrained Q-learning for continuous actions.

Fujimoto, Meger, Precup: "Off-Policy Deep Reinforcement Learning without Exploration", ICML 2019,
arXiv 1812.02900. Official code: sfujim/BCQ, continuous_BCQ/BCQ.py.

    L_vae    = mean(mean_A (dec(s, z) - a)^2 + 0.5 KL(q(z|s, a), N(0, 1))),  KL a mean over dims
    actions  : a_k = xi(s, dec(s, z_k)),  z_k ~ N(0, 1) clipped to [-0.5, 0.5]
               xi(s, a) = clip(a + phi tanh(net(s, a)), -1, 1)
    y        = r + gamma (1 - terminated) max_k (lmbda min_i + (1 - lmbda) max_i) Qt_i(s', a'_k),
               a'_k perturbed by the target xi
    L_critic = sum_i mean((Q_i(s, a) - y)^2)
    L_actor  = -mean(Q_1(s, xi(s, dec(s, z)))),  the VAE gets no gradient from it
    Qt, xi_t <- (1 - tau) target + tau source

Order of a step as in the official code: VAE, critics with the new VAE, perturbation with the new
critics, targets. The policy takes the action of greatest Q_1 out of 100 candidates.

Differences from the official code: the greedy policy draws its 100 latents once, the same for every
state and run, so that the same state always gets the same action; while training online they are
drawn anew each time. On frames encoder and decoder share their convolutions, as the critics do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.actor_critic import EnsembleCritic
from tianshou_ext.nn.nets import make_trunk
from tianshou_ext.nn.vae import VAE, RowWise, as_vae, join, mlp, vae_loss
from tianshou_ext.policy.actor_critic import ActorCriticPolicy
from tianshou_ext.policy.config import PolicyConfig
from tianshou_ext.policy.registry import register

LATENT_BOUND = 0.5
"""Latents of sampled actions are clipped to [-0.5, 0.5]: official code."""


@dataclass(frozen=True, kw_only=True)
class BCQConfig(PolicyConfig):
    """Hyperparameters of BCQ; defaults are the official ones, which go with a batch of 100."""

    lr: float = 1e-3
    """Adam's learning rate, of perturbation, critics and VAE."""
    hidden_sizes: tuple[int, ...] = (400, 300)
    """Widths of the fully connected layers of perturbation and critics."""
    obs_norm: ObsNorm = "none"
    """``standard``: by the data's mean and std; ``none``: as they are."""
    vae_hidden_sizes: tuple[int, ...] = (750, 750)
    """Widths of the fully connected layers of encoder and decoder."""
    latent_dim: int | None = None
    """Dimensions of the latents, at least 1; twice the action's if None."""
    phi: float = 0.05
    """Greatest change of an action by the perturbation, in [0, 2]; 0 leaves actions as drawn."""
    lmbda: float = 0.75
    """Weight of the least against the greatest critic in the target, in [0, 1]."""
    num_sampled_action: int = 10
    """Candidates for the target, at least 1."""
    forward_sampled_times: int = 100
    """Candidates when acting, at least 1."""
    num_critics: int = 2
    """Critics, at least 1."""
    tau: float = 0.005
    """Share of critics and perturbation in their targets after each step, in (0, 1]."""

    def validate(self) -> None:
        super().validate()
        known = self.latent_dim is None or self.latent_dim >= 1
        self.check(known, "latent_dim", "at least 1")
        self.check(0.0 <= self.phi <= 2.0, "phi", "in [0, 2]")
        self.check(0.0 <= self.lmbda <= 1.0, "lmbda", "in [0, 1]")
        for name in ("num_sampled_action", "forward_sampled_times", "num_critics"):
            self.check(getattr(self, name) >= 1, name, "at least 1")
        self.check(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")


class Perturbation(nn.Module):
    """(B, ...) observations and actions (B, A), or (B, K, A), to actions moved by at most phi."""

    def __init__(self, obs_shape: Any, act_dim: int, hidden_sizes: Any, phi: float) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, ())
        self.net = mlp(width + act_dim, hidden_sizes, act_dim)
        self.phi = phi

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        shift = self.phi * torch.tanh(self.net(join(self.trunk(obs), act)))
        return (act + shift).clamp(-1.0, 1.0)


@register(
    "bcq",
    title="BCQ",
    paper="arXiv 1812.02900",
    actions="continuous",
    needs=("reward", "next observation"),
)
class BCQPolicy(ActorCriticPolicy):
    """BCQ; a drop-in for Tianshou's ``BCQPolicy``.

    :param actor_perturbation: ``(obs, act) -> (B, A)`` actions.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's.
    :param vae: ours, or Tianshou's.
    :param actor_perturbation_optim, critic_optim, critic2_optim, vae_optim: over the parameters of
        each.
    :param device: as Tianshou's example passes it; not used, networks live where they are.
    :param options: fields of ``BCQConfig``, or Tianshou's names of them.
    """

    config_class = BCQConfig
    latents: Tensor

    def __init__(
        self,
        *,
        actor_perturbation: nn.Module,
        actor_perturbation_optim: Any,
        vae: nn.Module,
        vae_optim: Any,
        device: Any = None,
        **kwargs: Any,
    ) -> None:
        own = isinstance(actor_perturbation, Perturbation)
        actor = actor_perturbation if own else RowWise(actor_perturbation)
        super().__init__(actor=actor, actor_optim=actor_perturbation_optim, **kwargs)
        self.vae = as_vae(vae)
        self.add_optimizer("vae", vae_optim, vae)
        self.actor_target = self.add_target(self.actor)
        size = (self.config.forward_sampled_times, self.vae.latent_dim)
        latents = torch.randn(size, generator=torch.Generator().manual_seed(0))
        self.register_buffer("latents", _clip(latents), persistent=False)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        hidden = config.hidden_sizes
        latent_dim = config.latent_dim or 2 * act_dim
        return {
            "actor_perturbation": Perturbation(obs_shape, act_dim, hidden, config.phi),
            "critic": EnsembleCritic(obs_shape, act_dim, hidden, config.num_critics),
            "vae": VAE(obs_shape, act_dim, config.vae_hidden_sizes, latent_dim),
        }

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        latents = self.latents.expand(len(obs), -1, -1)  # (B, K, Z)
        if not deterministic:
            latents = _clip(self.act_noise(latents))
        acts = self.actor(obs, self.vae.decode(obs, latents))  # (B, K, A)
        q = self.critic.values(obs, acts)[0]  # (B, K)
        best = q.argmax(1).view(-1, 1, 1).expand(-1, 1, acts.shape[2])
        return acts.gather(1, best).squeeze(1), q

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        batch_size, latent_dim = len(batch), self.vae.latent_dim
        decoded = self.vae(batch.obs, batch.act, self.randn(batch_size, latent_dim))
        recon_loss = vae_loss(decoded[0], batch.act, *decoded[1:]).mean()
        self.optimize(recon_loss, "vae")
        target = self.critic_targets(batch)
        q = self.critic(batch.obs, batch.act)  # (N, B)
        critic_loss = self.critic_loss(q, target)
        self.optimize(critic_loss, "critic")
        latents = _clip(self.randn(batch_size, latent_dim))
        actor_loss = self.actor_loss(batch.obs, latents)
        self.optimize(actor_loss, "actor")
        self.move_targets(self.config.tau)
        return {
            "loss/vae": recon_loss,
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "q/data": q.mean(),
            "q/target": target.mean(),
        }

    @torch.no_grad()
    def critic_targets(self, batch: Transitions) -> Tensor:
        """Return y, (B,)."""
        noise = self.randn(len(batch), self.config.num_sampled_action, self.vae.latent_dim)
        acts = self.actor_target(batch.obs_next, self.vae.decode(batch.obs_next, _clip(noise)))
        q = self.critic_target.values(batch.obs_next, acts)  # (N, B, K)
        v = self.soft_clipped(q).amax(1)
        return batch.rew + batch.discount * (1.0 - batch.terminated) * v

    def soft_clipped(self, q: Tensor) -> Tensor:
        """Return a value between the least and the greatest critic, (N, ...) to (...)."""
        weight: float = self.config.lmbda
        return weight * q.amin(0) + (1.0 - weight) * q.amax(0)

    def actor_loss(self, obs: Tensor, latents: Tensor) -> Tensor:
        """Return minus the first critic's value of perturbed actions; latents are (B, Z)."""
        with torch.no_grad():
            drawn = self.vae.decode(obs, latents)  # (B, A)
        q: Tensor = self.frozen(self.critic)(obs, self.actor(obs, drawn))[0]  # (B,)
        return -q.mean()


def _clip(latents: Tensor) -> Tensor:
    return latents.clamp(-LATENT_BOUND, LATENT_BOUND)
