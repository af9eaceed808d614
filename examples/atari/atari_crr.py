"""Train discrete CRR on logged Atari frames: python atari_crr.py --task PongNoFrameskip-v4"""

from dataclasses import dataclass
from typing import Literal

from atari_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Discrete CRR on logged Atari frames."""

    policy_improvement_mode: Literal["exp", "binary", "all"] = "exp"
    """Weight of a logged action: exponential or indicator of its advantage, or 1 (cloning)."""
    ratio_upper_bound: float = 20.0
    """Largest exponential weight."""
    beta: float = 1.0
    """Temperature of the exponential weight."""
    target_update_freq: int = 500
    """Gradient steps between copies to the target networks."""
    min_q_weight: float = 0.0
    """Weight of the added CQL term; 0 is the paper's CRR, Tianshou's example has 10."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "crr", "discrete_crr")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
