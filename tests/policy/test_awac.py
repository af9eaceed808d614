"""AWAC: its losses and a whole step by hand, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import random_obs, sgd, transitions
from gymnasium.spaces import Box
from tables import ActorTable, CriticTable, log_density

from tianshou_ext.errors import InputError
from tianshou_ext.policy import AWACPolicy, BCPolicy, CRRPolicy

MEAN, STD = [[0.2, -0.5], [0.9, 0.0]], [[0.5, 1.5], [1.0, 0.1]]
CRITICS, SLOPES = [[1.0, 0.0], [0.5, 0.0]], [1.0, -2.0]
TARGETS = [[7.0, 3.0], [7.0, 2.0]]
"""(2 critics, 2 states), without a slope."""
ACTS = [[-0.5, -0.3], [0.4, 0.2]]
BATCH = ([0, 0], ACTS, [1.0, -3.0], [False, True], [1, 1])
SPACE = Box(-2.0, 4.0, (2,))


def make(policy_class=AWACPolicy, noise: float | None = 0.0, **options):
    """Return a policy whose random numbers are all ``noise``."""
    actor = ActorTable(MEAN, STD)
    critic, critic2 = map(CriticTable, CRITICS, SLOPES)
    policy = policy_class(
        actor=actor,
        actor_optim=sgd(actor, lr=0.1),
        critic=critic,
        critic_optim=sgd(critic, lr=0.1),
        critic2=critic2,
        critic2_optim=sgd(critic2, lr=0.1),
        action_space=SPACE,
        **options,
    )
    for target, rows in zip(policy.critic_target.critics, TARGETS, strict=True):
        target.rows.copy_(torch.tensor(rows))
        target.slope.zero_()
    if noise is not None:
        policy.randn = lambda *shape: torch.full(shape, noise)
    return policy


def test_a_step_by_hand():
    """Critics first; the actor with the new ones; then the targets."""
    policy = make(lam=0.5, tau=0.25)
    stats = policy.learn(transitions(*BATCH))

    targets, critic_loss, critics = [1.0 + 0.5 * 2.0, -3.0], 0.0, []
    for i, (rows, slope) in enumerate(zip(CRITICS, SLOPES, strict=True)):
        errors = [rows[0] + slope * sum(act) - y for act, y in zip(ACTS, targets, strict=True)]
        critic_loss += np.mean(np.square(errors))
        row = rows[0] - 0.1 * np.mean([2 * e for e in errors])
        sums = [2 * e * sum(act) for e, act in zip(errors, ACTS, strict=True)]
        critics.append((row, slope - 0.1 * np.mean(sums)))
        assert policy.critic.critics[i].rows[0].item() == pytest.approx(row, abs=1e-6)
        followed = 0.75 * TARGETS[i][0] + 0.25 * row
        assert policy.critic_target.critics[i].rows[0].item() == pytest.approx(followed, abs=1e-6)
    assert stats.metrics["loss/critic"] == pytest.approx(critic_loss, rel=1e-5)

    def least(act) -> float:
        return min(row + slope * sum(act) for row, slope in critics)

    actor_loss, moved = 0.0, np.array(MEAN)
    for act in ACTS:
        weight = min(math.exp((least(act) - least(MEAN[0])) / 0.5), 100.0)
        actor_loss -= weight * log_density(MEAN[0], STD[0], act) / 2
        moved[0] += 0.1 * weight * (np.array(act) - MEAN[0]) / np.array(STD[0]) ** 2 / 2
    assert stats.metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-5)
    assert np.allclose(policy.actor.mean.detach(), moved, atol=1e-6)


def test_sampled_actions_are_clipped_to_where_the_critics_know_values():
    """Next action of the first row: (0.9 + 2, 0 + 0.2), clipped to (1, 0.2)."""
    policy = make(noise=2.0)
    for target, slope in zip(policy.critic_target.critics, SLOPES, strict=True):
        target.slope.fill_(slope)
    y = policy.critic_targets(transitions(*BATCH))
    assert y.tolist() == pytest.approx([1.0 + 0.5 * min(3.0 + 1.2, 2.0 - 2.4), -3.0], abs=1e-6)


def test_actor_loss_gives_the_critics_no_gradient():
    policy, batch = make(), transitions(*BATCH)
    mean, std = policy.actor(batch.obs)[0]
    adv = policy.advantage(batch, mean, std)
    assert adv.grad_fn is None
    policy.actor_loss(mean, std, batch.act, adv).backward()
    assert all(p.grad is None for p in policy.critic.parameters())
    assert all(p.grad is not None for p in policy.actor.parameters())


def test_a_large_lambda_is_cloning_by_likelihood():
    policy, batch = make(lam=1e9), transitions(*BATCH)
    actor = ActorTable(MEAN, STD)
    cloning = BCPolicy(actor=actor, optim=sgd(actor, lr=0.1), action_space=SPACE, stochastic=True)
    policy.learn(batch)
    cloning.learn(batch)
    assert torch.allclose(policy.actor.mean, actor.mean, atol=1e-6)
    assert torch.allclose(policy.actor.std, actor.std, atol=1e-6)


def test_weights_are_at_most_100():
    mean, std, act = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    loss = make(lam=0.1).actor_loss(mean, std, act, torch.tensor([90.0]))
    assert loss.item() == pytest.approx(-100.0 * log_density([0.0], [1.0], [1.0]), rel=1e-6)


def test_crr_with_one_sample_has_the_same_actor_loss():
    """CRR(exp, m = 1, beta = lambda) with two critics; weights here are below both bounds."""
    options = {"beta": 5.0, "num_value_samples": 1, "num_critics": 2}
    awac, crr = make(lam=5.0, noise=1.0), make(CRRPolicy, 1.0, **options)
    batch = transitions(*BATCH)
    mean, std = awac.actor(batch.obs)[0]
    q = crr.critic(batch.obs, batch.act)
    weight = crr.weights(crr.advantages(batch.obs, q, mean, std))
    loss = awac.actor_loss(mean, std, batch.act, awac.advantage(batch, mean, std))
    assert crr.actor_loss(mean, std, batch.act, weight).item() == pytest.approx(loss.item())


def test_actions_of_a_mean_out_of_bounds_are_clipped(make_policy):
    policy = make_policy("awac", actions="continuous")
    policy.actor.head.bias.data.fill_(5.0)
    act, mean = policy.act(policy.normalize(random_obs(policy, 4)), deterministic=True)
    assert (mean > 1.0).all()
    assert (act == 1.0).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"lam": 0.0}, "lam above 0, got 0.0"), ({"num_critics": 0}, "num_critics at least 1")],
)
def test_values_out_of_range_give_one_sentence(options, sentence, make_policy):
    with pytest.raises(InputError, match=f"expected {sentence}"):
        make_policy("awac", actions="continuous", **options)
