"""Train SPOT on logged continuous control: python mujoco_spot.py --task Hopper-v4"""

from dataclasses import dataclass

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch


@dataclass
class Args(OfflineArgs):
    """SPOT on logged continuous control."""

    lam: float | None = None
    """Weight of the density against the values; the preset's, or 0.1."""
    lam_end: float = 0.2
    """Share of it that is left when it has cooled down online."""
    cooling_steps: int = 1_000_000
    """Environment steps online after which nothing would be left."""
    beta: float = 0.5
    """Weight of the divergence in the VAE's loss."""
    num_samples: int = 1
    """Latents for an estimate of the density."""
    dropout: float | None = None
    """Share of the actor's hidden units that are dropped while it learns; the preset's, or 0.1."""
    small_init: bool | None = None
    """Start with heads near zero; the preset's (AntMaze: True), or False."""
    vae_steps: int | None = None
    """Gradient steps of the VAE before all others; 100,000 if left out."""
    vae_lr: float = 1e-3
    """Adam's learning rate for the VAE."""
    vae_batch_size: int = 256
    """Actions a gradient step of the VAE."""
    vae_hidden_sizes: tuple[int, ...] = (750, 750)
    """Widths of the fully connected layers of encoder and decoder."""
    latent_dim: int | None = None
    """Dimensions of the latents; twice the action's if left out."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions online."""
    tau: float = 0.005
    """Share of actor and critics in their targets at each move."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor and the targets to the next."""
    actor_lr: float | None = None
    """Adam's learning rate for the actor; lr if left out."""
    critic_lr: float | None = None
    """Adam's learning rate for the critics; lr if left out."""


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "spot")


if __name__ == "__main__":
    launch(main, Args)
