"""Train discrete BCQ on logged Atari frames: python atari_bcq.py --task PongNoFrameskip-v4"""

from dataclasses import dataclass

from atari_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """Discrete BCQ on logged Atari frames."""

    lr: float = 6.25e-5
    """Adam's learning rate."""
    target_update_freq: int = 8000
    """Gradient steps between copies to the target network."""
    unlikely_action_threshold: float = 0.3
    """An action is allowed above this share of the most likely one's probability."""
    imitation_logits_penalty: float = 0.01
    """Weight of the mean square of the imitation logits."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "bcq", "discrete_bcq")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
