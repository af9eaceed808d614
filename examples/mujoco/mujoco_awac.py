"""Train AWAC on logged continuous control: python mujoco_awac.py --task Hopper-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """AWAC on logged continuous control."""

    lam: float | None = None
    """Temperature of the advantage weights, in units of return; the preset's, or 1/3."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    num_critics: int = 2
    """Critics whose minimum is taken."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "awac")


if __name__ == "__main__":
    launch(main, Args)
