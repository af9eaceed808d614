"""Train EDAC on logged continuous control: python mujoco_edac.py --task HalfCheetah-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """EDAC on logged continuous control."""

    num_critics: int | None = None
    """Critics whose minimum is taken; the preset's, or 10."""
    eta: float | None = None
    """Weight of the diversity term; the preset's, or 1. 0 is SAC-N."""
    actor_lr: float | None = None
    """Adam's learning rate of actor and temperature; lr if left out."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    max_q_backup: bool | None = None
    """Take the greatest value of 10 next actions as the target, without entropy; the preset's (pen
    cloned: True), or False."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "edac")


if __name__ == "__main__":
    launch(main, Args)
