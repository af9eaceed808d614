"""What the continuous-control examples share: arguments, the data set, training, watching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from presets import BATCH_SIZES, PRESETS, preset_for
from tianshou.env import DummyVectorEnv

from tianshou_ext.data.behaviour import LEVELS
from tianshou_ext.data.datasets import dataset_file
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.normalize import ObsNorm, RewardNorm, episode_returns
from tianshou_ext.data.replay import Replay
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.envs.mujoco import make_mujoco_env, make_mujoco_venv, resolve_task
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import robot_of, score_text
from tianshou_ext.experiment import (
    check_counts,
    config_options,
    fine_tune,
    fit,
    make_policy,
    render_mode,
    run_folder,
    use_threads,
    watch,
)
from tianshou_ext.policy import OfflinePolicy
from tianshou_ext.policy.checks import check_learns_online
from tianshou_ext.policy.compiled import check_compiler
from tianshou_ext.policy.in_context import InContextPolicy, Solo
from tianshou_ext.processor import Precision, has_bf16_units
from tianshou_ext.tianshou_api import ReplayBuffer

LAST = 10
"""Tests at the end of a run whose mean is its score."""
MAX_SMOKE_STEPS = 20


@dataclass
class OfflineArgs:
    """Arguments of every continuous-control example.

    What is None is the preset's or the method's own. A subclass leaves fields that a preset may set
    None too: a value that is the field's default cannot be told from one that was not given.
    """

    task: str = "Hopper-v4"
    """Gymnasium's id, as Hopper-v4; Hopper-v2 stands for it."""
    dataset: str = "medium"
    """A level (random, medium, medium-replay, medium-expert, expert), made on this machine once; a
    D4RL id (hopper-medium-v2); a Minari id (mujoco/hopper/medium-v0); or an HDF5 file."""
    dataset_steps: int = 200_000
    """Steps of a level's data set; D4RL's have 1,000,000, which take minutes to make."""
    seed: int = 0
    """Of the networks, the sampling and the test episodes."""
    lr: float | None = None
    """Adam's learning rate."""
    gamma: float | None = None
    """Discount factor."""
    hidden_sizes: tuple[int, ...] | None = None
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm | None = None
    """standard: by the data's mean and std; none: as they are."""
    reward_norm: RewardNorm | None = None
    """return_range: returns span 1000; standard: by mean and std; none; others as they say."""
    batch_size: int | None = None
    """Transitions a gradient step; the preset's, or the method's: 256 for most."""
    epoch: int = 10
    """Epochs in all."""
    update_per_epoch: int = 10_000
    """Gradient steps an epoch; the papers take 1,000,000 in all."""
    test_num: int = 10
    """Episodes at each test."""
    logdir: str = "log"
    """Folder of the run: <logdir>/<task>/<method>/<dataset>/<seed>."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda, cuda:1, ..."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with the run in its folder, if there is one."""
    resume_path: str | None = None
    """Checkpoint or weights to start from, or to watch."""
    watch: bool = False
    """Only watch the policy: in a window, or without a display as an mp4."""
    threads: int | None = None
    """Threads of torch on the CPU; its own choice if left out."""
    preset: bool = True
    """Use the settings that presets.py has for the method on this data set."""
    compile: bool = False
    """Let torch.compile make one graph of a gradient step: faster, after a minute of compiling."""
    precision: Precision = "fp32"
    """bf16: hidden layers in bfloat16, faster and less exact, where the processor has it."""
    on_divergence: OnDivergence = "stop"
    """stop: end a run that has diverged; warn: say so and go on."""
    online_steps: int = 0
    """Environment steps to act and go on learning after the data set."""
    online_steps_per_epoch: int = 5000
    """Of them from one test to the next."""
    update_per_step: float | None = None
    """Gradient steps for each of them; the method's own number if left out."""
    warm_up_steps: int = 0
    """Of acting online before the first gradient step there."""
    mixing: Literal["append", "balanced", "priority"] | None = None
    """Of online batches: uniformly from all; a share from the data set; the newest more often. The
    method's own way if left out."""
    offline_share: float | None = None
    """Of a balanced batch; the method's own, or a half, if left out."""
    optimistic_candidates: int = 0
    """Online, act by the best of so many actions around the policy's (O3F)."""
    optimistic_noise: float = 0.1
    """Their deviation."""
    smoke: bool = False
    """Finish in seconds: tiny data, three gradient steps, one short episode."""


@dataclass
class D4RLArgs(OfflineArgs):
    """Arguments under the names, and with the defaults, of Tianshou's ``d4rl_*.py``."""

    task: str = "HalfCheetah-v2"
    """Gymnasium's id, as HalfCheetah-v4; HalfCheetah-v2 stands for it."""
    expert_data_task: str = "halfcheetah-expert-v2"
    """What --dataset takes here, which it goes before: a D4RL id, or one of the others."""
    hidden_sizes: tuple[int, ...] | None = (256, 256)
    """Widths of the fully connected layers."""
    batch_size: int | None = 256
    """Transitions a gradient step."""
    epoch: int = 200
    """Epochs in all."""
    step_per_epoch: int = 5000
    """Gradient steps an epoch, in the place of --update-per-epoch."""
    norm_obs: Literal[0, 1] = 0
    """1 normalises observations by the data's mean and std, 0 does not."""
    preset: bool = False
    """Use the settings that presets.py has for the method on this data set."""


