"""Windows of consecutive steps out of a staged replay, with their returns-to-go.

A window starts at a step drawn uniformly from all (which is an episode with probability
proportional to its length, then a uniform step of it: arXiv 2106.01345, official gym code), and
ends after K steps or with the episode, the rest being padding. Nothing is copied: a table says
which row follows which, rows are gathered from the replay when a window is drawn, and of stacked
frames each is gathered once.

The return-to-go of step t is the undiscounted sum of the rewards from t to the end of the episode,
also beyond the window; for a constant reward c and T steps it is ``c * (T - t)``. A time-out ends
an episode as a terminal does. An episode that the data cut (neither terminated nor truncated at its
last row) has no known returns and is left out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError

MUCH_LEFT_OUT = 0.25
"""Share of the steps above which leaving out unfinished episodes is worth a warning."""


@dataclass
class Windows:
    """A batch of windows of K steps as tensors on one device; what is padded repeats the last step.

    :param obs: (B, K, ...) observations, as the environment gave them.
    :param act: (B, K) int64 or (B, K, A) float32.
    :param rtg: (B, K) float32 returns-to-go.
    :param time: (B, K) int64 steps since the beginning of the episode.
    :param mask: (B, K) float32, 1 where the step is real, 0 where it is padding.
    """

    obs: Tensor
    act: Tensor
    rtg: Tensor
    time: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.rtg)


class Sequences:
    """The finished episodes of a replay, as windows.

    :param replay: whose rows are gathered.
    :param steps: length K of a window.
    :raises InputError: if K is below 1, or no episode is finished.
    """

    def __init__(self, replay: Replay, steps: int) -> None:
        if steps < 1:
            raise InputError(f"expected windows of at least one step, got {steps}; change it")
        self.replay, self.steps = replay, steps
        finished = replay.finished_episodes()
        if not finished:
            raise InputError(
                f"expected at least one episode that ends, got {len(replay.episodes())} that go on "
                "at the last row; mark where episodes terminate or time out"
            )
        episodes = [episode for episode, _ in finished]
        self.order = torch.cat(episodes)
        """(N,) rows, episode by episode."""
        lost = 1.0 - len(self.order) / len(replay)
        if lost > MUCH_LEFT_OUT:
            warnings.warn(
                f"{lost:.0%} of the steps are left out: their episodes neither terminate nor time "
                "out in the data, so their returns are not known",
                stacklevel=2,
            )
        lengths = torch.tensor([len(episode) for episode in episodes])
        self.max_len = int(lengths.max())
        """Steps of the longest episode."""
        end = lengths.cumsum(0).repeat_interleave(lengths)  # (N,) where the next episode begins
        here = torch.arange(len(self.order))
        self.left = end - here
        """(N,) steps from here to the end of the episode, this one included."""
        self.time = lengths.repeat_interleave(lengths) - self.left
        rewards = replay.rew.double().cpu()
        extra = torch.stack([rewards[paid[len(own) :]].sum() for own, paid in finished])
        paid = torch.cat([torch.zeros(1, dtype=torch.float64), rewards[self.order].cumsum(0)])
        rtg = paid[end] - paid[here] + extra.repeat_interleave(lengths)
        self.rtg = rtg.float()
        """(N,) returns-to-go."""
        self.returns = rtg[self.time == 0].numpy()
        """(E,) returns of the episodes."""

    def __len__(self) -> int:
        return len(self.order)

    def sample(self, batch_size: int | None, generator: torch.Generator | None = None) -> Windows:
        """Return windows that start at steps drawn uniformly with replacement.

        :param batch_size: 0 returns the window of every step in order, None of every one shuffled.
        :param generator: source of the draws; torch's global one if None.
        """
        if batch_size == 0:
            return self.gather(torch.arange(len(self)))
        if batch_size is None:
            return self.gather(torch.randperm(len(self), generator=generator))
        return self.gather(torch.randint(len(self), (batch_size,), generator=generator))

    def gather(self, starts: Tensor) -> Windows:
        """Return the windows that start at ``starts``, (B,) places in ``order``."""
        ahead = torch.arange(self.steps)
        left = self.left[starts].unsqueeze(1)
        at = starts.unsqueeze(1) + torch.minimum(ahead, left - 1)  # (B, K)
        rows = self.order[at]
        device, act = self.replay.device, self.replay.act
        picked = act.index_select(0, rows.flatten().to(act.device)).to(device, non_blocking=True)
        return Windows(
            obs=self._observations(rows),
            act=picked.view(*rows.shape, *act.shape[1:]),
            rtg=self.rtg[at].to(device, non_blocking=True),
            time=self.time[at].to(device, non_blocking=True),
            mask=(ahead < left).float().to(device, non_blocking=True),
        )

    def _observations(self, rows: Tensor) -> Tensor:
        """Return the observations of windows, (B, K) rows to (B, K, ...)."""
        replay = self.replay
        if replay.stack is None:
            return replay.observations(rows.flatten()).view(*rows.shape, *replay.obs.shape[1:])
        # What a step sees is what the step before saw, moved on by one frame.
        needed = torch.cat([replay.stack[rows[:, 0]], rows[:, 1:]], dim=1)  # (B, S + K - 1)
        frames = replay.obs.index_select(0, needed.flatten())
        frames = frames.view(*needed.shape, *replay.obs.shape[1:])
        frames = frames.to(replay.device, non_blocking=True)
        return frames.unfold(1, replay.stack_num, 1).movedim(-1, 2)
