"""Train an agent that a planner shows how to evade a robot: python cellworld_planner_greedy.py

The agent begins with a data set of the planner's (or of chance), then acts where the planner does
not: the planner at a rate that goes down, the agent ever more. It learns from the planner's steps,
or from what --store says. At each test it plays alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tianshou.env import DummyVectorEnv

from tianshou_ext.analysis.curves import new_figure, write_figure
from tianshou_ext.analysis.rollouts import Player, play, summarise
from tianshou_ext.checkpoint import save_checkpoint
from tianshou_ext.cli import launch
from tianshou_ext.data.cellworld_play import level_file, task_of
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.data.normalize import ObsNorm
from tianshou_ext.divergence import OnDivergence
from tianshou_ext.envs.cellworld import make_cellworld_env
from tianshou_ext.errors import InputError
from tianshou_ext.experiment import (
    check_counts,
    config_options,
    make_policy,
    run_folder,
    use_threads,
)
from tianshou_ext.files import atomic_write
from tianshou_ext.online import offline_to_online_trainer
from tianshou_ext.planning import Schedule, TLPPOPlanner
from tianshou_ext.policy import PlannerGreedyPolicy
from tianshou_ext.trainer import CHECKPOINT, PROGRESS, describe_run

AGENTS = {"bc": "bc", "cql": "discrete_cql", "iql": "discrete_iql"}
HANDED_OVER = 0.8
"""Share of the steps after which the rate is rate_end, if nothing else is asked for."""
TABLE = "survival.csv"
COLUMNS = (
    "env_step",
    "step",
    "survived",
    "return_mean",
    "planner_rate",
    "planner_steps",
    "agent_steps",
    "failed",
    "late",
    "seconds",
)


@dataclass
class Args:
    """Planner-greedy exploration on the cellworld; what is None is the method's own."""

    agent: Literal["bc", "cql", "iql"] = "bc"
    """What learns: cloning, discrete CQL or discrete IQL."""
    world: str = "21_05"
    """Obstacles of the arena; 00_00 has none."""
    start: Literal["planner", "planner-noisy", "mixed", "random"] = "planner"
    """Who played the data set to begin with: an expert start, or a random one."""
    start_steps: int = 10_000
    """Its steps; made once, kept in the cache."""
    start_epoch: int = 3
    """Epochs on it alone; 0 acts at once."""
    update_per_epoch: int = 1000
    """Gradient steps in each of them."""
    epoch: int = 20
    """Epochs of acting."""
    step_per_epoch: int = 1000
    """Environment steps in each of them."""
    update_per_step: float = 1.0
    """Gradient steps for each environment step."""
    schedule: Literal["linear", "exponential", "performance"] = "exponential"
    """How the planner's rate goes down; performance: as the agent's survival comes near its."""
    unit: Literal["steps", "episodes"] = "steps"
    """Of the schedule's time."""
    duration: float | None = None
    """Steps or episodes until the rate is rate-end; None: 0.8 of all steps."""
    rate_start: float = 1.0
    """The planner's rate at first."""
    rate_end: float = 0.05
    """The planner's rate in the end; at 0 an agent may forget how to leave where it got stuck."""
    mixture: Literal["step", "episode"] = "step"
    """Choose who acts for each step or for whole episodes."""
    store: Literal["all", "planner", "agent"] = "planner"
    """Whose new steps are learned from; the data set always is."""
    mixing: Literal["append", "balanced"] = "append"
    """append: batches uniformly from data set and new steps; balanced: half of each."""
    num_envs: int = 1
    """Environments that are played at once, each with its planner."""
    seed: int = 0
    """Of the networks, the sampling, the draws of who acts and the episodes."""
    lr: float = 3e-4
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount factor."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the fully connected layers."""
    obs_norm: ObsNorm = "standard"
    """standard: by the data's mean and std; none: as they are."""
    batch_size: int = 256
    """Transitions a gradient step."""
    num_quantiles: int = 10
    """CQL: quantiles of the critic; those of 295 actions are most of the work."""
    target_update_freq: int = 100
    """CQL: gradient steps between copies to the target network."""
    expectile: float = 0.8
    """IQL: of the values that V follows."""
    test_num: int = 20
    """Episodes of the agent alone at each test."""
    episodes: int = 100
    """Episodes of the agent alone at the end; 0 for none."""
    jobs: int = 1
    """Processes that play them."""
    logdir: str = "log"
    """Folder of the run: <logdir>/cellworld_<world>/planner_greedy_<agent>_<start>/<seed>."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda, cuda:1, ..."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with the run in its folder, if there is one."""
    threads: int | None = None
    """Threads of torch on the CPU; its own choice if left out."""
    on_divergence: OnDivergence = "stop"
    """stop: end a run that has diverged; warn: say so and go on."""
    compare: tuple[str, ...] = ()
    """Folders of runs: train nothing, but draw their agents' survival into one picture."""
    smoke: bool = False
    """Finish in seconds: a few steps of everything."""


