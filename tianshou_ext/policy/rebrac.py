"""ReBRAC: TD3+BC with a cloning penalty of its own for actor and critics, and better networks.

Tarasov, Kurenkov, Nikulin, Kolesnikov: "Revisiting the Minimalist Approach to Offline Reinforcement
Learning", NeurIPS 2023, arXiv 2305.09836. Official code: tinkoff-ai/ReBRAC@694385b.

    a'      = clip(pi_t(s') + clip(policy_noise n, -noise_clip, noise_clip), -1, 1),  n ~ N(0, 1)
    y       = r + gamma (1 - terminated) (min_i Qt_i(s', a') - critic_bc_coef |a' - a'_data|^2)
    L_critic = sum_i mean((Q_i(s, a) - y)^2)
    L_actor  = mean(actor_bc_coef |pi(s) - a|^2 - min_i Q_i(s, pi(s)) / mean(|min_i Q_i(s, pi(s))|))

where a'_data is the data's action at s', the divisor has no gradient and |.|^2 sums over the action
dimensions (TD3+BC takes the mean). Order within a step as in TD3+BC. The critics normalise their
layers after each ReLU; actor and critics start as EDAC's. Online the critics have no penalty, and
the actor's is ``max(cooling_end, 1 - online_steps / cooling_steps)`` times what it was.

Differences from the official code: the actor's target moves towards the actor after its step
(there, before it). Where the next action is not known (batches given to ``learn``) the critics'
penalty is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.data.replay import Transitions
from tianshou_ext.nn.actor_critic import DeterministicActor, EnsembleCritic, edac_init
from tianshou_ext.policy.registry import register
from tianshou_ext.policy.td3_bc import NUM_CRITICS, TD3BCPolicy, TD3Config

LAYER_NORM_EPS = 1e-6
"""Flax's default, which the official code uses; PyTorch's is 1e-5."""


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(TD3Config):
    """Hyperparameters of ReBRAC; defaults are the paper's for locomotion, hopper-medium."""

    lr: float = 1e-3
    """Adam's learning rate, of the critics too unless they have their own."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "none"
    """``standard``: by the data's mean and std; ``none``: as they are."""
    actor_bc_coef: float = 0.01
    """Weight of the distance to the data's actions in the actor's loss, at least 0; beta_1."""
    critic_bc_coef: float = 0.01
    """Weight of the distance to the data's next actions in the target, at least 0; beta_2."""
    normalize_q: bool = True
    """Divide the actor's values by their mean size."""
    layer_norm: Literal["none", "before", "after"] = "after"
    """Layer normalisation in the critics, before or after each ReLU."""
    exploration_noise: float = 0.03
    """Deviation of the noise that a collector adds to actions online, at least 0; official code,
    branch calibration, rebrac_finetune.py."""
    cooling_steps: int = 1_000_000
    """Environment steps over which the actor's penalty would fall to 0 online, at least 1."""
    cooling_end: float = 0.5
    """Share of it at which it stays, in [0, 1]; 1 keeps it as it is."""

    def validate(self) -> None:
        super().validate()
        self.check(self.actor_bc_coef >= 0.0, "actor_bc_coef", "at least 0")
        self.check(self.critic_bc_coef >= 0.0, "critic_bc_coef", "at least 0")
        self.check(self.cooling_steps >= 1, "cooling_steps", "at least 1")
        self.check(0.0 <= self.cooling_end <= 1.0, "cooling_end", "in [0, 1]")
        norms = ("none", "before", "after")
        self.check(self.layer_norm in norms, "layer_norm", f"one of {', '.join(norms)}")


@register(
    "rebrac",
    title="ReBRAC",
    paper="arXiv 2305.09836",
    actions="continuous",
    needs=("reward", "next observation", "next action"),
)
class ReBRACPolicy(TD3BCPolicy):
    """ReBRAC; constructed as ``TD3BCPolicy``."""

    config_class = ReBRACConfig
    actor_member = None
    needs_next_act = True
    online_mixing: ClassVar[Mixing] = Mixing(kind="balanced", offline_share=0.5)  # as the noise
    actor_penalty: Tensor
    """Weight of the distance to the data's actions in the actor's loss now."""
    critic_penalty: Tensor
    """Weight of the distance to the data's next actions in the target now."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("actor_penalty", "critic_penalty"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.before_step()

    def before_step(self) -> None:
        left = max(self.config.cooling_end, 1.0 - self.online_steps / self.config.cooling_steps)
        self.actor_penalty.fill_(self.config.actor_bc_coef * left)
        self.critic_penalty.fill_(0.0 if self.online_steps else self.config.critic_bc_coef)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        actor = DeterministicActor(obs_shape, act_dim, config.hidden_sizes)
        critic = EnsembleCritic(
            obs_shape,
            act_dim,
            config.hidden_sizes,
            NUM_CRITICS,
            layer_norm=config.layer_norm,
            layer_norm_eps=LAYER_NORM_EPS,
        )
        edac_init(actor, critic)
        return {"actor": actor, "critic": critic}

    def next_value(self, batch: Transitions, act: Tensor) -> Tensor:
        value = super().next_value(batch, act)
        if batch.act_next is None:
            return value
        penalty: Tensor = self.critic_penalty * squared_distance(act, batch.act_next)
        if batch.has_act_next is not None:
            penalty = penalty * batch.has_act_next
        return value - penalty

    def actor_loss(self, act: Tensor, data_act: Tensor, q: Tensor) -> Tensor:
        """Return the distance to the data's actions less the normalised value.

        :param act: (B, A) of the actor.
        :param data_act: (B, A) of the data.
        :param q: (N, B) values of ``act``; the least count.
        """
        least = q.amin(0)  # (B,)
        if self.config.normalize_q:
            least = least / least.abs().mean().detach()
        penalty: Tensor = self.actor_penalty * squared_distance(act, data_act)
        return (penalty - least).mean()


def squared_distance(act: Tensor, other: Tensor) -> Tensor:
    """Return the squared distance (B,) of actions (B, A) each, summed over A."""
    return (act - other).square().sum(1)
