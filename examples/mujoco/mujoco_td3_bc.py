"""Train TD3+BC on logged continuous control: python mujoco_td3_bc.py --task Hopper-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """TD3+BC on logged continuous control."""

    alpha: float = 2.5
    """Weight of the values against cloning; 0 is cloning."""
    tau: float = 0.005
    """Share of actor and critics in their targets at each move."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor and the targets to the next."""
    critic_lr: float | None = None
    """Adam's learning rate for the critics; lr if left out."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "td3_bc")


if __name__ == "__main__":
    launch(main, Args)
