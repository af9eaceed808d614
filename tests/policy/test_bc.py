"""Behavioural cloning: its loss by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import Lookup, sgd, transitions, update
from gymnasium.spaces import Box, Discrete

from tianshou_ext.data.replay import Replay
from tianshou_ext.policy import BCPolicy


def make(outputs: list[list[float]], space) -> BCPolicy:
    actor = Lookup(outputs)
    return BCPolicy(actor=actor, optim=sgd(actor, lr=0.5), action_space=space)


def states_with(act: list):
    """Return one transition from each state."""
    count = len(act)
    return transitions([*range(count)], act, [0.0] * count, [False] * count, [0] * count)


def test_discrete_loss_and_step_by_hand():
    logits, act = [[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]], [0, 2]
    policy = make(logits, Discrete(3))
    loss, moved = 0.0, []
    for row, a in zip(logits, act, strict=True):
        total = sum(math.exp(x) for x in row)
        loss -= math.log(math.exp(row[a]) / total) / 2
        gradient = [(math.exp(x) / total - (k == a)) / 2 for k, x in enumerate(row)]
        moved.append([x - 0.5 * g for x, g in zip(row, gradient, strict=True)])
    stats = policy.learn(states_with(act))
    assert stats.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert stats.metrics["accuracy"] == 0.5
    assert torch.allclose(policy.actor.rows[0], torch.tensor(moved), atol=1e-6)


def test_loss_at_uniform_logits_is_the_log_of_the_number_of_actions():
    policy = make([[0.7] * 6] * 4, Discrete(6))
    stats = policy.learn(states_with([0, 1, 2, 5]))
    assert stats.metrics["loss"] == pytest.approx(math.log(6), rel=1e-6)


def test_continuous_loss_and_step_by_hand():
    raw, act = [[0.3, -2.0], [1.0, 0.0]], [[0.5, -1.0], [0.0, 0.25]]
    policy = make(raw, Box(-5.0, 5.0, (2,)))
    loss, moved = 0.0, np.array(raw)
    for b in range(2):
        for a in range(2):
            out = math.tanh(raw[b][a])
            loss += (out - act[b][a]) ** 2 / 4
            moved[b, a] -= 0.5 * 2 * (out - act[b][a]) * (1 - out**2) / 4
    stats = policy.learn(states_with(act))
    assert stats.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert np.allclose(policy.actor.rows[0].detach().numpy(), moved, atol=1e-6)


def test_rewards_and_ends_do_not_matter(make_policy, discrete_buffer):
    policy, other = make_policy("bc"), make_policy("bc")
    update(policy, discrete_buffer, times=3)
    discrete_buffer._meta["rew"] = discrete_buffer.rew * -3.0
    discrete_buffer._meta["terminated"] = ~discrete_buffer.terminated
    update(other, discrete_buffer, times=3)
    assert all(map(torch.equal, policy.state_dict().values(), other.state_dict().values()))


def test_it_learns_a_rule_that_the_data_follow(make_policy, discrete_buffer):
    discrete_buffer._meta["act"] = np.digitize(discrete_buffer.obs[:, 0], [-0.5, 0.0, 0.5])
    policy = make_policy("bc")
    update(policy, discrete_buffer, times=200, sample_size=27)
    replay = Replay(discrete_buffer)
    act, _ = policy.act(policy.normalize(replay.obs), deterministic=True)
    assert (act == replay.act).float().mean() > 0.9
