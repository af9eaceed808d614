"""Tianshou's d4rl_bcq.py: python d4rl_bcq.py --task HalfCheetah-v2
--expert-data-task halfcheetah-medium-v2"""

from dataclasses import dataclass

from mujoco_common import D4RLArgs, train_d4rl

from tianshou_ext.cli import launch
from tianshou_ext.errors import InputError


@dataclass
class Args(D4RLArgs):
    """BCQ on D4RL's data, with the flags of Tianshou's example."""

    actor_lr: float = 1e-3
    """Adam's learning rate of all networks; --critic-lr has to be the same."""
    critic_lr: float = 1e-3
    """See --actor-lr."""
    vae_hidden_sizes: tuple[int, ...] = (512, 512)
    """Widths of the VAE's fully connected layers."""
    latent_dim: int | None = None
    """Dimensions of the latents; twice the action's if left out."""
    lmbda: float = 0.75
    """Weight of the least against the greatest critic in the target."""
    phi: float = 0.05
    """Greatest change of an action by the perturbation."""
    tau: float = 0.005
    """Share of the networks in their targets after each step."""


def main(args: Args) -> list[dict[str, float]]:
    if args.actor_lr != args.critic_lr:
        raise InputError(
            f"expected the same --actor-lr and --critic-lr, as BCQ has one learning rate here, got "
            f"{args.actor_lr:g} and {args.critic_lr:g}; change one"
        )
    args.lr = args.actor_lr if args.lr is None else args.lr
    return train_d4rl(args, "bcq")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
