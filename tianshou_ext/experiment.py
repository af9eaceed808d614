"""What the examples of all domains share: the run's folder, the policy, training, watching."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from gymnasium.spaces import Discrete
from tianshou.data import VectorReplayBuffer

from tianshou_ext.analysis.curves import plot_curves, plot_finetuning
from tianshou_ext.checkpoint import load_policy
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.errors import InputError, at_least_one
from tianshou_ext.evaluation.finetuning import summarize_finetuning
from tianshou_ext.evaluation.scores import score_function
from tianshou_ext.files import atomic_write
from tianshou_ext.online import offline_to_online_trainer
from tianshou_ext.policy import OfflinePolicy, get_method
from tianshou_ext.tianshou_api import Collector, ReplayBuffer
from tianshou_ext.trainer import BEST, CHECKPOINT, offline_trainer


class RunArgs(Protocol):
    """Arguments that every offline example has."""

    task: str
    seed: int
    batch_size: Any
    epoch: int
    update_per_epoch: int
    test_num: int
    resume: Any
    resume_path: str | None
    on_divergence: OnDivergence


def run_folder(logdir: str, task: str, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return Path(logdir) / task.replace("/", "_") / name / str(seed)


def check_device(device: str) -> None:
    """Check that a device is there.

    :raises InputError: if it is not.
    """
    try:
        torch.zeros(1, device=device).item()  # which fails on "meta", whose tensors hold nothing
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(
            f"expected a device that torch can use, got {device!r} ({first}); pass --device cpu"
        ) from error


def check_counts(args: Any, *names: str) -> None:
    """Check arguments, of those that there are, that have to be at least 1 where they are given.

    :raises InputError: if one is less.
    """
    counts = {f"--{name.replace('_', '-')}": getattr(args, name, None) for name in names}
    at_least_one({flag: count for flag, count in counts.items() if count is not None})


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads on the CPU; as many as it chooses if None.

    :raises InputError: if there are fewer than 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"expected threads of at least 1, got {threads}; change it")
    torch.set_num_threads(threads)


def config_options(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``values`` that are fields of the method's config and not None."""
    names = {f.name for f in fields(get_method(method).config_class)}
    return {name: value for name, value in values.items() if name in names and value is not None}


def make_policy(
    method: str,
    env: Any,
    options: Mapping[str, Any],
    *,
    device: str,
    seed: int,
    resume_path: str | None = None,
) -> OfflinePolicy:
    """Build the policy for an environment, with the weights at ``resume_path`` if given.

    :param options: fields of the method's config.
    :raises InputError: if the device, an option or the checkpoint does not fit.
    """
    check_device(device)
    policy = get_method(method).policy_class.build(
        env.observation_space, env.action_space, device=device, seed=seed, **options
    )
    if resume_path:
        load_policy(policy, resume_path)
        print(f"weights from {resume_path}")
    return policy


def make_test_collector(policy: OfflinePolicy, test_envs: Any) -> Collector[Any]:
    """Return a collector whose buffer keeps only the last steps; Tianshou's default takes 5 GB.

    Discrete actions are mixed with the policy's ``eps``, others are its own.
    """
    buffer = VectorReplayBuffer(10 * len(test_envs), len(test_envs), ignore_obs_next=True)
    noise = isinstance(policy.action_space, Discrete)
    on_step = getattr(policy, "on_step", None)  # of one that must know what its actions paid
    return Collector(policy, test_envs, buffer, exploration_noise=noise, on_step_hook=on_step)


def fit(
    policy: OfflinePolicy,
    buffer: ReplayBuffer,
    test_envs: Any,
    args: RunArgs,
    folder: Path,
    *,
    label: str,
    dataset: str = "",
    **plot: Any,
) -> list[dict[str, float]]:
    """Train as the arguments say, draw the curve, and return a row per test.

    :param label: of the curve, and of the run in ``tianshou-ext report``.
    :param dataset: name of the data there.
    :param plot: what ``plot_curves`` takes beside the runs and the path.
    """
    say_what_goes_on(args, folder)
    rows = offline_trainer(
        policy,
        buffer,
        max_epoch=args.epoch,
        update_per_epoch=args.update_per_epoch,
        batch_size=args.batch_size,
        test_collector=make_test_collector(policy, test_envs),
        episode_per_test=args.test_num,
        logdir=folder,
        resume=args.resume,
        save_interval=min(1000, args.update_per_epoch),
        tensorboard=True,
        on_divergence=args.on_divergence,
        about={"task": args.task, "dataset": dataset, "label": label, "seed": args.seed},
    )
    test_envs.close()
    link_best(folder)
    plot_curves({label: [folder]}, folder / "curve.png", title=args.task, task=args.task, **plot)
    return rows


class OnlineArgs(RunArgs, Protocol):
    """Arguments of an example that goes on online."""

    online_steps: int
    update_per_step: float | None
    warm_up_steps: int


