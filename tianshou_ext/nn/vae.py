"""A variational auto-encoder of actions: what BCQ and SPOT model the data with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.nn.nets import Head, make_trunk

LOG_STD_BOUNDS = (-4.0, 15.0)
"""Of the encoder: official BCQ code; SPOT's are the same."""


def mlp(width: int, hidden_sizes: Sequence[int], outputs: int) -> nn.Sequential:
    """Return ReLU layers and a linear head: (..., width) to (..., outputs)."""
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, Head(width, outputs))


def join(features: Tensor, x: Tensor) -> Tensor:
    """Put features (B, D) beside x (B, A) or (B, K, A): (..., D + A)."""
    if x.ndim == 3:
        features = features.unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat([features, x], dim=-1)


class VAE(nn.Module):
    """Encode actions, given observations, to a normal distribution of latents, and decode these.

    On frames encoder and decoder share their convolutions. ``decode`` also takes K latents for each
    observation, (B, K, Z), to actions (B, K, A).

    :param obs_shape: (D,) or (S, H, W).
    :param latent_dim: Z.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        act_dim: int,
        hidden_sizes: Sequence[int],
        latent_dim: int,
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, ())
        self.encoder = mlp(width + act_dim, hidden_sizes, 2 * latent_dim)
        self.decoder = mlp(width + latent_dim, hidden_sizes, act_dim)
        self.latent_dim = latent_dim

    def forward(self, obs: Tensor, act: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions encoded and decoded (B, A), mean and deviation of the latents (B, Z).

        :param noise: (B, Z) standard normal numbers.
        """
        features = self.trunk(obs)
        mean, log_std = self.encoder(join(features, act)).chunk(2, dim=-1)
        std = log_std.clamp(*LOG_STD_BOUNDS).exp()
        return self._decode(features, mean + std * noise), mean, std

    def decode(self, obs: Tensor, latent: Tensor) -> Tensor:
        """Return actions (B, A) in (-1, 1) for latents (B, Z)."""
        return self._decode(self.trunk(obs), latent)

    def _decode(self, features: Tensor, latent: Tensor) -> Tensor:
        act: Tensor = self.decoder(join(features, latent)).tanh()
        return act


def vae_loss(
    recon: Tensor, act: Tensor, mean: Tensor, std: Tensor, kl_weight: float = 0.5
) -> Tensor:
    """Return the error of reconstruction plus the divergence from N(0, 1), each a mean over dims.

    As in the official BCQ code. It is the negative evidence bound up to scale and a constant.

    :param recon: (B, A) actions encoded and decoded.
    :param act: (B, A).
    :param mean, std: (B, Z) of the latents.
    :return: (B,).
    """
    divergence = -0.5 * (1.0 + 2.0 * std.log() - mean.square() - std.square()).mean(-1)
    return (recon - act).square().mean(-1) + kl_weight * divergence


def row_wise(net: Callable[[Tensor, Tensor], Any], obs: Tensor, x: Tensor) -> Tensor:
    """Return what a network of (B, ...) and (B, A) answers to (B, A) or (B, K, A)."""
    if x.ndim == 3:
        rows = obs.repeat_interleave(x.shape[1], dim=0)  # (B * K, ...)
        out: Tensor = net(rows, x.flatten(0, 1))
        return out.view(*x.shape[:2], -1)
    out = net(obs, x)
    return out


class RowWise(nn.Module):
    """A network of Tianshou's, ``(obs, act) -> (B, A)``, that also takes actions (B, K, A)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return row_wise(self.net, obs, act)


class TianshouVAE(nn.Module):
    """Tianshou's VAE, with the calls of ours."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.latent_dim: int = vae.latent_dim

    def forward(self, obs: Tensor, act: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.vae.encoder(torch.cat([obs, act], dim=-1))
        mean = self.vae.mean(hidden)
        std = self.vae.log_std(hidden).clamp(*LOG_STD_BOUNDS).exp()
        return self.decode(obs, mean + std * noise), mean, std

    def decode(self, obs: Tensor, latent: Tensor) -> Tensor:
        return row_wise(self.vae.decode, obs, latent)


def as_vae(vae: nn.Module) -> VAE | TianshouVAE:
    """Return a VAE with our calls, made of ours or of Tianshou's."""
    return vae if isinstance(vae, VAE | TianshouVAE) else TianshouVAE(vae)
