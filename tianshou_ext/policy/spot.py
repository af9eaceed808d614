"""SPOT: TD3 whose actor stays where a model of the data's actions finds them likely.

Wu, Wu, Qiu, Wang, Long: "Supported Policy Optimization for Offline Reinforcement Learning",
NeurIPS 2022, arXiv 2202.06239. Official code: thuml/SPOT@4be91cc.

First a conditional VAE learns the data's actions, and is frozen:

    L_vae    = mean(nlb(s, a))
    nlb(s, a) = mean_A (dec(s, z) - a)^2 + beta mean_Z KL(q(z|s, a), N(0, 1)),  z ~ q(z|s, a)

With one latent dimension to an action dimension, nlb is minus the evidence bound on log p(a|s) for
a decoder of variance beta / 2, up to scale and a constant; with two, as here, for beta / 4. Then
TD3 with the critics' loss of TD3+BC, and

    L_actor  = -mean(Q_1(s, pi(s))) / mean(|Q_1(s, pi(s))|) + lam c mean(nlb(s, pi(s)))
    c        = max(lam_end, 1 - online_steps / cooling_steps)

where the divisor has no gradient, and that of nlb goes through the frozen VAE into pi. c is 1
offline. The actor and its target drop hidden units where they are trained and where they make
targets, as in the official code, which never switches the target to evaluation; they act whole.
Order within a step as in TD3+BC.

Differences from the official code: the first step trains the actor (there the second); importance
weights for several latents, an ablation of the paper's, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tianshou_ext.data.replay import Replay, Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import (
    EDAC_ACTOR_HEAD,
    EDAC_CRITIC_HEAD,
    DeterministicActor,
    EnsembleCritic,
    linear_layers,
)
from tianshou_ext.nn.vae import VAE, as_vae, vae_loss
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.td3_bc import NUM_CRITICS, TD3BCPolicy, TD3Config

SAVE_INTERVAL = 5000
"""Steps of the VAE between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class SPOTConfig(TD3Config):
    """Hyperparameters of SPOT; defaults are the official ones, ``lam`` that for hopper-medium."""

    lr: float = 3e-4
    """Adam's learning rate, of actor and critics unless they have their own."""
    actor_lr: float | None = None
    """Adam's learning rate for the actor, above 0; ``lr`` if None."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers of actor and critics."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions inside training steps, at least 0."""
    lam: float = 0.1
    """Weight of the density against the values, at least 0; lambda."""
    lam_end: float = 0.2
    """Share of ``lam`` that is left when it has cooled down online, in [0, 1]."""
    cooling_steps: int = 1_000_000
    """Environment steps online after which nothing would be left, at least 1."""
    beta: float = 0.5
    """Weight of the divergence in the VAE's loss, above 0."""
    num_samples: int = 1
    """Latents for an estimate of the density, at least 1."""
    dropout: float = 0.1
    """Share of the actor's hidden units that are dropped while it learns, in [0, 1)."""
    small_init: bool = False
    """Start with heads near zero, as the official code does on AntMaze."""
    vae_steps: int = 100_000
    """Gradient steps of the VAE before all others, at least 0; 0 takes it as it is."""
    vae_batch_size: int = 256
    """Actions a gradient step of the VAE, at least 1."""
    vae_lr: float = 1e-3
    """Adam's learning rate for the VAE, above 0."""
    vae_hidden_sizes: tuple[int, ...] = (750, 750)
    """Widths of the fully connected layers of encoder and decoder."""
    latent_dim: int | None = None
    """Dimensions of the latents, at least 1; twice the action's if None."""

    def validate(self) -> None:
        super().validate()
        self.check(self.actor_lr is None or self.actor_lr > 0.0, "actor_lr", "above 0")
        self.check(self.lam >= 0.0, "lam", "at least 0")
        self.check(0.0 <= self.lam_end <= 1.0, "lam_end", "in [0, 1]")
        self.check(self.beta > 0.0, "beta", "above 0")
        self.check(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)")
        self.check(self.vae_steps >= 0, "vae_steps", "at least 0")
        self.check(self.vae_lr > 0.0, "vae_lr", "above 0")
        for name in ("cooling_steps", "num_samples", "vae_batch_size"):
            self.check(getattr(self, name) >= 1, name, "at least 1")
        known = self.latent_dim is None or self.latent_dim >= 1
        self.check(known, "latent_dim", "at least 1")


