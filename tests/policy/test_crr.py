"""CRR for continuous actions: a step by hand, its weights and limits, acting by the critic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import choose, random_obs, sgd, transitions, update
from gymnasium.spaces import Box
from tables import ActorTable, CriticTable, log_density

from tianshou_ext.errors import InputError
from tianshou_ext.policy import BCPolicy, CRRPolicy

MEAN, STD = [[0.2, -0.5], [0.9, 0.0]], [[0.5, 1.5], [1.0, 0.1]]
ROWS, SLOPE = [1.0, 3.0], 2.0
"""Q(s, a) = rows[s] + slope * sum(a)."""
ACTS = [[-0.5, -0.3], [0.4, 0.2]]
BATCH = ([0, 0], ACTS, [1.0, -3.0], [False, True], [1, 1])
SPACE = Box(-2.0, 4.0, (2,))
NOISE = [[0.1, 0.2], [-0.4, 0.0], [9.0, 0.0], [0.0, -0.2]]
"""One row for each of the four sampled actions."""


def make(lr: float = 0.1, **options) -> CRRPolicy:
    actor, critic = ActorTable(MEAN, STD), CriticTable(ROWS, SLOPE)
    policy = CRRPolicy(
        actor=actor,
        actor_optim=sgd(actor, lr=lr),
        critic=critic,
        critic_optim=sgd(critic, lr=lr),
        action_space=SPACE,
        **options,
    )

    def randn(*shape: int) -> torch.Tensor:
        if len(shape) == 2:
            return torch.zeros(shape)
        return torch.tensor(NOISE).expand(shape)

    policy.randn = randn
    return policy


def sampled() -> np.ndarray:
    """Return the four actions sampled in state 0."""
    return np.clip(np.array(MEAN[0]) + np.array(STD[0]) * np.array(NOISE), -1.0, 1.0)


@pytest.mark.parametrize("advantage", ["mean", "max"])
def test_a_step_by_hand(advantage):
    """Both losses of the same weights; targets by the target policy and the target critic."""
    policy = make(beta=0.5, advantage=advantage)
    stats = policy.learn(transitions(*BATCH))

    values = ROWS[0] + SLOPE * sampled().sum(1)
    v = values.mean() if advantage == "mean" else values.max()
    q = [ROWS[0] + SLOPE * sum(act) for act in ACTS]
    actor_loss, moved, weights = 0.0, np.array(MEAN), []
    for act, value in zip(ACTS, q, strict=True):
        weight = min(math.exp((value - v) / 0.5), 20.0)
        actor_loss -= weight * log_density(MEAN[0], STD[0], act) / 2
        moved[0] += 0.1 * weight * (np.array(act) - MEAN[0]) / np.array(STD[0]) ** 2 / 2
        weights.append(weight)
    assert stats.metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-5)
    assert stats.metrics["weight/mean"] == pytest.approx(np.mean(weights), rel=1e-5)
    assert np.allclose(policy.actor.mean.detach(), moved, atol=1e-6)

    targets = [1.0 + 0.5 * (ROWS[1] + SLOPE * 0.9), -3.0]
    errors = np.array(q) - targets
    assert stats.metrics["loss/critic"] == pytest.approx(np.mean(errors**2) / 2, rel=1e-5)
    assert policy.critic.critics[0].rows[0].item() == pytest.approx(ROWS[0] - 0.1 * errors.mean())


def test_next_actions_are_the_target_policys():
    policy, batch = make(), transitions(*BATCH)
    before = policy.critic_targets(batch)
    policy.actor.mean.data.zero_()
    policy.critic.critics[0].rows.data.zero_()
    assert torch.equal(policy.critic_targets(batch), before)
    policy.copy_targets()
    assert policy.critic_targets(batch).tolist() == pytest.approx([1.0, -3.0])


def test_sarsa_targets_are_of_the_datas_next_action():
    """SARSA's y by hand; the target policy, which would choose otherwise, is not asked."""
    policy = make(use_sarsa_target=True)
    batch = replace(transitions(*BATCH), act_next=torch.tensor([[0.25, 0.5], [0.0, 0.0]]))
    q = ROWS[1] + SLOPE * 0.75
    assert policy.critic_targets(batch).tolist() == pytest.approx([1.0 + 0.5 * q, -3.0])


def test_sarsa_targets_are_the_target_policys_where_no_action_follows():
    """As in a buffer that is being filled: its newest row, and episodes that were cut."""
    policy, plain = make(use_sarsa_target=True), make()
    batch = transitions([0, 0], [ACTS[0]] * 2, [1.0, 1.0], [False, False], [1, 1])
    expected = plain.critic_targets(batch)[1]
    batch.act_next = torch.tensor([[0.25, 0.5], [9.0, 9.0]])
    batch.has_act_next = torch.tensor([True, False])
    q = ROWS[1] + SLOPE * 0.75
    assert policy.critic_targets(batch).tolist() == pytest.approx([1.0 + 0.5 * q, expected.item()])


