"""Acting and learning in turns, through Tianshou's off-policy trainer and collectors.

What ``online_trainer`` and ``offline_to_online_trainer`` share: the numbers of a run that acts, the
seeds of its environments, its collectors, and the checkpoint with the buffer of the same step.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.online_buffer import (
    cut_episodes,
    make_online_buffer,
    restore_rows,
    save_rows,
)
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.errors import InputError, at_least_one
from tianshou_ext.files import atomic_write
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.processor import flushed_denormals
from tianshou_ext.tianshou_api import Collector, ReplayBuffer, run_online, training_step
from tianshou_ext.trainer import RunLogger

__all__ = [
    "DATA",
    "Acting",
    "act_and_learn",
    "env_seeds",
    "make_seeded_collector",
]

WARM_UP, TRAINING, TEST, DATA = range(4)  # what a run's seed is used for


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How much a policy acts, and how much it learns from that."""

    max_epoch: int
    step_per_epoch: int
    batch_size: int
    update_per_step: float = 1.0
    step_per_collect: int | None = None
    random_steps: int = 0
    warm_up_steps: int = 0
    buffer_size: int | None = None
    episode_per_test: int = 10
    seed: int = 0

    def collect(self, num_envs: int) -> int:
        """Return the environment steps between updates.

        :raises InputError: if a number is out of its range.
        """
        counts = ("max_epoch", "step_per_epoch", "batch_size", "episode_per_test")
        at_least_one({name: getattr(self, name) for name in counts})
        for name in ("random_steps", "warm_up_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"expected no negative {name}, got {getattr(self, name)}")
        least = max(1, self.first_steps(num_envs))
        if self.rows(num_envs) < least:
            raise InputError(
                f"expected a buffer_size of at least random_steps and warm_up_steps, {least}, got "
                f"{self.buffer_size}; change one"
            )
        if not math.isfinite(self.update_per_step):
            raise InputError(f"expected a finite update_per_step, got {self.update_per_step}")
        collect = self.step_per_collect
        if collect is None:  # as few rounds of the environments as make a whole number of updates
            collect = math.lcm(
                num_envs, Fraction(float(self.update_per_step)).limit_denominator().denominator
            )
        if collect % num_envs:
            raise InputError(
                f"expected step_per_collect in whole rounds of {num_envs} environments, got "
                f"{collect}; change one"
            )
        if collect < 1 or self.step_per_epoch % collect:
            raise InputError(
                f"expected step_per_epoch in whole collections of {collect} steps, got "
                f"{self.step_per_epoch}; change it"
            )
        updates = collect * self.update_per_step
        if updates < 0.5 or abs(updates - round(updates)) > 1e-6:
            raise InputError(
                f"expected a whole number of updates after each collection of {collect} steps, got "
                f"{updates:g}; change update_per_step or step_per_collect"
            )
        return collect

    @property
    def update_per_epoch(self) -> int:
        """Gradient steps an epoch."""
        return round(self.step_per_epoch * self.update_per_step)

    def first_steps(self, num_envs: int) -> int:
        """Return the steps before the first epoch; environments act in whole rounds."""
        first = (self.random_steps, self.warm_up_steps)
        return sum(-(-steps // num_envs) * num_envs for steps in first)

    def rows(self, num_envs: int) -> int:
        """Return the transitions kept; all if no number was given."""
        if self.buffer_size is not None:
            return self.buffer_size
        return self.first_steps(num_envs) + self.max_epoch * self.step_per_epoch

    def updates(self, online_steps: int, num_envs: int) -> int:
        """Return the gradient steps that go with so many environment steps, at an epoch's end."""
        return round((online_steps - self.first_steps(num_envs)) * self.update_per_step)


def act_and_learn(
    policy: OfflinePolicy,
    train_envs: Any,
    test_envs: Any,
    acting: Acting,
    buffer: ReplayBuffer,
    folder: Path | None,
    run: Mapping[str, Any],
    *,
    first_epoch: int = 0,
    save_epochs: int,
    log_interval: int,
    tensorboard: bool,
    on_divergence: OnDivergence,
    on_epoch: Callable[[int, OfflinePolicy], None] | None = None,
    show_progress: bool,
    verbose: bool,
) -> list[dict[str, float]]:
    """Fill the buffer by acting, and learn, to the end of the last epoch; return a row per test."""
    resumed, step_per_epoch = policy.online_steps > 0, acting.step_per_epoch
    done = acting.updates(policy.online_steps, len(train_envs)) if resumed else 0
    goes_on = done < acting.max_epoch * acting.update_per_epoch
    if goes_on and resumed and folder is not None:
        restore_rows(buffer, buffer_file(folder, policy), run.get("buffer", ""))
    logger = _OnlineLogger(
        policy,
        folder,
        buffer=buffer,
        step_per_epoch=step_per_epoch,
        on_epoch=on_epoch,
        save_interval=save_epochs,
        log_interval=log_interval,
        batch_size=acting.batch_size,
        update_per_epoch=acting.update_per_epoch,
        run=run,
        tensorboard=tensorboard,
        on_divergence=on_divergence,
        first=(first_epoch, policy.num_updates - done),
    )
    collector = _TrainingCollector(
        policy, train_envs, buffer, exploration_noise=True, raise_on_nan_in_buffer=False
    )

    if goes_on:
        if not resumed and acting.random_steps + acting.warm_up_steps:
            seeds = env_seeds(len(train_envs), acting.seed, WARM_UP)
            train_envs.seed(seeds)
            collector.seed_actions(seeds)
            collector.reset_env()
            for steps, random in ((acting.random_steps, True), (acting.warm_up_steps, False)):
                if steps:
                    with training_step(policy):
                        collector.collect(n_step=steps, random=random)

        bar = tqdm(
            total=acting.max_epoch * step_per_epoch, unit=" steps", disable=not show_progress
        )

        def start_epoch(epoch: int, env_step: int) -> None:
            bar.update(env_step - bar.n)
            if env_step % step_per_epoch == 0:
                bar.set_postfix_str(f"return {logger.rows[-1][2]:.0f}" if logger.rows else "")
                cut_episodes(buffer)
                train_envs.seed(env_seeds(len(train_envs), acting.seed, TRAINING, epoch))
                collector.reset_env()

        with flushed_denormals(), bar:
            run_online(
                policy,
                train_collector=collector,
                test_collector=make_seeded_collector(policy, test_envs, acting.seed),
                max_epoch=acting.max_epoch,
                step_per_epoch=step_per_epoch,
                step_per_collect=acting.collect(len(train_envs)),
                update_per_step=acting.update_per_step,
                batch_size=acting.batch_size,
                episode_per_test=acting.episode_per_test,
                logger=logger,
                train_fn=start_epoch,
                resume=True,
                show_progress=False,  # Tianshou's bars count an epoch, ours the run
                verbose=verbose,
            )
        logger.save()
    logger.finalize()
    return logger.results


def env_seeds(count: int, *purpose: int) -> list[int]:
    """Return seeds of environments for a purpose, each of which has its own."""
    return [int(number) for number in np.random.SeedSequence(purpose).generate_state(count)]


def make_seeded_collector(
    policy: OfflinePolicy, test_envs: Any, seed: int
) -> Collector[Any] | None:
    """Return a collector that plays without noise, always from the same seeds; or None."""
    if test_envs is None:
        return None
    buffer = make_online_buffer(None, 10 * len(test_envs), len(test_envs))
    return _TestCollector(env_seeds(len(test_envs), seed, TEST), policy, test_envs, buffer)


class _TestCollector(Collector[Any]):
    """Seeds its environments before it plays."""

    def __init__(self, seeds: list[int], *args: Any) -> None:
        super().__init__(*args)
        self.seeds = seeds

    def collect(self, *args: Any, **kwargs: Any) -> Any:
        self.env.seed(self.seeds)
        self.reset_env()
        return super().collect(*args, **kwargs)


class _TrainingCollector(Collector[Any]):
    """Tells the policy of its steps and of the episodes that ended."""

    def __init__(self, policy: OfflinePolicy, *args: Any, **kwargs: Any) -> None:
        super().__init__(policy, *args, **kwargs)
        self.learner = policy

    def seed_actions(self, seeds: list[int]) -> None:
        """Seed what random actions are drawn from: copies, where environments are processes."""
        spaces = (
            self._action_space if isinstance(self._action_space, list) else [self._action_space]
        )
        for space, seed in zip(spaces, seeds, strict=False):
            space.seed(seed)

    def collect(self, *args: Any, **kwargs: Any) -> Any:
        stats = super().collect(*args, **kwargs)
        self.learner.online_steps += int(stats.n_collected_steps)
        for episode_return, length in zip(stats.returns, stats.lens, strict=True):
            self.learner.on_episode_end(float(episode_return), int(length))
        return stats


class _OnlineLogger(RunLogger):
    """Saves at the ends of epochs only, and the buffer along with the policy."""

    def __init__(
        self,
        *args: Any,
        buffer: ReplayBuffer,
        step_per_epoch: int,
        on_epoch: Callable[[int, OfflinePolicy], None] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.buffer, self.step_per_epoch, self.on_epoch = buffer, step_per_epoch, on_epoch

    def write_checkpoint(self, folder: Path) -> None:
        # Written first: a checkpoint finds the buffer of its own step, or the older one its own.
        path = buffer_file(folder, self.policy)
        self.buffer_name = self.buffer_name or uuid.uuid4().hex
        atomic_write(path, lambda partial: save_rows(self.buffer, partial, self.buffer_name))
        super().write_checkpoint(folder)
        for old in folder.glob("buffer_*.hdf5"):
            if old != path:
                old.unlink()

    def log_update_data(self, log_data: dict[str, Any], step: int) -> None:
        if step % self.log_interval == 0:
            self._scalars(log_data.get("metrics", {}), step)
            self.watch.check()

    def save_data(
        self,
        epoch: int,
        env_step: int,
        update_step: int,
        save_checkpoint_fn: Callable[[int, int, int], str] | None = None,
    ) -> None:
        if epoch % self.save_interval == 0:
            self.save()
        if self.on_epoch is not None:
            self.on_epoch(epoch, self.policy)

    def restore_data(self) -> tuple[int, int, int]:
        epoch = (self.policy.num_updates - self.first[1]) // self.update_per_epoch
        return epoch, epoch * self.step_per_epoch, self.policy.num_updates


def buffer_file(folder: Path, policy: OfflinePolicy) -> Path:
    """Return where the buffer is that belongs to the policy's present step."""
    return folder / f"buffer_{policy.num_updates}.hdf5"
