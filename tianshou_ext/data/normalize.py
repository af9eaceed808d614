"""Normalisation of observations and rewards that is part of a policy's saved state.

Observations: ``y = (obs - shift) / scale``. For vectors, shift and scale are the data's mean and
standard deviation (TD3+BC, arXiv 2106.06860, section 5: ``std + 1e-3``). For frames, shift is the
data's mean frame and scale one number: with frames divided by 255, a moving ball of a few pixels
hardly changes what the network sees, and cloning Pong stays at the entropy of the action
frequencies.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError

ObsNorm = Literal["standard", "255", "none"]
RewardNorm = Literal[
    "none",
    "return_range",
    "standard",
    "minus_one",
    "times_4_minus_2",
    "times_10_minus_5",
    "times_10_plus_5",
    "times_100",
]

FIXED_REWARDS: dict[str, tuple[float, float]] = {
    "none": (1.0, 0.0),
    "minus_one": (1.0, 1.0),
    "times_4_minus_2": (4.0, 0.5),
    "times_10_minus_5": (10.0, 0.5),
    "times_10_plus_5": (10.0, -0.5),
    "times_100": (100.0, 0.0),
}
"""Scale and shift that are not fitted. On AntMaze's rewards of 0 and 1: IQL subtracts 1, CQL
(official script) takes 4 r - 2, Cal-QL 10 r - 5, ReBRAC 100 r; on binary Adroit Cal-QL 10 r + 5."""

RETURN_RANGE = 1000.0
"""What returns span after ``return_range``: IQL, official repo, train_offline.py."""

FRAME_SCALE = 20.0
"""Grey levels to one unit, our choice; docs/normalisation.md says why."""

STD_EPS = 1e-3
"""Added to the standard deviation: TD3+BC, official repo, utils.py."""


class ObsNormalizer(nn.Module):
    """Map raw observations to network inputs.

    :param obs_shape: shape of one observation, (D,) or (S, H, W) for stacked frames.
    :param kind: ``standard`` fits shift and scale to the data, ``255`` divides by 255, ``none``
        only casts to float32.
    """

    shift: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, obs_shape: tuple[int, ...], kind: ObsNorm = "standard") -> None:
        super().__init__()
        self.kind: ObsNorm = kind
        self.is_frames = len(obs_shape) == 3
        # One mean frame serves every place of the stack.
        shape = (1, *obs_shape[1:]) if self.is_frames else obs_shape
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(() if self.is_frames else shape))
        self.register_buffer("is_fitted", torch.tensor(kind != "standard"))
        if kind == "255":
            self.scale.fill_(255.0)

    def fit(self, replay: Replay) -> None:
        """Fit to all vectors, or about 20,000 frames evenly spaced, of the data, once.

        A fitted or restored normaliser is left alone.
        """
        if bool(self.is_fitted):
            return
        if self.is_frames:
            # A frame is far larger than a vector, and fewer rows do for its mean.
            rows = replay.rows[:: max(1, len(replay) // 20_000)]
            frame_shape = self.shift.shape[1:]
            total = torch.zeros(frame_shape, dtype=torch.float64)
            count = 0
            for chunk in torch.split(rows, 1024):
                frames = replay.obs[chunk].reshape(-1, *frame_shape)
                total += frames.sum(0, dtype=torch.float64).cpu()
                count += len(frames)
            self.shift.copy_((total / count).unsqueeze(0))
            self.scale.fill_(FRAME_SCALE)
        else:
            chunks = torch.split(replay.rows, 1 << 16)
            mean = torch.zeros_like(self.shift, dtype=torch.float64)
            variance = mean.clone()
            for chunk in chunks:
                mean += replay.observations(chunk).double().sum(0) / len(replay)
            for chunk in chunks:
                apart = replay.observations(chunk).double() - mean
                variance += apart.square().sum(0) / len(replay)
            self.shift.copy_(mean)
            self.scale.copy_(variance.sqrt() + STD_EPS)
        self.is_fitted.fill_(True)

    def forward(self, obs: Tensor) -> Tensor:
        """Normalise observations (B, ...) of any number type to float32 (B, ...)."""
        if self.kind == "none":
            return obs.float()
        # uint8 minus float32 promotes to float32 in one pass over the frames.
        return (obs - self.shift).div_(self.scale)


class RewardNormalizer(nn.Module):
    """Map rewards to ``scale * (rew - shift)``, the same for logged and for new ones.

    :param kind: ``return_range`` makes the returns of the data's episodes span 1000 (IQL,
        arXiv 2110.06169, section 5.1), ``standard`` subtracts their mean and divides by their
        deviation (EDAC on Adroit), the others are those of ``FIXED_REWARDS``.
    """

    shift: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, kind: RewardNorm = "none") -> None:
        super().__init__()
        self.kind: RewardNorm = kind
        scale, shift = FIXED_REWARDS.get(kind, (1.0, 0.0))
        self.register_buffer("shift", torch.tensor(shift))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("is_fitted", torch.tensor(kind in FIXED_REWARDS))

    def fit(self, replay: Replay) -> None:
        """Fit to the data once; a fitted or restored normaliser is left alone.

        :raises InputError: if all returns, or all rewards, are the same.
        """
        if bool(self.is_fitted):
            return
        rew = replay.rew[replay.rows.to(replay.rew.device)].double()
        if self.kind == "return_range":
            returns = episode_returns(replay)
            spread = float(returns.max() - returns.min())
            what = f"the returns of {len(returns)} episodes"
        else:
            spread, what = float(rew.std(correction=0)), f"{len(rew)} rewards"
        if not spread > 0.0:
            raise InputError(
                f"expected rewards that differ for reward_norm {self.kind}, got the same in "
                f"{what}; pass --reward-norm none"
            )
        if self.kind == "return_range":
            self.scale.fill_(RETURN_RANGE / spread)
        else:
            self.shift.copy_(rew.mean())
            self.scale.fill_(1.0 / spread)
        self.is_fitted.fill_(True)

    def forward(self, rew: Tensor) -> Tensor:
        """Normalise single-step rewards of any shape."""
        return rew if self.kind == "none" else (rew - self.shift) * self.scale


def episode_returns(replay: Replay) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the undiscounted return of each episode, in the order of the rows, (E,).

    An episode ends where no transition follows; one that the data cut counts as it is.
    """
    episodes = replay.episodes()
    rows = torch.cat(episodes)
    rew = replay.rew[rows.to(replay.rew.device)].double().cpu().numpy()
    starts = np.cumsum([0, *(len(episode) for episode in episodes[:-1])])
    returns: np.ndarray[tuple[int], np.dtype[np.float64]] = np.add.reduceat(rew, starts)
    return returns