def main(args: Args) -> list[dict[str, float]]:
    """Train, write survival.csv and survival.png, and return a row per test."""
    if args.compare:
        picture = Path(args.logdir) / "comparison.png"
        tables = [read_table(Path(folder)) for folder in args.compare]
        draw(dict(zip(names(args.compare), tables, strict=True)), picture, args.world)
        print(picture)
        return []
    limit: dict[str, Any] = {}
    if args.smoke:
        limit, args.start_steps, args.start_epoch, args.update_per_epoch = (
            {"max_steps": 20},
            40,
            1,
            3,
        )
        args.epoch, args.step_per_epoch, args.test_num, args.batch_size = 2, 20, 1, 8
        args.episodes = min(args.episodes, 1)
    use_threads(args.threads)
    check_counts(args, "start_steps", "test_num", "num_envs")
    env_options = {"world": args.world, "fast": True, **limit}
    make_env = partial(make_cellworld_env, **env_options)
    env = make_env()
    method = AGENTS[args.agent]
    options = config_options(method, vars(args))
    agent = make_policy(method, env, options, device=args.device, seed=args.seed)
    policy = PlannerGreedyPolicy(
        TLPPOPlanner,
        agent,
        make_schedule(args),
        mixture=args.mixture,
        store=args.store,
        seed=args.seed,
    )
    train_envs = DummyVectorEnv([make_env] * args.num_envs)
    test_envs = DummyVectorEnv([make_env] * min(10, args.test_num))
    policy.attach(train_envs, test_envs)
    task = task_of(args.world)
    data = level_file(task, args.start, args.start_steps, seed=args.seed)
    name = f"planner_greedy_{args.agent}_{args.start}"
    folder = run_folder(args.logdir, f"cellworld_{args.world}", name, args.seed)
    print(f"data: {args.start_steps:,} steps of {args.start} from {data}")
    rows = offline_to_online_trainer(
        policy,  # type: ignore[arg-type]  # to a trainer it is the agent
        load_buffer(data),
        train_envs,
        offline_epoch=args.start_epoch,
        update_per_epoch=args.update_per_epoch,
        online_epoch=args.epoch,
        step_per_epoch=args.step_per_epoch,
        batch_size=args.batch_size,
        mixing=Mixing(kind=args.mixing),
        update_per_step=args.update_per_step,
        test_envs=test_envs,
        episode_per_test=args.test_num,
        seed=args.seed,
        logdir=folder,
        resume=args.resume,
        on_divergence=args.on_divergence,
        tensorboard=True,
        about={"task": task, "dataset": args.start, "label": name, "seed": args.seed},
    )
    table = survival(folder)
    write_table(table, folder / TABLE)
    draw({name: table}, folder / "survival.png", f"{args.world}, seed {args.seed}")
    for row in table:
        print(
            f"after {row['env_step']:7,.0f} steps: the agent alone survives {row['survived']:.2f}, "
            f"the planner's rate is {row['planner_rate']:.2f}"
        )
    keep_agent(agent, folder / "agent", name)
    if args.episodes:
        player = Player(kind="run", env=json.dumps(env_options), folder=str(folder / "agent"))
        played = play(player, range(args.episodes), jobs=args.jobs, label=args.agent)
        mean, low, high = summarise(played)["survived"]
        print(
            f"{name}, seed {args.seed}: the agent alone survives {mean:.2f} ({low:.2f} to "
            f"{high:.2f}) of {args.episodes} episodes; see {folder}"
        )
    return rows


