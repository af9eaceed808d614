"""Train CRR on logged continuous control: python mujoco_crr.py --task Hopper-v4"""

from dataclasses import dataclass
from typing import Literal

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """CRR on logged continuous control."""

    policy_improvement_mode: Literal["exp", "binary", "all"] = "exp"
    """Weight of an action: exponential, indicator of a positive advantage, or 1 (cloning)."""
    ratio_upper_bound: float = 20.0
    """Largest exponential weight."""
    beta: float = 1.0
    """Temperature of the exponential weight, in units of return."""
    advantage: Literal["mean", "max"] = "mean"
    """What the values of the sampled actions come to."""
    num_value_samples: int = 4
    """Actions sampled for the advantage, and to act by the critic."""
    target_update_freq: int = 100
    """Gradient steps between copies to the target networks."""
    use_sarsa_target: bool | None = None
    """Take the data's next action in targets; the preset's if None, else no."""
    num_critics: int = 1
    """Critics whose minimum is taken."""
    critic_weighted_acting: bool = False
    """Act by an action drawn by softmax(Q / beta) out of several of the policy's."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "crr")


if __name__ == "__main__":
    launch(main, Args)
