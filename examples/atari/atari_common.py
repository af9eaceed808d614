"""What the Atari examples share: arguments, the data set, evaluation, watching, the plot."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tianshou.data import VectorReplayBuffer

from tianshou_ext.analysis.curves import plot_curves
from tianshou_ext.checkpoint import load_policy
from tianshou_ext.data.collect import Choose, cache_folder, collect_atari
from tianshou_ext.data.hdf5 import load_buffer, load_rl_unplugged, read_provenance
from tianshou_ext.envs.atari import make_atari_env, make_atari_venv
from tianshou_ext.envs.atari_players import make_player
from tianshou_ext.errors import InputError
from tianshou_ext.policy import OfflinePolicy, get_method
from tianshou_ext.schedules import LinearDecay
from tianshou_ext.tianshou_api import Collector, ReplayBuffer
from tianshou_ext.trainer import offline_trainer


@dataclass
class AtariArgs:
    """Arguments of every Atari example; names and defaults are Tianshou's where it has them."""

    task: str = "PongNoFrameskip-v4"
    """Game, as PongNoFrameskip-v4, BreakoutNoFrameskip-v4, ALE/Pong-v5."""
    seed: int = 1626
    """Of the networks, the sampling and the test games."""
    lr: float = 1e-4
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount factor."""
    n_step: int = 1
    """Rewards summed before bootstrapping."""
    hidden_sizes: tuple[int, ...] = (512,)
    """Widths of the fully connected layers."""
    frames_stack: int = 4
    """Frames the policy sees at once."""
    obs_norm: Literal["standard", "255", "none"] = "standard"
    """standard: minus the data's mean frame, by 20; 255: divide by 255; none: raw grey levels."""
    batch_size: int = 32
    """Transitions a gradient step."""
    test_num: int = 10
    """Games played at each test, side by side."""
    eps_test: float = 0.001
    """Share of random actions in test games."""
    logdir: str = "log"
    """Folder of the run: <logdir>/<task>/<algorithm>/<seed>."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda, cuda:1, ..."""
    resume_path: str | None = None
    """Checkpoint or weights to start from, or to watch."""
    watch: bool = False
    """Only watch the policy: in a window, or without a display as an mp4."""
    buffer_size: int = 100_000
    """Rows to log when a data set is made."""
    threads: int | None = None
    """Threads of torch on the CPU; its own choice if left out."""
    smoke: bool = False
    """Finish in seconds: tiny data, three gradient steps, one short game."""


@dataclass
class OfflineArgs(AtariArgs):
    """Arguments of the offline examples."""

    epoch: int = 100
    """Epochs in all."""
    update_per_epoch: int = 10_000
    """Gradient steps an epoch."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with the run in its folder, if there is one."""
    load_buffer_name: str | None = None
    """HDF5 with the data; left out, a scripted player logs one, once, into the cache folder."""
    buffer_from_rl_unplugged: bool = False
    """The file has RL Unplugged's keys (observations, actions, ...), as Tianshou converts them."""
    eps: float = 0.2
    """Share of random actions mixed into the scripted player's."""
    lr_decay: bool = False
    """Take the learning rate to 0 over all epochs, in a straight line."""


MAX_SMOKE_FRAMES = 400


def run_folder(args: AtariArgs, algorithm: str) -> Path:
    """Return the folder of this run."""
    return Path(args.logdir) / args.task.replace("/", "_") / algorithm / str(args.seed)


def player_buffer(task: str, size: int, eps: float, frames_stack: int, seed: int = 0) -> Path:
    """Return the scripted player's data set, logging it if the cache has none yet."""
    player = make_player(task)
    name = f"{task.replace('/', '_')}_player_eps{eps:g}_{size}_seed{seed}.hdf5"
    path = cache_folder() / "atari" / name
    if path.exists():
        return path
    print(f"logging {size} frames of {task} to {path}")

    def choose(env: Any, obs: Any, last_act: int | None) -> int:
        return player.act(env.ram(), last_act)

    about = {"source": "scripted player"}
    collect_atari(
        task, path, size, choose, eps=eps, seed=seed, frame_stack=frames_stack, provenance=about
    )
    return path


def get_buffer(args: OfflineArgs) -> ReplayBuffer:
    """Open the data set that the arguments name, or make one."""
    if args.load_buffer_name is None:
        path = player_buffer(args.task, args.buffer_size, args.eps, args.frames_stack)
    else:
        path = Path(args.load_buffer_name).expanduser()
    if args.buffer_from_rl_unplugged:
        buffer = load_rl_unplugged(path)
    else:
        buffer = load_buffer(path)
        about = read_provenance(path)
        if "score_mean" in about and about["score_mean"] is not None:
            print(
                f"behaviour: {about['score_mean']:.1f} ± {about['score_std']:.1f} over "
                f"{about['episodes']} games"
            )
    print(f"buffer: {len(buffer)} rows from {path}")
    return buffer


