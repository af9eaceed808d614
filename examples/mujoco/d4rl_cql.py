"""Tianshou's d4rl_cql.py: python d4rl_cql.py --task Hopper-v2 --expert-data-task hopper-expert-v2

Its weight is the paper's unless told otherwise: Tianshou's (Lagrange, threshold 10, weight 1) goes
with a soft maximum over 3 actions, not 30.
"""

from dataclasses import dataclass

from mujoco_common import D4RLArgs, train_d4rl

from tianshou_ext.cli import launch


@dataclass
class Args(D4RLArgs):
    """CQL on D4RL's data, with the flags of Tianshou's example."""

    task: str = "Hopper-v2"
    """Gymnasium's id, as Hopper-v4; Hopper-v2 stands for it."""
    expert_data_task: str = "hopper-expert-v2"
    """What --dataset takes here, which it goes before: a D4RL id, or one of the others."""
    actor_lr: float = 1e-4
    """Adam's learning rate of actor and temperature."""
    critic_lr: float | None = None
    """Adam's learning rate of the critics; --lr, or 0.0003, if left out."""
    cql_alpha_lr: float = 3e-4
    """Adam's learning rate of the learned weight."""
    cql_weight: float | None = None
    """Weight of the conservative term; the method's own if left out (Tianshou: 1)."""
    lagrange_threshold: float | None = None
    """Learn the weight so that the term stays near this; 10, as Tianshou's, if only
    --with-lagrange is given."""
    with_lagrange: bool | None = None
    """Learn the weight; left out: where a threshold is given (Tianshou: always)."""
    temperature: float = 1.0
    """Of the soft maximum."""
    tau: float = 0.005
    """Share of the critics in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    args.lr = args.critic_lr or args.lr or 3e-4
    if args.with_lagrange and args.lagrange_threshold is None:
        args.lagrange_threshold = 10.0
    return train_d4rl(args, "cql")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
