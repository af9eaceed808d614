"""Discrete CRR: weights, targets and loss by hand, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from contract import Lookup, sgd, transitions
from gymnasium.spaces import Discrete
from torch.nn import functional

from tianshou_ext.policy import DiscreteCRRPolicy

LOGITS = [[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]
Q = [[1.0, -2.0, 3.0], [0.5, 0.0, 6.0]]
LOGITS_TARGET = [[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]
Q_TARGET = [[0.0, 0.0, 0.0], [4.0, -2.0, 1.0]]
BATCH = ([0, 0, 1], [0, 2, 1], [1.0, -3.0, 0.5], [False, True, False], [1, 1, 1])


def make(**options) -> DiscreteCRRPolicy:
    actor = Lookup(LOGITS, Q)
    policy = DiscreteCRRPolicy(actor=actor, optim=sgd(actor), action_space=Discrete(3), **options)
    policy.actor_target = Lookup(LOGITS_TARGET, Q_TARGET)
    policy._targets.clear()  # keep them: the first step would copy the networks into them
    return policy


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def by_hand(f) -> tuple[float, float, list[float]]:
    """Return the actor's and the critic's loss, and the weights ``f(advantage)``."""
    value_next = sum(p * q for p, q in zip(softmax(LOGITS_TARGET[1]), Q_TARGET[1], strict=True))
    actor, critic, weights = 0.0, 0.0, []
    for s, a, r, end, _ in zip(*BATCH, strict=True):
        pi = softmax(LOGITS[s])
        weight = f(Q[s][a] - sum(p * q for p, q in zip(pi, Q[s], strict=True)))
        y = r + (0.0 if end else 0.5 * value_next)
        actor -= weight * math.log(pi[a]) / 3
        critic += 0.5 * (Q[s][a] - y) ** 2 / 3
        weights.append(weight)
    return actor, critic, weights


@pytest.mark.parametrize(
    ("options", "f"),
    [
        ({"beta": 2.0}, lambda adv: math.exp(adv / 2.0)),
        ({"ratio_upper_bound": 3.0}, lambda adv: min(math.exp(adv), 3.0)),
        ({"policy_improvement_mode": "binary"}, lambda adv: float(adv > 0)),
        ({"policy_improvement_mode": "all"}, lambda adv: 1.0),
    ],
    ids=["exp", "bounded", "binary", "all"],
)
def test_loss_by_hand(options, f):
    stats = make(**options).learn(transitions(*BATCH))
    actor, critic, weights = by_hand(f)
    assert stats.metrics["loss/actor"] == pytest.approx(actor, rel=1e-5)
    assert stats.metrics["loss/critic"] == pytest.approx(critic, rel=1e-5)
    assert stats.metrics["weight/mean"] == pytest.approx(sum(weights) / 3, rel=1e-5)
    assert stats.metrics["loss"] == pytest.approx(actor + critic, rel=1e-5)


def test_min_q_weight_adds_the_conservative_term():
    stats = make(min_q_weight=2.0).learn(transitions(*BATCH))
    penalty = sum(
        (math.log(sum(math.exp(q) for q in Q[s])) - Q[s][a]) / 3
        for s, a in zip(*BATCH[:2], strict=True)
    )
    assert stats.metrics["loss/min_q"] == pytest.approx(penalty, rel=1e-5)
    parts = stats.metrics["loss/actor"] + stats.metrics["loss/critic"] + 2.0 * penalty
    assert stats.metrics["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("mode", ["exp", "binary", "all"])
def test_actor_loss_gives_the_critic_no_gradient_and_the_critic_loss_none_to_the_actor(mode):
    policy, batch = make(policy_improvement_mode=mode), transitions(*BATCH)
    logits, q = policy.logits_and_values(policy.actor, None, batch.obs)
    target = policy.target_q(batch)
    actor_loss, _ = policy.actor_loss(logits, q, batch.act)
    critic_loss = policy.critic_loss(q, batch.act, target)
    actor_head, critic_head = policy.actor.rows
    for loss, own, other in (
        (actor_loss, actor_head, critic_head),
        (critic_loss, critic_head, actor_head),
    ):
        gradients = torch.autograd.grad(loss, [own, other], retain_graph=True, allow_unused=True)
        assert gradients[0] is not None
        assert gradients[1] is None
    assert target.grad_fn is None


def test_actor_gradient_is_the_weighted_one_of_cloning():
    """No term flows through the advantage's own expectation over the policy."""
    policy, batch = make(beta=2.0), transitions(*BATCH)
    logits = torch.tensor(LOGITS)[batch.obs[:, 0].long()].requires_grad_(True)
    weights = torch.tensor(by_hand(lambda adv: math.exp(adv / 2.0))[2])
    (functional.cross_entropy(logits, batch.act, reduction="none") * weights).mean().backward()
    policy.learn(batch)
    moved = policy.actor.rows[0].detach() - torch.tensor(LOGITS)
    expected = torch.stack([-logits.grad[:2].sum(0), -logits.grad[2]])
    assert torch.allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"policy_improvement_mode": "all"}, {"beta": 1e9}], ids=["all", "beta to infinity"]
)
def test_limits_are_cloning(options):
    policy, batch = make(**options), transitions(*BATCH)
    logits, q = policy.logits_and_values(policy.actor, None, batch.obs)
    loss, _ = policy.actor_loss(logits, q, batch.act)
    assert torch.allclose(loss, functional.cross_entropy(logits, batch.act), rtol=1e-6)


def test_binary_weights_are_zero_or_one():
    policy = make(policy_improvement_mode="binary")
    logits, q, act = torch.zeros(500, 3), torch.randn(500, 3), torch.randint(3, (500,))
    weights = policy.weights(logits, q, act)
    better_than_average = q[torch.arange(500), act] > q.mean(1)
    assert torch.equal(weights, better_than_average.float())
    assert set(weights.tolist()) == {0.0, 1.0}


def test_each_sample_is_weighted_by_its_own_advantage():
    """Tianshou's (B, 1) by (B,) product weighs every action by every sample's advantage."""
    policy = make()
    logits, act = torch.zeros(2, 3), torch.tensor([0, 1])
    q = torch.tensor([[3.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    loss, _ = policy.actor_loss(logits, q, act)
    expected = (math.exp(3.0 - 1.0) + math.exp(-3.0 + 1.0)) / 2 * math.log(3)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_separate_critic_gives_the_same_as_two_heads():
    joint = make()
    actor, critic = Lookup(LOGITS), Lookup(Q)
    optim = sgd(actor, critic)
    apart = DiscreteCRRPolicy(actor=actor, critic=critic, optim=optim, action_space=Discrete(3))
    apart.actor_target, apart.critic_target = Lookup(LOGITS_TARGET), Lookup(Q_TARGET)
    apart._targets.clear()
    a, b = (policy.learn(transitions(*BATCH)) for policy in (joint, apart))
    assert a.metrics == b.metrics
    assert torch.equal(joint.actor.rows[1], critic.rows[0])
