"""EDAC: SAC-N whose critics are kept different, so that few of them do.

An, Moon, Kim, Song: "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble",
NeurIPS 2021, arXiv 2110.01548. Official code: snu-mllab/EDAC.

    g_i         = grad_a Q_i(s, a) / |grad_a Q_i(s, a)|                        at the data's (s, a)
    L_diversity = mean(sum_{i != j} <g_i, g_j>) / (N - 1)                     over ordered pairs
    L_critic    = sum_i mean((Q_i(s, a) - y)^2) + eta L_diversity

Target, actor, temperature and order of a step are SAC-N's: see ``sac_n.py``.

Differences from the paper: none known. From the official code: a later commit of it (bdff4d6) takes
min(N, A) critics at random for the diversity term, to save memory; we take all, as the paper does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp

from tianshou_ext.data.replay import Transitions
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.sac_n import Gaussian, SACNConfig, SACNPolicy

NORM_EPS = 1e-10
"""Added to the norm of a gradient: official code, trainers/q_learning/sac.py."""


@dataclass(frozen=True, kw_only=True)
class EDACConfig(SACNConfig):
    """Hyperparameters of EDAC; defaults are the paper's for HalfCheetah-medium."""

    eta: float = 1.0
    """Weight of the diversity term, at least 0; 0 is SAC-N."""

    def validate(self) -> None:
        super().validate()
        self.check(self.num_critics >= 2, "num_critics", "at least 2")
        self.check(self.eta >= 0.0, "eta", "at least 0")


@register(
    "edac",
    title="EDAC",
    paper="arXiv 2110.01548",
    actions="continuous",
    needs=("reward", "next observation"),
)
class EDACPolicy(SACNPolicy):
    """EDAC; networks and optimizers as for ``SACNPolicy``, options are fields of ``EDACConfig``."""

    config_class = EDACConfig

    def critic_terms(
        self, batch: Transitions, policy: Gaussian, policy_next: Gaussian
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.eta == 0.0:
            return super().critic_terms(batch, policy, policy_next)
        # Each critic has actions of its own, so that one product gives all N slopes. The slopes
        # are part of the graph: the loss goes through them to the weights.
        acts = batch.act.expand(self.critic.num, -1, -1)  # (N, B, A)
        q, pull_back, *_ = vjp(lambda own: self.critic(batch.obs, own), acts)
        (slopes,) = pull_back(torch.ones_like(q))  # (N, B, A)
        return q, {"diversity": self.config.eta * self.similarity(slopes)}

    @staticmethod
    def similarity(slopes: Tensor) -> Tensor:
        """Return the mean of how much the critics' slopes agree, in [-N / (N - 1), N].

        The sum over ordered pairs is written as |sum_i g_i|^2 - sum_i |g_i|^2.

        :param slopes: (N, B, A) gradients of the values in the actions.
        """
        units = slopes / (torch.linalg.vector_norm(slopes, dim=2, keepdim=True) + NORM_EPS)
        pairs: Tensor = units.sum(0).square().sum(1) - units.square().sum((0, 2))  # (B,)
        return pairs.mean() / (len(slopes) - 1)
