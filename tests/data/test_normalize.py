"""Normalisation of observations and rewards: what is fitted, and that the policy keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tianshou.data import Batch

from tianshou_ext.data.normalize import (
    FRAME_SCALE,
    STD_EPS,
    ObsNormalizer,
    RewardNorm,
    RewardNormalizer,
    episode_returns,
)
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer, training_step


def test_vectors_are_centred_and_scaled_by_the_data(discrete_buffer):
    obs = discrete_buffer.obs.astype(np.float64)
    norm = ObsNormalizer((3,))
    norm.fit(Replay(discrete_buffer))
    assert np.allclose(norm.shift.numpy(), obs.mean(0), atol=1e-6)
    assert np.allclose(norm.scale.numpy(), obs.std(0) + STD_EPS, atol=1e-6)
    out = norm(torch.from_numpy(discrete_buffer.obs))
    assert out.dtype == torch.float32
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(out.std(0, correction=0), torch.ones(3), atol=5e-3)


def test_no_period_of_the_data_is_seen_more_often_than_it_is_there():
    """Every second row is 0: of a million rows evenly spaced ones would be all the same."""
    rows = 2 * (1 << 17)
    obs = np.arange(rows, dtype=np.float32)[:, None] % 2
    flags = {"terminated": np.arange(rows) % 100 == 99, "truncated": np.zeros(rows, bool)}
    batch = Batch(obs=obs, obs_next=obs, act=np.zeros(rows, int), rew=np.zeros(rows), **flags)
    buffer = ReplayBuffer(rows)
    buffer.set_batch(Batch(batch, done=flags["terminated"], info=Batch()))
    buffer._size, buffer._index = rows, 0
    norm = ObsNormalizer((1,))
    norm.fit(Replay(buffer))
    assert norm.shift.item() == pytest.approx(0.5) and norm.scale.item() == pytest.approx(0.501)


def test_a_constant_column_does_not_blow_up(discrete_buffer):
    discrete_buffer._meta["obs"][:, 1] = 5.0
    norm = ObsNormalizer((3,))
    norm.fit(Replay(discrete_buffer))
    assert norm(torch.from_numpy(discrete_buffer.obs))[:, 1].abs().max() < 1e-3


def test_frames_lose_the_mean_frame_of_sampled_rows(pixel_buffer):
    replay = Replay(pixel_buffer)
    norm = ObsNormalizer(replay.obs_shape)
    norm.fit(replay)
    mean = pixel_buffer.obs[replay.rows.numpy()].astype(np.float64).mean(0)
    assert norm.shift.shape == (1, *mean.shape)
    assert np.allclose(norm.shift[0].numpy(), mean, atol=1e-4)
    frames = replay.observations(replay.rows[:3])
    out = norm(frames)
    assert out.dtype == torch.float32
    expected = (frames.numpy().astype(np.float64) - mean) / FRAME_SCALE
    assert np.allclose(out.numpy(), expected, atol=1e-4)


def test_frames_that_are_stored_in_stacks_have_one_mean_frame_too():
    rng = np.random.default_rng(0)
    stacks = rng.integers(0, 256, (9, 4, 6, 5), dtype=np.uint8)
    buffer = ReplayBuffer(9)
    for stack in stacks:
        row = Batch(obs=stack, act=0, rew=0.0, terminated=False, truncated=False, info={})
        row.obs_next = stack
        buffer.add(row)
    norm = ObsNormalizer((4, 6, 5))
    norm.fit(Replay(buffer))
    assert np.allclose(norm.shift[0].numpy(), stacks.mean((0, 1)), atol=1e-4)


@pytest.mark.parametrize(("kind", "factor"), [("255", 255.0), ("none", 1.0)])
def test_fixed_kinds_ignore_the_data(kind, factor, pixel_buffer):
    replay = Replay(pixel_buffer)
    norm = ObsNormalizer(replay.obs_shape, kind)
    norm.fit(replay)
    frames = replay.observations(replay.rows[:2])
    assert torch.allclose(norm(frames), frames.float() / factor)
    assert norm(frames).dtype == torch.float32


def test_the_input_is_left_as_it_was():
    norm = ObsNormalizer((3,))
    norm.scale.fill_(2.0)
    obs = torch.ones(2, 3)
    assert norm(obs).tolist() == [[0.5] * 3] * 2
    assert obs.tolist() == [[1.0] * 3] * 2


def test_it_is_fitted_to_the_first_data_only(make_policy, discrete_buffer, continuous_buffer):
    policy = make_policy("bc")
    policy.process_buffer(discrete_buffer)
    first = policy.obs_norm.shift.clone()
    assert first.abs().max() > 0
    other = ReplayBuffer(5)
    for k in range(5):
        obs = np.full(3, 100.0 + k)
        row = Batch(
            obs=obs, act=0, rew=0.0, terminated=True, truncated=False, obs_next=obs, info={}
        )
        other.add(row)
    policy.process_buffer(other)
    assert torch.equal(policy.obs_norm.shift, first)


def test_a_restored_policy_acts_on_raw_observations(make_policy, discrete_buffer):
    """Without its normaliser in the state, a loaded policy would see other numbers."""
    policy = make_policy("bc")
    discrete_buffer._meta["obs"] = discrete_buffer.obs * 10 + 100
    policy.process_buffer(discrete_buffer)
    assert {"obs_norm.shift", "obs_norm.scale", "obs_norm.is_fitted"} <= policy.state_dict().keys()
    other = make_policy("bc", seed=1)
    other.load_state_dict(policy.state_dict())
    batch = Batch(obs=discrete_buffer.obs, info={})
    assert torch.equal(policy(batch).logits, other(batch).logits)
    other.process_buffer(ReplayBuffer.from_data(**one_row_of_zeros()))
    assert torch.equal(other.obs_norm.shift, policy.obs_norm.shift)


def one_row_of_zeros() -> dict[str, np.ndarray]:
    flag = np.ones(1, bool)
    ends = {"terminated": flag, "truncated": ~flag, "done": flag}
    obs = np.zeros((1, 3), np.float32)
    return {"obs": obs, "obs_next": obs, "act": np.zeros(1, int), "rew": np.zeros(1), **ends}


# ---- rewards -------------------------------------------------------------------------------------


def returns_of(buffer: ReplayBuffer) -> list[float]:
    """Return the returns of the episodes of ``buffer``, row by row."""
    totals, score = [], 0.0
    for rew, done in zip(buffer.rew, buffer.done, strict=True):
        score += float(rew)
        if done:
            totals.append(score)
            score = 0.0
    return totals


def fitted(buffer: ReplayBuffer, kind: RewardNorm) -> RewardNormalizer:
    norm = RewardNormalizer(kind)
    norm.fit(Replay(buffer))
    return norm


def test_returns_span_a_thousand_after_return_range(continuous_buffer):
    totals = returns_of(continuous_buffer)
    assert episode_returns(Replay(continuous_buffer)) == pytest.approx(totals, rel=1e-5)
    norm = fitted(continuous_buffer, "return_range")
    scale = 1000.0 / (max(totals) - min(totals))
    rew = torch.tensor([1.0, -2.0])
    assert norm(rew).tolist() == pytest.approx([scale, -2.0 * scale], rel=1e-5)


def test_standard_rewards_have_mean_0_and_deviation_1(continuous_buffer):
    norm = fitted(continuous_buffer, "standard")
    rew = norm(torch.tensor(continuous_buffer.rew, dtype=torch.float32))
    assert rew.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert rew.std(correction=0).item() == pytest.approx(1.0, rel=1e-5)


def test_fixed_changes_of_rewards_need_no_data():
    rew = torch.tensor([0.0, 1.0])
    assert RewardNormalizer("minus_one")(rew).tolist() == [-1.0, 0.0]
    assert RewardNormalizer("times_4_minus_2")(rew).tolist() == [-2.0, 2.0]
    assert RewardNormalizer("times_10_minus_5")(rew).tolist() == [-5.0, 5.0]
    assert RewardNormalizer("times_10_plus_5")(rew).tolist() == [5.0, 15.0]
    assert RewardNormalizer("times_100")(rew).tolist() == [0.0, 100.0]
    assert RewardNormalizer("none")(rew) is rew


@pytest.mark.parametrize("kind", ["return_range", "standard"])
def test_rewards_that_are_all_the_same_give_one_sentence(kind, continuous_buffer):
    continuous_buffer._meta.rew[:] = 0.0
    with pytest.raises(InputError, match=f"expected rewards that differ for reward_norm {kind}"):
        fitted(continuous_buffer, kind)


def test_a_policy_learns_from_normalised_rewards_whichever_way_they_come(
    continuous_buffer, make_policy
):
    """Staged, as a Tianshou batch, and from a buffer that grows: the same rewards, once."""
    seen: list[torch.Tensor] = []
    policy = make_policy("iql", actions="continuous", reward_norm="return_range")
    step = policy.gradient_step
    policy.gradient_step = lambda batch: (seen.append(batch.rew), step(batch))[1]
    totals = returns_of(continuous_buffer)
    scale = 1000.0 / (max(totals) - min(totals))
    rows = np.arange(4)
    expected = (scale * continuous_buffer.rew[rows]).tolist()
    policy.process_buffer(continuous_buffer)
    policy.learn(policy.process_fn(None, continuous_buffer, rows))
    policy.learn(continuous_buffer[rows])
    assert seen[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert seen[1].tolist() == pytest.approx(expected, rel=1e-5)
    continuous_buffer.add(continuous_buffer[5])  # from now on it grows
    with training_step(policy):
        policy.update(buffer=continuous_buffer, sample_size=0)
    assert sorted(seen[2].tolist()) == pytest.approx(
        sorted((scale * continuous_buffer.rew).tolist()), rel=1e-5
    )


def test_the_reward_scale_is_saved_with_the_policy(continuous_buffer, make_policy):
    policy = make_policy("iql", actions="continuous")
    policy.process_buffer(continuous_buffer)
    other = make_policy("iql", actions="continuous")
    other.load_state_dict(policy.state_dict())
    assert float(other.reward_norm.scale) == float(policy.reward_norm.scale) != 1.0
    assert bool(other.reward_norm.is_fitted)
