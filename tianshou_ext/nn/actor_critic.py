"""Actors and critics for continuous actions in [-1, 1], in Tianshou's calling convention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.nn.nets import EnsembleLinear, make_trunk

EDAC_HIDDEN_BIAS, EDAC_ACTOR_HEAD, EDAC_CRITIC_HEAD = 0.1, 1e-3, 3e-3
"""Initial hidden biases, and bounds of the heads' uniform weights and biases: official EDAC code,
lifelong_rl/torch/modules.py; ReBRAC's are the same."""


class DeterministicActor(nn.Module):
    """(B, ...) observations to (B, A) actions in (-1, 1).

    :param obs_shape: (D,) or (S, H, W).
    """

    def __init__(self, obs_shape: Sequence[int], act_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, hidden_sizes)
        self.head = nn.Linear(width, act_dim)

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        return torch.tanh(self.head(self.trunk(obs))), state


class GaussianActor(nn.Module):
    """(B, ...) observations to mean and standard deviation of a normal distribution, (B, A) each.

    What the distribution is over, actions or actions before tanh, is the method's choice.

    :param obs_shape: (D,) or (S, H, W).
    :param log_std_bounds: the logarithm of the deviation is clamped to these.
    :param state_dependent_std: else the deviation is a parameter that starts at 1.
    :param tanh_mean: squash the mean to (-1, 1).
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        act_dim: int,
        hidden_sizes: Sequence[int],
        *,
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        state_dependent_std: bool = True,
        tanh_mean: bool = False,
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, hidden_sizes)
        self.head = nn.Linear(width, 2 * act_dim if state_dependent_std else act_dim)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.zeros(act_dim))
        self.log_std_bounds = log_std_bounds
        self.tanh_mean = tanh_mean

    def forward(
        self, obs: Tensor, state: Any = None, info: Any = None
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        mean = self.head(self.trunk(obs))
        if self.log_std is None:
            mean, log_std = mean.chunk(2, dim=-1)
        else:
            log_std = self.log_std.expand_as(mean)
        if self.tanh_mean:
            mean = torch.tanh(mean)
        return (mean, log_std.clamp(*self.log_std_bounds).exp()), state


class EnsembleLayerNorm(nn.LayerNorm):
    """Layer normalisation of (N, B, width); weight and bias are each member's own."""

    def __init__(self, num: int, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.weight = nn.Parameter(torch.ones(num, 1, width))
        self.bias = nn.Parameter(torch.zeros(num, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = nn.functional.layer_norm(x, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias, normed, self.weight)


class EnsembleCritic(nn.Module):
    """N critics as one: (B, ...) observations and (B, A) actions to (N, B) values.

    On frames the critics share their convolutions. Actions (N, B, A) are taken as one set for
    each critic.

    :param obs_shape: (D,) or (S, H, W).
    :param num: critics N.
    :param layer_norm: ``none``, ``before`` or ``after`` each ReLU.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        act_dim: int,
        hidden_sizes: Sequence[int],
        num: int,
        *,
        layer_norm: str = "none",
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, ())
        width += act_dim
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            norm = EnsembleLayerNorm(num, size, layer_norm_eps) if layer_norm != "none" else None
            layers.append(EnsembleLinear(num, width, size))
            if norm is not None and layer_norm == "before":
                layers.append(norm)
            layers.append(nn.ReLU())
            if norm is not None and layer_norm == "after":
                layers.append(norm)
            width = size
        layers.append(EnsembleLinear(num, width, 1))
        self.members = nn.Sequential(*layers)
        self.num = num

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        features = self.trunk(obs)
        if act.ndim == 3:
            features = features.expand(self.num, *features.shape)
        x = torch.cat([features, act], dim=-1)
        if x.ndim == 2:
            x = x.expand(self.num, *x.shape)
        out: Tensor = self.members(x)
        return out.squeeze(-1)


class CriticList(nn.Module):
    """Tianshou's critics, (B, 1) or (B,) each, as one that answers (N, B)."""

    def __init__(self, *critics: nn.Module) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return torch.stack([critic(obs, act).flatten() for critic in self.critics])


def as_ensemble(*critics: nn.Module | None) -> nn.Module:
    """Return one critic that answers (N, B), made of ours or of several of Tianshou's."""
    given = [critic for critic in critics if critic is not None]
    if len(given) == 1 and isinstance(given[0], EnsembleCritic | CriticList):
        return given[0]
    return CriticList(*given)


def linear_layers(module: nn.Module) -> Iterator[nn.Linear | EnsembleLinear]:
    """Yield the fully connected layers of ``module``, in order."""
    yield from (
        layer for layer in module.modules() if isinstance(layer, nn.Linear | EnsembleLinear)
    )


@torch.no_grad()
def edac_init(actor: nn.Module, critic: nn.Module) -> None:
    """Initialise as EDAC and ReBRAC do: hidden biases 0.1, heads near zero."""
    for module, bound in ((actor, EDAC_ACTOR_HEAD), (critic, EDAC_CRITIC_HEAD)):
        *hidden, head = linear_layers(module)
        for layer in hidden:
            layer.bias.fill_(EDAC_HIDDEN_BIAS)
        for parameter in (head.weight, head.bias):
            parameter.uniform_(-bound, bound)


@torch.no_grad()
def orthogonal_init(*modules: nn.Module, gain: float = math.sqrt(2.0)) -> None:
    """Make the weights of fully connected layers orthogonal and their biases 0, as IQL does.

    Each member of an ensemble is initialised by itself.
    """
    for module in modules:
        for layer in linear_layers(module):
            for weight in layer.weight.view(-1, *layer.weight.shape[-2:]):
                nn.init.orthogonal_(weight, gain)
            nn.init.zeros_(layer.bias)


def tanh_normal_sample(mean: Tensor, std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample ``tanh(mean + std * noise)`` with its log-density, differentiable in both.

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)), which loses no digits for
    large u: SAC, arXiv 1812.05905, appendix C.

    :param mean: (..., A) before tanh.
    :param std: (..., A), above 0.
    :param noise: (..., A) standard normal numbers.
    :return: actions (..., A) in (-1, 1) and their log-densities (...).
    """
    raw = mean + std * noise
    log_prob = -0.5 * noise.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
    correction = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
    return torch.tanh(raw), (log_prob - correction).sum(-1)


def tanh_normal_log_prob(mean: Tensor, std: Tensor, act: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the log-density (...) of actions (..., A) under the tanh of a normal distribution.

    Actions are clamped to [-1 + eps, 1 - eps], where the density is finite.
    """
    act = act.clamp(-1.0 + eps, 1.0 - eps)
    correction = torch.log1p(-act.square()).sum(-1)
    return normal_log_prob(mean, std, torch.atanh(act)) - correction


def normal_log_prob(mean: Tensor, std: Tensor, act: Tensor) -> Tensor:
    """Return the log-density (...) of actions (..., A) under a normal distribution."""
    scaled = (act - mean) / std
    return (-0.5 * scaled.square() - std.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)
