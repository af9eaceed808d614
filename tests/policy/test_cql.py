"""CQL: the conservative term by hand, its actions and densities, Lagrange, and SAC as its limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import same, transitions, update
from test_sac_n import ALPHA, BATCH, CRITICS, MEANS, NOISE, STDS, make, squashed

from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import tanh_normal_log_prob
from tianshou_ext.policy import CQLConfig, CQLPolicy

ENTERING = transitions([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, False], [1, 1])
"""Both transitions lead from state 0 to state 1."""


def make_cql(**options) -> CQLPolicy:
    return make(CQLPolicy, **{"actor_lr": None, **options})


def pairs(policy, batch):
    return policy.actor(batch.obs)[0], policy.actor(batch.obs_next)[0]


@pytest.mark.parametrize("obs", ["vector", "pixel"])
def test_without_weight_it_is_sac_to_the_bit(obs, make_policy, make_buffer):
    buffer, states = make_buffer(obs, "continuous"), []
    shared = {"num_critics": 2, "backup_entropy": False, "actor_lr": 1e-3}
    for name, options in (("sac_n", {}), ("cql", {"cql_weight": 0.0}), ("cql", {"cql_weight": 1})):
        policy = make_policy(name, obs, "continuous", **shared, **options)
        update(policy, buffer, times=4)
        states.append(policy.state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_gap_by_hand():
    rng = np.random.default_rng(0)
    q, data = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4))
    density = rng.normal(size=(4, 6))
    for temperature in (1.0, 0.5):
        policy = make_cql(temperature=temperature)
        weighted = np.exp((q - density) / temperature).sum(2)
        expected = (temperature * np.log(weighted) - data).mean(1)
        gap = policy.conservative_gap(*(torch.tensor(x) for x in (q, density, data)))
        assert gap.numpy() == pytest.approx(expected)


def test_constant_values_and_uniform_actions_have_a_soft_maximum_in_closed_form():
    """c + log(3K) + A log 2: a gap that the Lagrange threshold is measured against."""
    count, dims, value = 30, 6, 1.7
    density = torch.full((4, count), -dims * math.log(2.0))
    gap = make_cql().conservative_gap(torch.full((2, 4, count), value), density, torch.zeros(2, 4))
    assert gap.tolist() == pytest.approx([value + math.log(count) + dims * math.log(2.0)] * 2)


def test_soft_maximum_goes_to_the_maximum_as_the_temperature_goes_to_zero():
    q = torch.tensor([[[1.0, 3.0, -2.0]]])
    gap = make_cql(temperature=1e-3).conservative_gap(q, torch.zeros(1, 3), torch.zeros(1, 1))
    assert gap.item() == pytest.approx(3.0, abs=1e-3)


def test_random_actions_are_uniform_and_not_a_corner(make_policy):
    """Tianshou's are drawn from [1, 1]: its range runs from -min_action to max_action."""
    policy = make_policy("cql", "vector", "continuous", num_repeat_actions=50)
    pair = (torch.zeros(100, 2), torch.ones(100, 2))
    acts, density = policy.sampled_actions(pair, pair)
    uniform = acts[:, :50]
    shares = torch.histc(uniform, bins=4, min=-1.0, max=1.0) / uniform.numel()
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert uniform.abs().max() <= 1.0
    assert density[:, :50].unique().tolist() == pytest.approx([-2 * math.log(2.0)])


def test_the_other_actions_are_the_policys_here_and_after_with_their_own_densities(make_policy):
    policy = make_policy("cql", "vector", "continuous", num_repeat_actions=4)
    here = (torch.tensor([[0.5, -0.5]] * 3), torch.full((3, 2), 0.01))
    after = (torch.tensor([[-1.0, 1.0]] * 3), torch.full((3, 2), 0.02))
    acts, density = policy.sampled_actions(here, after)
    assert acts.shape == (3, 12, 2)
    for (mean, std), part in ((here, slice(4, 8)), (after, slice(8, 12))):
        assert torch.allclose(acts[:, part], torch.tanh(mean).unsqueeze(1), atol=0.1)
        given = tanh_normal_log_prob(mean.unsqueeze(1), std.unsqueeze(1), acts[:, part])
        assert torch.allclose(density[:, part], given, atol=1e-2)
    assert len(acts[0].unique(dim=0)) == 12


