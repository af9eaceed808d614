"""Actors and critics that are tables, for losses by hand with continuous actions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ActorTable(nn.Module):
    """Mean and standard deviation (S, A) of each numbered state."""

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float32))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float32))

    def forward(self, obs: Tensor, state: Any = None) -> tuple[tuple[Tensor, Tensor], Any]:
        index = obs[:, 0].long()
        return (self.mean[index], self.std[index]), state


class CriticTable(nn.Module):
    """One critic, ``Q(s, a) = rows[s] + slope * sum(a)``; its answer is (B,)."""

    def __init__(self, rows: Any, slope: float = 0.0) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float32))
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.rows[obs[:, 0].long()] + self.slope * act.sum(1)


def log_density(mean: Any, std: Any, act: Any) -> float:
    """Return the log-density of one action under a normal distribution."""
    z = (np.asarray(act) - np.asarray(mean)) / np.asarray(std)
    return float((-0.5 * z**2 - np.log(std) - 0.5 * math.log(2 * math.pi)).sum())
