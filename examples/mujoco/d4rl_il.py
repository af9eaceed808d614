"""Tianshou's d4rl_il.py: python d4rl_il.py --task HalfCheetah-v2
--expert-data-task halfcheetah-medium-v2"""

from dataclasses import dataclass

from mujoco_common import D4RLArgs, train_d4rl

from tianshou_ext.cli import launch


@dataclass
class Args(D4RLArgs):
    """Behavioural cloning of D4RL's data, with the flags of Tianshou's example."""

    lr: float | None = 1e-4
    """Adam's learning rate."""


def main(args: Args) -> list[dict[str, float]]:
    return train_d4rl(args, "bc")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
