"""Networks shared by the methods, in Tianshou's calling convention.

Each ``forward(obs, state=None, info=None)`` returns ``(output, state)``, so that they can be used
by Tianshou's own classes and Tianshou's by ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class InFloat32(nn.Module):
    """A layer whose answer is float32 where the others' are bfloat16: values need their digits."""

    def forward(self, x: Tensor, *args: Any) -> Any:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float(), *args)


class Head(InFloat32, nn.Linear):
    """The last layer of a network."""


class NatureCNN(nn.Module):
    """Convolutions of DQN (Mnih et al., Nature 2015): (B, S, 84, 84) to (B, 3136)."""

    def __init__(self, obs_shape: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(obs_shape[0], 32, 8, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        with torch.no_grad():
            self.output_dim = self.convs(torch.zeros(1, *obs_shape)).shape[1]
        # Weights with channels last make a training step about 1.6 times as fast on the CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.convs(obs.contiguous(memory_format=torch.channels_last))
        return features


def make_trunk(obs_shape: Sequence[int], hidden_sizes: Sequence[int]) -> tuple[nn.Module, int]:
    """Return layers from observations to features, and the number of features.

    :param obs_shape: (D,) for vectors, (S, H, W) for frames.
    :param hidden_sizes: widths of the fully connected ReLU layers.
    """
    layers: list[nn.Module] = []
    if len(obs_shape) == 3:
        cnn = NatureCNN(obs_shape)
        layers.append(cnn)
        width = cnn.output_dim
    else:
        layers.append(nn.Flatten())
        width = math.prod(obs_shape)
    for size in hidden_sizes:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        width = size
    return nn.Sequential(*layers), width


class Net(nn.Module):
    """A trunk and one linear head: (B, ...) to (B, *output_shape).

    :param obs_shape: (D,) or (S, H, W).
    :param output_shape: for example (A,) for values, (A, Q) for quantiles of values.
    """

    def __init__(
        self, obs_shape: Sequence[int], output_shape: Sequence[int], hidden_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, hidden_sizes)
        self.head = Head(width, math.prod(output_shape))
        self.output_shape = tuple(output_shape)

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        out: Tensor = self.head(self.trunk(obs))
        return out.view(-1, *self.output_shape), state


class MultiHeadNet(nn.Module):
    """Several heads on shared convolutions, each with fully connected layers of its own.

    For vectors there are no convolutions and the heads share nothing.

    :param obs_shape: (D,) or (S, H, W).
    :param output_shapes: one for each head.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        output_shapes: Sequence[Sequence[int]],
        hidden_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, ())
        self.heads = nn.ModuleList(Net((width,), shape, hidden_sizes) for shape in output_shapes)

    def forward(
        self, obs: Tensor, state: Any = None, info: Any = None
    ) -> tuple[tuple[Tensor, ...], Any]:
        features = self.trunk(obs)
        return tuple(head(features)[0] for head in self.heads), state


class EnsembleLinear(nn.Module):
    """N linear layers as one: (N, B, in) to (N, B, out), initialised as ``nn.Linear``."""

    def __init__(self, num: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num, 1, out_features))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Return every member's answer to its input, or one member's, (1, B, in) to (1, B, out)."""
        if member is None:
            return torch.baddbmm(self.bias, x, self.weight)
        return torch.addmm(self.bias[member], x[0], self.weight[member]).unsqueeze(0)


class EnsembleHead(InFloat32, EnsembleLinear):
    """The last layer of N networks."""


class EnsembleNet(nn.Module):
    """N heads of the same kind on shared convolutions: (B, ...) to (N, B, outputs).

    For vectors there are no convolutions and the members share nothing.

    :param obs_shape: (D,) or (S, H, W).
    :param num: ensemble members N.
    """

    def __init__(
        self, obs_shape: Sequence[int], outputs: int, hidden_sizes: Sequence[int], num: int
    ) -> None:
        super().__init__()
        self.trunk, width = make_trunk(obs_shape, ())
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [EnsembleLinear(num, width, size), nn.ReLU(inplace=True)]
            width = size
        layers.append(EnsembleHead(num, width, outputs))
        self.members = nn.Sequential(*layers)
        self.num = num

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        features = self.trunk(obs).expand(self.num, -1, -1)
        out: Tensor = self.members(features)
        return out, state


def make_adam(*modules: nn.Module, lr: float, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Return one fused Adam for the parameters of all ``modules``, each once."""
    params = list({id(p): p for module in modules for p in module.parameters()}.values())
    return torch.optim.Adam(params, lr=lr, eps=eps, fused=True)