def fine_tune(
    policy: OfflinePolicy,
    buffer: ReplayBuffer,
    train_envs: Any,
    test_envs: Any,
    args: OnlineArgs,
    folder: Path,
    *,
    label: str,
    step_per_epoch: int,
    mixing: Mixing | None = None,
    dataset: str = "",
    **plot: Any,
) -> list[dict[str, float]]:
    """Train offline, then online; draw the curve, print the dip, and return a row per test.

    :param label: of the curve, and of the run in ``tianshou-ext report``.
    :param step_per_epoch: environment steps from one test to the next online.
    :param mixing: of online batches; the method's own if None.
    :param dataset: name of the data there.
    :param plot: what ``plot_finetuning`` takes beside the runs and the path.
    """
    if args.online_steps % step_per_epoch:
        raise InputError(
            f"expected online steps in whole epochs of {step_per_epoch}, got {args.online_steps}; "
            "change one of them"
        )
    say_what_goes_on(args, folder)
    rows = offline_to_online_trainer(
        policy,
        buffer,
        train_envs,
        offline_epoch=args.epoch,
        update_per_epoch=args.update_per_epoch,
        online_epoch=args.online_steps // step_per_epoch,
        step_per_epoch=step_per_epoch,
        batch_size=args.batch_size,
        mixing=mixing,
        warm_up_steps=args.warm_up_steps,
        update_per_step=args.update_per_step,
        test_envs=test_envs,
        episode_per_test=args.test_num,
        seed=args.seed,
        logdir=folder,
        resume=args.resume,
        save_interval=min(1000, args.update_per_epoch),
        tensorboard=True,
        on_divergence=args.on_divergence,
        about={"task": args.task, "dataset": dataset, "label": label, "seed": args.seed},
    )
    train_envs.close()
    test_envs.close()
    link_best(folder)
    path = plot_finetuning(
        {label: [folder]}, folder / "curve.png", title=args.task, task=args.task, **plot
    )
    summary = summarize_finetuning(rows, score_function(args.task))
    print(f"{label} on {args.task}: {summary}; see {path}")
    return rows


def say_what_goes_on(args: RunArgs, folder: Path) -> None:
    """Say that a run in the folder goes on from its checkpoint, not from ``--resume-path``."""
    if args.resume_path and args.resume == "auto" and (folder / CHECKPOINT).exists():
        print(f"the run at {folder} goes on from its own checkpoint, not from --resume-path")


def link_best(folder: Path) -> None:
    """Let ``policy.pth`` beside the run's folder point at the newest run's best policy."""
    link = folder.parent / BEST
    if (folder / BEST).exists():
        # Other seeds may end at the same moment.
        atomic_write(link, lambda partial: partial.symlink_to(Path(folder.name) / BEST))


def render_mode() -> str:
    """Return ``human`` where there is a display to show a window on, else ``rgb_array``."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return "human" if display and answers() else "rgb_array"


def answers() -> bool:
    """Whether the display that is named answers; MuJoCo's viewer aborts the process if not."""
    try:
        import glfw
    except ImportError:  # what does not show windows by it
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(glfw.init() and glfw.get_primary_monitor())


def watch(env: Any, choose: Callable[[Any], Any], path: Path, frames_per_second: int = 15) -> float:
    """Play one episode in a window or, without a display, into the mp4 at ``path``.

    :param env: made with ``render_mode()``.
    :param choose: from an observation to an action of the environment.
    :param frames_per_second: steps a second; the video has at most about 30 of them.
    :return: the score.
    :raises InputError: if nothing can be rendered here.
    """
    obs, _ = env.reset()
    every = max(1, round(frames_per_second / 30))
    frames, score, over, step = [], 0.0, False, 0
    while not over:
        obs, rew, terminated, truncated, _ = env.step(choose(obs))
        score, over, step = score + float(rew), bool(terminated or truncated), step + 1
        if step % every:
            continue
        try:
            frame = env.render()
        except Exception as error:  # whatever the graphics driver makes of it
            raise InputError(
                "expected a display, or a driver that renders without one, got neither "
                f"({' '.join(str(error).split())[:200]}); set MUJOCO_GL to egl or osmesa, or watch "
                "on another machine"
            ) from error
        if frame is not None:
            frames.append(frame)
    print(f"score {score:g}")
    if frames:
        print(f"video: {write_video(frames, path, frames_per_second // every)}")
    return score


def write_video(frames: list[Any], path: Path, frames_per_second: int = 15) -> Path:
    """Write RGB frames (H, W, 3) as an mp4; small ones twice as large.

    :raises InputError: if OpenCV is missing, or cannot write such a file.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "expected OpenCV to write a video, found none; pip install opencv-python-headless"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    scale = 2 if height < 300 else 1
    size = (scale * width, scale * height)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    video = cv2.VideoWriter(str(path), codec, frames_per_second, size)
    if not video.isOpened():
        raise InputError(f"expected OpenCV to write {path}, which it cannot here; see its message")
    for frame in frames:
        large = cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST)
        video.write(large[:, :, ::-1])
    video.release()
    return path
