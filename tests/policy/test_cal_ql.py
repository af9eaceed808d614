"""Cal-QL: values raised to returns by hand, returns of failures, CQL as its limit, and online."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from contract import same, transitions, update
from test_cql import ENTERING
from test_sac_n import CRITICS, NOISE, TARGETS, make, squashed
from tianshou.data import Batch

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import linear_layers
from tianshou_ext.policy import CalQLConfig, CalQLPolicy, CQLConfig
from tianshou_ext.tianshou_api import ReplayBuffer

EVERY_REWARD = np.array([-5.0, -5.0, -5.0], np.float32)


def make_cal_ql(**options) -> CalQLPolicy:
    return make(CalQLPolicy, **{"actor_lr": None, **options})


def batches(policy, buffer, returns, count=3, size=8):
    """Return batches of the buffer's rows whose returns are ``returns``."""
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(count):
        batch = policy._replay(buffer).sample(size, generator)
        batch.returns = None if returns is None else torch.full((size,), returns)
        drawn.append(batch)
    return drawn


def learned(policy, buffer, returns) -> dict[str, torch.Tensor]:
    """Return the weights after some steps on rows with these returns."""
    for batch in batches(policy, buffer, returns):
        policy.learn(batch)
    return policy.state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"lagrange_threshold": 1.0}, {"temperature": 0.5, "num_repeat_actions": 3}],
    ids=["plain", "lagrange", "temperature"],
)
@pytest.mark.parametrize("returns", [-torch.inf, None], ids=["unknown", "absent"])
@pytest.mark.parametrize("obs", ["vector", "pixel"])
def test_without_returns_it_is_cql_to_the_bit(obs, returns, options, make_policy, make_buffer):
    buffer = make_buffer(obs, "continuous")
    cql = make_policy("cql", obs, "continuous", **options)
    policy = make_policy("cal_ql", obs, "continuous", **options)
    assert same(learned(policy, buffer, returns), learned(cql, buffer, None))


def test_defaults_are_those_of_cql():
    given = CalQLConfig()
    for field in fields(CQLConfig):
        assert getattr(given, field.name) == getattr(CQLConfig(), field.name), field.name


def test_values_of_the_policys_actions_are_raised_and_of_uniform_ones_not():
    policy = make_cal_ql(num_repeat_actions=2)
    rng = np.random.default_rng(0)
    q, returns = rng.normal(size=(3, 4, 6)), rng.normal(size=4)
    expected = q.copy()
    expected[:, :, 2:] = np.maximum(q[:, :, 2:], returns[None, :, None])
    raised = policy.calibrated(torch.tensor(q), torch.tensor(returns))
    assert raised.numpy() == pytest.approx(expected)
    assert (expected != q).any()


def test_values_are_raised_before_log_densities_are_subtracted():
    """Tianshou's ``calibrated`` compares the return with the value less its log-density."""
    policy = make_cal_ql(num_repeat_actions=1)
    q = torch.tensor([[[0.5, 1.0, -4.0]]])
    density = torch.tensor([[-0.7, 3.0, -2.0]])
    batch = transitions([0], [[0.0]], [0.0], [False], [0])
    batch.returns = torch.tensor([2.0])
    gap = policy.conservative_gap(policy.penalised(batch, q), density, torch.zeros(1, 1))
    inside = [0.5 + 0.7, 2.0 - 3.0, 2.0 + 2.0]
    assert gap.item() == pytest.approx(math.log(sum(map(math.exp, inside))), rel=1e-6)
    wrong = [max(q - p, 2.0) for q, p in ((0.5, -0.7), (1.0, 3.0), (-4.0, -2.0))]
    assert gap.item() != pytest.approx(math.log(sum(map(math.exp, wrong))), rel=1e-2)


@pytest.mark.parametrize("huge", [1e4, 1e30, torch.inf])
def test_huge_returns_leave_the_policys_actions_without_a_gradient(huge):
    policy = make_cal_ql(num_repeat_actions=2, cql_weight=3.0)
    q = torch.randn(2, 4, 6, requires_grad=True)
    data = torch.zeros(2, 4, requires_grad=True)
    raised = policy.calibrated(q, torch.full((4,), huge))
    policy.penalties(policy.conservative_gap(raised, torch.randn(4, 6), data))["cql"].backward()
    assert (q.grad[:, :, 2:] == 0).all()
    assert torch.isfinite(q.grad).all()
    assert torch.allclose(data.grad, torch.full((2, 4), -3.0 / 4))


