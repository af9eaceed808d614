"""Staged replay: a Tianshou buffer laid out so that sampling a batch is one gather.

``Replay`` is made once from a ``ReplayBuffer``. Low-dimensional data become contiguous float32
tensors on the policy's device. Image stacks stay what they are in the buffer, one uint8 frame a
row shared with the buffer's memory (or its memory map), and are assembled by index:

    obs[i]      = frames[stack[i]]              (S, H, W)
    obs_next[i] = frames[stack[next_row[i]]]

``stack[i]`` goes back through the rows of the same episode and repeats the first one, exactly as
Tianshou's own ``stack_num`` does. Tianshou's wrong neighbours after ``from_data`` (row 0 precedes
itself, the last row is followed by row 0) are put right here.

A row is sampled only if its successor is known: where ``obs_next`` is not stored, a truncated row
has none, so it is left out. Writers use that to keep the final observation of a truncated episode
as one extra row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch
from torch import Tensor

from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

Array = np.ndarray[Any, Any]


@dataclass
class Transitions:
    """A batch of transitions as tensors on one device.

    :param obs: (B, ...) observations, as the environment gave them (uint8 frames, float32 else).
    :param act: (B,) int64 or (B, A) float32.
    :param rew: (B,) float32, the discounted sum of n rewards.
    :param terminated: (B,) float32, 1 where the episode truly ended within the n steps.
    :param obs_next: (B, ...) the observation that the n steps lead to.
    :param discount: (B,) float32, gamma to the number of steps taken; a target is
        ``rew + discount * (1 - terminated) * value(obs_next)``.
    :param act_next: (B, A) the data's action at ``obs_next``, where a method asks for it;
        meaningless where ``terminated``.
    :param returns: (B,) float32, the return to go from ``obs``, where a method asks for it; -inf
        where it is not known, in an episode that is still going on.
    :param has_act_next: (B,) bool, whether an action follows; else ``act_next`` is meaningless.
        None: wherever the episode did not terminate.
    """

    obs: Tensor
    act: Tensor
    rew: Tensor
    terminated: Tensor
    obs_next: Tensor
    discount: Tensor
    act_next: Tensor | None = None
    returns: Tensor | None = None
    has_act_next: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rew)

    def to(self, device: torch.device | str) -> Transitions:
        """Return the batch on ``device``."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in given.items() if v is not None}
        return Transitions(**moved)


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """Return one batch of several, which hold the same fields."""
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Transitions)}
    if any(known is not None for known in columns["has_act_next"]):
        columns["has_act_next"] = [
            torch.ones_like(part.terminated, dtype=torch.bool) if known is None else known
            for part, known in zip(parts, columns["has_act_next"], strict=True)
        ]
    given = {k: torch.cat(v) for k, v in columns.items() if all(part is not None for part in v)}
    return Transitions(**given)


def neighbours(buffer: ReplayBuffer) -> tuple[Array, Array]:
    """Return the previous and the next row of every row, (M,) int64 each.

    As ``buffer.prev`` and ``buffer.next``: a row at an episode's edge is its own neighbour. A
    buffer fresh from ``from_data`` is read as if its last row were the newest one.
    """
    size = buffer.maxsize
    done = np.asarray(buffer.done, dtype=bool)
    rows = np.arange(size)
    prev_row, next_row = rows - 1, rows + 1
    subs = list(getattr(buffer, "buffers", [buffer]))
    newest = np.array(buffer.last_index, dtype=np.int64)
    start = 0
    for k, sub in enumerate(subs):
        stop = start + sub.maxsize
        full = len(sub) == sub.maxsize
        prev_row[start] = stop - 1 if full else start
        next_row[stop - 1] = start
        if newest[k] == start and len(sub) > 1 and sub._insertion_idx == 0:
            newest[k] = stop - 1  # from_data leaves last_index at 0
        start = stop
    is_newest = np.zeros(size, dtype=bool)
    is_newest[newest] = True
    edge_after = done | is_newest
    next_row = np.where(edge_after, rows, next_row)
    prev_row = np.where(edge_after[prev_row], rows, prev_row)
    return prev_row, next_row