def check_device(device: str) -> None:
    """Check that a device is there.

    :raises InputError: if it is not.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"expected a device that torch can use, got {device!r} ({first}); pass --device cpu"
        ) from error


def make_policy(args: AtariArgs, method: str, env: Any) -> OfflinePolicy:
    """Build the policy with the hyperparameters that the arguments name."""
    check_device(args.device)
    found = get_method(method)
    names = {f.name for f in fields(found.config_class)}
    options = {name: value for name, value in vars(args).items() if name in names}
    policy = found.policy_class.build(
        env.observation_space, env.action_space, device=args.device, seed=args.seed, **options
    )
    policy.set_eps(args.eps_test)
    if args.resume_path:
        load_policy(policy, args.resume_path)
        print(f"weights from {args.resume_path}")
    return policy


def apply_smoke(args: Any) -> dict[str, int]:
    """Shrink everything for ``--smoke``; return the time limit for the games."""
    if not args.smoke:
        return {}
    args.buffer_size, args.batch_size, args.test_num = 300, 8, 1
    if isinstance(args, OfflineArgs):
        args.epoch, args.update_per_epoch = 1, 3
    return {"max_episode_frames": MAX_SMOKE_FRAMES}


def train(args: OfflineArgs, algorithm: str, method: str) -> list[dict[str, float]]:
    """Train ``method`` on the data set and return a row per test.

    :param algorithm: the name in the run's folder: cql, il, ...
    """
    limit = apply_smoke(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    env = make_atari_env(args.task, seed=args.seed, frame_stack=args.frames_stack)
    policy = make_policy(args, method, env)
    folder = run_folder(args, algorithm)
    if args.watch:
        watch(policy, args, folder)
        return []
    if args.lr_decay:
        num_steps = args.epoch * args.update_per_epoch
        policy.lr_scheduler = LinearDecay(policy.optimizers.values(), num_steps)
    buffer = get_buffer(args)
    test_envs = make_atari_venv(
        args.task, args.test_num, seed=args.seed, frame_stack=args.frames_stack, **limit
    )
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
    )
    test_envs.close()
    link_best(folder)
    plot_curves({algorithm: [folder]}, folder / "curve.png", title=args.task)
    last = rows[-1]
    print(
        f"{algorithm} on {args.task}, seed {args.seed}: {last['return_mean']:.1f} ± "
        f"{last['return_std']:.1f} over {last['episodes']} games after {last['step']} gradient "
        f"steps, best {max(row['return_mean'] for row in rows):.1f}; see {folder}"
    )
    return rows


def make_test_collector(policy: OfflinePolicy, test_envs: Any) -> Collector[Any]:
    """Return a collector whose buffer keeps only the last steps; Tianshou's default takes 5 GB."""
    buffer = VectorReplayBuffer(10 * len(test_envs), len(test_envs), ignore_obs_next=True)
    return Collector(policy, test_envs, buffer, exploration_noise=True)


def link_best(folder: Path) -> None:
    """Let ``<algorithm>/policy.pth`` point at the newest run's best policy."""
    link = folder.parent / "policy.pth"
    if (folder / "policy.pth").exists():
        link.unlink(missing_ok=True)
        link.symlink_to(Path(folder.name) / "policy.pth")


def greedy(policy: OfflinePolicy) -> Choose:
    """Return what ``collect_atari`` asks for actions, answered by the policy."""
    policy.eval()

    def choose(env: Any, obs: Any, last_act: int | None) -> int:
        with torch.no_grad():
            frames = torch.from_numpy(np.asarray(obs)).unsqueeze(0).to(policy.device)
            act, _ = policy.act(policy.normalize(frames), True)
        return int(act[0])

    return choose


def watch(policy: OfflinePolicy, args: AtariArgs, folder: Path) -> None:
    """Play one game in a window or, without a display, into ``<folder>/watch.mp4``."""
    if args.resume_path is None and not args.smoke:
        raise InputError("expected --resume-path with --watch, got none; name what to watch")
    display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    limit = {"max_episode_frames": MAX_SMOKE_FRAMES} if args.smoke else {}
    env = make_atari_env(
        args.task,
        seed=args.seed,
        frame_stack=args.frames_stack,
        render_mode="human" if display else "rgb_array",
        **limit,
    )
    choose, rng = greedy(policy), np.random.default_rng(args.seed)
    obs, _ = env.reset()
    frames, score, over = [], 0.0, False
    while not over:
        random = rng.random() < args.eps_test
        act = int(rng.integers(env.action_space.n)) if random else choose(env, obs, None)
        obs, rew, terminated, truncated, _ = env.step(act)
        frame = env.render()
        if frame is not None:
            frames.append(frame)
        score, over = score + float(rew), bool(terminated or truncated)
    print(f"score {score:g}")
    if frames:
        print(f"video: {write_video(frames, folder / 'watch.mp4')}")


def write_video(frames: list[Any], path: Path, frames_per_second: int = 15) -> Path:
    """Write RGB frames (H, W, 3) as an mp4, twice as large."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    video = cv2.VideoWriter(str(path), codec, frames_per_second, (2 * width, 2 * height))
    for frame in frames:
        large = cv2.resize(frame, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
        video.write(large[:, :, ::-1])
    video.release()
    return path
