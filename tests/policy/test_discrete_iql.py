"""Discrete IQL: its three losses and a whole step by hand, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from contract import Lookup, sgd, transitions
from gymnasium.spaces import Discrete
from torch.nn import functional

from tianshou_ext.policy import DiscreteIQLPolicy

LOGITS = [[0.0, 1.0], [2.0, 0.0]]
CRITICS = [[[1.0, 2.0], [0.0, 0.0]], [[0.5, 3.0], [0.0, 0.0]]]
"""(2 critics, 2 states, 2 actions)."""
TARGETS = [[[1.0, -1.0], [0.0, 0.0]], [[2.0, -3.0], [0.0, 0.0]]]
VALUES = [[0.4], [5.0]]
BATCH = ([0, 0], [0, 1], [1.0, -3.0], [False, True], [1, 1])
LEAST = [1.0, -3.0]
"""Least target value of the data's actions."""


def make(**options) -> DiscreteIQLPolicy:
    actor, critic, value = Lookup(LOGITS), Lookup(CRITICS, axis=1), Lookup(VALUES)
    policy = DiscreteIQLPolicy(
        actor=actor,
        actor_optim=sgd(actor),
        critic=critic,
        critic_optim=sgd(critic),
        value=value,
        value_optim=sgd(value),
        action_space=Discrete(2),
        **options,
    )
    policy.critic_target.rows[0].copy_(torch.tensor(TARGETS))
    return policy


def test_a_step_by_hand():
    """V first; actor and critic with the new V; then the target."""
    policy = make(expectile=0.8, inv_temperature=0.5, tau=0.25)
    stats = policy.learn(transitions(*BATCH))

    v, value_loss, slope = VALUES[0][0], 0.0, 0.0
    for q in LEAST:
        weight = 0.8 if q > v else 1 - 0.8
        value_loss += weight * (q - v) ** 2 / 2
        slope -= weight * 2 * (q - v) / 2
    new_v = v - slope
    assert stats.metrics["loss/value"] == pytest.approx(value_loss, rel=1e-6)
    assert policy.value.rows[0].flatten().tolist() == pytest.approx([new_v, 5.0])

    actor_loss = 0.0
    for act, q in zip(BATCH[1], LEAST, strict=True):
        log_prob = LOGITS[0][act] - math.log(math.exp(0.0) + math.exp(1.0))
        actor_loss -= min(math.exp(0.5 * (q - new_v)), 100.0) * log_prob / 2
    assert stats.metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-6)

    targets = [1.0 + 0.5 * 5.0, -3.0]
    critic_loss, moved = 0.0, torch.tensor(CRITICS)
    for i in range(2):
        for act, y in zip(BATCH[1], targets, strict=True):
            error = CRITICS[i][0][act] - y
            critic_loss += error**2 / 2
            moved[i, 0, act] -= 2 * error / 2
    assert stats.metrics["loss/critic"] == pytest.approx(critic_loss, rel=1e-6)
    assert torch.allclose(policy.critic.rows[0], moved, atol=1e-6)
    followed = 0.75 * torch.tensor(TARGETS) + 0.25 * moved
    assert torch.allclose(policy.critic_target.rows[0], followed, atol=1e-6)


def test_each_loss_trains_its_own_network_only():
    policy, batch = make(), transitions(*BATCH)
    q = policy.target_q(batch)
    v = policy.value(batch.obs)[0].squeeze(1)
    losses = {
        "value": policy.value_loss(v, q),
        "actor": policy.actor_loss(policy.actor(batch.obs)[0], batch.act, q - v.detach()),
        "critic": policy.critic_loss(policy.critic(batch.obs)[0], batch.act, q),
    }
    assert q.grad_fn is None
    networks = {name: getattr(policy, name).rows[0] for name in losses}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, [*networks.values()], allow_unused=True)
        reached = [n for n, g in zip(networks, gradients, strict=True) if g is not None]
        assert reached == [name]


def test_next_values_get_no_gradient():
    policy = make()
    policy.learn(transitions(*BATCH))
    assert policy.value.rows[0][1].item() == 5.0


def test_zero_inverse_temperature_is_cloning():
    policy, batch = make(inv_temperature=0.0), transitions(*BATCH)
    logits = torch.tensor(LOGITS)[[0, 0]].requires_grad_(True)
    functional.cross_entropy(logits, batch.act).backward()
    policy.learn(batch)
    moved = torch.tensor(LOGITS[0]) - logits.grad.sum(0)
    assert torch.allclose(policy.actor.rows[0][0], moved, atol=1e-6)


def test_expectile_of_a_half_is_half_the_squared_error():
    policy = make(expectile=0.5)
    q, v = torch.tensor(LEAST), torch.tensor([0.4, 0.4])
    assert torch.allclose(policy.value_loss(v, q), 0.5 * functional.mse_loss(v, q))


def test_value_goes_to_the_best_action_of_the_data_as_the_expectile_goes_to_one():
    q = torch.tensor([1.0, -3.0, 2.5])
    policy = make(expectile=0.999)
    v = torch.zeros(1, requires_grad=True)
    optim = torch.optim.SGD([v], lr=0.5)
    for _ in range(3000):
        optim.zero_grad()
        policy.value_loss(v.expand(3), q).backward()
        optim.step()
    assert v.item() == pytest.approx(2.5, abs=0.02)


def test_cloning_weight_is_clamped_after_the_exponential():
    policy = make(inv_temperature=10.0)
    loss = policy.actor_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([50.0, -50.0]))
    assert loss.item() == pytest.approx(100.0 * math.log(2) / 2, rel=1e-6)
    equal = policy.actor_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.zeros(2))
    assert equal.item() == pytest.approx(math.log(2), rel=1e-6)
