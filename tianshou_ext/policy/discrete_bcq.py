"""Batch-Constrained Q-learning for discrete actions.

Fujimoto, Conti, Ghavamzadeh, Pineau: "Benchmarking Batch Deep Reinforcement Learning Algorithms",
arXiv 1910.01708. Official code: sfujim/BCQ, folder ``discrete_BCQ``.

    allowed(a|s) = G(a|s) / max_b G(b|s) >= threshold    G: softmax of the imitation logits
    a*           = argmax over allowed a of Q(s', a)     online network
    y            = r + gamma (1 - terminated) Qt(s', a*)
    L            = huber(Q(s, a), y) + nll(G, a) + imitation_logits_penalty * mean(logits^2)

Differences from the official code: none known in the loss. The optimizer's epsilon is 1.5e-4 as
there; the learning rate of 6.25e-5 and the target's 8,000 steps likewise.
Differences from Tianshou's ``DiscreteBCQPolicy``: the greedy action at test time is masked by
``imitator`` in both; evaluation noise is left to ``set_eps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.nets import MultiHeadNet, make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.registry import register


@dataclass(frozen=True, kw_only=True)
class DiscreteBCQConfig(PolicyConfig):
    """Hyperparameters of discrete BCQ; defaults from the official code."""

    lr: float = 6.25e-5
    """Adam's learning rate."""
    target_update_freq: int = 8000
    """Gradient steps between copies to the target network."""
    unlikely_action_threshold: float = 0.3
    """An action is allowed where its probability is at least this share of the most likely one's,
    in [0, 1]; tau in the paper. 0 is double DQN, 1 is cloning."""
    imitation_logits_penalty: float = 0.01
    """Weight of the mean square of the imitation logits; theta in the paper."""

    def validate(self) -> None:
        super().validate()
        self.check(self.target_update_freq >= 1, "target_update_freq", "at least 1")
        self.check(
            0.0 <= self.unlikely_action_threshold <= 1.0, "unlikely_action_threshold", "in [0, 1]"
        )
        self.check(self.imitation_logits_penalty >= 0, "imitation_logits_penalty", "at least 0")


@register(
    "discrete_bcq",
    title="BCQ",
    paper="arXiv 1910.01708",
    actions="discrete",
    needs=("reward", "next observation"),
)
class DiscreteBCQPolicy(OfflinePolicy):
    """Discrete BCQ; a drop-in for Tianshou 1.2's class of the same name.

    :param model: values, ``(obs, state) -> ((B, A), state)``; without an imitator, values and
        logits, ``(obs, state) -> (((B, A), (B, A)), state)``.
    :param imitator: logits of the behaviour's actions, ``(obs, state) -> ((B, A), state)``; may
        share layers with ``model``.
    :param optim: over the parameters of both, each once.
    :param options: fields of ``DiscreteBCQConfig``, or Tianshou's names of them.
    """

    config_class = DiscreteBCQConfig

    def __init__(
        self,
        *,
        model: nn.Module,
        imitator: nn.Module | None = None,
        optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: DiscreteBCQConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(DiscreteBCQConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.model = model
        self.imitator = imitator
        self.add_optimizer("model", optim, *filter(None, (model, imitator)))
        self.model_target = self.add_target(model)
        threshold = self.config.unlikely_action_threshold
        self.log_threshold = math.log(threshold) if threshold > 0 else -math.inf

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape, num_actions = observation_space.shape, int(action_space.n)
        model = MultiHeadNet(shape, [(num_actions,), (num_actions,)], config.hidden_sizes)
        model.to(device)
        return cls(
            model=model,
            optim=make_adam(model, lr=config.lr, eps=1.5e-4),
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        q, logits = self.values_and_logits(obs)
        return self.masked(q, logits).argmax(1), q

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        self.update_targets(self.config.target_update_freq)
        target = self.target_q(batch)
        q, logits = self.values_and_logits(batch.obs)
        losses = self.losses(q, logits, batch.act, target)
        loss = sum(losses.values(), torch.zeros((), device=q.device))
        self.optimize(loss, "model")
        return {"loss": loss, **losses, "q/mean": q.detach().mean()}

    def values_and_logits(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and imitation logits, (B, A) each."""
        if self.imitator is None:
            (q, logits), _ = self.model(obs)
        else:
            (q, _), (logits, _) = self.model(obs), self.imitator(obs)
        return q, logits

    def masked(self, q: Tensor, logits: Tensor) -> Tensor:
        """Return the values with those of actions that the data hardly hold set to -inf."""
        ratio = logits - logits.max(1, keepdim=True).values  # log of the probabilities' ratio
        return q.masked_fill(ratio < self.log_threshold, -torch.inf)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """Return the TD targets y, (B,)."""
        act_next = self.masked(*self.values_and_logits(batch.obs_next)).argmax(1, keepdim=True)
        output, _ = self.model_target(batch.obs_next)
        q_next = output[0] if self.imitator is None else output
        bootstrap = batch.discount * (1.0 - batch.terminated)
        target: Tensor = batch.rew + bootstrap * q_next.gather(1, act_next).squeeze(1)
        return target

    def losses(self, q: Tensor, logits: Tensor, act: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the loss.

        :param q: (B, A) values.
        :param logits: (B, A) imitation logits.
        :param act: (B,) int64.
        :param target: (B,) without gradient.
        """
        chosen = q.gather(1, act.unsqueeze(1)).squeeze(1)  # (B,)
        return {
            "loss/td": functional.smooth_l1_loss(chosen, target),
            "loss/imitation": functional.cross_entropy(logits, act),
            "loss/logits": self.config.imitation_logits_penalty * logits.square().mean(),
        }
