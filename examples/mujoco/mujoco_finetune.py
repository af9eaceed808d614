"""Train a method on logged data, then let it act and go on learning, in one run.

python mujoco_finetune.py --method spot --task Hopper-v4 --dataset medium --online-steps 100000
"""

from dataclasses import dataclass

from mujoco_adaptive_bc import reference_returns
from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """A method on logged continuous control, then online.

    It has the settings of its paper; its own script takes its fields, and --online-steps, too.
    """

    method: str = "spot"
    """One that learns by acting: spot, adaptive_bc, cal_ql, iql, awac, cql, td3_bc, rebrac, ..."""
    online_steps: int = 100_000
    """Environment steps to act and go on learning after the data set."""


def main(args: Args) -> list[dict[str, float]]:
    own = reference_returns(args.task) if args.method == "adaptive_bc" else {}
    return train(args, args.method, config_defaults=own)


if __name__ == "__main__":
    launch(main, Args)