def test_all_actions_are_valued_at_the_present_state_in_one_pass(monkeypatch):
    policy, asked = make_cql(num_repeat_actions=5), []
    values = policy.critic.values
    monkeypatch.setattr(
        policy.critic, "values", lambda obs, acts: asked.append((obs, acts)) or values(obs, acts)
    )
    q, _ = policy.critic_terms(ENTERING, *pairs(policy, ENTERING))
    ((obs, acts),) = asked
    assert torch.equal(obs, ENTERING.obs)
    assert acts.shape == (2, 16, 1)
    assert torch.equal(acts[:, 0], ENTERING.act)
    assert torch.allclose(q, policy.critic(ENTERING.obs, ENTERING.act))
    assert torch.equal(
        acts[:, 6:11], torch.tanh(torch.tensor(0.3 + 0.5 * NOISE[0])).expand(2, 5, 1)
    )
    after = MEANS[1][0] + STDS[1][0] * NOISE[1]
    assert torch.allclose(acts[:, 11:], torch.tanh(torch.tensor(after)).expand(2, 5, 1))


def test_nothing_is_asked_of_what_follows_a_true_end():
    policy = make_cql(num_repeat_actions=2)
    ended = transitions(*BATCH)  # the second row ends
    here, after = pairs(policy, ended)
    drawn = []
    policy.sampled_actions = lambda a, b: (
        drawn.append(b) or (torch.zeros(2, 6, 1), torch.zeros(2, 6))
    )
    policy.critic_terms(ended, here, after)
    assert torch.equal(drawn[0][0], torch.stack([after[0][0], here[0][1]]))
    assert torch.equal(drawn[0][1], torch.stack([after[1][0], here[1][1]]))


def test_conservative_term_trains_the_critics_only():
    policy = make_cql(lagrange_threshold=1.0)
    _, terms = policy.critic_terms(ENTERING, *pairs(policy, ENTERING))
    actor = [*policy.actor.parameters(), policy.log_alpha]
    gradients = torch.autograd.grad(terms["cql"], actor, allow_unused=True, retain_graph=True)
    assert all(g is None for g in gradients)
    critic = [*policy.critic.parameters()]
    gradients = torch.autograd.grad(terms["cql"], critic, retain_graph=True)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    gradients = torch.autograd.grad(terms["cql_alpha"], critic, allow_unused=True)
    assert all(g is None for g in gradients)


def test_data_values_are_pushed_up_by_the_weight_over_the_batch():
    policy = make_cql(cql_weight=3.0)
    data = torch.zeros(2, 4, requires_grad=True)
    gap = policy.conservative_gap(torch.zeros(2, 4, 6), torch.zeros(4, 6), data)
    policy.penalties(gap)["cql"].backward()
    assert torch.allclose(data.grad, torch.full((2, 4), -3.0 / 4))


def test_sampled_values_are_pushed_down_by_their_share_of_the_soft_maximum():
    policy = make_cql(cql_weight=3.0)
    q = torch.randn(2, 4, 6, requires_grad=True)
    density = torch.randn(4, 6)
    gap = policy.conservative_gap(q, density, torch.zeros(2, 4))
    policy.penalties(gap)["cql"].backward()
    shares = (q.detach() - density).softmax(2)
    assert torch.allclose(q.grad, 3.0 / 4 * shares, atol=1e-6)


def test_a_step_by_hand():
    """Deterministic actions make the term Q_i(s, .) - Q_i(s, a_data) plus its densities."""
    policy = make_cql(cql_weight=2.0, num_repeat_actions=1, auto_alpha=False)
    policy.rand = lambda *shape: torch.full(shape, 0.75)  # the action 0.5
    draws = iter([NOISE[0], NOISE[1], -0.2, 0.4])
    policy.randn = lambda *shape: torch.full(shape, next(draws))
    metrics = policy.learn(ENTERING).metrics
    sampled = [(0.5, -math.log(2.0)), squashed(0, -0.2), squashed(1, 0.4)]
    penalty = 0.0
    for rows, slope in CRITICS:
        soft = math.log(sum(math.exp(rows[0] + slope * a - p) for a, p in sampled))
        data = np.mean([rows[0] + slope * a for a in (0.5, -1.0)])
        penalty += 2.0 * (soft - data)
    assert metrics["loss/cql"] == pytest.approx(penalty, rel=1e-5)
    assert metrics["loss/critic"] > 0
    least = CRITICS[0][0][0] + CRITICS[0][1] * squashed(0, NOISE[0])[0]
    actor_loss = ALPHA * squashed(0, NOISE[0])[1] - least
    assert metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-5)


