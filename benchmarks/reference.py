"""Plain PyTorch loops of the published recipes: what the package's speed is measured against.

As one writes them from the papers, and as single-file libraries have them: one network a critic
(SAC-N's are one by batched products), Adam with its defaults, targets moved parameter by parameter,
batches indexed from numpy arrays and converted array by array. Nothing is tuned for speed, except
that the scalars to log are brought to the host once in ``log_every`` steps.

The losses are those of the papers and the official codes: TD3+BC (arXiv 2106.06860), IQL
(2110.06169, its cosine schedule left out, here as everywhere in the comparison), CQL(H) with
importance weights and without Lagrange (2006.04779), SAC-N (2110.01548).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

GAMMA, TAU, LR = 0.99, 0.005, 3e-4
Batch = tuple[Tensor, ...]
"""obs (B, D), act (B, A), rew (B,), obs_next (B, D), terminated (B,)."""


class ArrayBuffer:
    """Transitions in five numpy arrays."""

    def __init__(self, *arrays: np.ndarray[Any, Any]) -> None:
        self.arrays = arrays
        self.rng = np.random.default_rng(0)

    def sample(self, batch_size: int) -> Batch:
        rows = self.rng.integers(0, len(self.arrays[0]), batch_size)
        return tuple(torch.tensor(array[rows]) for array in self.arrays)


def mlp(in_dim: int, hidden_sizes: Sequence[int], out_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(in_dim, size), nn.ReLU()]
        in_dim = size
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


class Critic(nn.Module):
    def __init__(self, obs_dim: int, act_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(obs_dim + act_dim, hidden_sizes, 1)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        q: Tensor = self.net(torch.cat([obs, act], dim=1)).squeeze(1)
        return q


class EnsembleLinear(nn.Module):
    """N linear layers: (N, B, in) to (N, B, out)."""

    def __init__(self, num: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(num, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class EnsembleCritic(nn.Module):
    """N critics: (B, D) and (B, A) to (N, B)."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_sizes: Sequence[int], num: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_dim = obs_dim + act_dim
        for size in hidden_sizes:
            layers += [EnsembleLinear(num, in_dim, size), nn.ReLU()]
            in_dim = size
        self.net = nn.Sequential(*layers, EnsembleLinear(num, in_dim, 1))
        self.num = num

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        x = torch.cat([obs, act], dim=1).unsqueeze(0).repeat_interleave(self.num, dim=0)
        q: Tensor = self.net(x).squeeze(-1)
        return q


class TanhActor(nn.Module):
    def __init__(self, obs_dim: int, act_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(obs_dim, hidden_sizes, act_dim)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs))


class TanhGaussianActor(nn.Module):
    """The tanh of a normal distribution whose deviation depends on the state."""

    def __init__(
        self, obs_dim: int, act_dim: int, hidden_sizes: Sequence[int], min_log_std: float
    ) -> None:
        super().__init__()
        self.net = mlp(obs_dim, hidden_sizes, 2 * act_dim)
        self.min_log_std = min_log_std

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return sampled actions (B, A) and their log-densities (B,)."""
        mean, log_std = self.net(obs).chunk(2, dim=1)
        normal = Normal(mean, log_std.clamp(self.min_log_std, 2.0).exp())
        raw = normal.rsample()
        act = torch.tanh(raw)
        log_prob = normal.log_prob(raw) - torch.log(1.0 - act.square() + 1e-6)
        return act, log_prob.sum(1)


def descend(optim: torch.optim.Optimizer, loss: Tensor) -> None:
    optim.zero_grad()
    loss.backward()
    optim.step()


def soft_update(target: nn.Module, source: nn.Module) -> None:
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.data.copy_((1.0 - TAU) * old.data + TAU * new.data)


class Loop:
    """One method; subclasses make networks and optimizers and write ``learn``."""

    log_every = 1000

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.num_updates = 0

    def update(self, batch: Batch) -> dict[str, float]:
        """Take one gradient step; return what is to be logged, if this step is logged."""
        scalars = self.learn(batch)
        logged = self.num_updates % self.log_every == 0
        self.num_updates += 1
        return {name: value.item() for name, value in scalars.items()} if logged else {}

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def twin_critics(self, hidden_sizes: Sequence[int]) -> None:
        """Make two critics, their targets and one Adam for both."""
        self.critic1 = Critic(self.obs_dim, self.act_dim, hidden_sizes)
        self.critic2 = Critic(self.obs_dim, self.act_dim, hidden_sizes)
        self.target1, self.target2 = copy.deepcopy(self.critic1), copy.deepcopy(self.critic2)
        both = itertools.chain(self.critic1.parameters(), self.critic2.parameters())
        self.critic_optim = torch.optim.Adam(both, lr=LR)

    def move_twin_targets(self) -> None:
        soft_update(self.target1, self.critic1)
        soft_update(self.target2, self.critic2)

    def soft_actor(self, hidden_sizes: Sequence[int], min_log_std: float, lr: float) -> None:
        """Make SAC's actor and a temperature that is learned."""
        self.actor = TanhGaussianActor(self.obs_dim, self.act_dim, hidden_sizes, min_log_std)
        self.actor_optim = torch.optim.Adam(self.actor.parameters(), lr=lr)
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.alpha_optim = torch.optim.Adam([self.log_alpha], lr=lr)


