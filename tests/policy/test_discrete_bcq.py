"""Discrete BCQ: targets and loss by hand, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from contract import Lookup, random_obs, sgd, transitions
from gymnasium.spaces import Discrete
from tianshou.data import Batch

from tianshou_ext.policy import DiscreteBCQPolicy

Q = [[1.0, 2.0, 0.5], [5.0, 1.0, 3.0]]
"""(2 states, 3 actions); in state 1 the online order is 0, 2, 1."""
LOGITS = [[0.0, 0.0, 0.0], [-3.0, 1.0, 0.5]]
"""In state 1 action 0 is unlikely: its share of the best is exp(-4), that of action 2 exp(-0.5)."""
Q_TARGET = [[0.0, 0.0, 0.0], [7.0, 8.0, -4.0]]
BATCH = ([0, 0], [1, 2], [1.0, -3.0], [False, True], [1, 1])


def make(**options) -> DiscreteBCQPolicy:
    model = Lookup(Q, LOGITS)
    policy = DiscreteBCQPolicy(model=model, optim=sgd(model), action_space=Discrete(3), **options)
    policy.model_target = Lookup(Q_TARGET, LOGITS)
    policy._targets.clear()  # keep Q_TARGET: the first step would copy the model into it
    return policy


def test_loss_by_hand():
    """Threshold 0.3 forbids action 0, so action 2 is next: y = 1 - 4 / 2 and y = -3."""
    stats = make(imitation_logits_penalty=0.25).learn(transitions(*BATCH))
    td = 0.0
    for act, y in ((1, 1.0 + 0.5 * -4.0), (2, -3.0)):
        error = abs(Q[0][act] - y)
        td += (0.5 * error**2 if error < 1 else error - 0.5) / 2
    assert stats.metrics["loss/td"] == pytest.approx(td, rel=1e-6)
    assert stats.metrics["loss/imitation"] == pytest.approx(math.log(3), rel=1e-6)
    assert stats.metrics["loss/logits"] == 0.0  # state 0 has logits of 0
    other = make(imitation_logits_penalty=0.25).learn(transitions([1], [1], [0.0], [True], [0]))
    squares = (9.0 + 1.0 + 0.25) / 3
    assert other.metrics["loss/logits"] == pytest.approx(0.25 * squares, rel=1e-6)
    total = sum(v for k, v in other.metrics.items() if k.startswith("loss/"))
    assert other.metrics["loss"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("threshold", "act_next"),
    [(0.0, 0), (math.exp(-4.01), 0), (math.exp(-3.99), 2), (math.exp(-0.49), 1), (1.0, 1)],
    ids=["double DQN", "just allowed", "just forbidden", "only the likeliest", "cloning"],
)
def test_threshold_says_which_actions_are_next(threshold, act_next):
    policy = make(unlikely_action_threshold=threshold)
    y = policy.target_q(transitions(*BATCH))
    assert y.tolist() == pytest.approx([1.0 + 0.5 * Q_TARGET[1][act_next], -3.0], rel=1e-6)


def test_acting_takes_the_best_of_the_allowed_actions():
    obs = torch.tensor([[0.0], [1.0]])
    for threshold, chosen in ((0.0, [1, 0]), (0.3, [1, 2]), (1.0, [1, 1])):
        act, _ = make(unlikely_action_threshold=threshold).act(obs, deterministic=True)
        assert act.tolist() == chosen


def test_some_action_is_always_allowed(make_policy):
    policy = make_policy("discrete_bcq", unlikely_action_threshold=1.0)
    obs = random_obs(policy, 200)
    q, logits = policy.values_and_logits(policy.normalize(obs))
    assert torch.isfinite(policy.masked(q, logits).amax(1)).all()
    cloned = logits.argmax(1).numpy()
    assert (policy(Batch(obs=obs, info={})).act == cloned).all()


def test_each_loss_reaches_its_own_head():
    policy = make(imitation_logits_penalty=0.25)
    batch = transitions(*BATCH)
    target = policy.target_q(batch)
    q, logits = policy.values_and_logits(batch.obs)
    losses = policy.losses(q, logits, batch.act, target)
    values, behaviour = policy.model.rows
    for key, own, other in (
        ("loss/td", values, behaviour),
        ("loss/imitation", behaviour, values),
        ("loss/logits", behaviour, values),
    ):
        gradients = torch.autograd.grad(
            losses[key], [own, other], retain_graph=True, allow_unused=True
        )
        assert gradients[0] is not None
        assert gradients[1] is None
    assert target.grad_fn is None


def test_separate_imitator_gives_the_same_as_two_heads():
    joint = make()
    model, imitator = Lookup(Q), Lookup(LOGITS)
    optim = sgd(model, imitator)
    space = Discrete(3)
    apart = DiscreteBCQPolicy(model=model, imitator=imitator, optim=optim, action_space=space)
    apart.model_target = Lookup(Q_TARGET)
    apart._targets.clear()
    for _ in range(3):
        a, b = (policy.learn(transitions(*BATCH)) for policy in (joint, apart))
        assert a.metrics == b.metrics
    assert torch.equal(joint.model.rows[0], model.rows[0])
    assert torch.equal(joint.model.rows[1], imitator.rows[0])
