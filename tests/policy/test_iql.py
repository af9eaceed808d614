"""IQL: its losses and a whole step by hand, its limits, and what its actor is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import Lookup, choose, random_obs, sgd, transitions, update
from gymnasium.spaces import Box
from tables import ActorTable, CriticTable, log_density

from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import EnsembleCritic, linear_layers, orthogonal_init
from tianshou_ext.policy import BCPolicy, IQLPolicy
from tianshou_ext.schedules import CosineDecay

MEAN, STD = [[0.2, -0.5], [0.0, 0.0]], [[0.5, 1.5], [1.0, 1.0]]
CRITICS = [[1.0, 0.0], [0.5, 0.0]]
"""(2 critics, 2 states)."""
TARGETS, SLOPES = [[1.0, 9.0], [2.0, 9.0]], [3.0, -1.0]
"""Least target value of the two actions below: -1.4 and 1.4."""
VALUES = [[0.4], [5.0]]
ACTS = [[-0.5, -0.3], [0.4, 0.2]]
BATCH = ([0, 0], ACTS, [1.0, -3.0], [False, True], [1, 1])
LEAST = [1.0 - 3.0 * 0.8, 2.0 - 0.6]
SPACE = Box(-2.0, 4.0, (2,))


def make(**options) -> IQLPolicy:
    actor, value = ActorTable(MEAN, STD), Lookup(VALUES)
    critic, critic2 = (CriticTable(rows) for rows in CRITICS)
    policy = IQLPolicy(
        actor=actor,
        actor_optim=sgd(actor, lr=0.1),
        critic=critic,
        critic_optim=sgd(critic),
        critic2=critic2,
        critic2_optim=sgd(critic2),
        value=value,
        value_optim=sgd(value),
        action_space=SPACE,
        **{"reward_norm": "none", **options},
    )
    for target, rows, slope in zip(policy.critic_target.critics, TARGETS, SLOPES, strict=True):
        target.rows.copy_(torch.tensor(rows))
        target.slope.fill_(slope)
    return policy


def test_a_step_by_hand():
    """V first; actor and critics with the new V; then the targets."""
    policy = make(expectile=0.8, inv_temperature=0.5, tau=0.25)
    stats = policy.learn(transitions(*BATCH))

    v, value_loss, slope = VALUES[0][0], 0.0, 0.0
    for q in LEAST:
        weight = 0.8 if q > v else 1 - 0.8
        value_loss += weight * (q - v) ** 2 / 2
        slope -= weight * 2 * (q - v) / 2
    new_v = v - slope
    assert stats.metrics["loss/value"] == pytest.approx(value_loss, rel=1e-5)
    assert policy.value.rows[0].flatten().tolist() == pytest.approx([new_v, 5.0])

    actor_loss, moved = 0.0, np.array(MEAN)
    for act, q in zip(ACTS, LEAST, strict=True):
        weight = min(math.exp(0.5 * (q - new_v)), 100.0)
        actor_loss -= weight * log_density(MEAN[0], STD[0], act) / 2
        moved[0] += 0.1 * weight * (np.array(act) - MEAN[0]) / np.array(STD[0]) ** 2 / 2
    assert stats.metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-5)
    assert np.allclose(policy.actor.mean.detach(), moved, atol=1e-6)

    targets = [1.0 + 0.5 * 5.0, -3.0]
    critic_loss = 0.0
    for i, rows in enumerate(CRITICS):
        errors = [rows[0] - y for y in targets]
        critic_loss += np.mean(np.square(errors))
        after = rows[0] - np.mean([2 * error for error in errors])
        critic, target = policy.critic.critics[i], policy.critic_target.critics[i]
        assert critic.rows.tolist() == pytest.approx([after, rows[1]], abs=1e-6)
        followed = 0.75 * TARGETS[i][0] + 0.25 * after
        assert target.rows[0].item() == pytest.approx(followed, abs=1e-6)
    assert stats.metrics["loss/critic"] == pytest.approx(critic_loss, rel=1e-5)


def test_value_learns_from_the_targets_and_not_from_the_critics():
    assert make().target_q(transitions(*BATCH)).tolist() == pytest.approx(LEAST, abs=1e-6)


def test_each_loss_trains_its_own_network_only():
    policy, batch = make(), transitions(*BATCH)
    q = policy.target_q(batch)
    v = policy.value(batch.obs)[0].squeeze(1)
    mean, std = policy.actor(batch.obs)[0]
    losses = {
        "value": policy.value_loss(v, q),
        "actor": policy.actor_loss(mean, std, batch.act, q - v.detach()),
        "critic": policy.critic_loss(policy.critic(batch.obs, batch.act), q),
    }
    assert q.grad_fn is None
    networks = {name: [*getattr(policy, name).parameters()] for name in losses}
    for name, loss in losses.items():
        for other, parameters in networks.items():
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
            assert all((g is not None) == (other == name) for g in gradients), (name, other)


def test_next_values_get_no_gradient():
    policy = make()
    policy.learn(transitions(*BATCH))
    assert policy.value.rows[0][1].item() == 5.0


def test_zero_inverse_temperature_is_cloning_by_likelihood():
    policy, batch = make(inv_temperature=0.0), transitions(*BATCH)
    actor = ActorTable(MEAN, STD)
    cloning = BCPolicy(actor=actor, optim=sgd(actor, lr=0.1), action_space=SPACE, stochastic=True)
    policy.learn(batch)
    cloning.learn(batch)
    assert torch.equal(policy.actor.mean, actor.mean)
    assert torch.equal(policy.actor.std, actor.std)


def test_value_is_the_mean_or_the_best_of_the_data_by_the_expectile():
    q = torch.tensor([1.0, -3.0, 2.5])
    for expectile, expected, tolerance in ((0.5, q.mean().item(), 1e-3), (0.999, 2.5, 0.02)):
        policy, v = make(expectile=expectile), torch.zeros(1, requires_grad=True)
        optim = torch.optim.SGD([v], lr=0.5)
        for _ in range(1500):
            optim.zero_grad()
            policy.value_loss(v.expand(3), q).backward()
            optim.step()
        assert v.item() == pytest.approx(expected, abs=tolerance)


def test_cloning_weight_is_clamped_after_the_exponential():
    policy = make(inv_temperature=10.0)
    mean, std, act = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([[1.0], [0.0]])
    loss = policy.actor_loss(mean, std, act, torch.tensor([50.0, -50.0]))
    assert loss.item() == pytest.approx(-100.0 * log_density([0.0], [1.0], [1.0]) / 2, rel=1e-6)


def test_actions_at_the_bounds_have_a_finite_loss(make_policy, continuous_buffer):
    """A squashed distribution would give them an infinite one."""
    continuous_buffer._meta["act"] = np.sign(continuous_buffer.act)
    policy = make_policy("iql", actions="continuous")
    assert all(math.isfinite(m["loss/actor"]) for m in update(policy, continuous_buffer, 5))


def test_deviation_is_the_same_in_all_states_and_within_its_bounds(make_policy):
    policy = make_policy("iql", actions="continuous")
    obs = policy.normalize(random_obs(policy, 5))
    for raw, std in ((0.0, 1.0), (-9.0, math.exp(-5.0)), (9.0, math.exp(2.0))):
        policy.actor.log_std.data.fill_(raw)
        (mean, deviation), _ = policy.actor(obs)
        assert torch.allclose(deviation, torch.full((5, 2), std))
        assert (mean.abs() < 1.0).all()
    act, mean = policy.act(obs, deterministic=False)
    assert act.abs().max() == 1.0
    assert not torch.equal(act, mean)
    assert np.array_equal(choose(policy, random_obs(policy, 5)).act, mean.detach().numpy())


def test_weights_start_orthogonal_and_other_in_each_critic(make_policy):
    policy = make_policy("iql", actions="continuous", hidden_sizes=(16, 16))
    for layer in (layer for net in (policy.actor, policy.value) for layer in linear_layers(net)):
        columns = layer.weight if len(layer.weight) <= layer.in_features else layer.weight.T
        product = columns @ columns.T
        assert torch.allclose(product, 2.0 * torch.eye(len(product)), atol=1e-5)
        assert not layer.bias.any()
    critic = EnsembleCritic((3,), 2, (16, 16), 2)
    orthogonal_init(critic)
    for layer in linear_layers(critic):
        first, second = layer.weight
        assert not torch.equal(first, second)
        narrow = first if first.shape[0] <= first.shape[1] else first.T
        assert torch.allclose(narrow @ narrow.T, 2.0 * torch.eye(len(narrow)), atol=1e-5)


def test_returns_of_the_data_span_1000(make_policy, continuous_buffer):
    policy = make_policy("iql", actions="continuous")
    update(policy, continuous_buffer)
    ends = np.flatnonzero(continuous_buffer.done) + 1
    returns = [part.sum() for part in np.split(continuous_buffer.rew, ends)[:-1]]
    scale = 1000.0 / (max(returns) - min(returns))
    assert policy.reward_norm.scale.item() == pytest.approx(scale, rel=1e-5)


def test_only_the_actors_learning_rate_decays(make_policy, continuous_buffer):
    policy = make_policy("iql", actions="continuous", lr=0.5)
    policy.lr_scheduler = CosineDecay([policy.optimizers["actor"]], 4)
    seen = []
    for _ in range(4):
        update(policy, continuous_buffer)
        seen.append({n: o.param_groups[0]["lr"] for n, o in policy.optimizers.items()})
    assert [row["actor"] for row in seen] == pytest.approx([0.4267767, 0.25, 0.0732233, 0.0])
    assert {row[name] for row in seen for name in ("critic", "value")} == {0.5}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"expectile": 1.0}, "expectile in .0, 1., got 1.0"),
        ({"inv_temperature": -1.0}, "inv_temperature at least 0"),
        ({"tau": 0.0}, "tau in .0, 1."),
    ],
)
def test_values_out_of_range_give_one_sentence(options, sentence, make_policy):
    with pytest.raises(InputError, match=f"expected {sentence}"):
        make_policy("iql", actions="continuous", **options)


def test_units_are_dropped_in_the_actors_loss_only(make_policy, continuous_buffer):
    policy = make_policy("iql", actions="continuous", dropout=0.5, hidden_sizes=(16, 8))
    obs = random_obs(policy, 8)
    policy.train()
    acts = [choose(policy, obs).act for _ in range(2)]
    assert np.array_equal(*acts)
    seen, forward = [], policy.actor.forward

    def spy(obs, state=None, info=None, keep=None):
        seen.append(keep)
        return forward(obs, state, info, keep)

    policy.actor.forward = spy
    update(policy, continuous_buffer)
    (keep,) = seen
    assert keep.shape[1] == 24 and set(keep.unique().tolist()) == {0.0, 2.0}
    mean, std = policy.dropped(policy.actor, policy.normalize(obs))
    assert not torch.equal(mean, forward(policy.normalize(obs))[0][0])
    assert torch.equal(std, forward(policy.normalize(obs))[0][1])


def test_a_network_that_cannot_drop_units_is_refused_in_one_sentence():
    with pytest.raises(InputError, match=r"GaussianActor of .* for dropout 0.1, got ActorTable"):
        make(dropout=0.1)