class BC(Loop):
    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__(obs_dim, act_dim)
        self.actor = TanhActor(obs_dim, act_dim, (256, 256))
        self.actor_optim = torch.optim.Adam(self.actor.parameters(), lr=LR)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        obs, act, *_ = batch
        loss = functional.mse_loss(self.actor(obs), act)
        descend(self.actor_optim, loss)
        return {"loss": loss}


class TD3BC(Loop):
    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__(obs_dim, act_dim)
        self.actor = TanhActor(obs_dim, act_dim, (256, 256))
        self.actor_target = copy.deepcopy(self.actor)
        self.actor_optim = torch.optim.Adam(self.actor.parameters(), lr=LR)
        self.twin_critics((256, 256))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        obs, act, rew, obs_next, terminated = batch
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(act)).clamp(-0.5, 0.5)
            act_next = (self.actor_target(obs_next) + noise).clamp(-1.0, 1.0)
            q_next = torch.min(self.target1(obs_next, act_next), self.target2(obs_next, act_next))
            y = rew + GAMMA * (1.0 - terminated) * q_next
        q1, q2 = self.critic1(obs, act), self.critic2(obs, act)
        critic_loss = functional.mse_loss(q1, y) + functional.mse_loss(q2, y)
        descend(self.critic_optim, critic_loss)
        scalars = {"loss/critic": critic_loss, "q/data": q1.mean()}
        if self.num_updates % 2 == 0:
            act_pi = self.actor(obs)
            q = self.critic1(obs, act_pi)
            weight = 2.5 / q.abs().mean().detach()
            actor_loss = -weight * q.mean() + functional.mse_loss(act_pi, act)
            descend(self.actor_optim, actor_loss)
            self.move_twin_targets()
            soft_update(self.actor_target, self.actor)
            scalars |= {"loss/actor": actor_loss, "q/policy": q.mean()}
        return scalars


class IQL(Loop):
    """Deviations are parameters, the same in all states, of actions that are not squashed."""

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__(obs_dim, act_dim)
        self.actor = TanhActor(obs_dim, act_dim, (256, 256))
        self.log_std = nn.Parameter(torch.zeros(act_dim))
        self.actor_optim = torch.optim.Adam([*self.actor.parameters(), self.log_std], lr=LR)
        self.value = mlp(obs_dim, (256, 256), 1)
        self.value_optim = torch.optim.Adam(self.value.parameters(), lr=LR)
        self.twin_critics((256, 256))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        obs, act, rew, obs_next, terminated = batch
        with torch.no_grad():
            q = torch.min(self.target1(obs, act), self.target2(obs, act))
        diff = q - self.value(obs).squeeze(1)
        value_loss = (torch.where(diff < 0.0, 0.3, 0.7) * diff.square()).mean()
        descend(self.value_optim, value_loss)
        with torch.no_grad():
            adv = q - self.value(obs).squeeze(1)
            v_next = self.value(obs_next).squeeze(1)
        weight = (3.0 * adv).exp().clamp(max=100.0)
        policy = Normal(self.actor(obs), self.log_std.clamp(-5.0, 2.0).exp())
        actor_loss = -(weight * policy.log_prob(act).sum(1)).mean()
        descend(self.actor_optim, actor_loss)
        y = rew + GAMMA * (1.0 - terminated) * v_next
        q1, q2 = self.critic1(obs, act), self.critic2(obs, act)
        critic_loss = functional.mse_loss(q1, y) + functional.mse_loss(q2, y)
        descend(self.critic_optim, critic_loss)
        self.move_twin_targets()
        return {
            "loss/value": value_loss,
            "loss/actor": actor_loss,
            "loss/critic": critic_loss,
            "adv/mean": adv.mean(),
            "q/data": q1.mean(),
        }


