"""Train discrete IQL on a mouse that evades a robot: python cellworld_iql.py --world 21_05"""

from dataclasses import dataclass

from cellworld_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Discrete IQL on a mouse."""

    expectile: float = 0.8
    """Of the values that V follows; 0.5 is their mean."""
    inv_temperature: float = 3.0
    """How much better actions weigh more; 0 is cloning."""
    tau: float = 0.005
    """Share of the critic in its target after each step."""
    num_critics: int = 2
    """Critics whose minimum is taken."""
    sample_actions: bool = True
    """Draw actions, as mice are no machines; --no-sample-actions takes the likeliest."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "iql", "discrete_iql")


if __name__ == "__main__":
    launch(main, Args)