@pytest.mark.parametrize(("threshold", "sign"), [(0.0, 1), (50.0, -1)], ids=["above", "below"])
def test_learned_weight_grows_while_the_gap_is_above_the_threshold(threshold, sign):
    policy = make_cql(lagrange_threshold=threshold, lr=0.01)
    policy.learn(ENTERING)
    assert policy.log_cql_alpha.item() == pytest.approx(sign * 0.01, rel=1e-3)
    assert "log_cql_alpha" in policy.state_dict()


def test_learned_weight_multiplies_what_is_above_the_threshold():
    policy = make_cql(lagrange_threshold=1.5, cql_weight=2.0)
    policy.log_cql_alpha.data.fill_(math.log(4.0))
    gap = torch.tensor([3.0, 5.0], requires_grad=True)
    terms = policy.penalties(gap)
    assert terms["cql"].item() == pytest.approx(4.0 * (2 * 3.0 - 1.5 + 2 * 5.0 - 1.5))
    mean = (2 * 3.0 - 1.5 + 2 * 5.0 - 1.5) / 2
    assert terms["cql_alpha"].item() == pytest.approx(-4.0 * mean)
    sum(terms.values()).backward()
    assert gap.grad.tolist() == pytest.approx([8.0, 8.0])
    assert policy.log_cql_alpha.grad.item() == pytest.approx(-4.0 * mean)


def test_lagrange_goes_by_tianshous_two_names():
    assert not CQLConfig().uses_lagrange
    assert CQLConfig(lagrange_threshold=5.0).uses_lagrange
    assert CQLConfig(lagrange_threshold=5.0, with_lagrange=True).uses_lagrange
    assert not CQLConfig(lagrange_threshold=5.0, with_lagrange=False).uses_lagrange
    with pytest.raises(InputError, match=r"at least 0, or None for a fixed weight, got -1"):
        CQLConfig(lagrange_threshold=-1.0)  # how the official script switches it off
    with pytest.raises(InputError, match="lagrange_threshold a number beside with_lagrange"):
        CQLConfig(with_lagrange=True)


def test_first_steps_clone_the_datas_actions_and_not_fresh_ones():
    policy = make_cql(bc_steps=1, auto_alpha=False)
    cost = ALPHA * squashed(0, NOISE[0])[1]
    data = [0.5, -0.8]
    batch = transitions([0, 0], [[a] for a in data], [1.0, -3.0], [False, False], [1, 1])
    cloned = [
        -0.5 * ((math.atanh(a) - 0.3) / 0.5) ** 2
        - math.log(0.5)
        - 0.5 * math.log(2 * math.pi)
        - math.log(1 - a**2)
        for a in data
    ]
    metrics = policy.learn(batch).metrics
    assert metrics["loss/actor"] == pytest.approx(cost - np.mean(cloned), rel=1e-5)
    policy = make_cql(bc_steps=0, auto_alpha=False)
    least = CRITICS[0][0][0] + CRITICS[0][1] * squashed(0, NOISE[0])[0]
    assert policy.learn(batch).metrics["loss/actor"] == pytest.approx(cost - least, rel=1e-5)
    policy = make_cql(bc_steps=1)
    policy.num_updates = 1
    assert policy.learn(batch).metrics["loss/actor"] == pytest.approx(cost - least, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cql_weight": -1.0}, "expected cql_weight at least 0, got -1.0"),
        ({"temperature": 0.0}, "expected temperature above 0, got 0.0"),
        ({"num_repeat_actions": 0}, "expected num_repeat_actions at least 1, got 0"),
        ({"cql_alpha_lr": 0.0}, "expected cql_alpha_lr above 0, got 0.0"),
        ({"bc_steps": -1}, "expected bc_steps at least 0, got -1"),
    ],
)
def test_values_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        CQLConfig(**options)


def test_values_of_actions_outside_the_data_end_up_below_those_of_the_data(make_policy):
    """All rewards are 0, and the data hold actions from 0.4 to 0.6 only."""
    act = torch.rand(64, 2) * 0.2 + 0.4
    zeros = [0] * 64
    gaps = {}
    for weight in (0.0, 5.0):
        policy = make_policy("cql", "vector", "continuous", cql_weight=weight, actor_lr=1e-3)
        batch = transitions(zeros, act.tolist(), [0.0] * 64, [True] * 64, zeros)
        batch.obs = batch.obs_next = torch.zeros(64, 3)
        for _ in range(60):
            policy.learn(batch)
        inside, outside = (
            policy.critic(torch.zeros(1, 3), torch.full((1, 2), a)) for a in (0.5, -0.8)
        )
        gaps[weight] = (inside - outside).mean().item()
    assert gaps[5.0] > 1.0
    assert abs(gaps[0.0]) < 0.5
