"""Clone logged continuous control, or the best of it: python mujoco_bc.py --top 0.1"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch
from tianshou_ext.data.select import top_episodes
from tianshou_ext.tianshou_api import ReplayBuffer


@dataclass
class Args(OfflineArgs):
    """Behavioural cloning of logged continuous control; %BC with --top."""

    lr: float | None = 3e-4
    """Adam's learning rate."""
    hidden_sizes: tuple[int, ...] | None = (256, 256)
    """Widths of the fully connected layers."""
    top: float = 1.0
    """Share of the steps to learn from, whole episodes from the best downwards; 0.1 is 10% BC."""
    stochastic: bool = False
    """Clone by a normal distribution, not by a squared error."""


def main(args: Args) -> list[dict[str, float]]:
    if args.top == 1.0:
        return train(args, "bc")

    def select(buffer: ReplayBuffer) -> ReplayBuffer:
        return top_episodes(buffer, args.top)

    return train(args, "bc", name=f"bc_top{args.top:g}", select=select)


if __name__ == "__main__":
    launch(main, Args)
