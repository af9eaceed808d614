"""A run that diverges is stopped within a logging interval; its last good checkpoint is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.divergence import REACH_FACTOR, DivergenceWatch
from tianshou_ext.errors import DivergenceError
from tianshou_ext.policy import OfflinePolicy
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import CHECKPOINT, offline_trainer


def train(policy: OfflinePolicy, buffer: Any, folder: Path, **options: Any) -> Any:
    options = {"log_interval": 5, "save_interval": 10} | options
    return offline_trainer(
        policy,
        buffer,
        max_epoch=2,
        update_per_epoch=20,
        batch_size=8,
        logdir=folder,
        show_progress=False,
        verbose=False,
        **options,
    )


def spoil(policy: OfflinePolicy, at: int, how: str) -> None:
    """Let ``policy`` diverge at its gradient step ``at``, counted from 0."""
    step = policy.gradient_step

    def spoiled(batch: Any) -> dict[str, torch.Tensor]:
        metrics = step(batch)
        if policy.num_updates >= at:
            if how == "loss":
                metrics["loss/critic"] = torch.tensor(math.nan)
            elif how == "value":
                metrics["q/data"] = torch.tensor(1e9)
            else:
                next(policy.critic.parameters()).data.fill_(math.nan)
                metrics = {key: torch.tensor(0.0) for key in metrics}
        return metrics

    policy.gradient_step = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("loss", "loss/critic is nan"),
        ("value", r"q/data is 1e\+09, beyond 10 times"),
        ("weights", "holds NaN or infinity"),
    ],
)
def test_divergence_is_named_and_stops_the_run(
    how, words, make_policy, continuous_buffer, tmp_path: Path
):
    policy = make_policy("sac_n", actions="continuous")
    spoil(policy, 12, how)
    with pytest.raises(DivergenceError, match=f"{words}.*; the last good checkpoint") as caught:
        train(policy, continuous_buffer, tmp_path)
    assert "\n" not in str(caught.value)
    # Noticed at the next logging step (15), or the next checkpoint (20) for weights alone.
    assert policy.num_updates == (20 if how == "weights" else 15)
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert kept["num_updates"] == 10
    assert all(torch.isfinite(value).all() for value in kept["policy"].values())


def test_small_rewards_are_no_divergence(make_policy, continuous_buffer, tmp_path: Path):
    """Values of untrained networks, and the entropy's, do not shrink with the rewards."""
    continuous_buffer.rew[:] *= 1e-6
    policy = make_policy("sac_n", actions="continuous")
    train(policy, continuous_buffer, tmp_path)
    assert policy.num_updates == 40


def test_without_a_checkpoint_none_is_said_to_be_kept(
    make_policy, continuous_buffer, tmp_path: Path
):
    policy = make_policy("sac_n", actions="continuous")
    spoil(policy, 2, "loss")
    with pytest.raises(DivergenceError, match="no checkpoint was written before"):
        train(policy, continuous_buffer, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_warn_goes_on_and_warns_once(make_policy, continuous_buffer, tmp_path: Path):
    policy = make_policy("sac_n", actions="continuous")
    spoil(policy, 12, "loss")
    with pytest.warns(UserWarning, match="loss/critic is nan") as caught:
        train(policy, continuous_buffer, tmp_path, on_divergence="warn")
    assert len([w for w in caught if "diverged" in str(w.message)]) == 1
    assert policy.num_updates == 40


def test_a_sound_run_is_left_alone(make_policy, continuous_buffer, tmp_path: Path):
    policy = make_policy("sac_n", actions="continuous")
    train(policy, continuous_buffer, tmp_path)
    watch = DivergenceWatch(policy)
    largest = float(abs(continuous_buffer.rew).max())
    assert watch.reach == pytest.approx(largest / (1 - policy.config.gamma), rel=1e-5)
    assert watch.fault() is None
    policy.metrics["q/data"] = -REACH_FACTOR * watch.reach * 0.99
    assert watch.fault() is None
    policy.metrics["q/data"] *= 1.02
    assert "q/data" in str(watch.fault())


def test_values_have_a_bound_online_too(make_policy, continuous_buffer):
    """Rewards that were collected count beside the data's, as the policy learns from them."""
    policy = make_policy("sac_n", actions="continuous", reward_norm="times_100")
    policy.process_buffer(continuous_buffer)
    online = ReplayBuffer(20)
    policy.go_online(online, Mixing())
    watch, scale = DivergenceWatch(policy), 100.0 / (1 - policy.config.gamma)
    largest = float(abs(continuous_buffer.rew).max())
    assert watch.reach == pytest.approx(scale * largest, rel=1e-5)
    policy.metrics = {"q/data": 1.1 * REACH_FACTOR * watch.reach}
    assert "q/data" in str(watch.fault())
    row = Batch(obs=np.zeros(3), act=np.zeros(2), obs_next=np.zeros(3), rew=-2 * largest, info={})
    online.add(Batch(**row, terminated=True, truncated=False))
    assert watch.reach == pytest.approx(scale * 2 * largest, rel=1e-5)
    assert watch.fault() is None


def test_without_rewards_values_have_no_bound(make_policy, continuous_buffer):
    continuous_buffer._meta.rew[:] = 0.0
    policy = make_policy("sac_n", actions="continuous")
    policy.process_buffer(continuous_buffer)
    assert DivergenceWatch(policy).reach == math.inf


def test_without_discounting_values_have_no_bound(make_policy, continuous_buffer):
    policy = make_policy("sac_n", actions="continuous", gamma=1.0)
    policy.process_buffer(continuous_buffer)
    assert DivergenceWatch(policy).reach == math.inf