def filled_rows(buffer: ReplayBuffer) -> Array:
    """Return the rows of ``buffer`` that hold data, (M,) int64, in ascending order."""
    if not hasattr(buffer, "buffers"):
        return np.arange(len(buffer))
    starts = buffer.subbuffer_edges[:-1]
    parts = [s + np.arange(len(b)) for s, b in zip(starts, buffer.buffers, strict=True)]
    return np.concatenate(parts)


def rows_in_time(buffer: ReplayBuffer) -> Array:
    """Return the filled rows, (M,), the oldest of each sub-buffer first."""
    parts, start = [], 0
    for sub in getattr(buffer, "buffers", [buffer]):
        oldest = int(sub._insertion_idx) if len(sub) == sub.maxsize else 0
        parts.append(start + (oldest + np.arange(len(sub))) % sub.maxsize)
        start += sub.maxsize
    return np.concatenate(parts)


def as_act(values: Array) -> Array:
    """Return numbers of actions (N,) as int64, vectors (N, A) and others as float32."""
    numbered = values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
    dtype = np.int64 if numbered else np.float32
    return np.ascontiguousarray(values, dtype=dtype)


def n_step_return(
    rows: Tensor, rewards: Tensor, follows: Tensor, following: Tensor, gamma: float, n_step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum rewards over at most ``n_step`` steps, fewer where a row is not followed by another.

    :param rows: (B,) int64 where the steps start, on the CPU.
    :param rewards: (M,) of single steps, on the device where the sums are wanted.
    :param follows, following: (M,) whether a row goes on, and with which, on the CPU.
    :return: (B,) each: the last row, the discounted sum, gamma to the number of steps.
    """
    last, rew = rows, rewards.index_select(0, rows.to(rewards.device))
    discount = torch.full_like(rew, gamma)
    for k in range(1, n_step):
        goes_on = follows[last]
        last = torch.where(goes_on, following[last], last)
        alive = goes_on.to(rewards.device, torch.float32)
        rew = rew + alive * discount * rewards.index_select(0, last.to(rewards.device))
        discount = torch.where(alive > 0, gamma ** (k + 1), discount)
    return last, rew, discount


class Replay:
    """A ``ReplayBuffer`` staged for sampling.

    :param buffer: filled with transitions; not changed. Rows added later are not seen.
    :param device: where batches are wanted. Low-dimensional data are moved there once; frames
        stay in the buffer's memory and are moved batch by batch.
    :param next_act: give the data's next action too, and leave out rows that have none.
    :raises InputError: if the buffer is empty, holds no transition with a known successor, NaN
        or infinite rewards, observations or actions, or any of these that are no plain array.
    """

    def __init__(
        self, buffer: ReplayBuffer, device: torch.device | str = "cpu", *, next_act: bool = False
    ) -> None:
        if len(buffer) == 0:
            raise InputError("expected a buffer with transitions, got an empty one; fill it first")
        if not isinstance(buffer.obs, np.ndarray):
            keys = f" with keys {[*buffer.obs.keys()]}" if isinstance(buffer.obs, Batch) else ""
            raise InputError(
                "expected observations that are one array per step, got a "
                f"{type(buffer.obs).__name__}{keys}; flatten them first, "
                "for example with gymnasium.wrappers.FlattenObservation"
            )
        self.device = torch.device(device)
        rows = filled_rows(buffer)
        self.prev_row, self.next_row = neighbours(buffer)
        self.stack_num = int(buffer.stack_num)
        terminated = np.asarray(buffer.terminated, dtype=bool)
        truncated = np.asarray(buffer.truncated, dtype=bool)
        stores_next = bool(buffer._save_obs_next) and "obs_next" in buffer._meta.get_keys()

        self.obs = self._stage("obs", buffer.obs, rows)
        self.obs_next: Tensor | None = None
        usable = np.ones(len(rows), dtype=bool)
        if stores_next:
            self.obs_next = self._stage("obs_next", buffer.obs_next, rows)
        else:
            # Without a stored successor, only a later row or a true end says what came next.
            at_edge = self.next_row[rows] == rows
            usable = ~at_edge | terminated[rows]
        self.next_act = next_act
        filled = rows
        if next_act:
            ended = (self.next_row[rows] == rows) | truncated[rows]
            usable &= ~ended | terminated[rows]
        rows = rows[usable]
        if len(rows) == 0:
            raise InputError(
                "expected at least one transition that is followed by an action, got only the last "
                "rows of episodes that did not terminate; use longer episodes, or a method that "
                "does not need the next action"
                if next_act
                else "expected at least one transition with a known successor, got only truncated "
                "rows without obs_next; store obs_next or the observation after each episode"
            )
        self.act = self._stage_act(buffer.act, filled if next_act else rows)
        self.rew = self._stage("rew", buffer.rew, rows)
        if self.rew.ndim != 1:
            raise InputError(
                f"expected one reward a step, shape (N,), got {tuple(self.rew.shape)}; "
                "reshape the rewards"
            )
        self.terminated = torch.from_numpy(terminated.astype(np.float32)).to(self.device)
        self.rows = torch.from_numpy(rows)
        """(N,) int64: the rows that are transitions."""
        valid = np.zeros(buffer.maxsize, dtype=bool)
        valid[rows] = True
        # n-step returns stop at a terminal, at a stored truncation and before a row that is no
        # transition (the extra row with a truncated episode's last observation).
        follows = (self.next_row != np.arange(buffer.maxsize)) & valid[self.next_row]
        follows &= ~(terminated | truncated)
        self.follows = torch.from_numpy(follows)
        self.stack = self._stack_table() if self.stack_num > 1 else None
        self.next = torch.from_numpy(self.next_row)
        self.ended = torch.from_numpy(terminated | truncated)
        self.pays = (self.rew != 0.0).cpu()  # as the environment gave them, before any transform
        del self.prev_row, self.next_row
        self.returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of one observation, stack included."""
        single = tuple(self.obs.shape[1:])
        return (self.stack_num, *single) if self.stack is not None else single

    def _stage(self, key: str, values: Any, rows: Array) -> Tensor:
        if values.dtype == object:
            raise InputError(
                f"expected numbers in the buffer's {key}, got Python objects; "
                "give every step an array of the same shape"
            )
        if values.dtype == np.uint8:
            return torch.from_numpy(values)  # shares memory, also with a memory map
        staged = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        finite = torch.isfinite(staged[torch.from_numpy(rows)])
        if not finite.all():
            bad = int((~finite).flatten(1).any(1).sum() if finite.ndim > 1 else (~finite).sum())
            raise InputError(
                f"expected finite numbers in the buffer's {key}, got NaN or infinity in {bad} of "
                f"{len(rows)} rows; repair or drop those rows"
            )
        return staged.to(self.device)

    def _stage_act(self, values: Any, rows: Array) -> Tensor:
        if not isinstance(values, np.ndarray) or values.dtype == object:
            raise InputError(
                "expected actions that are a number or an array of the same shape at every step, "
                f"got {type(values).__name__} of others in the buffer; convert them first"
            )
        acts = as_act(values)
        if acts.dtype == np.float32:
            return self._stage("act", acts, rows)
        return torch.from_numpy(acts).to(self.device)

    def _stack_table(self) -> Tensor:
        columns = [np.arange(len(self.prev_row))]
        for _ in range(self.stack_num - 1):
            columns.append(self.prev_row[columns[-1]])
        return torch.from_numpy(np.stack(columns[::-1], axis=1).astype(np.int32))  # (M, S)

    def _pick(self, column: Tensor, rows: Tensor) -> Tensor:
        """Return ``rows`` of a staged column, on the device; faster than indexing by a tensor."""
        picked = column.index_select(0, rows.to(column.device))
        return picked.to(self.device, non_blocking=True)

    def observations(self, rows: Tensor) -> Tensor:
        """Return the observations at ``rows`` (B,), stacked, on the device: (B, ...)."""
        if self.stack is None:
            return self._pick(self.obs, rows)
        picked = self.stack[rows]  # (B, S)
        stacked = self.obs.index_select(0, picked.flatten())
        stacked = stacked.view(*picked.shape, *self.obs.shape[1:])  # (B, S, H, W)
        return stacked.to(self.device, non_blocking=True)

    def next_observations(self, rows: Tensor) -> Tensor:
        """Return the observations after ``rows`` (B,), on the device: (B, ...)."""
        if self.obs_next is None:
            return self.observations(self.next[rows])
        if self.stack is None:
            return self._pick(self.obs_next, rows)
        # The stack of what follows is the present one moved on by one frame.
        newest = self.obs_next[rows].unsqueeze(1).to(self.device, non_blocking=True)
        return torch.cat([self.observations(rows)[:, 1:], newest], dim=1)

    def gather(self, rows: Tensor, *, gamma: float = 0.99, n_step: int = 1) -> Transitions:
        """Return the transitions that start at ``rows``.

        :param rows: (B,) int64 row numbers of the buffer, on the CPU.
        :param gamma: discount factor in [0, 1].
        :param n_step: steps to sum rewards over; fewer where the episode ends before.
        """
        last, rew, discount = n_step_return(rows, self.rew, self.follows, self.next, gamma, n_step)
        return Transitions(
            obs=self.observations(rows),
            act=self._pick(self.act, rows),
            rew=rew,
            terminated=self._pick(self.terminated, last),
            obs_next=self.next_observations(last),
            discount=discount,
            act_next=self._pick(self.act, self.next[last]) if self.next_act else None,
            returns=None if self.returns is None else self._pick(self.returns, rows),
        )

    def transform_rewards(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Replace the staged rewards by ``transform`` of them."""
        self.rew = transform(self.rew)

    def episodes(self) -> list[Tensor]:
        """Return the rows of each episode in their order; the last may still be going on."""
        rows, following = self.rows, self.next
        goes_on = self.follows[rows]
        joined = goes_on[:-1] & (following[rows[:-1]] == rows[1:])
        cuts = torch.nonzero(~joined).flatten() + 1
        pieces = list(torch.tensor_split(rows, cuts))
        # An episode that a ring's end cuts goes on in another piece.
        starts = rows[torch.cat([torch.zeros(1, dtype=torch.int64), cuts])]
        ends = rows[torch.cat([cuts, torch.tensor([len(rows)])]) - 1]
        cut = torch.nonzero(self.follows[ends]).flatten()
        going_on = torch.searchsorted(starts, following[ends[cut]])
        after = dict(zip(cut.tolist(), going_on.tolist(), strict=True))
        begun = set(after.values())
        episodes = []
        for k, piece in enumerate(pieces):
            if k in begun:
                continue
            chain = [piece]
            while k in after:
                k = after[k]
                chain.append(pieces[k])
            episodes.append(piece if len(chain) == 1 else torch.cat(chain))
        return episodes

    def finished_episodes(self) -> list[tuple[Tensor, Tensor]]:
        """Return the rows of each episode that has ended, and the rows whose rewards it was paid.

        These have one more where the row that timed out has no stored successor: it is no
        transition, but was paid for (the row of an episode's final observation, which our own files
        have there, was not). An episode that the data cut is left out: its return is not known.
        """
        episodes = self.episodes()
        last = torch.stack([episode[-1] for episode in episodes])
        after = self.next[last]
        unused = self.ended[after] & ~self.ended[last]
        return [
            (episode, torch.cat([episode, row.view(1)]) if pays else episode)
            for episode, row, pays, known in zip(
                episodes,
                after,
                (unused & self.pays[after]).tolist(),
                (unused | self.ended[last]).tolist(),
                strict=True,
            )
            if known
        ]

    def set_returns(self, returns_to_go: Callable[[Array], Array]) -> None:
        """Give batches the return to go of their rows; -inf where the data cut the episode.

        :param returns_to_go: from the (transformed) rewards (T,) of an episode to its returns (T,).
        """
        rewards = self.rew.cpu().numpy()
        returns = np.full(len(rewards), -np.inf, np.float32)
        for episode, paid in self.finished_episodes():
            returns[episode.numpy()] = returns_to_go(rewards[paid.numpy()])[: len(episode)]
        self.returns = torch.from_numpy(returns).to(self.device)

    def sample(
        self,
        batch_size: int | None,
        generator: torch.Generator | None = None,
        *,
        gamma: float = 0.99,
        n_step: int = 1,
    ) -> Transitions:
        """Return ``batch_size`` transitions drawn uniformly with replacement.

        :param batch_size: 0 returns every transition in order, None every one shuffled, as
            Tianshou's buffers do.
        :param generator: source of the draws; torch's global one if None.
        """
        if batch_size == 0:
            rows = self.rows
        elif batch_size is None:
            rows = self.rows[torch.randperm(len(self.rows), generator=generator)]
        else:
            drawn = torch.randint(len(self.rows), (batch_size,), generator=generator)
            rows = self.rows[drawn]
        return self.gather(rows, gamma=gamma, n_step=n_step)