def train_d4rl(args: D4RLArgs, method: str) -> list[dict[str, float]]:
    """Train as ``train`` does, with Tianshou's arguments."""
    args.dataset, args.update_per_epoch = args.expert_data_task, args.step_per_epoch
    args.obs_norm = args.obs_norm or ("standard" if args.norm_obs else "none")
    return train(args, method)


def train(
    args: OfflineArgs,
    method: str,
    *,
    name: str | None = None,
    scheduler: Callable[[OfflinePolicy, int], Any] | None = None,
    select: Callable[[ReplayBuffer], ReplayBuffer] | None = None,
    config_defaults: Mapping[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Train ``method`` on the data set and return a row per test.

    :param method: its name in the registry.
    :param name: of the run's folder, and of the presets if they know it; the method's if None.
    :param scheduler: from the policy and the number of gradient steps to a learning-rate schedule;
        not used by a run that goes online, as in IQL's own fine-tuning.
    :param select: from the data set to what is trained on.
    :param config_defaults: fields of the config, and ``batch_size``, that go before its own
        defaults, and behind presets and the command line.
    """
    name = name or method
    check_counts(args, "update_per_epoch", "batch_size", "test_num", "online_steps_per_epoch")
    if args.online_steps < 0 or (args.online_steps and args.epoch < 0):
        raise InputError(
            f"expected --online-steps and --epoch of at least 0, got {args.online_steps} and "
            f"{args.epoch}; change them"
        )
    if not args.online_steps:
        check_counts(args, "epoch")
        check_no_online_flags(args)
    limit = apply_smoke(args)
    use_threads(args.threads)
    args.task = resolve_task(args.task)
    options = resolve_options(args, method, name, config_defaults or {})
    args.batch_size = options.pop("batch_size", BATCH_SIZES.get(name, 256))
    env = make_mujoco_env(args.task)
    policy = make_policy(
        method,
        env,
        options,
        device=args.device,
        seed=args.seed,
        resume_path=args.resume_path,
    )
    folder = run_folder(args.logdir, args.task, f"{name}/{data_name(args)}", args.seed)
    if args.watch:
        watch_policy(policy, args, folder)
        return []
    if args.online_steps:
        check_learns_online(policy)
    if args.compile:
        policy.compile_step()
    elif args.precision == "fp32" and (flags := faster_flags(policy)):
        print(f"hint: {flags} makes gradient steps faster on this processor")
    policy.set_precision(args.precision)
    if scheduler is not None and not args.online_steps:
        policy.lr_scheduler = scheduler(policy, args.epoch * args.update_per_epoch)
    path = dataset_file(args.dataset, args.task, args.dataset_steps)
    check_robot(path, args.task)
    buffer = load_buffer(path)
    behaviour = behaviour_return(path, buffer)
    print(f"data: {len(buffer):,} steps from {path}, return {score_text(args.task, behaviour)}")
    if select is not None:
        buffer = select(buffer)
        print(f"trained on {len(buffer):,} of them")
    test_envs = make_mujoco_venv(args.task, args.test_num, seed=args.seed, **limit)
    what = {
        "label": name,
        "dataset": data_name(args),
        "lines": {f"behaviour ({data_name(args)})": behaviour},
    }
    if args.online_steps:
        return go_online(policy, buffer, test_envs, args, folder, limit, **what)
    rows = fit(policy, buffer, test_envs, args, folder, **what)
    returns = np.array([row["return_mean"] for row in rows if row["step"]])
    said = [score_text(args.task, x) for x in (returns[-1], returns[-LAST:].mean(), behaviour)]
    print(
        f"{name} on {args.task} {args.dataset}, seed {args.seed}: return {said[0]}, mean of the "
        f"last {min(LAST, len(returns))} tests {said[1]}, behaviour {said[2]}; see {folder}"
    )
    return rows


def check_no_online_flags(args: OfflineArgs) -> None:
    """Check that nothing was asked for that only a run that goes online does.

    :raises InputError: if something was.
    """
    names = ("update_per_step", "warm_up_steps", "mixing", "offline_share", "optimistic_candidates")
    asked = [
        f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, 0)
    ]
    if asked:
        raise InputError(
            f"expected --online-steps with {', '.join(asked)}, which act online only, got none; "
            "pass both or neither"
        )


def faster_flags(policy: OfflinePolicy) -> str:
    """Return flags by which steps were measured to be faster (docs/benchmarks.md), if any."""
    if not has_bf16_units(policy.device):
        return ""
    if isinstance(policy, InContextPolicy):  # which compiling makes no faster
        return "--precision bf16"
    try:
        check_compiler(policy.device)
    except InputError:
        return ""
    return "--compile --precision bf16"


def go_online(
    policy: OfflinePolicy,
    buffer: ReplayBuffer,
    test_envs: Any,
    args: OfflineArgs,
    folder: Path,
    limit: Mapping[str, int],
    **what: Any,
) -> list[dict[str, float]]:
    """Train on the data set and by acting; draw and print what that did; return a row per test."""
    if args.optimistic_candidates:
        policy.set_optimism(args.optimistic_candidates, args.optimistic_noise)
    own = policy.online_mixing
    mixing = own if args.mixing in (None, own.kind) else Mixing(kind=args.mixing)
    if args.offline_share is not None:
        if mixing.kind != "balanced":
            raise InputError(
                f"expected --mixing balanced with --offline-share, got {mixing.kind}; pass both or "
                "neither"
            )
        mixing = replace(mixing, offline_share=args.offline_share)
    rows = fine_tune(
        policy,
        buffer,
        DummyVectorEnv([partial(make_mujoco_env, args.task, **limit)]),
        test_envs,
        args,
        folder.with_name(f"{folder.name}_online"),
        step_per_epoch=args.online_steps_per_epoch,
        mixing=mixing,
        **what,
    )
    return rows


def resolve_options(
    args: OfflineArgs, method: str, name: str, config_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return fields of the method's config, and ``batch_size``: defaults, preset, command line."""
    values = {key: value for key, value in vars(args).items() if value is not None}
    defaults = {field.name: field.default for field in fields(args)}
    given = {key: value for key, value in values.items() if value != defaults[key]}
    settings: dict[str, Any] = {}
    if args.preset:
        known = name if any(row.method == name for row in PRESETS) else method
        settings, sources = preset_for(known, args.task, args.dataset)
        settings = {key: value for key, value in settings.items() if key not in given}
        if settings:
            said = ", ".join(f"{key} {value}" for key, value in settings.items())
            print(f"preset: {said} ({'; '.join(sources)}); --no-preset leaves them out")
    merged = {**config_defaults, **values, **settings, **given}
    if args.smoke:
        merged["vae_steps"] = 3  # of methods that train a density first
    chosen = {"batch_size": merged["batch_size"]} if "batch_size" in merged else {}
    return config_options(method, merged) | chosen


def apply_smoke(args: OfflineArgs) -> dict[str, int]:
    """Shrink everything for ``--smoke``; return the time limit of test episodes."""
    if not args.smoke:
        return {}
    args.dataset_steps, args.batch_size, args.test_num = 300, 8, 1
    args.epoch, args.update_per_epoch, args.preset = 1, 3, False
    if args.online_steps:
        args.online_steps = args.online_steps_per_epoch = MAX_SMOKE_STEPS
    return {"max_episode_steps": MAX_SMOKE_STEPS}


def data_name(args: OfflineArgs) -> str:
    """Return the data set's name in the run's folder."""
    if args.dataset in LEVELS:
        return f"{args.dataset}_{args.dataset_steps}"
    path = Path(args.dataset)
    return path.stem if path.suffix else args.dataset.replace("/", "_")


def check_robot(path: Path, task: str) -> None:
    """Check that a data set is of the task's robot; Walker2d's arrays would fit HalfCheetah.

    :raises InputError: if the file says that it is of another.
    """
    about = read_provenance(path)
    for source in filter(None, (about.get("task"), about.get("dataset"))):
        robot, expected = robot_of(str(source)), robot_of(task)
        if robot and expected and robot != expected:
            raise InputError(
                f"expected data of {task}, got {path}, which is of {source}; use the data set of "
                "this task, or the task of this data set"
            )


def behaviour_return(path: Path, buffer: ReplayBuffer) -> float:
    """Return the mean return of the episodes of a data set."""
    recorded = read_provenance(path).get("score_mean")
    return float(np.mean(episode_returns(Replay(buffer))) if recorded is None else recorded)


def watch_policy(policy: OfflinePolicy, args: OfflineArgs, folder: Path) -> None:
    """Play one episode in a window or, without a display, into ``<folder>/watch.mp4``."""
    if args.resume_path is None and not args.smoke:
        raise InputError("expected --resume-path with --watch, got none; name what to watch")
    limit = MAX_SMOKE_STEPS if args.smoke else None
    env = make_mujoco_env(args.task, render_mode=render_mode(), max_episode_steps=limit)
    env.reset(seed=args.seed)
    policy.eval()

    def choose(obs: Any) -> Any:
        with torch.no_grad():
            act, _ = policy.act(policy.normalize(np.asarray(obs)[None]), True)
        return policy.map_action(act.cpu().numpy())[0]

    speed = int(env.metadata.get("render_fps", 30))
    if isinstance(policy, InContextPolicy):
        solo = Solo(env, policy)
        watch(solo, solo.choose, folder / "watch.mp4", speed)
    else:
        watch(env, choose, folder / "watch.mp4", speed)