def test_only_rows_and_critics_below_the_return_lose_their_gradient():
    policy = make_cal_ql(num_repeat_actions=1)
    q = torch.tensor([[[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]], [[0.0, 7.0, 1.0], [0.0, 7.0, 1.0]]])
    q.requires_grad_(True)
    raised = policy.calibrated(q, torch.tensor([3.0, -torch.inf]))
    policy.conservative_gap(raised, torch.zeros(2, 3), torch.zeros(2, 2)).sum().backward()
    lost = torch.zeros(2, 2, 3, dtype=torch.bool)
    lost[0, 0, 1] = lost[1, 0, 2] = True
    assert torch.equal(q.grad == 0, lost)
    assert not torch.equal(q.grad[:, 0], q.grad[:, 1])


def test_a_step_by_hand():
    policy = make_cal_ql(cql_weight=2.0, num_repeat_actions=1, auto_alpha=False)
    policy.rand = lambda *shape: torch.full(shape, 0.75)  # the action 0.5
    draws = iter([NOISE[0], NOISE[1], -0.2, 0.4])
    policy.randn = lambda *shape: torch.full(shape, next(draws))
    batch = transitions([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, False], [1, 1])
    batch.returns = torch.tensor([1.3, 1.9])
    metrics = policy.learn(batch).metrics
    own, penalty = [squashed(0, -0.2), squashed(1, 0.4)], 0.0
    for rows, slope in CRITICS:
        for act, bound in zip((0.5, -1.0), (1.3, 1.9), strict=True):
            inside = [rows[0] + slope * 0.5 + math.log(2.0)]
            inside += [max(rows[0] + slope * a, bound) - p for a, p in own]
            soft = math.log(sum(map(math.exp, inside)))
            penalty += 2.0 * (soft - rows[0] - slope * act) / 2
    assert metrics["loss/cql"] == pytest.approx(penalty, rel=1e-5)
    plain = make_cal_ql(cql_weight=2.0, num_repeat_actions=1, auto_alpha=False)
    plain.rand, draws = policy.rand, iter([NOISE[0], NOISE[1], -0.2, 0.4])
    plain.randn = lambda *shape: torch.full(shape, next(draws))
    assert plain.learn(ENTERING).metrics["loss/critic"] == metrics["loss/critic"]


def test_return_of_three_steps_by_hand():
    policy = make_cal_ql(gamma=0.5)
    returns = policy.returns_to_go(np.array([1.0, -2.0, 4.0]))
    assert returns.tolist() == pytest.approx([1.0, 0.0, 4.0])


def test_an_episode_of_failures_would_have_failed_for_ever():
    """AntMaze in the paper: rewards of 10 r - 5, so -5 / (1 - 0.99)."""
    policy = make_cal_ql(failure_reward=-5.0)
    assert policy.returns_to_go(EVERY_REWARD).tolist() == pytest.approx([-500.0] * 3)
    assert policy.returns_to_go(EVERY_REWARD[:1]).tolist() == pytest.approx([-500.0])


def test_an_episode_that_succeeds_is_summed_as_it_is():
    policy = make_cal_ql(failure_reward=-5.0, gamma=0.9)
    returns = policy.returns_to_go(np.array([-5.0, -5.0, 5.0], np.float32))
    assert returns.tolist() == pytest.approx([-5.0 - 4.5 + 4.05, -5.0 + 4.5, 5.0])


def test_dense_rewards_are_summed_even_if_all_are_the_same():
    policy = make_cal_ql(gamma=0.5)
    assert policy.returns_to_go(EVERY_REWARD).tolist() == pytest.approx([-8.75, -7.5, -5.0])


def test_an_empty_episode_has_no_returns():
    for options in ({}, {"failure_reward": -5.0}):
        assert len(make_cal_ql(**options).returns_to_go(np.zeros(0, np.float32))) == 0


