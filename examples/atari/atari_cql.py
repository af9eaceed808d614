"""Train discrete CQL on logged Atari frames: python atari_cql.py --task PongNoFrameskip-v4"""

from dataclasses import dataclass

from atari_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Discrete CQL on logged Atari frames."""

    num_quantiles: int = 200
    """Quantiles of the critic."""
    target_update_freq: int = 500
    """Gradient steps between copies to the target network."""
    min_q_weight: float = 10.0
    """Weight of the conservative term; 0 is QR-DQN."""
    is_double: bool = False
    """Take the next action from the online network."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "cql", "discrete_cql")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
