"""Discrete CQL: targets and loss by hand, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from contract import Lookup, sgd, transitions, update
from gymnasium.spaces import Discrete

from tianshou_ext.losses import quantile_huber_loss
from tianshou_ext.policy import DiscreteCQLPolicy

ONLINE = [[[1.0, 2.0], [0.0, -1.0]], [[3.0, 5.0], [4.5, 4.0]]]
"""(2 states, 2 actions, 2 quantiles); in state 1 the online network likes action 1."""
TARGET = [[[0.0, 0.0], [0.0, 0.0]], [[2.0, 6.0], [1.0, 1.5]]]
"""In state 1 the target network likes action 0."""
BATCH = ([0, 0], [0, 1], [1.0, -2.0], [False, True], [1, 1])


def make(**options) -> DiscreteCQLPolicy:
    model = Lookup(ONLINE)
    options = {"num_quantiles": 2, "min_q_weight": 1.5, **options}
    policy = DiscreteCQLPolicy(model=model, optim=sgd(model), action_space=Discrete(2), **options)
    policy.model_target = Lookup(TARGET)
    policy._targets.clear()  # keep TARGET: the first step would copy the model into it
    return policy


def loss_by_hand(chosen_next: list[float]) -> tuple[float, float]:
    td, penalty = 0.0, 0.0
    targets = [[1.0 + 0.5 * z for z in chosen_next], [-2.0, -2.0]]
    for act, target in zip([0, 1], targets, strict=True):
        for i, theta in enumerate(ONLINE[0][act]):
            for y in target:
                u, tau = y - theta, (i + 0.5) / 2
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                td += abs(tau - (u < 0)) * huber / 2 / 2  # mean over M = 2 and B = 2
        means = [sum(ONLINE[0][a]) / 2 for a in range(2)]
        penalty += (math.log(sum(math.exp(m) for m in means)) - means[act]) / 2
    return td, penalty


@pytest.mark.parametrize(("is_double", "act_next"), [(False, 0), (True, 1)])
def test_loss_by_hand(is_double, act_next):
    stats = make(is_double=is_double).learn(transitions(*BATCH))
    td, penalty = loss_by_hand(TARGET[1][act_next])
    assert stats.metrics["loss/td"] == pytest.approx(td, rel=1e-6)
    assert stats.metrics["loss/min_q"] == pytest.approx(penalty, rel=1e-6)
    assert stats.metrics["loss"] == pytest.approx(td + 1.5 * penalty, rel=1e-6)
    assert stats.metrics["q/mean"] == pytest.approx((1.5 - 0.5) / 2)


@pytest.mark.parametrize("is_double", [False, True])
def test_next_observations_get_no_gradient(is_double):
    policy = make(is_double=is_double)
    policy.learn(transitions(*BATCH))
    assert torch.equal(policy.model.rows[0][1], torch.tensor(ONLINE[1]))
    assert not torch.equal(policy.model.rows[0][0], torch.tensor(ONLINE[0]))
    assert torch.equal(policy.model_target.rows[0], torch.tensor(TARGET))


def test_weight_zero_is_quantile_regression_dqn():
    policy, batch = make(min_q_weight=0.0), transitions(*BATCH)
    quantiles = torch.tensor(ONLINE[0], requires_grad=True)  # both rows start in state 0
    quantile_huber_loss(quantiles, policy.target_quantiles(batch)).mean().backward()
    policy.learn(batch)
    expected = torch.tensor(ONLINE[0]) - quantiles.grad
    assert torch.allclose(policy.model.rows[0][0], expected, atol=1e-6)


def test_penalty_gradient_by_hand():
    """The penalty alone moves the mean value by softmax - 1[a = data], split over quantiles."""
    with_penalty, without = make(min_q_weight=2.0), make(min_q_weight=0.0)
    for policy in (with_penalty, without):
        policy.learn(transitions(*BATCH))
    moved = with_penalty.model.rows[0][0] - without.model.rows[0][0]  # (2 actions, 2 quantiles)
    share = 1 / (1 + math.exp(-0.5 - 1.5))  # softmax of the means 1.5 and -0.5 at action 0
    expected = -2.0 * (share - 0.5) / 2  # half of the batch took action 0
    assert torch.allclose(moved, torch.tensor([[expected] * 2, [-expected] * 2]), atol=1e-6)


def test_penalty_is_never_negative(make_policy, discrete_buffer):
    metrics = update(make_policy("discrete_cql"), discrete_buffer, times=50)
    assert all(step["loss/min_q"] >= 0.0 for step in metrics)


def test_target_is_copied_before_every_nth_step(make_policy, discrete_buffer):
    policy = make_policy("discrete_cql", target_update_freq=3)
    for step in range(7):
        online = [p.clone() for p in policy.model.parameters()]
        update(policy, discrete_buffer)
        copied = all(map(torch.equal, online, policy.model_target.parameters()))
        assert copied is (step % 3 == 0)


def test_frequency_zero_means_no_target_network(make_policy, discrete_buffer):
    policy = make_policy("discrete_cql", target_update_freq=0)
    update(policy, discrete_buffer, times=2)
    assert policy.model_target is policy.model
