"""Train Cal-QL on logged continuous control: python mujoco_cal_ql.py --task Hopper-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Cal-QL on logged continuous control."""

    cql_weight: float | None = None
    """Weight of the conservative term; the preset's, or 5. 0 is SAC."""
    failure_reward: float | None = None
    """Reward of each step of an episode that failed, where rewards are sparse; AntMaze: -5."""
    calibrate_online: bool = True
    """Keep the returns as bounds online; False is plain CQL there, as in CORL."""
    num_repeat_actions: int = 10
    """Actions of each of three kinds in the soft maximum."""
    lagrange_threshold: float | None = None
    """Learn the weight so that the term stays near this; the preset's (AntMaze: 4), or a fixed
    weight."""
    with_lagrange: bool | None = None
    """Learn the weight by the threshold; --no-with-lagrange: a fixed one, whatever the preset."""
    max_q_backup: bool | None = None
    """Take the best of 10 next actions as the target; the preset's (AntMaze: True), or False."""
    actor_lr: float | None = None
    """Adam's learning rate of actor and temperature; the preset's, or 0.0001."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Widths of the critics' layers, if others than the actor's; AntMaze: four of 256."""
    orthogonal_init: bool | None = None
    """Start from the official code's weights; the preset's (AntMaze: True), or False."""
    num_critics: int = 2
    """Critics whose minimum is taken."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "cal_ql")


if __name__ == "__main__":
    launch(main, Args)
