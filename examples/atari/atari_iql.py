"""Train discrete IQL on logged Atari frames: python atari_iql.py --task PongNoFrameskip-v4"""

from dataclasses import dataclass

from atari_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Discrete IQL on logged Atari frames."""

    expectile: float = 0.7
    """Weight of positive differences in the value loss, in (0, 1)."""
    inv_temperature: float = 3.0
    """Inverse temperature of the advantage weights; 0 is cloning."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    num_critics: int = 2
    """Critics whose minimum is taken."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "iql", "discrete_iql")


if __name__ == "__main__":
    launch(main, Args)
