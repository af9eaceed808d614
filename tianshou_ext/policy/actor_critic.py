"""What methods with an actor and critics for continuous actions share: networks and optimizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import Actor, as_ensemble
from tianshou_ext.nn.nets import make_adam
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.config import PolicyConfig, make_config


class ActorCriticPolicy(OfflinePolicy):
    """A policy with an actor, critics and target critics.

    :param actor: ``(obs, state) -> (output, state)``; what the output is, the method says.
    :param critic: ``(obs, act) -> (N, B)`` values, or one of Tianshou's, ``-> (B, 1)``.
    :param critic2: a second one of Tianshou's; ``critic`` is alone without it. (Tianshou's copy of
        the first learns the same numbers.)
    :param actor_optim, critic_optim, critic2_optim: over the parameters of each.
    :param policy: instead of ``actor`` and the spaces, Tianshou 2.x's policy, which holds them.
    :param policy_optim: instead of ``actor_optim``.
    :param config: the method's hyperparameters.
    :param options: fields of the config, or Tianshou's names of them.

    The others are those of ``OfflinePolicy``.
    """

    def __init__(
        self,
        *,
        actor: nn.Module | None = None,
        actor_optim: Any = None,
        critic: nn.Module,
        critic_optim: Any,
        critic2: nn.Module | None = None,
        critic2_optim: Any = None,
        action_space: Any = None,
        observation_space: Any = None,
        policy: Any = None,
        policy_optim: Any = None,
        config: PolicyConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        action_scaling: bool | None = None,
        action_bound_method: Any = "clip",
        **options: Any,
    ) -> None:
        if policy is not None:
            actor, actor_optim, action_space = policy.actor, policy_optim, policy.action_space
            observation_space = observation_space or getattr(policy, "observation_space", None)
            action_scaling = getattr(policy, "action_scaling", action_scaling)
            action_bound_method = getattr(policy, "action_bound_method", action_bound_method)
        if actor is None or actor_optim is None or action_space is None:
            raise InputError(
                "expected actor, actor_optim and action_space, or policy and policy_optim; "
                "pass all of either"
            )
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(self.config_class, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
        )
        self.actor = actor
        self.critic = as_ensemble(critic, critic2)
        self.add_optimizer("actor", actor_optim, actor)
        self.add_optimizer("critic", critic_optim, critic)
        if critic2 is not None:
            self.add_optimizer("critic2", critic2_optim, critic2)
        self.critic_target = self.add_target(self.critic)

    @classmethod
    def make_networks(
        cls, obs_shape: Sequence[int], act_dim: int, config: Any
    ) -> dict[str, nn.Module]:
        """Return the networks that the config describes, by their names in the constructor.

        :param obs_shape: (D,) or (S, H, W).
        :param act_dim: numbers of an action A.
        """
        raise NotImplementedError

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        """Make the networks and an Adam for each, with ``<name>_lr`` of the config, or ``lr``."""
        shape = observation_space.shape
        parts: dict[str, Any] = {}
        for name, network in cls.make_networks(
            shape, math.prod(action_space.shape), config
        ).items():
            lr = getattr(config, f"{name}_lr", None) or config.lr
            parts[name] = network.to(device)
            parts[f"{name}_optim"] = make_adam(network, lr=lr)
        return cls(
            **parts,
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    def check_can_drop(self) -> None:
        """Check that the actor's hidden units can be dropped, where ``dropout`` says so.

        :raises InputError: if it is not one of ours.
        """
        if self.config.dropout > 0.0 and not isinstance(self.actor, Actor):
            raise InputError(
                "expected a DeterministicActor or GaussianActor of tianshou_ext.nn.actor_critic "
                f"for dropout {self.config.dropout}, got {type(self.actor).__name__}; pass one, or "
                "dropout=0.0"
            )

    def dropped(self, actor: Any, obs: Tensor) -> Any:
        """Return the actor's output with ``dropout`` of its units dropped, the others scaled up."""
        rate, keep = self.config.dropout, {}
        if rate > 0.0:
            keep["keep"] = (self.rand(len(obs), actor.num_hidden) >= rate) / (1.0 - rate)
        return actor(obs, **keep)[0]

    @staticmethod
    def critic_loss(q: Tensor, target: Tensor) -> Tensor:
        """Return the squared TD error, summed over critics, mean over the batch.

        :param q: (N, B).
        :param target: (B,) without gradient.
        """
        return (q - target).square().mean(1).sum()