def make_schedule(args: Args) -> Schedule:
    """Return the schedule that the arguments ask for.

    :raises InputError: if its duration is needed, or longer than the run.
    """
    steps = args.epoch * args.step_per_epoch
    if args.duration is None and args.unit == "episodes":
        raise InputError("expected --duration, in episodes, with --unit episodes, got none; add it")
    duration = HANDED_OVER * steps if args.duration is None else args.duration
    if args.unit == "steps" and duration > steps:
        raise InputError(
            f"expected a schedule that ends within the {steps:,} steps of the run, got --duration "
            f"{duration:g}; shorten it, or play more epochs"
        )
    return Schedule(
        kind=args.schedule,
        duration=duration,
        unit=args.unit,
        start=args.rate_start,
        end=args.rate_end,
        score="success",
    )


def survival(folder: Path) -> list[dict[str, float]]:
    """Return for each test of a run what the agent survived alone, and how it was trained."""
    with (folder / PROGRESS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = []
    for row in rows:
        mixed = {
            key.rpartition("/")[2]: value
            for key, value in json.loads(row["metrics"]).items()
            if key.startswith("planner_greedy/")
        }
        values = (
            float(row["env_step"]),
            float(row["step"]),
            mixed["score_test"],
            float(row["return_mean"]),
            mixed["rate"],
            mixed["planner"],
            mixed["agent"],
            mixed["failed"],
            mixed["late"],
            float(row["seconds"]),
        )
        table.append(dict(zip(COLUMNS, values, strict=True)))
    return table


def write_table(table: list[dict[str, float]], path: Path) -> None:
    """Write the rows as CSV."""

    def write(partial_path: Path) -> None:
        with partial_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)

    atomic_write(path, write)


def read_table(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's table.

    :raises InputError: if the folder has none.
    """
    path = folder / TABLE
    if not path.exists():
        raise InputError(
            f"expected a run that has ended in {folder}, found no {TABLE}; train it, or leave it "
            "out of --compare"
        )
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def names(folders: Sequence[str]) -> list[str]:
    """Return the parts of the paths in which they differ."""
    parts = [Path(folder).parts for folder in folders]
    if len(set(folders)) < 2 or len({len(one) for one in parts}) > 1:
        return [*folders]
    differ = [k for k, found in enumerate(zip(*parts, strict=True)) if len(set(found)) > 1]
    return [" ".join(one[k] for k in differ) for one in parts]


def draw(runs: dict[str, list[dict[str, float]]], path: Path, title: str) -> None:
    """Draw survival and the planner's rate against environment steps, from the last offline test.

    :param runs: name to table.
    :raises InputError: if matplotlib is missing.
    """
    figure, axes = new_figure()
    for name, table in runs.items():
        offline = [row for row in table if not row["env_step"]]
        shown = offline[-1:] + [row for row in table if row["env_step"]]
        steps = np.array([row["env_step"] for row in shown])
        survived = [row["survived"] for row in shown]
        (line,) = axes.plot(steps, survived, marker="o", markersize=3, label=name)
        rates = [row["planner_rate"] for row in shown]
        axes.plot(steps, rates, linestyle="--", linewidth=1, color=line.get_color(), alpha=0.6)
    axes.plot([], [], linestyle="--", linewidth=1, color="grey", label="the planner's rate")
    axes.set_xlabel("environment steps, after the data set")
    axes.set_ylabel("survival of the agent alone")
    axes.set_ylim(-0.02, 1.02)
    write_figure(figure, axes, title, path)


def keep_agent(agent: Any, folder: Path, label: str) -> None:
    """Write the agent as a run of its own, for ``tianshou-ext report`` and for going on."""
    describe_run(agent, folder, {"label": label})
    save_checkpoint(agent, folder / CHECKPOINT)


if __name__ == "__main__":
    launch(main, Args)
