"""Train CQL on logged continuous control: python mujoco_cql.py --task Hopper-v4 --dataset medium"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """CQL on logged continuous control."""

    cql_weight: float | None = None
    """Weight of the conservative term; the preset's, or 5. 0 is SAC."""
    temperature: float = 1.0
    """Of the soft maximum."""
    num_repeat_actions: int = 10
    """Actions of each of three kinds in the soft maximum."""
    lagrange_threshold: float | None = None
    """Learn the weight so that the term stays near this; the preset's (AntMaze: 5), or a fixed
    weight."""
    with_lagrange: bool | None = None
    """Learn the weight by the threshold; --no-with-lagrange: a fixed one, whatever the preset."""
    max_q_backup: bool = False
    """Take the greatest value of 10 next actions as the target; AntMaze in CORL."""
    actor_lr: float | None = None
    """Adam's learning rate of actor and temperature; the preset's, or 0.0001."""
    bc_steps: int = 0
    """First gradient steps in which the actor clones the data; 40,000 in the official script."""
    num_critics: int = 2
    """Critics whose minimum is taken."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "cql")


if __name__ == "__main__":
    launch(main, Args)