def test_batches_hold_the_returns_of_the_rewards_that_the_critics_see(make_policy, make_buffer):
    """Of transformed rewards and the method's gamma, up to each episode's end."""
    buffer = make_buffer("vector", "continuous")
    policy = make_policy("cal_ql", "vector", "continuous", gamma=0.9, reward_norm="minus_one")
    batch = policy._replay(buffer).sample(0, gamma=0.9)
    expected, total = np.zeros(len(buffer)), 0.0
    for row in reversed(range(len(buffer))):
        total = buffer.rew[row] - 1.0 + 0.9 * total * (not buffer.done[row])
        expected[row] = total
    assert batch.returns.numpy() == pytest.approx(expected, rel=1e-5)


def test_returns_change_what_is_learned_from_data(make_policy, make_buffer):
    buffer = make_buffer("vector", "continuous")
    policies = [make_policy(name, "vector", "continuous") for name in ("cal_ql", "cql")]
    for policy in policies:
        update(policy, buffer, times=3)
    assert not same(policies[0].state_dict(), policies[1].state_dict())


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "corl"])
def test_online_returns_go_on_to_calibrate_unless_asked_otherwise(keep, make_policy, make_buffer):
    buffer = make_buffer("vector", "continuous")
    cql = learned(make_policy("cql", "vector", "continuous"), buffer, None)
    for steps in (0, 1, 1000):
        policy = make_policy("cal_ql", "vector", "continuous", calibrate_online=keep)
        policy.online_steps = steps
        assert same(learned(policy, buffer, 100.0), cql) is (steps > 0 and not keep)


def test_online_rows_get_their_return_when_their_episode_ends(make_policy, make_buffer):
    """Until then they are CQL's; here the episode fails, and would have gone on failing."""
    policy = make_policy("cal_ql", "vector", "continuous", gamma=0.9, failure_reward=-1.0)
    policy.process_buffer(make_buffer("vector", "continuous"))
    online, seen, step = ReplayBuffer(50), [], policy.gradient_step
    policy.gradient_step = lambda batch: seen.append(batch.returns) or step(batch)
    for t in range(4):
        obs, after = np.random.normal(size=(2, 3)).astype(np.float32)
        row = Batch(obs=obs, act=np.zeros(2, np.float32), rew=-1.0, obs_next=after, info={})
        row.update(terminated=False, truncated=t == 3)
        online.add(row)
        if t == 0:
            policy.go_online(online, Mixing(kind="balanced", offline_share=0.5))
        policy.online_steps += 1
        (metrics,) = update(policy, online, sample_size=12)
        assert all(map(math.isfinite, metrics.values()))
        assert torch.isfinite(seen[t][:6]).all()  # of the data set
        assert (seen[t][6:] == (-10.0 if t == 3 else -torch.inf)).all()


def test_half_of_a_batch_online_is_of_the_data_set():
    assert CalQLPolicy.online_mixing == Mixing(kind="balanced", offline_share=0.5)


def test_max_backup_takes_the_action_whose_least_critic_is_the_greatest():
    """CQL's takes the greatest of each critic: 3 + high and 2 - 2 low, two different actions."""
    noise = torch.linspace(-1.5, 1.2, 10).view(1, 10, 1).expand(2, 10, 1)
    batch = transitions([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, True], [1, 1])
    acts = [squashed(1, x.item()) for x in noise[0, :, 0]]
    least = [min(rows[1] + slope * a for rows, slope in TARGETS) for a, _ in acts]
    best = max(range(10), key=least.__getitem__)
    for entropy in (0.0, 0.5):
        policy = make_cal_ql(max_q_backup=True, backup_entropy=entropy > 0)
        policy.randn = lambda *shape: noise if shape == (2, 10, 1) else None
        y = policy.critic_targets(batch, policy.actor(batch.obs_next)[0], torch.tensor(entropy))
        value = least[best] - entropy * acts[best][1]
        assert y.tolist() == pytest.approx([1.0 + 0.5 * value, -3.0], rel=1e-5)
        assert y.grad_fn is None


