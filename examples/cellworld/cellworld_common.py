"""What the cellworld examples share: arguments, the mouse's data, training, the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tianshou_ext import __version__
from tianshou_ext.analysis.cellworld import keep_for_report, report
from tianshou_ext.analysis.divergence import held_out
from tianshou_ext.data.cache import cache_folder, cached
from tianshou_ext.data.cellworld_play import LEVELS, level_file, task_of
from tianshou_ext.data.convert.cellworld import convert
from tianshou_ext.data.download import fetch
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.data.replay import filled_rows
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.envs.cellworld import OBSERVATION_NAMES, make_cellworld_env, use_cache
from tianshou_ext.envs.cellworld_cache import SOURCE
from tianshou_ext.envs.mujoco import SeededVectorEnv
from tianshou_ext.errors import InputError
from tianshou_ext.experiment import (
    check_counts,
    config_options,
    fit,
    make_policy,
    run_folder,
    use_threads,
    watch,
)
from tianshou_ext.tianshou_api import ReplayBuffer

PUBLIC_DATA = (
    "https://raw.githubusercontent.com/cellworld-neuro/public_data/"
    "47ff373d1e4ca16e2baa5412820e7f439adcc326"
)
RECORDINGS = (
    f"{PUBLIC_DATA}/PEEK_20221129_1124_MMM11_21_05_RT8_episode_8.json",
    f"{PUBLIC_DATA}/PEEK_20221209_1023_FMM10_21_05_R1_episode_34.json",
    f"{SOURCE}/video/PEEK_20230126_1355_MMM14_21_05_RT2_episode_015.json",
)
"""Episodes of world 21_05 that can be fetched as they are."""

SMOKE_STEPS = 20
SMOKE_EPISODES = 12


@dataclass
class OfflineArgs:
    """Arguments of every cellworld example; what is None is the method's own."""

    task: str = "BotEvade"
    """The environment; the mouse runs from a robot."""
    world: str = "21_05"
    """Obstacles of the arena; 00_00 has none."""
    actions: Literal["cells", "gateways"] = "cells"
    """Destinations: all free cells, or the few from which others come into sight."""
    dataset: str = "mouse"
    """mouse: the recordings in mouse/ of $CELLWORLD_CACHE, or three that are fetched; or a file or
    folder of recordings; or a converted file, of tianshou-ext convert cellworld. planner,
    planner-noisy, mixed, random: made on first use, as tianshou-ext collect does."""
    dataset_steps: int = 100_000
    """Steps of a data set that is made here."""
    dataset_seed: int = 0
    """Of its making."""
    mouse: str = "mouse"
    """The mice to compare with where the data set is not of mice: recordings or a converted file,
    as dataset takes them."""
    horizon: int = 4
    """Rows, of 0.25 s, ahead at which the mouse's place is its action, where recordings are
    converted; at 1 half of the actions are to stay, and a policy gets stuck."""
    held_out: float = 0.2
    """Share of the mouse episodes that is never trained on."""
    split_seed: int = 0
    """Of the choice of these episodes; runs to be compared must have the same."""
    reward_captured: float = -1.0
    """Reward of a capture."""
    reward_success: float = 1.0
    """Reward of reaching the goal."""
    seed: int = 0
    """Of the networks, the sampling and the test episodes."""
    lr: float = 3e-4
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount factor."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "standard"
    """standard: by the data's mean and std; none: as they are."""
    batch_size: int = 128
    """Transitions a gradient step."""
    epoch: int = 5
    """Epochs in all."""
    update_per_epoch: int = 1000
    """Gradient steps an epoch."""
    test_num: int = 10
    """Episodes of the fast environment at each test."""
    episodes: int = 100
    """Episodes in the report at the end; 0 for no report."""
    exact: bool = True
    """Play them by the authors' own arithmetic; --no-exact plays the same, eight times as fast."""
    jobs: int = 1
    """Processes that convert recordings and play the report's episodes."""
    logdir: str = "log"
    """Folder of the run: <logdir>/cellworld_<world>/<method>/<seed>."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda, cuda:1, ..."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with the run in its folder, if there is one."""
    resume_path: str | None = None
    """Checkpoint or weights to start from, or to watch."""
    watch: bool = False
    """Only watch the policy: play one episode into an mp4."""
    threads: int | None = None
    """Threads of torch on the CPU; its own choice if left out."""
    on_divergence: OnDivergence = "stop"
    """stop: end a run that has diverged; warn: say so and go on."""
    smoke: bool = False
    """Finish in seconds: few recordings, three gradient steps, short episodes."""


