"""Cal-QL: CQL whose pessimism stops at what the data's behaviour is known to earn.

Nakamoto, Zhai, Singh, Mark, Ma, Finn, Kumar, Levine: "Cal-QL: Calibrated Offline RL Pre-Training
for Efficient Online Fine-Tuning", NeurIPS 2023, arXiv 2303.05479. Official code:
nakamotoo/Cal-QL@ac6eafe.

CQL's losses (``cql.py``) with one change. In the soft maximum of the conservative term,

    K actions each of pi(s) and pi(s'):  Q_i(s, a) becomes max(Q_i(s, a), G)
    K uniform actions, and the data's:   Q_i(s, a) stays

where G is the discounted return-to-go of the episode from s, of the same rewards and gamma as the
critics' target. The maximum is of the values themselves, before log-densities are subtracted. Where
G is the greater, no gradient pushes the value down any further. G of rows of an episode that has
not ended is unknown, -inf: those rows are CQL's.

Sparse rewards: an episode in which every reward is ``failure_reward`` would have failed for ever,
so G is ``failure_reward / (1 - gamma)`` at each of its steps. Online, true returns go on to
calibrate; ``calibrate_online=False`` is CORL's variant, plain CQL from the first step online.

With ``max_q_backup`` y takes the next action, out of 10, whose least target value is the greatest
(CQL: the greatest action of each critic).

Differences from the official code: those of ``cql.py``. The threshold is compared with the term
times its weight, so that 4 here is 0.8 there with weight 5; alpha' starts at 1 (there e). Defaults
are CQL's for dense rewards, which the paper has none of: see docs/methods/cal_ql.md for AntMaze and
Adroit. With ``orthogonal_init`` the deviations start at exp(-1) through a bias; there the factor
and the offset of their logarithm are learned, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.replay import Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import linear_layers, orthogonal_init, tanh_normal_sample
from tianshou_ext.policy.cql import CQLConfig, CQLPolicy
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.sac_n import BACKUP_ACTIONS, Gaussian

HIDDEN_GAIN, HEAD_GAIN = math.sqrt(2.0), 1e-2
"""Of orthogonal weights: official code, JaxCQL/model.py."""

LOG_STD_OFFSET = -1.0
"""Logarithm of the deviations at the start: official code, policy_log_std_offset."""


@dataclass(frozen=True, kw_only=True)
class CalQLConfig(CQLConfig):
    """Hyperparameters of Cal-QL; defaults are CQL's."""

    calibrate_online: bool = True
    """Keep the returns as bounds online; False is plain CQL there, as in CORL."""
    failure_reward: float | None = None
    """Reward, after ``reward_norm``, of each step of an episode that failed, at most 0; -5 in the
    paper. None: rewards are dense, and every return is summed."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Widths of the critics' fully connected layers; ``hidden_sizes`` if None."""
    orthogonal_init: bool = False
    """Start from the official code's weights, not from CQL's."""

    def validate(self) -> None:
        super().validate()
        failure = self.failure_reward
        known = failure is None or failure <= 0.0
        self.check(known, "failure_reward", "a number of at most 0")
        bounded = failure is None or self.gamma < 1.0
        self.check(bounded, "gamma", "below 1 beside failure_reward")


@register(
    "cal_ql",
    title="Cal-QL",
    paper="arXiv 2303.05479",
    actions="continuous",
    needs=("reward", "next observation"),
)
class CalQLPolicy(CQLPolicy):
    """Cal-QL; networks and optimizers as for ``SACNPolicy``, options are ``CalQLConfig``'s."""

    config_class = CalQLConfig
    needs_returns: ClassVar[bool] = True
    online_mixing: ClassVar[Mixing] = Mixing(kind="balanced", offline_share=0.5)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        networks = super().make_networks(obs_shape, act_dim, config)
        if config.critic_hidden_sizes is not None:
            other = replace(config, hidden_sizes=config.critic_hidden_sizes)
            networks["critic"] = super().make_networks(obs_shape, act_dim, other)["critic"]
        if config.orthogonal_init:
            calql_init(**networks)
        return networks

    def returns_to_go(self, rewards: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        failure = self.config.failure_reward
        if failure is not None and np.allclose(rewards, failure, rtol=1e-5, atol=1e-6):
            return np.full(len(rewards), failure / (1.0 - self.config.gamma))
        return super().returns_to_go(rewards)

    def penalised(self, batch: Transitions, q: Tensor) -> Tensor:
        if batch.returns is None or not (self.config.calibrate_online or self.online_steps == 0):
            return q
        return self.calibrated(q, batch.returns)

    def calibrated(self, q: Tensor, returns: Tensor) -> Tensor:
        """Return the values with those of the policy's actions raised to the returns, (N, B, 3K).

        :param q: (N, B, 3K) of K uniform actions, K of pi(s) and K of pi(s').
        :param returns: (B,) without gradient; -inf where unknown.
        :raises InputError: if the shapes do not fit.
        """
        count = self.config.num_repeat_actions
        if q.shape[1:] != (*returns.shape, 3 * count):
            raise InputError(
                f"expected values (N, B, {3 * count}) and returns (B,), got {tuple(q.shape)} and "
                f"{tuple(returns.shape)}; give one return a row"
            )
        raised = torch.maximum(q[:, :, count:], returns.unsqueeze(1))  # (N, B, 2K)
        return torch.cat([q[:, :, :count], raised], dim=2)

    @torch.no_grad()
    def critic_targets(self, batch: Transitions, policy_next: Gaussian, alpha: Tensor) -> Tensor:
        if not self.config.max_q_backup:
            return super().critic_targets(batch, policy_next, alpha)
        mean, std = (x.unsqueeze(1) for x in policy_next)  # (B, 1, A)
        noise = self.randn(len(mean), BACKUP_ACTIONS, mean.shape[2])
        acts, log_prob = tanh_normal_sample(mean, std, noise)  # (B, 10, A), (B, 10)
        v, best = self.critic_target.values(batch.obs_next, acts).amin(0).max(1)  # (B,)
        if self.config.backup_entropy:
            v = v - alpha * log_prob.gather(1, best.unsqueeze(1)).squeeze(1)
        return batch.rew + batch.discount * (1.0 - batch.terminated) * v


@torch.no_grad()
def calql_init(actor: nn.Module, critic: nn.Module) -> None:
    """Initialise as the official code does: orthogonal, heads near zero, deviations exp(-1)."""
    orthogonal_init(actor, critic, gain=HIDDEN_GAIN)
    *_, actor_head = linear_layers(actor)
    *_, critic_head = linear_layers(critic)
    for head in (actor_head, critic_head):
        head.weight.mul_(HEAD_GAIN / HIDDEN_GAIN)
    _, log_std = actor_head.bias.chunk(2)
    log_std.fill_(LOG_STD_OFFSET)
