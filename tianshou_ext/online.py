"""Training a policy by letting it act, through Tianshou's own off-policy trainer.

``online_trainer`` starts from nothing, ``offline_to_online_trainer`` from a data set. A run can be
killed at any moment and ends with the same weights, to the bit, as one that was not. Environments
cannot be saved, so every epoch starts with a reset from a seed of its own, whether the run was
interrupted or not; the episode that an epoch's end cuts is a truncated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tianshou_ext.acting import (
    DATA,
    Acting,
    act_and_learn,
    env_seeds,
    make_seeded_collector,
)
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.online_buffer import make_online_buffer
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.errors import InputError, at_least_one
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.checks import check_environment, check_learns_online
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import (
    CHECKPOINT,
    check_settings,
    describe_run,
    offline_trainer,
    resume_run,
)

__all__ = ["offline_to_online_trainer", "online_trainer"]


def online_trainer(
    policy: OfflinePolicy,
    train_envs: Any,
    *,
    max_epoch: int,
    step_per_epoch: int,
    batch_size: int,
    buffer_size: int | None = None,
    random_steps: int = 0,
    update_per_step: float = 1.0,
    step_per_collect: int | None = None,
    stacked_frames: bool = True,
    test_envs: Any = None,
    episode_per_test: int = 10,
    seed: int = 0,
    logdir: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    save_epochs: int = 1,
    log_interval: int = 1000,
    tensorboard: bool = False,
    on_divergence: OnDivergence = "stop",
    on_epoch: Callable[[int, OfflinePolicy], None] | None = None,
    about: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Let ``policy`` act in ``train_envs`` and learn from what it did.

    With a ``logdir``, the folder gets what ``offline_trainer`` writes, and ``buffer_<step>.hdf5``.

    :param train_envs: Tianshou vector environments.
    :param max_epoch: epochs in all, those before an interruption included.
    :param step_per_epoch: environment steps an epoch, a multiple of ``step_per_collect``.
    :param batch_size: transitions a gradient step.
    :param buffer_size: transitions kept, at least ``random_steps``; all of them if None.
    :param random_steps: uniformly random steps before the first epoch.
    :param update_per_step: gradient steps for each environment step.
    :param step_per_collect: environment steps between updates; if None as few as there are
        environments, or as make a whole number of updates.
    :param stacked_frames: whether uint8 observations (S, H, W) are the last S frames, of which the
        buffer keeps one a step.
    :param test_envs: play ``episode_per_test`` episodes before training and after each epoch,
        always from the same seeds; None trains without tests.
    :param seed: of the environments.
    :param save_epochs: epochs between two checkpoints.
    :param on_divergence: ``stop`` or ``warn`` at NaN, as ``offline_trainer``.
    :param on_epoch: called with the number of the epoch that ended and the policy.
    :param about: facts for ``run.json`` beside the trainer's own: task, label.
    :return: a row per test, as ``offline_trainer``.
    :raises InputError: if a count is out of its range, observations or rewards are to be
        normalised by data of which there are none, or the checkpoint is of another run.
    """
    acting = Acting(
        max_epoch=max_epoch,
        step_per_epoch=step_per_epoch,
        batch_size=batch_size,
        update_per_step=update_per_step,
        step_per_collect=step_per_collect,
        random_steps=random_steps,
        buffer_size=buffer_size,
        episode_per_test=episode_per_test,
        seed=seed,
    )
    acting.collect(len(train_envs))
    at_least_one({"save_epochs": save_epochs, "log_interval": log_interval})
    check_environment(policy, train_envs)
    check_environment(policy, test_envs)
    folder = None if logdir is None else Path(logdir)
    forget_steps(policy, folder)
    check_acting(folder, asdict(acting))
    run = resume_run(policy, folder, resume)
    check_normalisers(policy, random_steps)
    describe_run(policy, folder, {**asdict(acting), **(about or {})})
    return act_and_learn(
        policy,
        train_envs,
        test_envs,
        acting,
        make_online_buffer(
            policy.observation_space,
            acting.rows(len(train_envs)),
            len(train_envs),
            stacked_frames=stacked_frames,
        ),
        folder,
        run,
        save_epochs=save_epochs,
        log_interval=log_interval,
        tensorboard=tensorboard,
        on_divergence=on_divergence,
        on_epoch=on_epoch,
        show_progress=show_progress,
        verbose=verbose,
    )


