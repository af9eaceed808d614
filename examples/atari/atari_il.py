"""Clone logged Atari play (imitation learning): python atari_il.py --task PongNoFrameskip-v4"""

from dataclasses import dataclass

from atari_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Behavioural cloning of logged Atari play."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "il", "bc")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
