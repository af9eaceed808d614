"""Conservative Q-Learning for continuous actions: CQL(H) on SAC.

Kumar, Zhou, Tucker, Levine: "Conservative Q-Learning for Offline Reinforcement Learning",
NeurIPS 2020, arXiv 2006.04779. Official code: aviralkumar2907/CQL, d4rl/rlkit/torch/sac/cql.py.

    y      = r + gamma (1 - terminated) min_i Qt_i(s', a'),  a' ~ pi(s'), no entropy
    soft_i = T logsumexp over 3K actions of ((Q_i(s, a) - log density(a)) / T); the actions are
             K uniform ones of density 0.5^A, K of pi(s) and K of pi(s'), all evaluated at s
    C_i    = cql_weight mean(soft_i - Q_i(s, a_data))
    L_critic = sum_i (mean((Q_i(s, a_data) - y)^2) + C_i)
    Lagrange: C_i becomes alpha' (C_i - lagrange_threshold), and alpha' ascends the mean of those
    L_actor  = mean(alpha log pi(a~|s) - min_i Q_i(s, a~)),  a~ ~ pi(s)
    L_actor  = mean(alpha log pi(a~|s) - log pi(a_data|s))   in the first ``bc_steps`` steps

Actor, temperature, targets and order of a step are SAC's: see ``sac_n.py``. No gradient goes to the
sampled actions or their densities.

Differences from the official code: the actor's loss uses the temperature of before the step, there
of after it. The official script, left alone, clones for the first 40,000 steps and learns alpha'
with a threshold of 5 and weight 1; its comments say that the cloning hardly matters, and to take a
weight of 5 or 10 without alpha'. Our defaults are no cloning, no alpha' and 5. After a true end,
where data may hold anything as s', actions of pi(s) stand in for those of pi(s').
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.actor_critic import tanh_normal_log_prob, tanh_normal_sample
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.sac_n import Gaussian, SACNConfig, SACNPolicy

MAX_CQL_ALPHA = 1e6
"""Greatest alpha': official code."""


@dataclass(frozen=True, kw_only=True)
class CQLConfig(SACNConfig):
    """Hyperparameters of CQL; defaults are the official ones for MuJoCo without Lagrange."""

    actor_lr: float | None = 1e-4
    """Adam's learning rate of actor and temperature; below ``lr``, which is the critics'."""
    num_critics: int = 2
    """Critics whose minimum is taken, at least 1."""
    backup_entropy: bool = False
    """Count the next action's entropy as reward in the critics' target."""
    max_q_backup: bool = False
    """Take the greatest value of 10 next actions as the target; AntMaze in CORL."""
    cql_weight: float = 5.0
    """Weight of the conservative term, at least 0; alpha in the paper. 0 is SAC."""
    temperature: float = 1.0
    """Of the soft maximum, above 0."""
    num_repeat_actions: int = 10
    """Actions K of each of three kinds in the soft maximum, at least 1."""
    lagrange_threshold: float | None = None
    """How far the conservative term may exceed 0 before its weight grows; tau in the paper. 5 on
    AntMaze in the official code, with K = 10. None keeps the weight as it is."""
    with_lagrange: bool | None = None
    """Learn the weight; None: where a threshold is given."""
    cql_alpha_lr: float | None = None
    """Adam's learning rate of the learned weight; ``lr`` if None."""
    bc_steps: int = 0
    """First gradient steps in which the actor clones the data, at least 0."""

    def validate(self) -> None:
        super().validate()
        self.check(self.cql_weight >= 0.0, "cql_weight", "at least 0")
        self.check(self.temperature > 0.0, "temperature", "above 0")
        self.check(self.num_repeat_actions >= 1, "num_repeat_actions", "at least 1")
        threshold = self.lagrange_threshold
        sound = threshold is None or threshold >= 0.0 or self.with_lagrange is False
        self.check(sound, "lagrange_threshold", "at least 0, or None for a fixed weight")
        known = self.with_lagrange is not True or self.lagrange_threshold is not None
        self.check(known, "lagrange_threshold", "a number beside with_lagrange")
        self.check(self.cql_alpha_lr is None or self.cql_alpha_lr > 0, "cql_alpha_lr", "above 0")
        self.check(self.bc_steps >= 0, "bc_steps", "at least 0")

    @property
    def uses_lagrange(self) -> bool:
        """Whether the weight of the conservative term is learned."""
        return self.lagrange_threshold is not None and self.with_lagrange is not False


