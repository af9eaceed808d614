"""The one module that knows which Tianshou line is installed.

Tianshou 1.2 has ``BasePolicy`` and ``OfflineTrainer(policy=..., buffer=...).run()``; 2.x split
the former into an ``Algorithm`` that learns and a ``Policy`` that acts. Everything else in the
package sees the names exported here and the same behaviour:

- ``BasePolicy``: on 1.2 Tianshou's own; on 2.x an offline *and* off-policy algorithm whose inner
  ``Policy`` acts by asking its owner. Both start without the seconds that Tianshou's own spend on
  compiling functions for on-policy and n-step returns, which are compiled when they are called.
- ``TrainingStats``, ``Collector``: Tianshou's.
- ``run_offline``: Tianshou's own offline trainer, able to start in the middle of an epoch.
- ``run_online``: Tianshou's own off-policy trainer.
- ``training_step``: the context in which Tianshou allows ``policy.update``.
- ``as_optimizer``: a torch optimizer, or one made by a Tianshou 2.x factory, and its scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import tianshou
import torch
from tianshou.data import Collector, ReplayBuffer
from tianshou.utils import BaseLogger
from tianshou.utils.torch_utils import policy_within_training_step

__all__ = [
    "LINE",
    "BaseLogger",
    "BasePolicy",
    "Collector",
    "ReplayBuffer",
    "TrainingStats",
    "as_optimizer",
    "entropy_weight",
    "run_offline",
    "run_online",
    "training_step",
]

LINE: int = int(tianshou.__version__.split(".")[0])
"""1 or 2: the installed Tianshou's major version."""

