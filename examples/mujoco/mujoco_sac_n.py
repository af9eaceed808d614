"""Train SAC-N on logged continuous control: python mujoco_sac_n.py --task HalfCheetah-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """SAC-N on logged continuous control."""

    num_critics: int | None = None
    """Critics whose minimum is taken; the preset's, or 10. Hopper's 500 need a GPU."""
    actor_lr: float | None = None
    """Adam's learning rate of actor and temperature; lr if left out."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    backup_entropy: bool = True
    """Count the next action's entropy as reward in the critics' target."""
    max_q_backup: bool = False
    """Take the greatest value of 10 next actions as the target, without entropy."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "sac_n")


if __name__ == "__main__":
    launch(main, Args)
