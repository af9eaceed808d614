"""Noticing that a training run has diverged, before its checkpoint is overwritten."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Literal

import torch

from tianshou_ext.data.mixing import MixedReplay
from tianshou_ext.data.replay import Replay, filled_rows
from tianshou_ext.errors import DivergenceError
from tianshou_ext.policy.base import OfflinePolicy

OnDivergence = Literal["stop", "warn"]

REACH_FACTOR = 10.0
"""How far beyond the largest possible return a value may go, our choice: entropy terms and the
first overestimates stay below, a diverging value passes it within a few hundred steps."""

LEAST_REWARD = 1.0
"""Of what an entropy bonus pays at first, and larger than untrained networks' values: these do not
shrink with the rewards."""


class DivergenceWatch:
    """Looks at a policy's metrics and weights.

    :param on_divergence: ``stop`` raises ``DivergenceError``; ``warn`` warns once.
    :param checkpoint: where the run's checkpoint is, once there is one.
    """

    def __init__(
        self,
        policy: OfflinePolicy,
        on_divergence: OnDivergence = "stop",
        checkpoint: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.policy = policy
        self.on_divergence = on_divergence
        self._largest: float | None = None  # reward of the data set
        self._warned = False

    @property
    def reach(self) -> float:
        """The largest value that the rewards can add up to, discounted.

        They are the data set's, and beside it those that were collected; smaller ones count as
        ``LEAST_REWARD``. Infinite without a data set, without discounting, or if all are 0.
        """
        staged, gamma = self.policy.staged, self.policy.config.gamma
        data = staged.data if isinstance(staged, MixedReplay) else staged
        if not isinstance(data, Replay) or gamma >= 1.0:
            return math.inf
        if self._largest is None:
            self._largest = float(data.rew.abs().max())
        largest = self._largest
        if isinstance(staged, MixedReplay) and len(staged.online.buffer):
            buffer = staged.online.buffer
            collected = torch.as_tensor(buffer.rew[filled_rows(buffer)], dtype=torch.float32)
            seen = self.policy.reward_norm(collected.to(self.policy.device))
            largest = max(largest, float(seen.abs().max()))
        return max(largest, LEAST_REWARD) / (1.0 - gamma) if largest else math.inf

    def fault(self) -> str | None:
        """Return what is wrong with the metrics of the last step, or None."""
        reach = self.reach
        for name, value in self.policy.metrics.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
            if name.startswith(("q/", "v/")) and abs(value) > REACH_FACTOR * reach:
                return (
                    f"{name} is {value:.3g}, beyond {REACH_FACTOR:g} times the {reach:.3g} "
                    "that the rewards can add up to"
                )
        return None

    def check(self, *, weights: bool = False) -> None:
        """Look, and stop or warn.

        :param weights: look at every weight too, as is done before a checkpoint is written.
        :raises DivergenceError: if something is wrong and the run is to stop.
        """
        fault = self.fault()
        if fault is None and weights:
            bad = [k for k, p in self.policy.named_parameters() if not torch.isfinite(p).all()]
            fault = f"{bad[0]} holds NaN or infinity" if bad else None
        if fault is None:
            return
        kept = self.checkpoint is not None and self.checkpoint.exists()
        left = "the last good checkpoint is kept" if kept else "no checkpoint was written before"
        sentence = (
            f"expected a training that converges, got one that diverged: at gradient step "
            f"{self.policy.num_updates} {fault}; {left}, use a smaller "
            "learning rate or a more conservative setting, or --on-divergence warn"
        )
        if self.on_divergence == "stop":
            raise DivergenceError(sentence)
        if not self._warned:
            warnings.warn(sentence, stacklevel=2)
            self._warned = True
