"""Train Decision Transformer: python mujoco_dt.py --dataset medium --target-return 3600 1800"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mujoco_common import MAX_SMOKE_STEPS, OfflineArgs, data_name, train

from tianshou_ext.cli import launch
from tianshou_ext.envs.mujoco import make_mujoco_env, make_mujoco_venv, resolve_task
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.targets import report_targets
from tianshou_ext.experiment import run_folder
from tianshou_ext.policy.in_context import InContextPolicy
from tianshou_ext.runs import load_run_policy


@dataclass
class Args(OfflineArgs):
    """Decision Transformer on logged continuous control."""

    target_return: tuple[float, ...] | None = None
    """Returns to ask for; tests ask for the first, and at the end each is played. The preset's, or
    else the best of the data's."""
    context_len: int = 20
    """Steps of a context."""
    embed_dim: int = 128
    """Width of the tokens."""
    num_layers: int = 3
    """Blocks of the transformer."""
    num_heads: int = 1
    """Attention heads of a block."""
    dropout: float = 0.1
    """Of embeddings, attention and blocks."""
    max_ep_len: int = 1000
    """Steps of the longest episode."""
    rtg_scale: float | None = None
    """Returns are divided by it; the preset's, or 1000."""
    slide: int | None = None
    """Steps that a full context drops at once while acting, half of it if left out; the paper's is
    1, and slower."""
    warmup_steps: int = 10_000
    """Gradient steps over which the learning rate grows."""
    weight_decay: float = 1e-4
    """AdamW's."""
    play: str | None = None
    """Folder of a finished run: play its policy for each --target-return, and do nothing else."""


def main(args: Args) -> list[dict[str, float]]:
    args.task = resolve_task(args.task)
    if args.play is not None:
        play_all(args, Path(args.play))
        return []
    limit = getattr(make_mujoco_env(args.task).spec, "max_episode_steps", None)
    if limit is not None and args.context_len > limit:
        raise InputError(
            f"expected --context-len of at most the {limit} steps after which {args.task} ends an "
            f"episode, got {args.context_len}; use a shorter context"
        )
    rows = train(args, "decision_transformer", name="dt")
    if not args.watch:
        run = f"dt/{data_name(args)}"
        play_all(args, run_folder(args.logdir, args.task, run, args.seed), at_least=2)
    return rows


def play_all(args: Args, folder: Path, at_least: int = 1) -> None:
    """Play a run's last policy for each of its targets, if there are as many."""
    policy = load_run_policy(folder, make_mujoco_env(args.task))
    if not isinstance(policy, InContextPolicy):
        raise InputError(
            f"expected the folder of a Decision Transformer's run, got {folder}; use one"
        )
    targets = args.target_return or policy.config.target_return or (policy.target_return,)
    if len(targets) < at_least:
        return
    limit: dict[str, Any] = {"max_episode_steps": MAX_SMOKE_STEPS} if args.smoke else {}
    envs = make_mujoco_venv(args.task, args.test_num, seed=args.seed, **limit)
    report_targets(policy, envs, targets, args.test_num, folder=folder, task=args.task)
    envs.close()


if __name__ == "__main__":
    launch(main, Args)