if TYPE_CHECKING or LINE >= 2:
    from tianshou.algorithm.algorithm_base import (
        OfflineAlgorithm,
        OffPolicyAlgorithm,
        Policy,
        TrainingStats,
    )
    from tianshou.trainer import (
        OfflineTrainer,
        OfflineTrainerParams,
        OffPolicyTrainer,
        OffPolicyTrainerParams,
    )

    class _ActingPolicy(Policy):
        """What a 2.x ``Collector`` calls: every question goes to the algorithm that owns it."""

        def __init__(self, owner: BasePolicy, **spaces: Any) -> None:
            super().__init__(**spaces)
            # A list keeps the owner out of the module tree; state_dict would recurse otherwise.
            self._owner = [owner]

        @staticmethod
        def _compile() -> None:
            """Leave what is not called uncompiled."""

        def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
            return self._owner[0].forward(batch, state, **kwargs)

        def add_exploration_noise(self, act: Any, batch: Any) -> Any:
            return self._owner[0].exploration_noise(act, batch)

        def train(self, mode: bool = True) -> _ActingPolicy:
            """Switch the owner's networks too: a collector only switches the policy it holds."""
            self.training = mode
            for module in self._owner[0].children():
                # Frozen copies (target networks) stay in eval mode.
                if module is not self and any(p.requires_grad for p in module.parameters()):
                    module.train(mode)
            return self

    class BasePolicy(OfflineAlgorithm[Any], OffPolicyAlgorithm[Any]):
        """Tianshou 1.2's ``BasePolicy`` on top of Tianshou 2.x's ``Algorithm``."""

        def __init__(
            self,
            *,
            action_space: gymnasium.Space[Any],
            observation_space: gymnasium.Space[Any] | None = None,
            action_scaling: bool = False,
            action_bound_method: Any = "clip",
            lr_scheduler: Any = None,
        ) -> None:
            torch.nn.Module.__init__(self)
            spaces = {
                "action_space": action_space,
                "observation_space": observation_space,
                "action_scaling": action_scaling,
                "action_bound_method": action_bound_method,
            }
            super().__init__(policy=_ActingPolicy(self, **spaces))
            self.action_space = action_space
            self.observation_space = observation_space
            self.lr_scheduler = lr_scheduler

        @property
        def is_within_training_step(self) -> bool:
            return bool(self.policy.is_within_training_step)

        @is_within_training_step.setter
        def is_within_training_step(self, value: bool) -> None:
            self.policy.is_within_training_step = value

        @property
        def action_type(self) -> str:
            return str(self.policy.action_type)

        @property
        def action_scaling(self) -> bool:
            return bool(self.policy.action_scaling)

        @property
        def action_bound_method(self) -> Any:
            return self.policy.action_bound_method

        def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
            raise NotImplementedError

        def learn(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        def exploration_noise(self, act: Any, batch: Any) -> Any:
            return act

        def map_action(self, act: Any) -> Any:
            return self.policy.map_action(act)

        def map_action_inverse(self, act: Any) -> Any:
            return self.policy.map_action_inverse(act)

        def compute_action(self, obs: Any, info: Any = None, state: Any = None) -> Any:
            return self.policy.compute_action(obs, info, state)

        def _update_with_batch(self, batch: Any) -> Any:
            return self.learn(batch)

        def create_trainer(self, params: Any) -> Any:
            """Make the trainer that the parameters belong to, offline or off-policy."""
            offline = isinstance(params, OfflineTrainerParams)
            kind: Any = OfflineAlgorithm if offline else OffPolicyAlgorithm
            return kind.create_trainer(self, params)

        # 2.x appends its optimizers to the weights; ours live in the checkpoint, and a
        # state_dict must be the same whichever line wrote it.
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return torch.nn.Module.state_dict(self, *args, **kwargs)

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return torch.nn.Module.load_state_dict(self, *args, **kwargs)

else:
    from tianshou import policy as _policy
    from tianshou.policy.base import TrainingStats
    from tianshou.trainer import OfflineTrainer
    from tianshou.trainer import OffpolicyTrainer as OffPolicyTrainer

    class BasePolicy(_policy.BasePolicy):
        """Tianshou's own, with a shorter start."""

        @staticmethod
        def _compile() -> None:
            """Leave what is not called uncompiled."""


def training_step(policy: Any) -> Any:
    """Return the context in which Tianshou allows ``policy.update(...)`` outside a trainer."""
    return policy_within_training_step(policy if LINE < 2 else policy.policy)


def entropy_weight(alpha: Any) -> tuple[float, float | None, float | None]:
    """Return what Tianshou's ``alpha`` of SAC and CQL says: the first weight of the entropy, the
    entropy that it aims at and the learning rate, both None for a weight that stays as it is.

    :param alpha: a number; 1.2's (target entropy, logarithm, optimizer); 2.x's ``Alpha``.
    """
    if isinstance(alpha, tuple):
        entropy, log_alpha, optim = alpha
    elif hasattr(alpha, "_log_alpha"):
        entropy, log_alpha, optim = alpha._target_entropy, alpha._log_alpha, alpha._optim
    else:
        return float(getattr(alpha, "value", alpha)), None, None
    lr = float(optim.param_groups[0]["lr"])
    return float(log_alpha.detach().exp()), float(entropy), lr


def as_optimizer(optim: Any, module: torch.nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """Return a torch optimizer for ``module``, and its learning-rate scheduler or None.

    :param optim: a torch optimizer (returned as it is) or a Tianshou 2.x ``OptimizerFactory``.
    """
    if isinstance(optim, torch.optim.Optimizer):
        return optim, None
    made: tuple[torch.optim.Optimizer, Any] = optim.create_instances(module)
    return made


def run_offline(
    policy: Any,
    buffer: ReplayBuffer,
    *,
    max_epoch: int,
    update_per_epoch: int,
    batch_size: int,
    test_collector: Collector[Any] | None,
    episode_per_test: int,
    logger: BaseLogger,
    stop_fn: Callable[[float], bool] | None = None,
    save_best_fn: Callable[[Any], None] | None = None,
    show_progress: bool = True,
    verbose: bool = True,
) -> Any:
    """Run Tianshou's own offline trainer and return its ``InfoStats``.

    The trainer starts where ``logger.restore_data()`` says: (epoch, env_step, gradient_step).
    A gradient step inside an epoch is continued to that epoch's end.
    """
    common = {
        "test_collector": test_collector,
        "logger": logger,
        "resume_from_log": True,
        "stop_fn": stop_fn if test_collector is not None else None,
        "save_best_fn": save_best_fn if test_collector is not None else None,
        "show_progress": show_progress,
        "verbose": verbose,
    }
    if LINE >= 2:

        class ResumableTrainer2(OfflineTrainer):
            def execute_epoch(self) -> Any:
                done = self._current_update_step % update_per_epoch
                self.params.epoch_num_steps = update_per_epoch - done
                return super().execute_epoch()

        params = OfflineTrainerParams(
            buffer=buffer,
            max_epochs=max_epoch,
            epoch_num_steps=update_per_epoch,
            batch_size=batch_size,
            test_step_num_episodes=episode_per_test,
            **common,
        )
        return ResumableTrainer2(policy, params).run()

    class ResumableTrainer1(OfflineTrainer):
        def __next__(self) -> Any:
            done = self._gradient_step % update_per_epoch
            self.step_per_epoch = update_per_epoch - done
            return super().__next__()

    trainer: Any = ResumableTrainer1
    return trainer(
        policy=policy,
        buffer=buffer,
        max_epoch=max_epoch,
        step_per_epoch=update_per_epoch,
        batch_size=batch_size,
        episode_per_test=episode_per_test,
        **common,
    ).run()


def run_online(
    policy: Any,
    *,
    train_collector: Collector[Any],
    test_collector: Collector[Any] | None,
    max_epoch: int,
    step_per_epoch: int,
    step_per_collect: int,
    update_per_step: float,
    batch_size: int,
    episode_per_test: int,
    logger: BaseLogger,
    train_fn: Callable[[int, int], None],
    test_fn: Callable[[int, int | None], None] | None = None,
    resume: bool = False,
    show_progress: bool = True,
    verbose: bool = True,
) -> Any:
    """Run Tianshou's own off-policy trainer and return its ``InfoStats``.

    :param resume: start where ``logger.restore_data()`` says: (epoch, env_step, gradient_step).
    :param update_per_step: gradient steps for each environment step.
    :param train_fn: called with (epoch, env_step) before each collection.
    :param test_fn: called with (epoch, env_step) before each test.
    """
    common = {
        "test_collector": test_collector,
        "batch_size": batch_size,
        "logger": logger,
        "test_fn": test_fn if test_collector is not None else None,
        "resume_from_log": resume,
        "show_progress": show_progress,
        "verbose": verbose,
    }
    if LINE >= 2:
        params = OffPolicyTrainerParams(
            training_collector=train_collector,
            max_epochs=max_epoch,
            epoch_num_steps=step_per_epoch,
            collection_step_num_env_steps=step_per_collect,
            update_step_num_gradient_steps_per_sample=update_per_step,
            test_step_num_episodes=episode_per_test,
            training_fn=train_fn,
            **common,
        )
        return OffPolicyTrainer(policy, params).run()
    return OffPolicyTrainer(
        policy=policy,
        train_collector=train_collector,
        max_epoch=max_epoch,
        step_per_epoch=step_per_epoch,
        step_per_collect=step_per_collect,
        update_per_step=update_per_step,
        episode_per_test=episode_per_test,
        train_fn=train_fn,
        test_in_train=False,
        **common,
    ).run()
