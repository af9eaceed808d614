"""Actors and critics for continuous actions in [-1, 1], in Tianshou's calling convention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tianshou_ext.nn.nets import EnsembleHead, EnsembleLinear, Head, make_trunk

EDAC_HIDDEN_BIAS, EDAC_ACTOR_HEAD, EDAC_CRITIC_HEAD = 0.1, 1e-3, 3e-3
"""Initial hidden biases, and bounds of the heads' uniform weights and biases: official EDAC code,
lifelong_rl/models/networks.py and policies/models/tanh_gaussian_policy.py, and ReBRAC's."""


class Actor(nn.Module):
    """What actors share: layers from (B, ...) observations to features, whose units can be dropped.

    Which are dropped comes from outside, so that draws can be repeated.

    :param obs_shape: (D,) or (S, H, W).
    """

    def __init__(self, obs_shape: Sequence[int], hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.trunk, self.width = make_trunk(obs_shape, hidden_sizes)
        self.num_hidden = sum(hidden_sizes)

    def features(self, obs: Tensor, keep: Tensor | None) -> Tensor:
        """Return features (B, width).

        :param keep: (B, num_hidden) what the hidden units are multiplied by, layer by layer.
        """
        if keep is None:
            whole: Tensor = self.trunk(obs)
            return whole
        x, start = obs, 0
        for layer in self.trunk.children():
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = x * keep[:, start : start + x.shape[1]]
                start += x.shape[1]
        return x


class DeterministicActor(Actor):
    """(B, ...) observations to (B, A) actions in (-1, 1)."""

    def __init__(self, obs_shape: Sequence[int], act_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__(obs_shape, hidden_sizes)
        self.head = Head(self.width, act_dim)

    def forward(
        self, obs: Tensor, state: Any = None, info: Any = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        return torch.tanh(self.head(self.features(obs, keep))), state


class GaussianActor(Actor):
    """(B, ...) observations to mean and standard deviation of a normal distribution, (B, A) each.

    What the distribution is over, actions or actions before tanh, is the method's choice.

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
        super().__init__(obs_shape, hidden_sizes)
        self.head = Head(self.width, 2 * act_dim if state_dependent_std else act_dim)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.zeros(act_dim))
        self.log_std_bounds = log_std_bounds
        self.tanh_mean = tanh_mean

    def forward(
        self, obs: Tensor, state: Any = None, info: Any = None, keep: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        mean = self.head(self.features(obs, keep))
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

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Return every member's answer to its input, or one member's to (1, B, width)."""
        normed = nn.functional.layer_norm(x, self.normalized_shape, eps=self.eps)
        own = slice(None) if member is None else slice(member, member + 1)
        return torch.addcmul(self.bias[own], normed, self.weight[own])


class Critics(nn.Module):
    """N critics that answer (N, B) to (B, ...) observations and (B, A) actions.

    Actions (N, B, A) are taken as one set for each critic. Asked for one ``member``, only that one
    is computed, (1, B).
    """

    num: int
    """Critics N."""

    def values(self, obs: Tensor, acts: Tensor) -> Tensor:
        """Return the values of K actions for each observation, (N, B, K).

        :param obs: (B, ...).
        :param acts: (B, K, A).
        """
        repeated = obs.repeat_interleave(acts.shape[1], dim=0)  # (B * K, ...)
        q: Tensor = self(repeated, acts.flatten(0, 1))
        return q.view(-1, *acts.shape[:2])


class EnsembleCritic(Critics):
    """N critics as one: (B, ...) observations and (B, A) actions to (N, B) values.

    On frames the critics share their convolutions.

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
            layers.append(nn.ReLU(inplace=True))
            if norm is not None and layer_norm == "after":
                layers.append(norm)
            width = size
        layers.append(EnsembleHead(num, width, 1))
        self.members = nn.Sequential(*layers)
        self.num = num

    def forward(self, obs: Tensor, act: Tensor, member: int | None = None) -> Tensor:
        features = self.trunk(obs)
        if member is not None:
            x = torch.cat([features, act], dim=-1).unsqueeze(0)  # (1, B, D + A)
            for layer in self.members:
                of_members = isinstance(layer, EnsembleLinear | EnsembleLayerNorm)
                x = layer(x, member) if of_members else layer(x)
            return x.squeeze(-1)
        if act.ndim == 3:
            features = features.expand(self.num, *features.shape)
        x = torch.cat([features, act], dim=-1)
        if x.ndim == 2:
            x = x.expand(self.num, *x.shape)
        out: Tensor = self.members(x)
        return out.squeeze(-1)

    def values(self, obs: Tensor, acts: Tensor) -> Tensor:
        """Return the values of K actions for each observation, (N, B, K).

        W (s, a) = W_s s + W_a a, so the trunk, and the first layer's product with the observation,
        are computed once for all K.
        """
        first, *others = self.members
        assert isinstance(first, EnsembleLinear)
        features = self.trunk(obs).expand(self.num, -1, -1)  # (N, B, D)
        flat = acts.flatten(0, 1).expand(self.num, -1, -1)  # (N, B * K, A)
        size = features.shape[2]
        of_obs = torch.baddbmm(first.bias, features, first.weight[:, :size]).unsqueeze(2)
        of_act = torch.bmm(flat, first.weight[:, size:]).view(self.num, *acts.shape[:2], -1)
        x = (of_obs + of_act).flatten(1, 2)  # (N, B * K, width)
        for layer in others:
            x = layer(x)
        return x.view(self.num, *acts.shape[:2])


class CriticList(Critics):
    """Tianshou's critics, (B, 1) or (B,) each, as one that answers (N, B)."""

    def __init__(self, *critics: nn.Module) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.num = len(critics)

    def forward(self, obs: Tensor, act: Tensor, member: int | None = None) -> Tensor:
        if member is not None:
            return self.critics[member](obs, act).flatten().unsqueeze(0)  # type: ignore[no-any-return]
        acts = act if act.ndim == 3 else act.expand(self.num, *act.shape)
        pairs = zip(self.critics, acts, strict=True)
        return torch.stack([critic(obs, own).flatten() for critic, own in pairs])


def as_ensemble(*critics: nn.Module | None) -> Critics:
    """Return one critic that answers (N, B), made of ours or of several of Tianshou's."""
    given = [critic for critic in critics if critic is not None]
    if len(given) == 1 and isinstance(given[0], Critics):
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
def fan_out_init(critic: nn.Module) -> None:
    """Draw weights and biases uniformly within 1 / sqrt(outputs): official LB-SAC code.

    Its rule for inputs is applied to weights (inputs, outputs), whose outputs it takes for inputs.
    """
    for layer in linear_layers(critic):
        bound = 1.0 / math.sqrt(layer.bias.shape[-1])
        for parameter in (layer.weight, layer.bias):
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