class CQL(Loop):
    num_samples = 10
    cql_weight = 5.0

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__(obs_dim, act_dim)
        self.soft_actor((256, 256, 256), min_log_std=-20.0, lr=1e-4)
        self.twin_critics((256, 256, 256))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        obs, act, rew, obs_next, terminated = batch
        alpha = self.log_alpha.exp().detach()
        act_pi, log_prob = self.actor(obs)
        alpha_loss = -(self.log_alpha * (log_prob.detach() - self.act_dim)).mean()
        q_pi = torch.min(self.critic1(obs, act_pi), self.critic2(obs, act_pi))
        actor_loss = (alpha * log_prob - q_pi).mean()

        with torch.no_grad():
            act_next, _ = self.actor(obs_next)
            q_next = torch.min(self.target1(obs_next, act_next), self.target2(obs_next, act_next))
            y = rew + GAMMA * (1.0 - terminated) * q_next
            # Samples are scored at the observation, also those of the next one's policy.
            many_obs = obs.repeat_interleave(self.num_samples, dim=0)  # (B * K, D)
            many_next = obs_next.repeat_interleave(self.num_samples, dim=0)
            uniform = torch.empty(len(many_obs), self.act_dim).uniform_(-1.0, 1.0)
            uniform_log_prob = torch.full((len(many_obs),), self.act_dim * math.log(0.5))
            samples = [(uniform, uniform_log_prob), self.actor(many_obs), self.actor(many_next)]
        critic_loss, penalty = torch.zeros(()), torch.zeros(())
        for critic in (self.critic1, self.critic2):
            q = critic(obs, act)
            scores = [critic(many_obs, a) - log_density for a, log_density in samples]
            table = torch.cat([s.view(-1, self.num_samples) for s in scores], dim=1)  # (B, 3K)
            critic_loss = critic_loss + functional.mse_loss(q, y)
            penalty = penalty + torch.logsumexp(table, dim=1).mean() - q.mean()

        descend(self.alpha_optim, alpha_loss)
        descend(self.actor_optim, actor_loss)
        descend(self.critic_optim, critic_loss + self.cql_weight * penalty)
        self.move_twin_targets()
        return {
            "loss/critic": critic_loss,
            "loss/cql": penalty,
            "loss/actor": actor_loss,
            "alpha": alpha,
            "entropy": -log_prob.mean(),
            "q/data": q.mean(),
            "q/policy": q_pi.mean(),
        }


class SACN(Loop):
    def __init__(self, obs_dim: int, act_dim: int) -> None:
        super().__init__(obs_dim, act_dim)
        self.soft_actor((256, 256, 256), min_log_std=-5.0, lr=LR)
        self.critic = EnsembleCritic(obs_dim, act_dim, (256, 256, 256), num=10)
        self.critic_target = copy.deepcopy(self.critic)
        self.critic_optim = torch.optim.Adam(self.critic.parameters(), lr=LR)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        obs, act, rew, obs_next, terminated = batch
        alpha = self.log_alpha.exp().detach()
        act_pi, log_prob = self.actor(obs)
        alpha_loss = -(self.log_alpha * (log_prob.detach() - self.act_dim)).mean()
        q_pi = self.critic(obs, act_pi).min(0).values
        actor_loss = (alpha * log_prob - q_pi).mean()
        with torch.no_grad():
            act_next, log_prob_next = self.actor(obs_next)
            v_next = self.critic_target(obs_next, act_next).min(0).values - alpha * log_prob_next
            y = rew + GAMMA * (1.0 - terminated) * v_next
        q = self.critic(obs, act)  # (N, B)
        critic_loss = (q - y).square().mean(1).sum()
        descend(self.alpha_optim, alpha_loss)
        descend(self.actor_optim, actor_loss)
        descend(self.critic_optim, critic_loss)
        soft_update(self.critic_target, self.critic)
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "alpha": alpha,
            "entropy": -log_prob.mean(),
            "q/data": q.mean(),
            "q/policy": q_pi.mean(),
        }


REFERENCES: dict[str, type[Loop]] = {
    "bc": BC,
    "td3_bc": TD3BC,
    "iql": IQL,
    "cql": CQL,
    "sac_n": SACN,
}
