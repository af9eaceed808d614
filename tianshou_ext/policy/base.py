"""What every method shares: data, acting, updating, and the config behind them.

A method is a subclass with a config, its networks, ``act`` and ``gradient_step``. The base turns
that into a Tianshou policy: ``forward``, ``learn``, ``update``, ``process_buffer``, ``map_action``
and exploration noise behave as Tianshou's trainers and collectors expect, on both lines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from tianshou.utils.torch_utils import torch_train_mode
from torch import Tensor

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Transitions
from tianshou_ext.errors import InputError
from tianshou_ext.policy.checks import check_spaces
from tianshou_ext.policy.compiled import CompiledStep
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.o3f import check_optimism, optimistic_action
from tianshou_ext.policy.registry import method_actions
from tianshou_ext.policy.staging import Staging
from tianshou_ext.processor import Precision, arithmetic, check_precision
from tianshou_ext.tianshou_api import ReplayBuffer, TrainingStats


@dataclass(kw_only=True)
class OfflineTrainingStats(TrainingStats):
    """Metrics of a gradient step as floats, refreshed every ``metrics_interval`` steps."""

    metrics: dict[str, float] = field(default_factory=dict)

    def get_loss_stats_dict(self) -> dict[str, float]:
        return self.metrics


def do_nothing() -> None:
    """Stand in for ``on_progress``; a function that pickles."""


class OfflinePolicy(Staging):
    """A Tianshou policy that learns from a fixed buffer.

    :param action_space: Discrete or Box.
    :param observation_space: needed to normalise observations; may be left out otherwise.
    :param config: the method's hyperparameters.
    :param obs_norm: normaliser applied to every observation before the networks see it; none if
        left out. It is fitted when the policy meets its first buffer, and saved with the weights.
    :param lr_scheduler: stepped after each gradient step.
    :param seed: of the generators for sampling, learning and acting.
    :param action_scaling: map actions from [-1, 1] to the range of a Box space.
    :param action_bound_method: ``clip``, ``tanh`` or None; see Tianshou.
    """

    config_class: ClassVar[type[PolicyConfig]] = PolicyConfig
    learns_online: ClassVar[bool] = True
    """Whether it gets better by acting; what only clones does not."""
    online_mixing: ClassVar[Mixing] = Mixing()
    """How its paper mixes batches online."""
    online_update_per_step: ClassVar[float] = 1.0
    """Its paper's gradient steps for each environment step online."""

    def __init__(
        self,
        *,
        action_space: Any,
        observation_space: Any = None,
        config: PolicyConfig,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        action_scaling: bool | None = None,
        action_bound_method: Any = "clip",
    ) -> None:
        continuous = isinstance(action_space, Box)
        super().__init__(
            config=config,
            obs_norm=obs_norm,
            action_space=action_space,
            observation_space=observation_space,
            action_scaling=continuous if action_scaling is None else action_scaling,
            action_bound_method=action_bound_method if continuous else None,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.eps = 0.0
        self._optimism: tuple[int, float] | None = None
        self.on_progress: Callable[[], None] = do_nothing
        """Called now and then while preparing for a data set; a trainer saves the run there."""
        self.show_progress = True
        """Whether preparing for a data set shows a bar; a trainer sets it."""
        self.metrics_interval: int | None = None
        """Gradient steps between two transfers of metrics to the host: None means 1 on the CPU,
        where they cost nothing, and 100 elsewhere."""
        self.metrics: dict[str, float] = {}
        """Of the last gradient step whose metrics were brought to the host."""

    # ---- what a method writes -------------------------------------------------------------

    @classmethod
    def build(
        cls,
        observation_space: Any,
        action_space: Any,
        config: Any = None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Make the policy with networks and optimizers of its own.

        :param config: the method's config; its defaults if None.
        :param device: where the networks live.
        :param seed: of the initial weights and of all generators.
        :param options: single fields of the config.
        :raises InputError: if the spaces do not suit the method or an option is unknown.
        """
        made = make_config(cls.config_class, config, options)
        check_spaces(observation_space, action_space, method_actions(cls))
        devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            policy: Self = cls.from_config(observation_space, action_space, made, device, seed)
        policy.to(device)
        return policy

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        """Make networks and optimizers from a complete config."""
        raise NotImplementedError

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        """Choose actions.

        :param obs: (B, ...) normalised observations.
        :param deterministic: the mode of the policy rather than a sample.
        :return: actions (B,) or (B, A), and the logits or values behind them.
        """
        raise NotImplementedError

    def gradient_step(self, batch: Transitions) -> dict[str, Tensor]:
        """Learn from one batch of normalised observations; return metrics, left on the device."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Bring up to date, before each gradient step, what changes with the steps.

        In tensors, so that a compiled step takes what they are then.
        """

    def on_online_start(self, test_return: float | None) -> None:
        """Prepare for acting and learning from it, once, before the first online step.

        :param test_return: mean return of the last test, as the environment gives it, if any.
        """

    def on_episode_end(self, episode_return: float, length: int) -> None:
        """Take notice of a training episode that ended online.

        :param episode_return: the sum of its rewards as the environment gave them.
        :param length: in steps.
        """

    # ---- speed ----------------------------------------------------------------------------

    def set_precision(self, precision: Precision) -> None:
        """Choose what gradient steps compute in, from now on; acting is in float32.

        :param precision: ``fp32``, or ``bf16``: hidden layers in bfloat16, faster on processors
            that have it and less exact.
        :raises InputError: if there is no such precision, or the processor lacks it.
        """
        check_precision(self.device, precision)
        self.precision = precision

    def compile_step(self) -> None:
        """Let gradient steps go through ``torch.compile`` from now on.

        They give the same numbers within rounding. The first steps take many seconds.

        :raises InputError: as ``CompiledStep``.
        """
        self._compiled = CompiledStep(self)

    @property
    def is_compiled(self) -> bool:
        """Whether gradient steps are compiled."""
        return self._compiled is not None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: not the data, nor what was compiled."""
        return {**vars(self), "_staged": None, "_compiled": None, "on_progress": do_nothing}

    # ---- Tianshou's side ------------------------------------------------------------------

    def set_eps(self, eps: float) -> None:
        """Set the share of uniformly random actions, in [0, 1], that exploration noise mixes in.

        :raises InputError: if it is not in that range.
        """
        if not 0.0 <= eps <= 1.0:
            raise InputError(f"expected a share of random actions in [0, 1], got {eps}; change it")
        self.eps = eps

    def set_optimism(self, candidates: int, noise: float) -> None:
        """Let the policy choose the best of several actions while it collects; see ``o3f``.

        :param candidates: actions around the policy's own, at least 1.
        :param noise: their deviation, at least 0; actions span [-1, 1].
        :raises InputError: if the method has no values of actions, or a number is out of range.
        """
        check_optimism(self, candidates, noise)
        self._optimism = (candidates, noise)

    @property
    def optimism(self) -> list[float] | None:
        """What ``set_optimism`` was given, or None."""
        return None if self._optimism is None else list(self._optimism)

    def explore(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Choose actions as ``act`` does, while collecting."""
        if self._optimism is not None:
            return optimistic_action(self, obs, *self._optimism)
        return self.act(obs, False)

    @staticmethod
    def plain_obs(batch: Any) -> Any:
        """Return a batch's observations, which are one array.

        :raises InputError: if they are several.
        """
        obs = batch.obs.obs if hasattr(batch.obs, "obs") else batch.obs
        if isinstance(obs, Batch | dict):
            raise InputError(
                f"expected observations that are one array, got a dict with keys {[*obs.keys()]}; "
                "flatten them first, for example with gymnasium.wrappers.FlattenObservation"
            )
        return obs

    @torch.no_grad()
    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Batch:
        """Choose actions for ``batch.obs`` (raw observations, (B, ...)).

        Deterministic outside a training step, a sample inside one.
        """
        seen = self.normalize(self.plain_obs(batch))
        act, logits = self.explore(seen) if self.is_within_training_step else self.act(seen, True)
        return Batch(act=act.cpu().numpy(), logits=logits, state=state)

    def exploration_noise(self, act: Any, batch: Any) -> Any:
        """Replace a share ``eps`` of discrete actions by uniformly random ones."""
        if self.eps == 0.0 or not isinstance(self.action_space, Discrete):
            return act
        generator = self.generators["act"]
        random = torch.rand(len(act), generator=generator).numpy() < self.eps
        drawn = torch.randint(int(self.action_space.n), (len(act),), generator=generator).numpy()
        return np.where(random, drawn, act)

    def learn(self, batch: Any, *args: Any, **kwargs: Any) -> OfflineTrainingStats:
        """Take one gradient step on a Tianshou batch (or on what ``sample`` returns)."""
        self.before_step()
        step = self._compiled or self.gradient_step
        with arithmetic(self.device, self.precision):
            metrics = step(self.prepare(batch))
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        interval = self.metrics_interval or (1 if self.device.type == "cpu" else 100)
        if self.num_updates % interval == 0:
            values = torch.stack([value.detach() for value in metrics.values()]).tolist()
            # A metric that this step lacks, as of a delayed actor, stays what it was.
            self.metrics = {**self.metrics, **dict(zip(metrics, values, strict=True))}
        self.num_updates += 1
        return OfflineTrainingStats(metrics=self.metrics)

    def update(self, *args: Any, **kwargs: Any) -> OfflineTrainingStats:
        """Sample a batch and take one gradient step on it.

        ``update(sample_size, buffer)`` as Tianshou 1.2 has it, or ``update(buffer, sample_size)``
        as 2.x has it; by keyword on either.

        :raises RuntimeError: outside a training step, as Tianshou does.
        """
        for value in args:
            kwargs["buffer" if isinstance(value, ReplayBuffer) else "sample_size"] = value
        buffer, sample_size = kwargs.get("buffer"), kwargs.get("sample_size")
        if not self.is_within_training_step:
            raise RuntimeError(
                "expected update() inside a training step, got a call outside; "
                "use a trainer, or `with tianshou_ext.tianshou_api.training_step(policy):`"
            )
        if buffer is None:
            return OfflineTrainingStats()
        start = time.monotonic()
        batch = self.sample(buffer, sample_size)
        # Switching every module takes as long as a small network's forward pass.
        targets = {id(target) for _, target in self._targets}
        ready = all(m.training for m in self.children() if id(m) not in targets)
        with contextlib.nullcontext() if ready and self.training else torch_train_mode(self):
            stats = self.learn(batch)
        stats.train_time = time.monotonic() - start
        return stats
