"""Windows of steps: their borders, padding, returns-to-go, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import EPISODES, make_pixel_buffer, make_vector_buffer
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.data.replay import Replay
from tianshou_ext.data.sequences import Sequences
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

K = 4
LENGTHS = [length for length, _ in EPISODES]
STARTS = np.cumsum([0, *LENGTHS[:-1]])


def sequences(buffer: ReplayBuffer, steps: int = K) -> Sequences:
    return Sequences(Replay(buffer), steps)


def row(value: float, *, rew: float = 1.0, terminated: bool = False, truncated: bool = False):
    """Return one step whose observation and action are ``value``."""
    obs = np.full(2, value, np.float32)
    ends = {"terminated": terminated, "truncated": truncated}
    return Batch(obs=obs, act=np.full(1, value), rew=rew, obs_next=obs, info={}, **ends)


def numbered(lengths: list[int], *, size: int | None = None, last_ends: bool = True, rew=1.0):
    """Return a buffer of episodes that time out, whose observations count on from 0."""
    buffer = ReplayBuffer(size or sum(lengths))
    count = 0
    for k, length in enumerate(lengths):
        for t in range(length):
            cut = k == len(lengths) - 1 and not last_ends
            buffer.add(row(count, rew=rew, truncated=t == length - 1 and not cut))
            count += 1
    return buffer


def test_windows_start_at_every_step_and_end_with_their_episode():
    buffer = make_vector_buffer("continuous")
    windows = sequences(buffer).sample(0)
    assert windows.obs.shape == (27, K, 3) and windows.act.shape == (27, K, 2)
    at = 0
    for start, length in zip(STARTS, LENGTHS, strict=True):
        for t in range(length):
            real = min(K, length - t)
            rows = slice(start + t, start + t + real)
            assert windows.mask[at].tolist() == [1.0] * real + [0.0] * (K - real)
            assert np.array_equal(windows.obs[at, :real], buffer.obs[rows])
            assert np.array_equal(windows.act[at, :real], buffer.act[rows])
            assert windows.time[at, :real].tolist() == [*range(t, t + real)]
            # Padding is inside the episode too: nothing of the next one is ever seen.
            assert (windows.time[at] < length).all()
            at += 1


def test_returns_to_go_are_sums_to_the_end_of_the_episode_also_beyond_the_window():
    buffer = make_vector_buffer()
    windows = sequences(buffer, steps=2).sample(0)
    expected = [
        buffer.rew[start + t : start + length].sum()
        for start, length in zip(STARTS, LENGTHS, strict=True)
        for t in range(length)
    ]
    assert np.allclose(windows.rtg[:, 0], expected, atol=1e-6)
    first = windows.rtg[:, 0] - windows.rtg[:, 1]  # the return at t includes the reward of t
    assert np.allclose(first[windows.mask[:, 1] > 0], buffer.rew[windows.mask[:, 1] > 0], atol=1e-6)


@pytest.mark.parametrize("rew", [0.0, -2.5, 1e-3, 1e6])
def test_returns_to_go_of_a_constant_reward(rew):
    windows = sequences(numbered([10, 1, 1000], rew=rew), steps=1).sample(0)
    expected = [rew * (length - t) for length in (10, 1, 1000) for t in range(length)]
    assert np.allclose(windows.rtg[:, 0], expected, rtol=1e-6)


def test_a_time_out_ends_an_episode_as_a_terminal_does():
    ends = numbered([3, 3]), numbered([3, 3])
    ends[1]._meta["terminated"], ends[1]._meta["truncated"] = ends[1].truncated, ends[1].terminated
    one, other = (sequences(buffer).sample(0) for buffer in ends)
    assert torch.equal(one.rtg, other.rtg) and torch.equal(one.mask, other.mask)
    assert one.rtg[:, 0].tolist() == [3, 2, 1, 3, 2, 1]


def test_an_episode_without_an_end_is_left_out_as_its_return_is_not_known():
    made = sequences(numbered([30, 5], last_ends=False))
    assert len(made) == 30 and made.max_len == 30
    assert made.sample(0).obs.max() == 29
    with pytest.warns(UserWarning, match="50% of the steps are left out"):
        sequences(numbered([5, 5], last_ends=False))


def test_data_without_any_end_get_one_sentence():
    with pytest.raises(InputError, match=r"at least one episode that ends, got 1 that go") as error:
        sequences(numbered([20], last_ends=False))
    assert "\n" not in str(error.value)


def test_windows_of_no_step_get_one_sentence():
    with pytest.raises(InputError, match="windows of at least one step, got 0"):
        sequences(make_vector_buffer(), steps=0)


def test_a_ring_that_has_come_round_gives_whole_episodes():
    buffer = numbered([7, 4, 6], size=12)  # rows 0 to 4 are overwritten by the third episode
    made = sequences(buffer)
    windows = made.sample(0)
    assert np.allclose(made.returns, [2, 4, 6])  # of the first, two steps are left
    wrapped = windows.obs[windows.time[:, 0] == 0][-1, :, 0]
    assert wrapped.tolist() == [11, 12, 13, 14]
    assert windows.time.max() == 5


def test_several_environments_in_one_buffer_do_not_mix():
    buffer = VectorReplayBuffer(40, 2)
    for t in range(12):
        both = [row(100 * k + t, rew=k, truncated=t % 4 == 3) for k in range(2)]
        buffer.add(Batch.stack(both), buffer_ids=[0, 1])
    windows = sequences(buffer, steps=6).sample(0)
    assert len(windows) == 24 and windows.mask.sum(1).max() == 4
    real = windows.mask.bool()
    for k in range(24):
        seen = windows.obs[k, real[k], 0]
        assert np.array_equal(np.diff(seen), np.ones(len(seen) - 1))
        assert (windows.rtg[k, real[k]] == (seen >= 100) * (4 - windows.time[k, real[k]])).all()


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_frames_of_a_window_are_those_that_each_step_saw(steps):
    buffer = make_pixel_buffer()
    replay = Replay(buffer)
    made = Sequences(replay, steps)
    windows = made.sample(0)
    assert windows.obs.dtype == torch.uint8 and windows.obs.shape == (18, steps, 4, 44, 44)
    for k in range(len(made)):
        real = int(windows.mask[k].sum())
        assert torch.equal(windows.obs[k, :real], replay.observations(made.order[k : k + real]))


def test_frames_are_gathered_once_not_once_for_each_step_that_sees_them():
    windows = sequences(make_pixel_buffer(), steps=6).sample(5)
    frames = windows.obs.untyped_storage().nbytes() / (44 * 44)
    assert frames == 5 * (6 + 3)


def test_full_stacks_in_every_row_work_too():
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(6)
    for t in range(6):
        obs = rng.integers(0, 256, (4, 8, 8), dtype=np.uint8)
        one = row(t, truncated=t == 5)
        one.obs, one.obs_next = obs, obs
        buffer.add(one)
    windows = sequences(buffer).sample(0)
    assert np.array_equal(windows.obs[1, :4], buffer.obs[1:5])


def test_the_row_that_timed_out_pays_its_reward_where_it_is_no_transition():
    """A buffer without ``obs_next`` cannot use a row that was cut; its reward still counts."""
    buffer = ReplayBuffer(4, ignore_obs_next=True)
    for t in range(4):
        buffer.add(row(t, rew=10.0, truncated=t == 3))
    windows = sequences(buffer).sample(0)
    assert windows.rtg[:, 0].tolist() == [40, 30, 20]


def test_steps_are_drawn_uniformly_so_episodes_by_their_length():
    made = sequences(numbered([90, 10]), steps=2)
    drawn = made.sample(4000, torch.Generator().manual_seed(0)).obs[:, 0, 0].long()
    assert (drawn < 90).float().mean() == pytest.approx(0.9, abs=0.02)
    assert len(drawn.unique()) == 100
    again = made.sample(4000, torch.Generator().manual_seed(0)).obs[:, 0, 0].long()
    assert torch.equal(drawn, again)
    shuffled = made.sample(None, torch.Generator().manual_seed(1)).obs[:, 0, 0].long()
    assert sorted(shuffled.tolist()) == [*range(100)] != shuffled.tolist()


def test_nothing_of_the_data_is_copied():
    buffer = make_pixel_buffer()
    made = sequences(buffer)
    assert made.replay.obs.data_ptr() == buffer.obs.ctypes.data
    tables = (made.order, made.left, made.time, made.rtg)
    assert all(table.ndim == 1 for table in tables)