def test_sarsa_targets_ask_the_data_for_the_next_action(make_policy, continuous_buffer):
    for use in (False, True):
        policy = make_policy("crr", actions="continuous", use_sarsa_target=use)
        assert (policy.sample(continuous_buffer, 8).act_next is not None) == use


def test_targets_are_copies_of_both_networks_every_so_many_steps():
    policy, batch = make(target_update_freq=3, lr=0.01), transitions(*BATCH)
    followed = []
    for _ in range(7):
        sources = policy.actor.mean.clone(), policy.critic.critics[0].rows.clone()
        policy.learn(batch)
        targets = policy.actor_target.mean, policy.critic_target.critics[0].rows
        followed.append(all(map(torch.equal, sources, targets)))
    assert followed == [True, False, False, True, False, False, True]


def test_weights_of_each_mode():
    adv = torch.tensor([-2.0, 0.0, 1.0, 50.0])
    expected = torch.tensor([math.exp(-4.0), 1.0, math.exp(2.0), 20.0])
    assert torch.allclose(make(beta=0.5).weights(adv), expected)
    assert make(policy_improvement_mode="binary").weights(adv).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert make(policy_improvement_mode="all").weights(adv).tolist() == [1.0] * 4


@pytest.mark.parametrize("options", [{"policy_improvement_mode": "all"}, {"beta": 1e9}], ids=str)
def test_weights_of_one_are_cloning_by_likelihood(options):
    policy, batch = make(**options), transitions(*BATCH)
    actor = ActorTable(MEAN, STD)
    cloning = BCPolicy(actor=actor, optim=sgd(actor, lr=0.1), action_space=SPACE, stochastic=True)
    policy.learn(batch)
    cloning.learn(batch)
    assert torch.allclose(policy.actor.mean, actor.mean, atol=1e-6)
    assert torch.allclose(policy.actor.std, actor.std, atol=1e-6)


def test_advantage_changes_neither_critic_nor_actor_by_a_gradient():
    policy, batch = make(), transitions(*BATCH)
    mean, std = policy.actor(batch.obs)[0]
    q = policy.critic(batch.obs, batch.act)
    weight = policy.weights(policy.advantages(batch.obs, q, mean, std))
    assert weight.grad_fn is None
    policy.actor_loss(mean, std, batch.act, weight).backward()
    assert all(p.grad is None for p in policy.critic.parameters())


def test_each_sample_is_weighted_by_its_own_advantage():
    """A weight of shape (B, 1) would weigh it by those of all samples."""
    mean, std, act = torch.zeros(3, 1), torch.ones(3, 1), torch.tensor([[0.0], [1.0], [2.0]])
    loss = CRRPolicy.actor_loss(mean, std, act, torch.tensor([0.0, 0.0, 3.0]))
    assert loss.item() == pytest.approx(-log_density([0.0], [1.0], [2.0]), rel=1e-6)


def test_acting_by_the_critic_prefers_what_it_values():
    """Q grows with the action; the colder the weights, the better the action."""
    obs = torch.zeros(500, 1)
    means = []
    for beta in (1e6, 1.0, 1e-3):
        policy = make(critic_weighted_acting=True, beta=beta, num_value_samples=16)
        act, mean = policy.act(obs, deterministic=True)
        assert act.shape == mean.shape == (500, 2)
        assert act.abs().max() <= 1.0
        means.append(act.sum(1).mean().item())
    assert means[0] + 0.3 < means[1] < means[2] - 0.1


def test_acting_by_the_critic_repeats_with_the_seed(make_policy, continuous_buffer):
    def act() -> np.ndarray:
        policy = make_policy("crr", actions="continuous", critic_weighted_acting=True)
        update(policy, continuous_buffer, times=2)
        return choose(policy, random_obs(policy, 6)).act

    first = act()
    torch.rand(5)
    assert np.array_equal(first, act())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"policy_improvement_mode": "best"}, "policy_improvement_mode one of exp, binary, all"),
        ({"advantage": "median"}, "advantage one of mean, max, got median"),
        ({"beta": 0.0}, "beta above 0"),
        ({"num_value_samples": 0}, "num_value_samples at least 1"),
    ],
)
def test_values_out_of_range_give_one_sentence(options, sentence, make_policy):
    with pytest.raises(InputError, match=f"expected {sentence}"):
        make_policy("crr", actions="continuous", **options)
