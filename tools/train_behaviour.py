"""Train the behaviour policies of our own data sets, with online SAC.

    python tools/train_behaviour.py --task Hopper-v4 --steps 1000000 --logdir runs/hopper

trains, and can be killed and started again at any time: it goes on where it was, to the bit. The
actor is kept after every epoch, in half precision, under ``<logdir>/snapshots``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from tianshou.env import DummyVectorEnv

from tianshou_ext.cli import launch
from tianshou_ext.envs.mujoco import make_mujoco_env, resolve_task
from tianshou_ext.files import atomic_write
from tianshou_ext.online import online_trainer
from tianshou_ext.policy import OfflinePolicy, SACNPolicy


@dataclass
class Args:
    """Train a behaviour policy with online SAC."""

    task: str = "Hopper-v4"
    """Gymnasium's name of the environment."""
    steps: int = 1_000_000
    """Environment steps, and gradient steps, in all."""
    seed: int = 0
    """Of the networks, the sampling and the environments."""
    logdir: str = "log/behaviour"
    """Folder of the run."""
    step_per_epoch: int = 10_000
    """Steps between two tests."""
    save_epochs: int = 2
    """Epochs between two checkpoints."""
    batch_size: int = 256
    """Transitions a gradient step."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the fully connected layers."""
    lr: float = 3e-4
    """Adam's learning rate."""
    threads: int = 1
    """Threads of torch."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    make = partial(make_mujoco_env, resolve_task(args.task))
    env = make()
    policy = SACNPolicy.build(
        env.observation_space,
        env.action_space,
        seed=args.seed,
        num_critics=2,
        hidden_sizes=args.hidden_sizes,
        lr=args.lr,
        small_init=False,
    )
    folder = Path(args.logdir)

    def keep(epoch: int, policy: OfflinePolicy) -> None:
        weights = {k: v.half().contiguous() for k, v in policy.actor.state_dict().items()}
        path = folder / "snapshots" / f"{epoch * args.step_per_epoch:08d}.safetensors"
        atomic_write(path, lambda partial: save_file(weights, partial))

    online_trainer(
        policy,
        DummyVectorEnv([make]),
        max_epoch=args.steps // args.step_per_epoch,
        step_per_epoch=args.step_per_epoch,
        batch_size=args.batch_size,
        random_steps=10_000,
        test_envs=DummyVectorEnv([make] * 5),
        episode_per_test=5,
        seed=args.seed,
        logdir=folder,
        save_epochs=args.save_epochs,
        on_epoch=keep,
    )


if __name__ == "__main__":
    launch(main, Args)
