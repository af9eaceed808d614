"""Sampling a buffer that is still being filled, as an online collector does.

``GrowingReplay`` stages rows as they come, never the whole again; ``DirectReplay`` reads frames,
and buffers without ``obs_next``, where they lie. Both sample with the policy's own generator: a run
that is resumed draws the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tianshou_ext.data.replay import Transitions, as_act, n_step_return
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

Array = np.ndarray[Any, Any]


class Growing:
    """What both ways share: which rows are filled, and drawing some of them.

    :param buffer: of one or several environments; may be a ring that overwrites its oldest rows.
    :param device: where batches are wanted.
    :param transform: of single-step rewards.
    :param next_act: give the data's next action too; where the buffer has none yet, and at
        truncations, it is the row's own.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        device: torch.device | str = "cpu",
        *,
        transform: Callable[[Tensor], Tensor] = lambda rew: rew,
        next_act: bool = False,
    ) -> None:
        self.buffer = buffer
        self.transform = transform
        self.next_act = next_act
        self.device = torch.device(device)
        self._subs = list(getattr(buffer, "buffers", [buffer]))
        self._sizes = np.array([sub.maxsize for sub in self._subs])
        self._starts = np.cumsum([0, *self._sizes[:-1]]).astype(np.int64)
        self._filled = np.zeros(len(self._subs), dtype=np.int64)
        self._inserted = np.zeros(len(self._subs), dtype=np.int64)  # where the next row would go

    def __len__(self) -> int:
        return int(self._filled.sum())

    def sync(self) -> None:
        """Take notice of the rows that were added since the last call."""
        self._filled = np.array([len(sub) for sub in self._subs])
        self._inserted = np.array([int(sub._insertion_idx) for sub in self._subs])

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the row of each filled one's number (B,) in [0, len)."""
        if len(self._subs) == 1:
            return numbers
        ends = np.cumsum(self._filled)
        sub = torch.searchsorted(torch.from_numpy(ends), numbers, right=True)
        return numbers + torch.from_numpy(self._starts - ends + self._filled)[sub]

    def rows_by_age(self, ages: Tensor) -> Tensor:
        """Return the rows (B,) that have the ages (B,): 0 is the newest, len - 1 the oldest."""
        age = ages.numpy()
        sub, back = age % len(self._subs), age // len(self._subs)
        back = np.minimum(back, self._filled[sub] - 1)
        place = (self._inserted[sub] - 1 - back) % self._sizes[sub]
        return torch.from_numpy(self._starts[sub] + place)

    def gather(self, rows: Tensor, *, gamma: float = 0.99, n_step: int = 1) -> Transitions:
        """Return the transitions at ``rows`` as ``Replay.gather`` does."""
        raise NotImplementedError

    def sample(
        self,
        batch_size: int | None,
        generator: torch.Generator | None = None,
        *,
        gamma: float = 0.99,
        n_step: int = 1,
    ) -> Transitions:
        """Return transitions as ``Replay.sample`` does."""
        if batch_size:
            numbers = torch.randint(len(self), (batch_size,), generator=generator)
        elif batch_size is None:
            numbers = torch.randperm(len(self), generator=generator)
        else:
            numbers = torch.arange(len(self))
        return self.gather(self.rows(numbers), gamma=gamma, n_step=n_step)


