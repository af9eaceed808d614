"""Train LB-SAC on logged continuous control: python mujoco_lb_sac.py --task HalfCheetah-v4"""

from dataclasses import dataclass
from typing import Literal

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch
from tianshou_ext.policy import lb_sac_config


@dataclass
class Args(OfflineArgs):
    """LB-SAC on logged continuous control: SAC-N with large batches and few critics."""

    lr: float | None = None
    """Adam's learning rate; the preset's, or 0.0003 sqrt(batch_size / 256)."""
    batch_size: int | None = None
    """Transitions a gradient step; the preset's, or 10,000."""
    num_critics: int | None = None
    """Critics whose minimum is taken; the preset's, or 4."""
    layer_norm: Literal["none", "before", "after"] | None = None
    """Layer normalisation in the critics, before or after each ReLU; the preset's, or none."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    batch_size = args.batch_size or 10_000
    config = lb_sac_config(batch_size)
    if args.batch_size and args.lr is None:
        args.lr = config.lr  # goes with this batch, where the preset's goes with 10,000
    names = ("lr", "num_critics", "small_init", "wide_init")
    defaults = {"batch_size": batch_size, **{name: getattr(config, name) for name in names}}
    return train(args, "sac_n", name="lb_sac", config_defaults=defaults)


if __name__ == "__main__":
    launch(main, Args)
