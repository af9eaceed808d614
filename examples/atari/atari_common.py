"""What the Atari examples share: arguments, the data set, evaluation, watching, the plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tianshou_ext.data.cache import cached
from tianshou_ext.data.collect import Choose, collect_atari
from tianshou_ext.data.hdf5 import load_buffer, load_rl_unplugged, read_provenance
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.envs.atari import make_atari_env, make_atari_venv
from tianshou_ext.envs.atari_players import make_player
from tianshou_ext.errors import InputError
from tianshou_ext.experiment import (
    check_counts,
    config_options,
    fit,
    make_policy,
    render_mode,
    run_folder,
    use_threads,
    watch,
)
from tianshou_ext.policy import OfflinePolicy
from tianshou_ext.policy.in_context import InContextPolicy, Solo
from tianshou_ext.schedules import LinearDecay
from tianshou_ext.tianshou_api import ReplayBuffer


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
    on_divergence: OnDivergence = "stop"
    """stop: end a run that has diverged; warn: say so and go on."""
    lr_decay: bool = False
    """Take the learning rate to 0 over all epochs, in a straight line."""


MAX_SMOKE_FRAMES = 400
COUNTS = (
    "epoch",
    "update_per_epoch",
    "step_per_epoch",
    "step_per_collect",
    "training_num",
    "test_num",
    "batch_size",
    "buffer_size",
)
"""Arguments of one example or another that are at least 1."""


def player_buffer(task: str, size: int, eps: float, frames_stack: int, seed: int = 0) -> Path:
    """Return the scripted player's data set, logging it if the cache has none yet."""
    player = make_player(task)
    stack = "" if frames_stack == 4 else f"_stack{frames_stack}"
    name = f"{task.replace('/', '_')}_player_eps{eps:g}_{size}_seed{seed}{stack}.hdf5"

    def choose(env: Any, obs: Any, last_act: int | None) -> int:
        return player.act(env.ram(), last_act)

    about = {"source": "scripted player"}

    def make(path: Path) -> None:
        print(f"logging {size} frames of {task} to {path}")
        options: dict[str, Any] = {"eps": eps, "seed": seed, "frame_stack": frames_stack}
        collect_atari(task, path, size, choose, provenance=about, **options)

    return cached(f"atari/{name}", make)


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


def apply_smoke(args: Any) -> dict[str, int]:
    """Shrink everything for ``--smoke``; return the time limit for the games."""
    if not args.smoke:
        return {}
    args.buffer_size, args.batch_size, args.test_num = 300, 8, 1
    if isinstance(args, OfflineArgs):
        args.epoch, args.update_per_epoch = 1, 3
    return {"max_episode_frames": MAX_SMOKE_FRAMES}


def build_policy(args: AtariArgs, method: str, env: Any) -> OfflinePolicy:
    """Build the policy with the hyperparameters that the arguments name.

    :raises InputError: if one of them, or a count that the run needs, is out of its range.
    """
    check_counts(args, *COUNTS)
    policy = make_policy(
        method,
        env,
        config_options(method, vars(args)),
        device=args.device,
        seed=args.seed,
        resume_path=args.resume_path,
    )
    policy.set_eps(args.eps_test)
    return policy


def train(args: OfflineArgs, algorithm: str, method: str) -> list[dict[str, float]]:
    """Train ``method`` on the data set and return a row per test.

    :param algorithm: the name in the run's folder: cql, il, ...
    """
    limit = apply_smoke(args)
    use_threads(args.threads)
    env = make_atari_env(args.task, seed=args.seed, frame_stack=args.frames_stack)
    policy = build_policy(args, method, env)
    folder = run_folder(args.logdir, args.task, algorithm, args.seed)
    if args.watch:
        watch_policy(policy, args, folder)
        return []
    if args.lr_decay:
        num_steps = args.epoch * args.update_per_epoch
        policy.lr_scheduler = LinearDecay(policy.optimizers.values(), num_steps)
    buffer = get_buffer(args)
    test_envs = make_atari_venv(
        args.task, args.test_num, seed=args.seed, frame_stack=args.frames_stack, **limit
    )
    rows = fit(policy, buffer, test_envs, args, folder, label=algorithm)
    last = rows[-1]
    print(
        f"{algorithm} on {args.task}, seed {args.seed}: {last['return_mean']:.1f} ± "
        f"{last['return_std']:.1f} over {last['episodes']} games after {last['step']} gradient "
        f"steps, best {max(row['return_mean'] for row in rows):.1f}; see {folder}"
    )
    return rows


def greedy(policy: OfflinePolicy) -> Choose:
    """Return what ``collect_atari`` asks for actions, answered by the policy."""
    policy.eval()

    def choose(env: Any, obs: Any, last_act: int | None) -> int:
        with torch.no_grad():
            frames = torch.from_numpy(np.asarray(obs)).unsqueeze(0).to(policy.device)
            act, _ = policy.act(policy.normalize(frames), True)
        return int(act[0])

    return choose


def watch_policy(policy: OfflinePolicy, args: AtariArgs, folder: Path) -> None:
    """Play one game in a window or, without a display, into ``<folder>/watch.mp4``."""
    if args.resume_path is None and not args.smoke:
        raise InputError("expected --resume-path with --watch, got none; name what to watch")
    limit = {"max_episode_frames": MAX_SMOKE_FRAMES} if args.smoke else {}
    env = make_atari_env(
        args.task,
        seed=args.seed,
        frame_stack=args.frames_stack,
        render_mode=render_mode(),
        **limit,
    )
    best, rng = greedy(policy), np.random.default_rng(args.seed)
    solo = Solo(env, policy) if isinstance(policy, InContextPolicy) else None

    def choose(obs: Any) -> int:
        act = int(solo.choose(obs)) if solo else best(env, obs, None)
        return int(rng.integers(env.action_space.n)) if rng.random() < args.eps_test else act

    watch(solo or env, choose, folder / "watch.mp4")