def test_papers_threshold_is_ours_over_the_weight():
    """Official code: alpha' weight (gap - 0.8); ours: alpha' (weight gap - 4)."""
    policy = make_cal_ql(lagrange_threshold=4.0, cql_weight=5.0)
    policy.log_cql_alpha.data.fill_(0.7)
    gap = torch.tensor([3.0, 0.5])
    terms, weight = policy.penalties(gap), math.exp(0.7)
    assert terms["cql"].item() == pytest.approx(weight * 5.0 * (3.0 - 0.8 + 0.5 - 0.8), rel=1e-6)
    alpha_loss = -0.5 * weight * 5.0 * (3.0 - 0.8 + 0.5 - 0.8)
    assert terms["cql_alpha"].item() == pytest.approx(alpha_loss, rel=1e-6)


def test_critics_may_be_deeper_than_the_actor(make_policy):
    policy = make_policy("cal_ql", "vector", "continuous", critic_hidden_sizes=(8, 8, 4, 4))
    assert [layer.weight.shape[-1] for layer in linear_layers(policy.critic)] == [8, 8, 4, 4, 1]
    assert [layer.out_features for layer in linear_layers(policy.actor)] == [16, 4]


@pytest.mark.parametrize("obs", ["vector", "pixel"])
def test_official_weights_are_orthogonal_with_heads_near_zero(obs, make_policy):
    policy = make_policy("cal_ql", obs, "continuous", orthogonal_init=True)
    for module in (policy.actor, policy.critic):
        *hidden, head = linear_layers(module)
        for layer, gain in (*((one, math.sqrt(2.0)) for one in hidden), (head, 0.01)):
            for weight in layer.weight.view(-1, *layer.weight.shape[-2:]):
                sizes = torch.linalg.svdvals(weight)
                assert torch.allclose(sizes, torch.full_like(sizes, gain), rtol=1e-3)
    obs_ = torch.zeros(5, *policy.observation_space.shape)
    _, std = policy.actor(obs_)[0]
    assert torch.allclose(std, torch.full_like(std, math.exp(-1.0)), rtol=0.1)
    assert policy.actor.head.bias.tolist() == [0.0, 0.0, -1.0, -1.0]
    first, second = policy.critic.members[0].weight
    assert not torch.equal(first, second)


def test_wrong_shapes_get_one_sentence():
    policy = make_cal_ql(num_repeat_actions=2)
    q = torch.zeros(2, 4, 6)
    for wrong in (torch.zeros(4, 1), torch.zeros(3), torch.zeros(())):
        with pytest.raises(InputError, match=r"expected values \(N, B, 6\) and returns \(B,\)"):
            policy.calibrated(q, wrong)
    with pytest.raises(InputError, match="give one return a row"):
        policy.calibrated(torch.zeros(2, 4, 7), torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"failure_reward": 1.0}, "expected failure_reward a number of at most 0, got 1.0"),
        ({"failure_reward": math.nan}, "expected failure_reward finite, got nan"),
        ({"failure_reward": -math.inf}, "expected failure_reward finite, got -inf"),
        ({"failure_reward": -5.0, "gamma": 1.0}, "expected gamma below 1 beside failure_reward"),
        ({"cql_weight": -1.0}, "expected cql_weight at least 0, got -1.0"),
    ],
)
def test_values_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        CalQLConfig(**options)


def test_pessimism_stops_at_the_return_where_that_of_cql_goes_on(make_policy):
    """All rewards are 0, so the return is; values of the policy's actions are learned from none."""
    act = (torch.rand(64, 2) * 0.2 + 0.4).tolist()
    zeros, last = [0] * 64, {}
    for name in ("cql", "cal_ql"):
        policy = make_policy(name, "vector", "continuous", actor_lr=1e-5)
        batch = transitions(zeros, act, [0.0] * 64, [True] * 64, zeros)
        batch.obs = batch.obs_next = torch.zeros(64, 3)
        batch.returns = torch.zeros(64)
        for _ in range(60):
            policy.learn(batch)
        own, _ = policy.act(torch.zeros(256, 3), False)
        last[name] = policy.critic(torch.zeros(256, 3), own).mean().item()
    assert last["cql"] < -1.0
    assert last["cal_ql"] > last["cql"] + 0.5
