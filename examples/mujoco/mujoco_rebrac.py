"""Train ReBRAC on logged continuous control: python mujoco_rebrac.py --task Hopper-v4"""

from dataclasses import dataclass
from typing import Literal

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """ReBRAC on logged continuous control."""

    batch_size: int | None = None
    """Transitions a gradient step; the preset's, or 1024."""
    actor_bc_coef: float | None = None
    """Weight of the distance to the data's actions in the actor's loss; the preset's, or 0.01."""
    critic_bc_coef: float | None = None
    """Weight of the distance to the data's next actions in the target; the preset's, or 0.01."""
    normalize_q: bool = True
    """Divide the actor's values by their mean size."""
    layer_norm: Literal["none", "before", "after"] = "after"
    """Layer normalisation in the critics, before or after each ReLU."""
    tau: float = 0.005
    """Share of actor and critics in their targets at each move."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor and the targets to the next."""
    critic_lr: float | None = None
    """Adam's learning rate for the critics; lr if left out."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "rebrac")


if __name__ == "__main__":
    launch(main, Args)
