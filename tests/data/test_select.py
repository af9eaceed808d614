"""The best episodes of a buffer are whole, the right ones, and the same transitions as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.data.replay import Replay
from tianshou_ext.data.select import top_episodes
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

Episode = tuple[list[float], str]
"""Rewards, and how it ends: terminated, truncated, or not at all."""

EPISODES: list[Episode] = [
    ([1.0, 1.0, 1.0], "terminated"),  # return 3
    ([0.0, 5.0], "truncated"),  # 5
    ([4.0], "terminated"),  # 4
    ([0.0, 0.0, 0.0, 5.0], "truncated"),  # 5
]


def rows_of(index: int, episode: Episode) -> list[Batch]:
    """Return an episode's rows; ``obs`` is the episode's number and the time."""
    rewards, end = episode
    last = len(rewards) - 1
    return [
        Batch(
            obs=np.array([index, t], np.float32),
            act=np.array([0.1 * t], np.float32),
            rew=rew,
            terminated=t == last and end == "terminated",
            truncated=t == last and end == "truncated",
            obs_next=np.array([index, t + 1], np.float32),
            info={},
        )
        for t, rew in enumerate(rewards)
    ]


def make(episodes: list[Episode], size: int | None = None, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(size or sum(len(rewards) for rewards, _ in episodes), **options)
    for index, episode in enumerate(episodes):
        for row in rows_of(index, episode):
            buffer.add(row)
    return buffer


def kept(buffer: ReplayBuffer) -> list[int]:
    """Return the numbers of the episodes, in the order of the rows."""
    return list(dict.fromkeys(np.asarray(buffer.obs)[: len(buffer), 0].astype(int).tolist()))


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.01, [1]),
        (0.2, [1]),  # 2 of 10 steps
        (0.21, [1, 3]),  # the best two make 6
        (0.6, [1, 3]),
        (0.61, [1, 2, 3]),
        (0.7, [1, 2, 3]),
        (0.71, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_whole_episodes_from_the_best_until_the_share_of_steps_is_reached(fraction, expected):
    """Of equal returns the earlier episode comes first."""
    chosen = top_episodes(make(EPISODES), fraction)
    assert kept(chosen) == expected
    assert len(chosen) == sum(len(EPISODES[k][0]) for k in expected)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.1, [1]), (0.5, [1, 3]), (0.74, [1, 3]), (0.75, [1, 2, 3])]
)
def test_a_share_of_the_episodes(fraction, expected):
    assert kept(top_episodes(make(EPISODES), fraction, by="episodes")) == expected


def test_a_share_of_a_hundred_is_not_rounded_up_by_floating_point():
    episodes: list[Episode] = [([float(k)], "terminated") for k in range(100)]
    for by in ("steps", "episodes"):
        assert len(top_episodes(make(episodes), 0.55, by=by)) == 55


def test_a_discount_prefers_what_comes_early():
    """4 now is worth more than 0.5 * 5 in a step."""
    assert kept(top_episodes(make(EPISODES), 0.01, gamma=0.5)) == [2]
    slow_and_fast: list[Episode] = [([0.0, 0.0, 1.0], "terminated"), ([0.0, 1.0], "terminated")]
    assert kept(top_episodes(make(slow_and_fast), 0.01)) == [0]
    assert kept(top_episodes(make(slow_and_fast), 0.01, gamma=0.99)) == [1]


def test_an_unfinished_fragment_is_never_kept():
    """Its return so far, the highest here, says nothing."""
    buffer = make([*EPISODES, ([90.0, 90.0], "not at all")])
    for fraction in (0.01, 0.5, 1.0):
        for by in ("steps", "episodes"):
            assert 4 not in kept(top_episodes(buffer, fraction, by=by))
    with pytest.raises(InputError, match="at least one episode that terminated.*got 2 rows"):
        top_episodes(make([([90.0, 90.0], "not at all")]), 0.5)


def test_everything_is_the_same_batches_as_the_buffer_itself():
    buffer = make(EPISODES)
    replays = Replay(buffer), Replay(top_episodes(buffer, 1.0))
    batches = [r.sample(64, torch.Generator().manual_seed(3), n_step=3) for r in replays]
    for key in ("obs", "act", "rew", "terminated", "obs_next", "discount"):
        assert torch.equal(*(getattr(batch, key) for batch in batches)), key


def test_the_buffer_is_left_as_it_was_and_shares_no_memory():
    buffer = make(EPISODES)
    before = buffer.rew.copy()
    top_episodes(buffer, 1.0).rew[:] = 7.0
    assert np.array_equal(buffer.rew, before)
    assert len(buffer) == 10


def test_a_buffer_with_room_left():
    buffer = make(EPISODES, size=50)
    assert kept(top_episodes(buffer, 0.5)) == [1, 3]
    assert len(top_episodes(buffer, 1.0)) == 10


def test_a_ring_is_unrolled():
    """Of the first episode, the oldest two rows are overwritten; the last one goes over the end."""
    buffer = make(EPISODES, size=8)
    assert buffer.obs[:2, 0].tolist() == [3.0, 3.0]
    assert kept(top_episodes(buffer, 1.0)) == [0, 1, 2, 3]
    chosen = top_episodes(buffer, 0.7)
    assert kept(chosen) == [1, 3]
    assert chosen.obs[:, 1].tolist() == [0.0, 1.0, 0.0, 1.0, 2.0, 3.0]


def test_episodes_of_several_environments_are_told_apart():
    buffer = VectorReplayBuffer(24, 2)
    queues = [
        [row for k in (0, 1) for row in rows_of(k, EPISODES[k])],
        [row for k in (2, 3) for row in rows_of(k, EPISODES[k])],
    ]
    for pair in zip(*queues, strict=True):
        buffer.add(Batch.stack(list(pair)), buffer_ids=[0, 1])
    assert kept(top_episodes(buffer, 0.6)) == [1, 3]
    chosen = top_episodes(buffer, 1.0)
    assert kept(chosen) == [0, 1, 2, 3]
    assert Replay(chosen).follows.sum() == 6  # no episode goes on in the next one


def test_frames_keep_their_stacks_and_their_extra_rows(make_buffer):
    """Rows 0-5, 6-11 (the last only holds an observation) and 12-18 are the episodes."""
    buffer = make_buffer("pixel", "continuous")
    buffer._meta["rew"] = np.repeat([1.0, 3.0, 2.0], [6, 6, 7])
    chosen = top_episodes(buffer, 0.3)  # 5 transitions of 18 are not enough
    assert len(chosen) == 13
    assert (chosen.stack_num, chosen._save_obs_next) == (4, False)
    whole, part = Replay(buffer), Replay(chosen)
    assert part.rows.tolist() == [0, 1, 2, 3, 4, *range(6, 13)]
    old, new = whole.gather(part.rows + 6), part.gather(part.rows)
    for key in ("obs", "act", "rew", "terminated", "obs_next"):
        assert torch.equal(getattr(old, key), getattr(new, key)), key


def test_the_row_after_a_truncation_counts_neither_as_step_nor_as_reward(make_buffer):
    buffer = make_buffer("pixel", "continuous")
    buffer._meta["rew"] = np.ones(19)
    buffer.rew[11] = 100.0
    assert np.array_equal(top_episodes(buffer, 0.01).obs, buffer.obs[12:19])  # 7 steps against 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fraction": 0.0}, r"fraction of the data in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"fraction of the data in \(0, 1\], got 1.5"),
        ({"fraction": float("nan")}, "got nan"),
        ({"fraction": 0.5, "gamma": 1.1}, r"gamma in \[0, 1\], got 1.1"),
        ({"fraction": 0.5, "by": "rows"}, "steps or episodes, got rows"),
    ],
)
def test_arguments_out_of_range_give_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        top_episodes(make(EPISODES), **arguments)


def test_data_that_cannot_be_ranked_give_one_sentence():
    with pytest.raises(InputError, match="got an empty one"):
        top_episodes(ReplayBuffer(3), 0.5)
    buffer = make(EPISODES)
    buffer.rew[4] = np.nan
    with pytest.raises(InputError, match="finite rewards to rank"):
        top_episodes(buffer, 0.5)
    buffer._meta["rew"] = np.ones((10, 2))
    with pytest.raises(InputError, match=r"one reward a step, got shape \(10, 2\)"):
        top_episodes(buffer, 0.5)
    shuffled = make([([float(k)], "truncated" if k else "terminated") for k in range(6)])
    with pytest.raises(InputError, match="episodes in order of time, got 6 single steps"):
        top_episodes(shuffled, 0.5)
    bandit = make([([float(k)], "terminated") for k in range(6)])
    assert kept(top_episodes(bandit, 0.3)) == [4, 5]
