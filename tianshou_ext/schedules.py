"""Learning-rate schedules over optimizers of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from tianshou_ext.errors import InputError


class LinearDecay:
    """Take the learning rates from what they are now to 0 in a straight line.

    Give it to a policy as ``policy.lr_scheduler``, before a checkpoint is loaded. Resumed with more
    steps than it was made for, it goes on along the new line.

    :param optimizers: whose learning rates to change.
    :param num_steps: gradient steps until they are 0.
    :raises InputError: if that is less than 1.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], num_steps: int) -> None:
        if num_steps < 1:
            raise InputError(f"expected at least one step of decay, got {num_steps}")
        self.num_steps = num_steps
        self.steps_done = 0
        self._optimizers = list(optimizers)
        self._rates = [[float(g["lr"]) for g in optim.param_groups] for optim in self._optimizers]

    def step(self) -> None:
        """Count a gradient step."""
        self.steps_done += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps_done = int(state["steps_done"])
        self._apply()

    @staticmethod
    def share_left(done: float) -> float:
        """Return what is left of the rates when the share ``done`` of the steps is over."""
        return 1.0 - done

    def _apply(self) -> None:
        left = self.share_left(min(1.0, self.steps_done / self.num_steps))
        for optim, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optim.param_groups, rates, strict=True):
                group["lr"] = rate * left


class CosineDecay(LinearDecay):
    """Take the learning rates from what they are now to 0 along half a cosine.

    ``lr * (1 + cos(pi * done)) / 2``, as IQL's official code does with the actor's alone. Used as
    ``LinearDecay``.
    """

    @staticmethod
    def share_left(done: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * done))


class Together:
    """Several schedulers, stepped as one."""

    def __init__(self, *schedulers: Any) -> None:
        self.schedulers = schedulers

    def step(self) -> None:
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for scheduler, one in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(one)
