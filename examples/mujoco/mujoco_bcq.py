"""Train BCQ on logged continuous control: python mujoco_bcq.py --task Hopper-v4 --dataset medium"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """BCQ on logged continuous control."""

    batch_size: int | None = None
    """Transitions a gradient step; 100 if left out."""
    phi: float | None = None
    """Greatest change of an action by the perturbation; the preset's, or 0.05."""
    lmbda: float = 0.75
    """Weight of the least against the greatest critic in the target, in [0, 1]."""
    num_sampled_action: int = 10
    """Candidates for the target."""
    forward_sampled_times: int = 100
    """Candidates when acting."""
    vae_hidden_sizes: tuple[int, ...] = (750, 750)
    """Widths of the fully connected layers of encoder and decoder."""
    tau: float = 0.005
    """Share of critics and perturbation in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "bcq")


if __name__ == "__main__":
    launch(main, Args)