@register(
    "spot",
    title="SPOT",
    paper="arXiv 2202.06239",
    actions="continuous",
    needs=("reward", "next observation"),
)
class SPOTPolicy(TD3BCPolicy):
    """SPOT; constructed as ``TD3BCPolicy``, with the VAE and its optimizer.

    :param actor: a ``DeterministicActor``; any ``(obs, state) -> ((B, A) actions, state)`` if
        ``dropout`` is 0.
    :param vae: ours, or Tianshou's. It is trained for ``vae_steps`` when the policy meets its first
        buffer, and saved with the weights.
    :param vae_optim: over its parameters.
    """

    config_class = SPOTConfig
    num_vae_steps: Tensor
    density_weight: Tensor
    """Of the density's loss in the actor's; it cools down online."""

    def __init__(self, *, vae: nn.Module, vae_optim: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_can_drop()
        self.vae = as_vae(vae)
        self.add_optimizer("vae", vae_optim, vae)
        self.register_buffer("num_vae_steps", torch.tensor(0))
        self.register_buffer("density_weight", torch.tensor(self.config.lam), persistent=False)
        self._vae_is_ready = False  # asked for once: an answer of the device takes time

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        actor = DeterministicActor(obs_shape, act_dim, config.hidden_sizes)
        critic = EnsembleCritic(obs_shape, act_dim, config.hidden_sizes, NUM_CRITICS)
        if config.small_init:
            heads_near_zero(actor, EDAC_ACTOR_HEAD)
            heads_near_zero(critic, EDAC_CRITIC_HEAD)
        latent_dim = config.latent_dim or 2 * act_dim
        vae = VAE(obs_shape, act_dim, config.vae_hidden_sizes, latent_dim)
        return {"actor": actor, "critic": critic, "vae": vae}

    # ---- the VAE --------------------------------------------------------------------------

    def on_fit_start(self, replay: Replay) -> None:
        """Train the VAE for what is left of its steps; nothing is where a run or policy goes on."""
        done, steps = int(self.num_vae_steps), self.config.vae_steps
        if done >= steps:
            return
        hide = not self.show_progress
        with tqdm(total=steps, initial=done, desc="VAE", unit=" steps", disable=hide) as bar:
            for step in range(done, steps):
                loss = self.vae_step(replay)
                if step % 1000 == 0 or step == steps - 1:
                    bar.set_postfix_str(f"loss {float(loss):.4f}")
                bar.update()
                if (step + 1) % SAVE_INTERVAL == 0:
                    self.on_progress()

    def before_step(self) -> None:
        if not self._vae_is_ready:
            if int(self.num_vae_steps) < self.config.vae_steps:
                raise InputError(
                    "expected the data set before the first batch, for the VAE to learn from; "
                    "call process_buffer(buffer), or pass a trained vae and vae_steps=0"
                )
            self._vae_is_ready = True
        self.density_weight.fill_(self.cooled_weight())

    def vae_step(self, data: Replay) -> Tensor:
        """Take one gradient step of the VAE on rows drawn uniformly; return its loss."""
        size = (self.config.vae_batch_size,)
        drawn = torch.randint(len(data), size, generator=self.generators["learn"])
        rows = data.rows[drawn]
        obs, act = self.normalize(data.observations(rows)), data.act[rows.to(data.act.device)]
        noise = self.randn(len(obs), self.vae.latent_dim)
        recon, mean, std = self.vae(obs, act, noise)
        loss = vae_loss(recon, act, mean, std, self.config.beta).mean()
        self.optimize(loss, "vae")
        self.num_vae_steps += 1
        return loss.detach()

    # ---- a step ---------------------------------------------------------------------------

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        target = self.critic_targets(batch)
        q = self.critic(batch.obs, batch.act)  # (N, B)
        critic_loss = self.critic_loss(q, target)
        metrics = {"loss/critic": critic_loss.detach(), "q/data": q.detach().mean()}
        self.optimize(critic_loss, "critic")
        if self.num_updates % self.config.update_actor_freq == 0:
            act = self.dropped(self.actor, batch.obs)
            q_act = self.frozen(self.critic)(batch.obs, act, 0)  # (1, B)
            noise = self.randn(len(batch) * self.config.num_samples, self.vae.latent_dim)
            density = self.elbo_loss(batch.obs, act, noise)
            actor_loss = self.actor_loss(q_act, density, self.density_weight)
            metrics |= {
                "loss/actor": actor_loss.detach(),
                "q/policy": q_act.detach().mean(),
                "nlb": density.detach().mean(),
            }
            self.optimize(actor_loss, "actor")
            self.move_targets(self.config.tau)
        return metrics

    @torch.no_grad()
    def critic_targets(self, batch: Transitions) -> Tensor:
        """Return y, (B,)."""
        act = self.dropped(self.actor_target, batch.obs_next)
        noise = self.config.policy_noise * self.randn_like(act)
        if self.config.noise_clip > 0.0:
            noise = noise.clamp(-self.config.noise_clip, self.config.noise_clip)
        value = self.next_value(batch, (act + noise).clamp(-1.0, 1.0))
        return batch.rew + batch.discount * (1.0 - batch.terminated) * value

    def elbo_loss(self, obs: Tensor, act: Tensor, noise: Tensor) -> Tensor:
        """Return nlb of actions (B, A), (B,), by the frozen VAE; the gradient goes to the actions.

        :param noise: (B * L, Z) standard normal numbers, the L latents of an action in a row.
        """
        count = len(noise) // len(act)
        obs, act = obs.repeat_interleave(count, 0), act.repeat_interleave(count, 0)
        recon, mean, std = self.frozen(self.vae)(obs, act, noise)
        return vae_loss(recon, act, mean, std, self.config.beta).view(-1, count).mean(1)

    @staticmethod
    def actor_loss(  # type: ignore[override]
        q: Tensor, density: Tensor, weight: Tensor | float
    ) -> Tensor:
        """Return the weighted density's loss of the actor's actions less their normalised value.

        :param q: (1 or N, B) values of the actor's actions; the first critic's count.
        :param density: (B,) nlb of these actions.
        :param weight: of the density's loss.
        """
        return weight * density.mean() - q[0].mean() / q[0].abs().mean().detach()

    def cooled_weight(self) -> float:
        """Return the weight of the density now: ``lam``, cooling down online."""
        left = 1.0 - self.online_steps / self.config.cooling_steps
        return float(self.config.lam * max(self.config.lam_end, left))


@torch.no_grad()
def heads_near_zero(network: nn.Module, bound: float) -> None:
    """Draw weights and biases of the last layer uniformly from [-bound, bound]."""
    *_, head = linear_layers(network)
    for parameter in (head.weight, head.bias):
        parameter.uniform_(-bound, bound)
