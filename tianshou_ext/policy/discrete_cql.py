"""Conservative Q-Learning for discrete actions, on a quantile critic.

Kumar, Zhou, Tucker, Levine: "Conservative Q-Learning for Offline Reinforcement Learning",
NeurIPS 2020, arXiv 2006.04779. Official code: aviralkumar2907/CQL, folder ``atari``, which builds
on QR-DQN (Dabney et al., arXiv 1710.10044).

    Q(s, a) = mean of the N quantiles theta_i(s, a)
    a*      = argmax_a Qt(s', a)                     target network Qt, the official choice
    y_j     = r + gamma (1 - terminated) theta_t_j(s', a*)
    L       = mean quantile_huber(theta(s, a), y)
            + min_q_weight * mean(logsumexp_a Q(s, a) - Q(s, a_data))

Differences from the official code: none known in the loss; the optimizer's defaults are those of
Tianshou's example (lr 1e-4, target copied every 500 steps, weight 10) instead of lr 5e-5, every
2,000 steps, weight 1 or 4.
Differences from Tianshou's ``DiscreteCQLPolicy``: the next action comes from the target network
(``is_double=True`` takes it from the online one, as Tianshou does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.losses import conservative_loss, quantile_huber_loss
from tianshou_ext.nn.nets import Net, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register


@dataclass(frozen=True, kw_only=True)
class DiscreteCQLConfig(PolicyConfig):
    """Hyperparameters of discrete CQL; defaults from Tianshou's ``atari_cql.py``."""

    num_quantiles: int = 200
    """Quantiles of the critic, N in the QR-DQN paper."""
    target_update_freq: int = 500
    """Gradient steps between copies to the target network; 0 for no target network."""
    min_q_weight: float = 10.0
    """Weight of the conservative term, alpha in the paper; 0 is QR-DQN."""
    is_double: bool = False
    """Take the next action from the online network (double DQN)."""

    def validate(self) -> None:
        super().validate()
        self.check(self.num_quantiles >= 1, "num_quantiles", "at least 1")
        self.check(self.target_update_freq >= 0, "target_update_freq", "at least 0")
        self.check(self.min_q_weight >= 0.0, "min_q_weight", "at least 0")


@register(
    "discrete_cql",
    title="CQL (quantile critic)",
    paper="arXiv 2006.04779",
    actions="discrete",
    needs=("reward", "next observation"),
)
class DiscreteCQLPolicy(OfflinePolicy):
    """Discrete CQL; a drop-in for Tianshou 1.2's class of the same name.

    :param model: ``(obs, state) -> ((B, A, N) quantiles, state)``.
    :param optim: over the model's parameters.
    :param options: fields of ``DiscreteCQLConfig``, or Tianshou's names of them.
    """

    config_class = DiscreteCQLConfig

    def __init__(
        self,
        *,
        model: nn.Module,
        optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: DiscreteCQLConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(DiscreteCQLConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.model = model
        self.add_optimizer("model", optim, model)
        self.model_target = self.add_target(model) if self.config.target_update_freq else model

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape = observation_space.shape
        model = Net(shape, (int(action_space.n), config.num_quantiles), config.hidden_sizes)
        model.to(device)
        return cls(
            model=model,
            optim=make_adam(model, lr=config.lr),
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        quantiles, _ = self.model(obs)  # (B, A, N)
        return quantiles.mean(2).argmax(1), quantiles

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        self.update_targets(self.config.target_update_freq)
        target = self.target_quantiles(batch)
        quantiles, _ = self.model(batch.obs)  # (B, A, N)
        td_loss, min_q_loss, q = self.losses(quantiles, batch.act, target)
        loss = td_loss + self.config.min_q_weight * min_q_loss
        self.optimize(loss, "model")
        return {
            "loss": loss,
            "loss/td": td_loss,
            "loss/min_q": min_q_loss,
            "q/mean": q.mean(),
        }

    @torch.no_grad()
    def target_quantiles(self, batch: Transitions) -> Tensor:
        """Return the TD targets y, (B, N)."""
        quantiles, _ = self.model_target(batch.obs_next)  # (B, A, N)
        chooser = self.model(batch.obs_next)[0] if self.config.is_double else quantiles
        act_next = chooser.mean(2).argmax(1)  # (B,)
        chosen = quantiles[torch.arange(len(act_next), device=act_next.device), act_next]  # (B, N)
        bootstrap = batch.discount * (1.0 - batch.terminated)
        target: Tensor = batch.rew.unsqueeze(1) + bootstrap.unsqueeze(1) * chosen
        return target

    def losses(
        self, quantiles: Tensor, act: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the TD loss, the conservative loss and the values of the data's actions.

        :param quantiles: (B, A, N) of the online network.
        :param act: (B,) int64.
        :param target: (B, N) without gradient.
        """
        chosen = quantiles[torch.arange(len(act), device=act.device), act]  # (B, N)
        td_loss = quantile_huber_loss(chosen, target).mean()
        min_q_loss = conservative_loss(quantiles.mean(2), act).mean()
        return td_loss, min_q_loss, chosen.detach()
