"""Clone a mouse that evades a robot: python cellworld_bc.py --world 21_05"""

from dataclasses import dataclass

from cellworld_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Behavioural cloning of a mouse."""

    sample_actions: bool = True
    """Draw actions, as mice are no machines; --no-sample-actions takes the likeliest."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "bc", "bc")


if __name__ == "__main__":
    launch(main, Args)
