"""Tianshou's d4rl_td3_bc.py: python d4rl_td3_bc.py --task HalfCheetah-v2
--expert-data-task halfcheetah-medium-v2 --norm-obs 0"""

from dataclasses import dataclass
from typing import Literal

from mujoco_common import D4RLArgs, train_d4rl

from tianshou_ext.cli import launch


@dataclass
class Args(D4RLArgs):
    """TD3+BC on D4RL's data, with the flags of Tianshou's example."""

    norm_obs: Literal[0, 1] = 1
    """1 normalises observations by the data's mean and std, 0 does not."""
    actor_lr: float | None = None
    """Adam's learning rate of the actor; --lr, or 0.0003, if left out."""
    critic_lr: float | None = None
    """Adam's learning rate of the critics; --lr, or 0.0003, if left out."""
    n_step: int = 3
    """Rewards summed before bootstrapping."""
    alpha: float = 2.5
    """Weight of the values against cloning."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor to the next."""
    tau: float = 0.005
    """Share of the networks in their targets at each move."""


def main(args: Args) -> list[dict[str, float]]:
    both = args.lr or 3e-4
    args.lr, args.critic_lr = args.actor_lr or both, args.critic_lr or both
    return train_d4rl(args, "td3_bc")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