def train(args: OfflineArgs, name: str, method: str) -> list[dict[str, float]]:
    """Train ``method`` on the mouse and return a row per test.

    :param name: in the run's folder and the report: bc, cql, ...
    """
    limit: dict[str, Any] = {}
    if args.smoke:
        args.batch_size, args.test_num, args.epoch, args.update_per_epoch = 8, 1, 1, 3
        args.episodes, limit = min(args.episodes, 2), {"max_steps": SMOKE_STEPS}
    use_threads(args.threads)
    check_counts(args, "epoch", "update_per_epoch", "batch_size", "test_num", "jobs")
    if args.episodes < 0:
        raise InputError(f"expected 0 episodes or more for the report, got {args.episodes}")
    env_options: dict[str, Any] = {
        "task": args.task,
        "world": args.world,
        "actions": args.actions,
        "reward": {"puffed": args.reward_captured, "finished": args.reward_success},
        **limit,
    }
    env = make_cellworld_env(**env_options, render=args.watch)
    task = f"cellworld_{args.world}"
    policy = make_policy(
        method,
        env,
        config_options(method, vars(args)),
        device=args.device,
        seed=args.seed,
        resume_path=args.resume_path,
    )
    if args.watch:
        watch_policy(policy, env, args, run_folder(args.logdir, task, name, args.seed))
        return []
    made, mice = data_files(args)
    name = f"{name}_{read_provenance(made)['level']}" if made else name
    folder = run_folder(args.logdir, task, name, args.seed)
    others, testing = split_episodes(load_buffer(mice), args.held_out, args.split_seed)
    training = load_buffer(made) if made else others
    for buffer in (training, testing):
        buffer.rew[:] = rewards(buffer, args)
    print(
        f"data: {len(training):,} transitions to train on, of {made or mice}, and {len(testing):,} "
        f"of mice held out, of {mice}"
    )
    about = {
        "file": mice.name,
        "rows": len(others) + len(testing),
        "inputs": read_provenance(mice).get("inputs"),
        "horizon": read_provenance(mice).get("horizon"),
        "held_out": args.held_out,
        "split_seed": args.split_seed,
    }
    test_envs = make_test_envs(env_options, args.test_num, args.seed)
    rows = fit(policy, training, test_envs, args, folder, label=name, dataset=args.dataset)
    keep_for_report(folder, env_options, others, testing, env, about)
    last = rows[-1]
    print(
        f"{name} on {args.world}, seed {args.seed}: return {last['return_mean']:.2f} ± "
        f"{last['return_std']:.2f} in {last['episodes']} episodes of the fast environment after "
        f"{last['step']} gradient steps; see {folder}"
    )
    if args.episodes:
        print(report([folder], episodes=args.episodes, fast=not args.exact, jobs=args.jobs))
    return rows


def make_test_envs(env_options: dict[str, Any], num: int, seed: int) -> SeededVectorEnv:
    """Make fast environments that start from the same seeds at every test."""
    seeds = [int(one) for one in np.random.SeedSequence(seed).generate_state(num)]
    return SeededVectorEnv([partial(make_cellworld_env, **env_options, fast=True)] * num, seeds)


def data_files(args: OfflineArgs) -> tuple[Path | None, Path]:
    """Return what was made by planner and chance to train on, if that is asked for, and the mice.

    :raises InputError: if the data set is neither recordings, nor such a file, nor a level.
    """
    if args.dataset in LEVELS:
        if args.task != "BotEvade" or args.actions != "cells":
            raise InputError(
                f"expected BotEvade and cells with --dataset {args.dataset}, which is made of "
                f"these, got {args.task} and {args.actions}; leave --task and --actions out"
            )
        mice = data_file(args.mouse, args, "--mouse")  # before what takes minutes to make
        steps = SMOKE_STEPS if args.smoke else args.dataset_steps
        return level_file(task_of(args.world), args.dataset, steps, seed=args.dataset_seed), mice
    made = data_file(args.dataset, args, "--dataset")
    if "level" not in read_provenance(made):
        return None, made
    return made, data_file(args.mouse, args, "--mouse")


