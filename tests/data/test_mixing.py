"""What an online batch is made of: shares, ages and returns are those asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.data.growing import DirectReplay, GrowingReplay
from tianshou_ext.data.mixing import MixedReplay, Mixing
from tianshou_ext.data.normalize import episode_returns
from tianshou_ext.data.replay import Replay, concatenate
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

DATA, ONLINE = 300, 100


def fill(buffer: ReplayBuffer, count: int, first: float = 0.0, length: int = 10) -> ReplayBuffer:
    """Add rows whose observation and reward are their number, in episodes that terminate."""
    for t in range(count):
        row = Batch(
            obs=np.full(2, first + t, np.float32),
            act=np.zeros(1, np.float32),
            rew=first + t,
            terminated=t % length == length - 1,
            truncated=False,
            obs_next=np.full(2, first + t + 1, np.float32),
            info={},
        )
        if hasattr(buffer, "buffers"):
            buffer.add(Batch([row]), buffer_ids=[t % len(buffer.buffers)])
        else:
            buffer.add(row)
    return buffer


def mixed(online: int = ONLINE, steps: int = 0, **mixing: Any) -> MixedReplay:
    """Return data of rewards 0 to 299, beside rows of rewards from 1000 on."""
    data = Replay(fill(ReplayBuffer(DATA), DATA))
    growing = GrowingReplay(fill(ReplayBuffer(2 * ONLINE), online, 1000.0))
    replay = MixedReplay(data, growing, Mixing(**mixing), steps=lambda: steps)
    replay.sync()
    return replay


def draw(replay: MixedReplay, size: int = 20_000) -> np.ndarray[Any, Any]:
    return replay.sample(size, torch.Generator().manual_seed(0)).rew.numpy()


def test_appended_rows_are_drawn_like_those_of_the_data_set():
    rew = draw(mixed(kind="append"))
    assert abs((rew >= 1000).mean() - ONLINE / (DATA + ONLINE)) < 0.01
    assert set(rew.tolist()) == {*range(DATA), *range(1000, 1000 + ONLINE)}


@pytest.mark.parametrize(("steps", "share"), [(0, 0.8), (500, 0.5), (1000, 0.2), (9000, 0.2)])
def test_a_balanced_batch_holds_exactly_the_annealed_share(steps, share):
    replay = mixed(
        steps=steps,
        kind="balanced",
        offline_share=0.8,
        final_offline_share=0.2,
        anneal_steps=1000,
    )
    for _ in range(3):
        assert (draw(replay, 100) < 1000).sum() == round(100 * share)


def test_by_recency_a_row_is_drawn_half_as_often_for_each_half_life_of_its_age():
    rew = draw(mixed(kind="priority", half_life=20), 200_000)
    counts = np.bincount(rew[rew >= 1000].astype(int) - 1000, minlength=ONLINE)
    expected = 0.5 ** (np.arange(ONLINE)[::-1] / 20)
    total = expected.sum() + 0.5 ** (ONLINE / 20) * (0.5 ** (np.arange(DATA) / 20)).sum()
    assert np.abs(counts / len(rew) - expected / total).max() < 0.002
    assert abs((rew < 1000).mean() - 0.5 ** (ONLINE / 20)) < 0.005
    assert np.bincount(rew[rew < 1000].astype(int), minlength=DATA).max() < 60  # none preferred


def test_a_long_half_life_draws_uniformly():
    rew = draw(mixed(kind="priority", half_life=10**9))
    assert abs((rew >= 1000).mean() - ONLINE / (DATA + ONLINE)) < 0.01


def test_before_the_first_online_row_batches_are_the_data_sets():
    for kind in ("append", "balanced", "priority"):
        assert draw(mixed(online=0, kind=kind), 50).max() < 1000


@pytest.mark.parametrize(("share", "least", "rows"), [(0.1, 0, 30), (0.1, 50, 50), (0.0, 50, 0)])
def test_only_a_drawn_part_of_the_data_set_stays(share, least, rows):
    replay = mixed(data_share=share, min_data_rows=least)
    kept = {one for one in draw(replay).tolist() if one < 1000}
    assert len(replay.rows) == len(kept) == rows
    assert replay.rows.tolist() == mixed(data_share=share, min_data_rows=least).rows.tolist()
    if rows:
        assert max(kept) > 2 * rows  # not just the first ones


def test_n_step_returns_stay_within_either_source():
    batch = mixed().sample(5000, torch.Generator().manual_seed(1), gamma=1.0, n_step=3)
    first = batch.obs[:, 0] % 10
    steps = torch.minimum(torch.tensor(3.0), 10 - first)
    assert torch.equal(batch.rew, steps * batch.obs[:, 0] + steps * (steps - 1) / 2)
    assert torch.equal(batch.obs_next[:, 0], batch.obs[:, 0] + steps)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_ages_count_back_over_all_environments(num_envs):
    buffer = fill(VectorReplayBuffer(12 * num_envs, num_envs), 30 * num_envs)
    for growing in (GrowingReplay(buffer), DirectReplay(buffer)):
        growing.sync()
        rows = growing.rows_by_age(torch.arange(12 * num_envs))
        assert sorted(rows.tolist()) == [*range(12 * num_envs)]
        newest = buffer.rew[rows[:num_envs].numpy()]
        assert sorted(newest) == [*range(29 * num_envs, 30 * num_envs)]
        assert buffer.rew[rows[-1].item()] < 19 * num_envs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "newest"),
        ("offline_share", 1.5),
        ("final_offline_share", -0.1),
        ("anneal_steps", 0),
        ("half_life", 0),
        ("data_share", 2.0),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(field, value):
    with pytest.raises(InputError, match=f"expected {field} of .*, got {value!r}; change it"):
        Mixing(**{field: value})


def test_returns_are_known_from_an_episodes_end_on():
    def to_go(rew: Any) -> Any:
        return np.cumsum(rew[::-1])[::-1]

    buffer = VectorReplayBuffer(40, 2)
    growing = GrowingReplay(buffer, returns_to_go=to_go)
    fill(buffer, 14, length=100)
    growing.sync()
    assert growing.sample(0).returns.isneginf().all()
    row = {"act": np.zeros(1, np.float32), "truncated": False, "info": {}}
    last = Batch(obs=np.ones(2), rew=5.0, terminated=True, obs_next=np.ones(2), **row)
    buffer.add(Batch([last]), buffer_ids=[1])
    growing.sync()
    batch = growing.sample(0)
    assert batch.returns[:7].isneginf().all()  # the other environment's episode goes on
    assert batch.returns[7:].tolist() == to_go(np.array([1, 3, 5, 7, 9, 11, 13, 5.0])).tolist()


def test_an_episode_that_is_cut_between_epochs_has_returns_from_then_on():
    buffer = ReplayBuffer(40)
    growing = GrowingReplay(buffer, returns_to_go=lambda rew: np.full(len(rew), 7.0))
    fill(buffer, 4, length=100)
    growing.sync()
    buffer._meta.truncated[3] = buffer._meta.done[3] = True
    growing.sync()
    assert growing.sample(0).returns.tolist() == [7.0] * 4


def test_returns_in_a_ring_are_those_of_the_rows_that_are_left():
    buffer = ReplayBuffer(25)
    growing = GrowingReplay(buffer, returns_to_go=lambda rew: np.cumsum(rew[::-1])[::-1])
    for first in range(0, 70, 5):
        for t in range(first, first + 5):
            one = fill(ReplayBuffer(2), 1, float(t))[0]
            one.terminated = t % 10 == 9
            buffer.add(one)
        growing.sync()
    batch = growing.sample(0)
    for rew, returns in zip(batch.rew.tolist(), batch.returns.tolist(), strict=True):
        assert returns == sum(range(int(rew), int(rew) // 10 * 10 + 10))


def test_returns_hold_the_last_reward_where_what_followed_it_was_not_stored():
    buffer = fill(ReplayBuffer(25, ignore_obs_next=True), 20)
    buffer.terminated[:20], buffer.truncated[:20] = False, np.arange(20) % 10 == 9
    replay = Replay(buffer)
    replay.set_returns(lambda rew: np.cumsum(rew[::-1])[::-1])
    batch = replay.sample(0)
    assert batch.rew.tolist() == [*range(9), *range(10, 19)]
    expected = [sum(range(t, t // 10 * 10 + 10)) for t in batch.rew.int().tolist()]
    assert batch.returns.tolist() == expected


def test_the_row_of_a_final_observation_was_not_paid_for():
    """Our files without obs_next have one after a time-out; transforms make its 0 a number."""
    buffer = fill(ReplayBuffer(25, ignore_obs_next=True), 20)
    ends = np.arange(20) % 10 == 9
    buffer.terminated[:20], buffer.truncated[:20] = False, ends
    buffer.rew[:20] = np.where(ends, 0.0, 1.0)
    replay = Replay(buffer)
    replay.transform_rewards(lambda rew: 10.0 * rew + 5.0)
    replay.set_returns(lambda rew: np.cumsum(rew[::-1])[::-1])
    expected = [15.0 * (9 - t % 10) for t in replay.rows.tolist()]
    assert replay.sample(0).returns.tolist() == expected and len(expected) == 18


def test_a_batch_of_both_kinds_says_where_no_action_follows():
    data = Replay(fill(ReplayBuffer(20), 20), next_act=True)
    growing = GrowingReplay(fill(ReplayBuffer(20), 15), next_act=True)
    growing.sync()
    parts = [data.sample(0), growing.sample(0)]
    both = concatenate(parts).has_act_next
    assert both[: len(parts[0])].all()
    assert both[len(parts[0]) :].tolist() == [t not in (9, 14) for t in range(15)]
    direct = DirectReplay(fill(ReplayBuffer(20), 15), next_act=True)
    direct.sync()
    seen = direct.sample(0)
    assert seen.has_act_next.tolist() == [t not in (9, 14) for t in range(15)]
    assert torch.equal(seen.act_next[:9], growing.sample(0).act_next[:9])


def test_returns_of_a_data_set_are_summed_within_episodes_also_in_a_ring():
    buffer = fill(ReplayBuffer(25), 37)  # an episode lies over the ring's end
    replay = Replay(buffer)
    replay.set_returns(lambda rew: np.cumsum(rew[::-1])[::-1])
    batch = replay.sample(0)
    for rew, returns in zip(batch.rew.tolist(), batch.returns.tolist(), strict=True):
        # The data cut the episode that begins at 30: what it went on to earn is not known.
        known = sum(range(int(rew), int(rew) // 10 * 10 + 10))
        assert returns == (known if rew < 30 else -np.inf)
    # An episode over the ring's end is one, and of the oldest only the last rows are left.
    whole = [sum(range(first, min(37, first + 10))) for first in (20, 30)]
    assert sorted(episode_returns(replay)) == sorted([sum(range(12, 20)), *whole])
