"""Package the behaviour policies of a task, from a run of ``tools/train_behaviour.py``.

    python tools/pack_behaviour.py --task Hopper-v4 --logdir runs/hopper --commit abc1234

writes ``tianshou_ext/behaviour/hopper``: the snapshots that the levels need, and a manifest. Data
are made with the stochastic policy, so each is scored that way; the tests in ``progress.csv``, of
the deterministic one, only say which snapshots come into question as medium.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.checkpoint import versions
from tianshou_ext.cli import launch
from tianshou_ext.data.behaviour import FOLDER, RANDOM, Behaviour, chooser, play_episodes
from tianshou_ext.envs.mujoco import make_mujoco_env
from tianshou_ext.errors import InputError
from tianshou_ext.policy.sac_n import LOG_STD_BOUNDS
from tianshou_ext.trainer import PROGRESS, read_progress


@dataclass
class Args:
    """Package the behaviour policies of a task."""

    task: str
    """Gymnasium's name of the environment that the run was on."""
    logdir: str
    """Folder of the run."""
    commit: str
    """The commit that trained it."""
    out: str = str(FOLDER)
    """Folder of all tasks' behaviour policies."""
    expert: int | None = None
    """Steps of training behind the expert; the last snapshot's if left out."""
    replay: int = 8
    """Policies of medium-replay, uniformly random actions among them."""
    candidates: int = 5
    """Snapshots that are scored to find medium."""
    episodes: int = 20
    """Episodes behind a score."""
    seed: int = 0
    """Of these episodes."""


def main(args: Args) -> None:
    run = Path(args.logdir)
    rows = {int(row["step"]): row for row in read_progress(run / PROGRESS)}
    about = json.loads((run / "run.json").read_text())
    snapshots = {int(p.stem): p for p in sorted((run / "snapshots").glob("*.safetensors"))}
    steps = sorted(set(rows) & set(snapshots))
    if args.expert is not None:
        steps = [step for step in steps if step <= args.expert]
    if len(steps) < 2 or args.expert not in (None, steps[-1]):
        raise InputError(
            f"expected tested snapshots in {run}, the expert's and others before it, got "
            f"{len(steps)} up to {steps[-1] if steps else 0} steps; train longer or change --expert"
        )
    env = make_mujoco_env(args.task)
    source = Behaviour(run / "snapshots", {"log_std_bounds": LOG_STD_BOUNDS}, {})
    scored: dict[str, dict[str, Any]] = {}

    def score(name: str) -> float:
        if name not in scored:
            rng = np.random.default_rng(args.seed)
            returns = play_episodes(env, chooser(source, name, env, rng), args.episodes, rng)
            scored[name] = {
                "return_mean": float(np.mean(returns)),
                "return_std": float(np.std(returns)),
                "episodes": len(returns),
            }
            if name != RANDOM:
                scored[name]["deterministic_return_mean"] = rows[int(name)]["return_mean"]
            print(f"{name}: {np.mean(returns):.1f} ± {np.std(returns):.1f}")
        mean: float = scored[name]["return_mean"]
        return mean

    def stem(step: int) -> str:
        return snapshots[step].stem

    expert = stem(steps[-1])
    third = score(expert) / 3.0
    close = sorted(steps[:-1], key=lambda step: abs(rows[step]["return_mean"] - third))
    medium = min(
        (stem(step) for step in close[: args.candidates]), key=lambda name: abs(score(name) - third)
    )
    before = [stem(step) for step in steps if step <= int(medium)]
    places = np.linspace(0, len(before), args.replay)[1:]  # equal distances, up to medium
    series = [before[k] for k in sorted({max(0, round(p) - 1) for p in places})]
    levels = {
        "medium": [medium],
        "medium-replay": [RANDOM, *series],
        "medium-expert": [medium, expert],
        "expert": [expert],
    }
    used = sorted({name for level in levels.values() for name in level})
    for name in used:
        score(name)
    config = about["config"]
    command = (
        f"python tools/train_behaviour.py --task {args.task} --steps {steps[-1]} --seed "
        f"{about['seed']} --batch-size {about['batch_size']} --lr {config['lr']:g} "
        f"--hidden-sizes {' '.join(str(width) for width in config['hidden_sizes'])}"
    )
    manifest = {
        "task": args.task,
        "command": command,
        "commit": args.commit,
        "steps": steps[-1],
        "seed": about["seed"],
        "hidden_sizes": config["hidden_sizes"],
        "log_std_bounds": LOG_STD_BOUNDS,
        "trained_with": about["versions"],
        "scored_with": {**versions(), "seed": args.seed},
        "snapshots": {name: scored[name] for name in used},
        "levels": levels,
    }
    folder = Path(args.out) / args.task.rpartition("-v")[0].lower()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in used:
        if name != RANDOM:
            shutil.copyfile(snapshots[int(name)], folder / f"{name}.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{folder}: {len(used) - 1} snapshots, {size / 1e6:.2f} MB; a third of expert {third:.0f}"
    )


if __name__ == "__main__":
    launch(main, Args)