@register(
    "cql",
    title="CQL",
    paper="arXiv 2006.04779",
    actions="continuous",
    needs=("reward", "next observation"),
)
class CQLPolicy(SACNPolicy):
    """CQL; networks and optimizers as for ``SACNPolicy``, options are fields of ``CQLConfig``."""

    config_class = CQLConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.config.uses_lagrange:
            self.log_cql_alpha = nn.Parameter(torch.zeros(()))  # the official start
            lr = self.config.cql_alpha_lr or self.config.lr
            self.optimizers["cql_alpha"] = torch.optim.Adam([self.log_cql_alpha], lr=lr)

    def actor_loss(
        self, batch: Transitions, policy: Gaussian, cost: Tensor, q_act: Tensor
    ) -> Tensor:
        if self.num_updates < self.config.bc_steps:
            q_act = tanh_normal_log_prob(*policy, batch.act)  # cloning instead of values
        return super().actor_loss(batch, policy, cost, q_act)

    def critic_terms(
        self, batch: Transitions, policy: Gaussian, policy_next: Gaussian
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.cql_weight == 0.0:
            return super().critic_terms(batch, policy, policy_next)
        ended = batch.terminated.bool().unsqueeze(1)  # (B, 1)
        mean, std = (torch.where(ended, *pair) for pair in zip(policy, policy_next, strict=True))
        acts, log_density = self.sampled_actions(policy, (mean, std))
        every = torch.cat([batch.act.unsqueeze(1), acts], dim=1)  # (B, 1 + 3K, A)
        q = self.critic.values(batch.obs, every)  # (N, B, 1 + 3K)
        q_data = q[:, :, 0]
        gap = self.conservative_gap(self.penalised(batch, q[:, :, 1:]), log_density, q_data)
        return q_data, self.penalties(gap)

    def penalised(self, batch: Transitions, q: Tensor) -> Tensor:
        """Return what the soft maximum takes for the values of the sampled actions: themselves.

        :param q: (N, B, 3K) of the uniform actions, the policy's and those of the next states'.
        """
        return q

    @torch.no_grad()
    def sampled_actions(self, policy: Gaussian, policy_next: Gaussian) -> tuple[Tensor, Tensor]:
        """Return uniform actions, the policy's and those of the next states' policy.

        :return: actions (B, 3K, A) and their log-densities (B, 3K), without gradient.
        """
        mean, std = (x.unsqueeze(1) for x in policy)  # (B, 1, A)
        mean_next, std_next = (x.unsqueeze(1) for x in policy_next)
        shape = (len(mean), self.config.num_repeat_actions, mean.shape[2])
        uniform = 2.0 * self.rand(*shape) - 1.0
        here, density = tanh_normal_sample(mean, std, self.randn(*shape))
        after, density_next = tanh_normal_sample(mean_next, std_next, self.randn(*shape))
        of_uniform = torch.full_like(density, -shape[2] * math.log(2.0))
        acts = torch.cat([uniform, here, after], dim=1)
        return acts, torch.cat([of_uniform, density, density_next], dim=1)

    def conservative_gap(self, q: Tensor, log_density: Tensor, q_data: Tensor) -> Tensor:
        """Return how far a soft maximum of the values exceeds the data's, (N,).

        :param q: (N, B, 3K) values of the sampled actions.
        :param log_density: (B, 3K) without gradient.
        :param q_data: (N, B) values of the data's actions.
        """
        temperature: float = self.config.temperature
        soft = temperature * ((q - log_density) / temperature).logsumexp(2)  # (N, B)
        return (soft - q_data).mean(1)

    def penalties(self, gap: Tensor) -> dict[str, Tensor]:
        """Return what the critics, and alpha' where it is learned, minimise; ``gap`` is (N,)."""
        penalty = self.config.cql_weight * gap
        if not self.config.uses_lagrange:
            return {"cql": penalty.sum()}
        excess = penalty - self.config.lagrange_threshold
        weight = self.log_cql_alpha.exp().clamp(max=MAX_CQL_ALPHA)
        return {
            "cql": (weight.detach() * excess).sum(),
            "cql_alpha": -weight * excess.detach().mean(),
        }