class GrowingReplay(Growing):
    """Vectors of a ``ReplayBuffer`` that stores ``obs_next``, staged as they are added.

    :param returns_to_go: from the rewards (T,) of an episode to its returns (T,), where batches
        are to hold them; they are known from the episode's end on.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        device: torch.device | str = "cpu",
        *,
        returns_to_go: Callable[[Array], Array] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(buffer, device, **options)
        self.returns_to_go = returns_to_go
        self.returns = torch.full((buffer.maxsize,), -torch.inf, device=self.device)
        self._open = [np.zeros(0, np.int64) for _ in self._subs]  # rows of unfinished episodes
        self._columns: dict[str, Tensor] = {}
        self.next = torch.arange(buffer.maxsize)
        self.follows = torch.zeros(buffer.maxsize, dtype=torch.bool)

    @staticmethod
    def suits(buffer: ReplayBuffer) -> bool:
        """Whether ``buffer`` holds vectors, or nothing yet, and what follows each of them."""
        keys = [*buffer._meta.get_keys()]
        if not buffer._save_obs_next or buffer.stack_num > 1:
            return False
        if not keys:
            return True
        if "obs_next" not in keys:
            return False
        return isinstance(buffer.obs, np.ndarray) and buffer.obs.dtype != np.uint8

    def sync(self) -> None:
        """Stage the rows that were added since the last call.

        :raises InputError: if they hold NaN or infinity.
        """
        for k, sub in enumerate(self._subs):
            filled, inserted = len(sub), int(sub._insertion_idx)
            if filled < self._filled[k]:  # the buffer was reset
                self._filled[k] = self._inserted[k] = 0
            added = int(inserted - self._inserted[k]) % sub.maxsize
            if not self._filled[k] or self._newest_is_gone(k):  # stage all that is there
                added, self._filled[k] = filled, 0
                self._inserted[k] = inserted - filled
                self._open[k] = self._open[k][:0]
            places = (self._inserted[k] + np.arange(added)) % sub.maxsize
            if added:
                before = (self._inserted[k] - 1) % sub.maxsize if self._filled[k] else None
                self._stage(self._starts[k] + places)
                self._join(self._starts[k], places, before)
            if self.returns_to_go is not None:
                self._finish_episodes(k, self._starts[k] + places, self.returns_to_go)
            self._filled[k], self._inserted[k] = filled, inserted

    def _newest_is_gone(self, k: int) -> bool:
        """Whether the row staged last was overwritten: a whole ring was added since."""
        if not self._filled[k]:
            return False
        row = int(self._starts[k] + (self._inserted[k] - 1) % self._subs[k].maxsize)
        staged = self._columns["obs"][row].cpu().numpy()
        return not np.array_equal(staged, self.buffer._meta["obs"][row].astype(np.float32))

    def _stage(self, rows: Array) -> None:
        at = torch.from_numpy(rows)
        for key in ("obs", "act", "rew", "terminated", "obs_next"):
            values = np.asarray(self.buffer._meta[key][rows])
            values = as_act(values) if key == "act" else values.astype(np.float32)
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise InputError(
                    f"expected finite numbers in the buffer's {key}, got NaN or infinity in row "
                    f"{int(rows[~np.isfinite(values).reshape(len(rows), -1).all(1)][0])}; the "
                    "environment or the policy has failed there"
                )
            if key not in self._columns:
                shape = (self.buffer.maxsize, *values.shape[1:])
                new = torch.zeros(shape, dtype=torch.from_numpy(values).dtype)
                self._columns[key] = new.to(self.device)
            staged = torch.from_numpy(values).to(self.device)
            if key == "rew":
                staged = self.transform(staged)
            self._columns[key][at.to(self.device)] = staged

    def _join(self, start: int, places: Array, before: int | None) -> None:
        """Note what follows what: each new row its predecessor, unless that ended an episode."""
        chain = start + (places if before is None else np.concatenate([[before], places]))
        goes_on = torch.from_numpy(~np.asarray(self.buffer.done[chain[:-1]], dtype=bool))
        here, after = torch.from_numpy(chain[:-1]), torch.from_numpy(chain[1:])
        self.next[here] = torch.where(goes_on, after, here)
        self.follows[here] = goes_on
        newest = int(chain[-1])
        self.next[newest], self.follows[newest] = newest, False

    def _finish_episodes(
        self, k: int, rows: Array, returns_to_go: Callable[[Array], Array]
    ) -> None:
        """Note the returns of the episodes that have ended; a cut ends one after it was staged."""
        self.returns[torch.from_numpy(rows).to(self.device)] = -torch.inf
        going_on = np.concatenate([self._open[k], rows])
        ends = np.flatnonzero(np.asarray(self.buffer.done[going_on], dtype=bool)) + 1
        *ended, self._open[k] = np.split(going_on, ends)
        # Of an episode as long as the ring the first rows are overwritten.
        self._open[k] = self._open[k][-self._sizes[k] :]
        for episode in ended:
            at = torch.from_numpy(episode[-self._sizes[k] :]).to(self.device)
            returns = returns_to_go(self._columns["rew"][at].cpu().numpy())
            known = np.ascontiguousarray(returns, np.float32)
            self.returns[at] = torch.from_numpy(known).to(self.device)

    def gather(self, rows: Tensor, *, gamma: float = 0.99, n_step: int = 1) -> Transitions:
        here, columns = rows.to(self.device), self._columns
        last, rew, discount = n_step_return(
            rows, columns["rew"], self.follows, self.next, gamma, n_step
        )
        end = last.to(self.device)
        return Transitions(
            obs=columns["obs"][here],
            act=columns["act"][here],
            rew=rew,
            terminated=columns["terminated"][end],
            obs_next=columns["obs_next"][end],
            discount=discount,
            act_next=columns["act"][self.next[last].to(self.device)] if self.next_act else None,
            returns=self.returns[here] if self.returns_to_go is not None else None,
            has_act_next=self.follows[last].to(self.device) if self.next_act else None,
        )


class DirectReplay(Growing):
    """Frames, or rows without ``obs_next``, read from Tianshou's buffer through its own indices.

    Slower than staged rows. Rows without a known successor are left out, so that a batch may be a
    few rows smaller.
    """

    def gather(self, rows: Tensor, *, gamma: float = 0.99, n_step: int = 1) -> Transitions:
        buffer, first = self.buffer, rows.numpy()
        known = self._has_successor(first)
        first = first[known] if known.any() else first
        last, rew = first, self._rewards(first)
        discount = torch.full_like(rew, gamma)
        for k in range(1, n_step):
            following = np.asarray(buffer.next(last))
            goes_on = (following != last) & ~np.asarray(buffer.done[last], dtype=bool)
            goes_on &= self._has_successor(following)
            last = np.where(goes_on, following, last)
            alive = torch.from_numpy(goes_on)
            rew = rew + alive * discount * self._rewards(last)
            discount = torch.where(alive, gamma ** (k + 1), discount)
        here, end = buffer[first], buffer[last]
        act_next: Tensor | None = None
        has_act_next: Tensor | None = None
        if self.next_act:
            following = np.asarray(buffer.next(last))
            act_next = torch.as_tensor(as_act(np.asarray(buffer.act[following])))
            has_act_next = torch.as_tensor(
                (following != last) & ~np.asarray(buffer.done[last], bool)
            )
        return Transitions(
            obs=torch.as_tensor(np.asarray(here.obs)),
            act=torch.as_tensor(as_act(np.asarray(here.act))),
            rew=rew,
            terminated=torch.as_tensor(np.asarray(end.terminated), dtype=torch.float32),
            obs_next=torch.as_tensor(np.asarray(end.obs_next)),
            discount=discount,
            act_next=act_next,
            has_act_next=has_act_next,
        ).to(self.device)

    def _rewards(self, rows: Array) -> Tensor:
        rew = torch.as_tensor(np.asarray(self.buffer.rew[rows], dtype=np.float32))
        return self.transform(rew.to(self.device)).cpu()

    def _has_successor(self, rows: Array) -> Array:
        """Whether what followed is stored: not at the newest row, nor at a truncated one."""
        if self.buffer._save_obs_next:
            return np.ones(len(rows), dtype=bool)
        ended = np.asarray(self.buffer.terminated[rows], dtype=bool)
        known: Array = (np.asarray(self.buffer.next(rows)) != rows) | ended
        return known
