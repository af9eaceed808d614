"""Select the best episodes of a buffer: the data of %BC (filtered cloning), arXiv 2106.01345."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tianshou_ext.data.replay import neighbours, rows_in_time
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

__all__ = ["top_episodes"]

Array = np.ndarray[Any, Any]

ROUNDING = 1e-6
"""Of a step or an episode, so that 0.55 of 100 is 55 and not 56."""


def top_episodes(
    buffer: ReplayBuffer,
    fraction: float,
    *,
    gamma: float = 1.0,
    by: Literal["steps", "episodes"] = "steps",
) -> ReplayBuffer:
    """Return a new buffer with the best episodes, in the order in which they were logged.

    Whole episodes only, at least one, ranked by return; of equal ones the earlier is better. An
    episode that neither terminated nor was truncated has no return to rank it by and is left out,
    whatever the fraction; one that was cut and marked as truncated, as where data were cut at a
    number of rows, is ranked by what it has. Rows must be in order of time within an episode.

    :param buffer: of vectors or frames, of one or several environments; not changed.
    :param fraction: share to keep, in (0, 1].
    :param gamma: discount of the return, in [0, 1]. Where all returns are 0 or 1, as in AntMaze, a
        discount below 1 ranks by speed.
    :param by: what the fraction counts. ``steps``: from the best episode downwards until that
        share of the time steps is reached (Decision Transformer, whose code stops one episode
        earlier); ``episodes``: that share of the episodes, rounded down (CORL).
    :raises InputError: if an argument is out of range or the buffer holds no finished episode.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"expected a fraction of the data in (0, 1], got {fraction}; change it")
    if not 0.0 <= gamma <= 1.0:
        raise InputError(f"expected gamma in [0, 1], got {gamma}; change it")
    if by not in ("steps", "episodes"):
        raise InputError(f"expected by to be steps or episodes, got {by}; change it")
    if len(buffer) == 0:
        raise InputError("expected a buffer with transitions, got an empty one; fill it first")
    rew = np.asarray(buffer.rew)
    if rew.ndim != 1 or not np.issubdtype(rew.dtype, np.number):
        raise InputError(
            f"expected one reward a step, got shape {rew.shape} of {rew.dtype}; convert the rewards"
        )
    rows = rows_in_time(buffer)
    starts, stops, is_transition, finished = _episodes(buffer, rows)
    lengths = np.add.reduceat(is_transition.astype(np.int64), starts)
    weights = np.power(gamma, np.arange(len(rows)) - np.repeat(starts, stops - starts))
    returns = np.add.reduceat(np.where(is_transition, rew[rows], 0.0) * weights, starts)  # (E,)
    candidates = np.flatnonzero(finished & (lengths > 0))
    if len(candidates) == 0:
        raise InputError(
            f"expected at least one episode that terminated or was truncated, got {len(rows)} rows "
            "without an end; use data that mark where episodes end"
        )
    if not np.isfinite(returns[candidates]).all():
        raise InputError(
            "expected finite rewards to rank episodes by, got NaN or infinity; repair or drop them"
        )
    order = candidates[np.argsort(-returns[candidates], kind="stable")]
    if by == "steps":
        reached = np.cumsum(lengths[order])
        num = int(np.searchsorted(reached, fraction * reached[-1] - ROUNDING)) + 1
    else:
        num = max(1, int(fraction * len(order) + ROUNDING))
    kept = np.zeros(len(starts), dtype=bool)
    kept[order[:num]] = True
    return _copy_rows(buffer, rows[np.repeat(kept, stops - starts)])


def _episodes(buffer: ReplayBuffer, rows: Array) -> tuple[Array, Array, Array, Array]:
    """Cut ``rows`` into episodes.

    :return: first and end position of each, (E,); which rows are transitions, (M,); which episodes
        terminated or were truncated, (E,).
    :raises InputError: if the rows are in no order of time.
    """
    _, next_row = neighbours(buffer)
    last = next_row[rows] == rows  # (M,)
    stops = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], stops[:-1]])
    terminated = np.asarray(buffer.terminated, dtype=bool)[rows]
    ended = terminated | np.asarray(buffer.truncated, dtype=bool)[rows]
    if len(rows) > 1 and last.all() and not terminated.all():
        raise InputError(
            f"expected episodes in order of time, got {len(rows)} single steps that each end one; "
            "use the data as they were before they were shuffled"
        )
    stores_next = bool(buffer._save_obs_next) and "obs_next" in buffer._meta.get_keys()
    # Without a stored successor, the last row of a truncated episode only holds an observation.
    is_transition = np.ones(len(rows), dtype=bool) if stores_next else ~last | terminated
    return starts, stops, is_transition, ended[stops - 1]


def _copy_rows(buffer: ReplayBuffer, rows: Array) -> ReplayBuffer:
    """Return a full buffer of ``rows``, which hold whole episodes, with the same options."""
    options = {
        "stack_num": buffer.stack_num,
        "ignore_obs_next": not buffer._save_obs_next,
        "save_only_last_obs": buffer._save_only_last_obs,
        "sample_avail": buffer._sample_avail,
    }
    copied = ReplayBuffer(len(rows), **options)
    copied._meta = buffer._meta[rows]
    copied._size = len(rows)
    copied.last_index = np.array([len(rows) - 1])
    return copied