def data_file(dataset: str, args: OfflineArgs, flag: str) -> Path:
    """Return the converted data set, converting recordings into the cache on first use.

    :param flag: that named the data set.
    :raises InputError: if there is nothing of the name.
    """
    source = mouse_folder() if dataset == "mouse" else Path(dataset).expanduser()
    if source.suffix in (".hdf5", ".h5"):
        return source
    if not source.exists():
        levels = f"{', '.join(sorted(LEVELS))}, " if flag == "--dataset" else ""
        raise InputError(
            f"expected mouse, {levels}recordings or a converted file as {flag}, found nothing at "
            f"{source}"
        )
    files = sorted(path for path in source.rglob("*") if path.is_file()) or [source]
    facts = [f"{path.absolute()} {path.stat().st_size}" for path in files]
    kept = f"first {SMOKE_EPISODES}" if args.smoke else "all"
    facts += [__version__, args.world, args.actions, str(args.horizon), kept]
    name = f"{source.stem}_{args.world}_{args.actions}_{args.horizon}"
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    options: dict[str, Any] = {"episodes": str(SMOKE_EPISODES)} if args.smoke else {}

    def make(path: Path) -> None:
        told = convert(
            (source,),
            path,
            world=args.world,
            actions=args.actions,
            horizon=args.horizon,
            jobs=args.jobs,
            **options,
        )
        print(told)

    return cached(f"cellworld_data/{name}-{digest}.hdf5", make)


def mouse_folder() -> Path:
    """Return the folder of recordings; three episodes are fetched where there is none."""
    folder = use_cache() / "mouse"
    if folder.is_dir():
        return folder
    folder = cache_folder() / "mouse"
    for url in RECORDINGS:
        cached(f"mouse/{url.rpartition('/')[2]}", partial(fetch, url))
    print(f"{len(RECORDINGS)} public recordings in {folder}; --dataset takes a folder with more")
    return folder


def split_episodes(
    buffer: ReplayBuffer, share: float, seed: int
) -> tuple[ReplayBuffer, ReplayBuffer]:
    """Split by recorded episode, of which a gap in the tracking may have made several pieces.

    Copies of rows are only trained on. A file without the converter's ``info`` is split by its own
    episodes.

    :return: what to train on, and what is held out.
    """
    rows = filled_rows(buffer)
    batch = buffer[rows]
    info = batch.info if "info" in batch.get_keys() else {}
    if "file" in info and "episode" in info:
        group = np.asarray(info["file"], np.int64) << 32 | np.asarray(info["episode"], np.int64)
    else:
        last = np.asarray(batch.done, bool)
        group = np.cumsum(last) - last
    mask = held_out(group, share, seed)
    copied = np.asarray(info["copy"]) > 0 if "copy" in info else np.zeros(len(rows), bool)
    return pick(batch, ~mask), pick(batch, mask & ~copied)


def pick(batch: Any, mask: Any) -> ReplayBuffer:
    """Return the chosen rows, whole episodes, as a buffer."""
    names = ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")
    return ReplayBuffer.from_data(**{name: np.array(batch[name])[mask] for name in names})


def rewards(buffer: ReplayBuffer, args: OfflineArgs) -> Any:
    """Return the rewards that the arguments ask for, from what the mouse observed next."""
    after = np.asarray(buffer.obs_next)
    captured, finished = (
        after[:, OBSERVATION_NAMES.index(name)] for name in ("puffed", "finished")
    )
    return args.reward_captured * captured + args.reward_success * finished


def watch_policy(policy: Any, env: Any, args: OfflineArgs, folder: Path) -> None:
    """Play one episode into ``<folder>/watch.mp4``."""
    if args.resume_path is None and not args.smoke:
        raise InputError("expected --resume-path with --watch, got none; name what to watch")
    env.reset(seed=args.seed)
    policy.eval()

    @torch.no_grad()
    def choose(obs: Any) -> Any:
        act, _ = policy.act(policy.normalize(np.asarray(obs)[None]), True)
        return policy.map_action(act.cpu().numpy())[0]

    watch(env, choose, folder / "watch.mp4", env.metadata["render_fps"])
