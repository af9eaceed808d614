"""Train AWAC on logged continuous control: python mujoco_awac.py --task Hopper-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """AWAC on logged continuous control."""

    lam: float = 1.0 / 3.0
    """Temperature of the advantage weights, in units of return; 0.1 on AntMaze and Adroit."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    num_critics: int = 2
    """Critics whose minimum is taken."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "awac")


if __name__ == "__main__":
    launch(main, Args)