def offline_to_online_trainer(
    policy: OfflinePolicy,
    offline_buffer: ReplayBuffer,
    train_envs: Any,
    *,
    offline_epoch: int,
    update_per_epoch: int,
    online_epoch: int,
    step_per_epoch: int,
    batch_size: int,
    mixing: Mixing | None = None,
    buffer_size: int | None = None,
    warm_up_steps: int = 0,
    random_steps: int = 0,
    update_per_step: float | None = None,
    step_per_collect: int | None = None,
    stacked_frames: bool = True,
    test_envs: Any = None,
    episode_per_test: int = 10,
    seed: int = 0,
    logdir: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    save_interval: int | None = None,
    save_epochs: int = 1,
    log_interval: int = 100,
    tensorboard: bool = False,
    on_divergence: OnDivergence = "stop",
    about: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Train ``policy`` on ``offline_buffer``, then let it act and learn from both.

    One run: one folder with one checkpoint, one ``progress.csv`` over both phases (``env_step`` is
    0 in the first) and one axis of gradient steps. It resumes in either phase. Rewards and
    observations are transformed online as the data set's are.

    :param policy: of any method that ``learns_online``.
    :param train_envs: Tianshou vector environments, with the data set's spaces.
    :param offline_epoch: epochs on the data set alone; 0 goes online at once.
    :param update_per_epoch: gradient steps in each of them.
    :param online_epoch: epochs of acting.
    :param step_per_epoch: environment steps in each of them, a multiple of ``step_per_collect``.
    :param batch_size: transitions a gradient step, in both phases.
    :param mixing: how online batches are mixed; as the method's paper does if None.
    :param buffer_size: online transitions kept; all of them if None.
    :param warm_up_steps: steps that the policy acts before it learns online.
    :param random_steps: uniformly random steps before those.
    :param update_per_step: gradient steps for each environment step; the method's if None.
    :param step_per_collect: environment steps between updates; if None as few as there are
        environments, or as make a whole number of updates.
    :param stacked_frames: whether uint8 observations (S, H, W) are the last S frames, of which the
        online buffer keeps one a step.
    :param test_envs: play ``episode_per_test`` episodes before training and after each epoch, of
        both phases; None trains without tests.
    :param seed: of the environments.
    :param save_interval: gradient steps between checkpoints offline; an epoch if None.
    :param save_epochs: epochs between checkpoints online.
    :param on_divergence: as ``offline_trainer``, in both phases; online the rewards that were
        collected count beside the data's.
    :param about: facts for ``run.json`` beside the trainer's own: task, dataset, label.
    :return: a row per test: epoch, step (gradient steps), return_mean, return_std, episodes,
        seconds, env_step.
    :raises InputError: if the method does not learn online, the environments have other spaces
        than the policy, a count is out of its range, or the checkpoint is of another run.
    """
    mixing = policy.online_mixing if mixing is None else mixing
    if update_per_step is None:
        update_per_step = policy.online_update_per_step
    counts = {"online_epoch": online_epoch, "save_epochs": save_epochs}
    at_least_one({**counts, "log_interval": log_interval})
    if offline_epoch < 0:
        raise InputError(f"expected offline_epoch of at least 0, got {offline_epoch}; change it")
    acting = Acting(
        max_epoch=online_epoch,
        step_per_epoch=step_per_epoch,
        batch_size=batch_size,
        update_per_step=update_per_step,
        step_per_collect=step_per_collect,
        random_steps=random_steps,
        warm_up_steps=warm_up_steps,
        buffer_size=buffer_size,
        episode_per_test=episode_per_test,
        seed=seed,
    )
    acting.collect(len(train_envs))
    check_learns_online(policy)
    check_environment(policy, train_envs)
    check_environment(policy, test_envs)
    folder = None if logdir is None else Path(logdir)
    forget_steps(policy, folder)
    offline = {
        "offline_epoch": offline_epoch,
        "update_per_epoch": update_per_epoch,
        "optimism": policy.optimism,
    }
    check_acting(folder, {**asdict(acting), **asdict(mixing), **offline})
    facts = {"online": asdict(acting), "mixing": asdict(mixing), **offline, **(about or {})}
    if offline_epoch:
        rows = offline_trainer(
            policy,
            offline_buffer,
            max_epoch=offline_epoch,
            update_per_epoch=update_per_epoch,
            batch_size=batch_size,
            test_collector=make_seeded_collector(policy, test_envs, seed),
            episode_per_test=episode_per_test,
            logdir=folder,
            resume=resume,
            save_interval=save_interval,
            log_interval=log_interval,
            tensorboard=tensorboard,
            on_divergence=on_divergence,
            about=facts,
            show_progress=show_progress,
            verbose=verbose,
        )
        run: dict[str, Any] = {"rows": [[*row.values(), "{}"] for row in rows]}
        if folder is not None:
            run = resume_run(policy, folder, "auto")
    else:
        run = resume_run(policy, folder, resume, offline_buffer)
        policy.show_progress = show_progress
        policy.process_buffer(offline_buffer)
        describe_run(policy, folder, facts)
    buffer = make_online_buffer(
        policy.observation_space,
        acting.rows(len(train_envs)),
        len(train_envs),
        stacked_frames=stacked_frames,
    )
    policy.go_online(buffer, mixing, seed=env_seeds(1, seed, DATA)[0])
    if not policy.online_steps:
        policy.on_online_start(run["rows"][-1][2] if run.get("rows") else None)
    return act_and_learn(
        policy,
        train_envs,
        test_envs,
        acting,
        buffer,
        folder,
        run,
        first_epoch=offline_epoch,
        save_epochs=save_epochs,
        log_interval=log_interval,
        tensorboard=tensorboard,
        on_divergence=on_divergence,
        show_progress=show_progress,
        verbose=verbose,
    )


def forget_steps(policy: OfflinePolicy, folder: Path | None) -> None:
    """Count environment steps from 0, unless a run is there to go on with."""
    if folder is None or not (folder / CHECKPOINT).exists():
        policy.online_steps = 0


def check_normalisers(policy: OfflinePolicy, random_steps: int) -> None:
    """Check that there will be data to fit normalisers to, before the first gradient step.

    :raises InputError: if there are not: they would be fitted to a single transition.
    """
    for name in ("obs_norm", "reward_norm"):
        norm = getattr(policy, name)
        if norm is not None and not bool(norm.is_fitted) and not random_steps:
            raise InputError(
                f"expected data to fit {name} {norm.kind} to, got none before the first gradient "
                f"step; pass random_steps, or build the policy with {name}='none'"
            )


def check_acting(folder: Path | None, settings: Mapping[str, Any]) -> None:
    """Check that a run that has begun to act goes on as it was; its epochs in all may be others.

    :raises InputError: if a setting differs from what ``run.json`` says.
    """
    if folder is not None and any(folder.glob("buffer_*")):
        free = ("max_epoch", "episode_per_test")
        check_settings(folder, {k: v for k, v in settings.items() if k not in free})
