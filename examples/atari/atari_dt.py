"""Train Decision Transformer on logged Atari play: python atari_dt.py --target-return 20 0"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atari_common import MAX_SMOKE_FRAMES, OfflineArgs, train

from tianshou_ext.cli import launch
from tianshou_ext.envs.atari import make_atari_env, make_atari_venv
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.targets import report_targets
from tianshou_ext.experiment import run_folder
from tianshou_ext.policy.in_context import InContextPolicy
from tianshou_ext.runs import load_run_policy


@dataclass
class Args(OfflineArgs):
    """Decision Transformer on logged Atari frames; defaults are the official Atari code's."""

    target_return: tuple[float, ...] | None = None
    """Returns to ask for; tests ask for the first, and at the end each is played. The best of the
    data's if left out; the paper's are 90 (Breakout), 1150 (Seaquest), 14000 (Qbert), 20 (Pong)."""
    lr: float = 6e-4
    """AdamW's learning rate."""
    batch_size: int = 128
    """Windows a gradient step, of --context-len observations each: 3840, too many for a CPU."""
    hidden_sizes: tuple[int, ...] = ()
    """Fully connected layers between the convolutions and the embedding."""
    context_len: int = 30
    """Steps of a context; the paper has 50 for Pong."""
    embed_dim: int = 128
    """Width of the tokens."""
    num_layers: int = 6
    """Blocks of the transformer."""
    num_heads: int = 8
    """Attention heads of a block."""
    dropout: float = 0.1
    """Of embeddings, attention and blocks."""
    max_ep_len: int = 10_000
    """Steps of the longest game in the data."""
    rtg_scale: float = 1.0
    """Returns are divided by it."""
    slide: int | None = None
    """Steps that a full context drops at once while acting, half of it if left out; the paper's is
    1, and slower."""
    sample_actions: bool = True
    """Draw actions from the softmax instead of taking the likeliest."""
    warmup_steps: int = 3
    """Gradient steps over which the learning rate grows; the paper's 10,240 tokens."""
    weight_decay: float = 0.1
    """AdamW's."""
    beta2: float = 0.95
    """AdamW's second coefficient."""
    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped."""
    play: str | None = None
    """Folder of a finished run: play its policy for each --target-return, and do nothing else."""


def main(args: Args) -> list[dict[str, float]]:
    if args.play is not None:
        play_all(args, Path(args.play))
        return []
    rows = train(args, "dt", "decision_transformer")
    if not args.watch:
        play_all(args, run_folder(args.logdir, args.task, "dt", args.seed), at_least=2)
    return rows


def play_all(args: Args, folder: Path, at_least: int = 1) -> None:
    """Play a run's last policy for each of its targets, if there are as many."""
    env = make_atari_env(args.task, frame_stack=args.frames_stack)
    policy = load_run_policy(folder, env)
    if not isinstance(policy, InContextPolicy):
        raise InputError(
            f"expected the folder of a Decision Transformer's run, got {folder}; use one"
        )
    targets = args.target_return or policy.config.target_return or (policy.target_return,)
    if len(targets) < at_least:
        return
    policy.set_eps(args.eps_test)
    limit: dict[str, Any] = {"max_episode_frames": MAX_SMOKE_FRAMES} if args.smoke else {}
    envs = make_atari_venv(
        args.task, args.test_num, seed=args.seed, frame_stack=args.frames_stack, **limit
    )
    report_targets(policy, envs, targets, args.test_num, folder=folder, task=args.task)
    envs.close()


if __name__ == "__main__":
    launch(main, Args)
