"""Train IQL on logged continuous control: python mujoco_iql.py --task Hopper-v4 --dataset medium"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch
from tianshou_ext.policy import OfflinePolicy
from tianshou_ext.schedules import CosineDecay


@dataclass
class Args(OfflineArgs):
    """IQL on logged continuous control."""

    expectile: float | None = None
    """Weight of positive differences in the value loss, in (0, 1); the preset's, or 0.7."""
    inv_temperature: float | None = None
    """Inverse temperature of the advantage weights; 0 is cloning; the preset's, or 3."""
    dropout: float | None = None
    """Share of the actor's hidden units dropped while it learns; the preset's, or 0."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""
    num_critics: int = 2
    """Critics whose minimum is taken."""
    lr_decay: bool = True
    """Take the actor's learning rate to 0 over all epochs, along a cosine; not to go online."""


def scheduler(policy: OfflinePolicy, num_steps: int) -> CosineDecay:
    """Return the schedule of the actor's learning rate."""
    return CosineDecay([policy.optimizers["actor"]], num_steps)


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "iql", scheduler=scheduler if args.lr_decay else None)


if __name__ == "__main__":
    launch(main, Args)
