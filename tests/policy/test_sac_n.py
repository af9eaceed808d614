"""SAC-N: a whole step by hand, its targets, the temperature, and LB-SAC as one of its settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from contract import same, sgd, transitions, update
from gymnasium.spaces import Box
from tables import ActorTable, CriticTable

from tianshou_ext.checkpoint import load_checkpoint, save_checkpoint
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import linear_layers, tanh_normal_log_prob, tanh_normal_sample
from tianshou_ext.policy import SACNConfig, SACNPolicy, lb_sac_config
from tianshou_ext.tianshou_api import LINE

MEANS, STDS = [[0.3], [-0.6]], [[0.5], [0.8]]
"""Of the actor before tanh, in states 0 and 1."""
CRITICS = [([1.0, 4.0], 0.5), ([2.0, -1.0], 0.25)]
"""Values of the states, and slope in the action; the first critic is the least at state 0."""
TARGETS = [([0.0, 3.0], 1.0), ([0.0, 2.0], -2.0)]
"""The second is the least at state 1, for actions above -1/3."""
BATCH = ([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, True], [1, 1])
NOISE = [0.7, 1.2]
"""What the test puts in the place of random numbers: at the observations, at the next ones."""
ALPHA = 0.5


def make(method=SACNPolicy, critics=CRITICS, targets=TARGETS, **options):
    """Return a policy on tables whose random numbers are ``NOISE`` over and over."""
    actor, tables = ActorTable(MEANS, STDS), [CriticTable(*c) for c in critics]
    policy = method(
        actor=actor,
        actor_optim=sgd(actor, lr=0.1),
        critic=tables[0],
        critic_optim=sgd(tables[0], lr=0.1),
        critic2=tables[1],
        critic2_optim=sgd(tables[1], lr=0.1),
        action_space=Box(-2.0, 4.0, (1,)),
        **{"init_alpha": ALPHA, **options},
    )
    for table, (rows, slope) in zip(policy.critic_target.critics, targets, strict=True):
        table.rows.copy_(torch.tensor(rows))
        table.slope.fill_(slope)
    drawn = iter(NOISE * 100)
    policy.randn = lambda *shape: torch.full(shape, next(drawn))
    return policy


def squashed(state: int, noise: float) -> tuple[float, float]:
    """Return an action of the policy in a state, and its log-density."""
    mean, std = MEANS[state][0], STDS[state][0]
    act = math.tanh(mean + std * noise)
    normal = -0.5 * noise**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    return act, normal - math.log(1 - act**2)


def test_a_step_by_hand():
    """All losses of the weights before the step, both critics on the target of the least one."""
    policy = make(tau=0.25)
    metrics = policy.learn(transitions(*BATCH)).metrics

    act, log_prob = squashed(0, NOISE[0])
    least = CRITICS[0][0][0] + CRITICS[0][1] * act
    assert metrics["loss/actor"] == pytest.approx(ALPHA * log_prob - least, rel=1e-5)
    assert metrics["q/policy"] == pytest.approx(least, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(-log_prob, rel=1e-5)
    mean_slope = ALPHA * 2 * act - CRITICS[0][1] * (1 - act**2)
    std_slope = ALPHA * (2 * act * NOISE[0] - 1 / STDS[0][0])
    std_slope -= CRITICS[0][1] * (1 - act**2) * NOISE[0]
    moved = [MEANS[0][0] - 0.1 * mean_slope, *MEANS[1]]
    assert policy.actor.mean.flatten().tolist() == pytest.approx(moved, rel=1e-5)
    moved = [STDS[0][0] - 0.1 * std_slope, *STDS[1]]
    assert policy.actor.std.flatten().tolist() == pytest.approx(moved, rel=1e-5)

    act_next, log_prob_next = squashed(1, NOISE[1])
    value = min(rows[1] + slope * act_next for rows, slope in TARGETS)
    targets = [1.0 + 0.5 * (value - ALPHA * log_prob_next), -3.0]
    loss = 0.0
    for table, target, (rows, slope), (old, _) in zip(
        policy.critic.critics, policy.critic_target.critics, CRITICS, TARGETS, strict=True
    ):
        errors = [rows[0] + slope * a[0] - y for a, y in zip(BATCH[1], targets, strict=True)]
        loss += sum(e**2 for e in errors) / 2
        new = rows[0] - 0.1 * sum(errors)
        assert table.rows.tolist() == pytest.approx([new, rows[1]], rel=1e-5)
        assert target.rows[0].item() == pytest.approx(0.75 * old[0] + 0.25 * new, rel=1e-5)
    assert metrics["loss/critic"] == pytest.approx(loss, rel=1e-5)


def test_target_takes_the_least_target_critic_less_the_entropy_term():
    policy, batch = make(), transitions(*BATCH)
    policy.randn(1)  # as the actor's loss does before
    alpha, (pair, _) = torch.tensor(ALPHA), policy.actor(batch.obs_next)
    act, log_prob = squashed(1, NOISE[1])
    value = TARGETS[1][0][1] + TARGETS[1][1] * act - ALPHA * log_prob
    y = policy.critic_targets(batch, pair, alpha)
    assert y.tolist() == pytest.approx([1.0 + 0.5 * value, -3.0], rel=1e-5)
    assert y.grad_fn is None


def test_backup_without_entropy():
    policy, batch = make(backup_entropy=False), transitions(*BATCH)
    policy.randn(1)
    y = policy.critic_targets(batch, policy.actor(batch.obs_next)[0], torch.tensor(ALPHA))
    value = TARGETS[1][0][1] + TARGETS[1][1] * squashed(1, NOISE[1])[0]
    assert y.tolist() == pytest.approx([1.0 + 0.5 * value, -3.0], rel=1e-5)


def test_max_backup_takes_the_greatest_of_ten_actions_for_each_critic():
    policy, batch = make(max_q_backup=True), transitions(*BATCH)
    noise = torch.linspace(-1.5, 1.2, 10).view(1, 10, 1).expand(2, 10, 1)
    policy.randn = lambda *shape: noise if shape == (2, 10, 1) else None
    y = policy.critic_targets(batch, policy.actor(batch.obs_next)[0], torch.tensor(ALPHA))
    low, high = squashed(1, -1.5)[0], squashed(1, 1.2)[0]
    value = min(3.0 + 1.0 * high, 2.0 - 2.0 * low)
    assert y.tolist() == pytest.approx([1.0 + 0.5 * value, -3.0], rel=1e-5)


def test_more_critics_give_lower_targets(make_policy):
    batch = transitions([0] * 64, [[0.0, 0.0]] * 64, [0.0] * 64, [False] * 64, [0] * 64)
    batch.obs_next = torch.randn(64, 3)
    means = []
    for num_critics in (1, 4, 16):
        policy = make_policy(
            "sac_n", "vector", "continuous", num_critics=num_critics, small_init=False
        )
        policy_next = policy.actor(batch.obs_next)[0]
        means.append(policy.critic_targets(batch, policy_next, torch.tensor(0.0)).mean().item())
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("entropy", [-9.0, 9.0], ids=["too random", "too certain"])
def test_temperature_drives_the_entropy_to_its_target(entropy):
    """The entropy of the tables' policy lies between the two."""
    policy = make(target_entropy=entropy, actor_lr=0.01)
    policy.learn(transitions(*BATCH))
    moved = policy.log_alpha.item() - math.log(ALPHA)
    assert moved == pytest.approx(math.copysign(0.01, entropy), rel=1e-3)


def test_a_fixed_temperature_stays():
    policy = make(auto_alpha=False)
    policy.learn(transitions(*BATCH))
    assert policy.log_alpha.exp().item() == pytest.approx(ALPHA)


def test_alpha_is_taken_as_tianshou_has_it():
    fixed = make(init_alpha=1.0, alpha=0.2)
    assert (fixed.config.init_alpha, fixed.config.auto_alpha) == (0.2, False)
    if LINE < 2:
        log_alpha = torch.full((1,), math.log(0.3), requires_grad=True)
        alpha: Any = (-3.0, log_alpha, torch.optim.Adam([log_alpha], lr=0.02))
    else:
        from tianshou.algorithm.modelfree.sac import AutoAlpha
        from tianshou.algorithm.optim import AdamOptimizerFactory

        alpha = AutoAlpha(-3.0, math.log(0.3), AdamOptimizerFactory(lr=0.02))
    learned = make(alpha=alpha)
    assert learned.config.auto_alpha and learned.target_entropy == -3.0
    assert learned.log_alpha.exp().item() == pytest.approx(0.3)
    assert learned.optimizers["alpha"].param_groups[0]["lr"] == 0.02


def test_target_entropy_is_minus_the_number_of_action_dimensions(make_policy):
    assert make_policy("sac_n", "vector", "continuous").target_entropy == -2.0
    assert make_policy("sac_n", "vector", "continuous", target_entropy=-1.0).target_entropy == -1.0


def test_actor_and_temperature_may_have_a_learning_rate_of_their_own(make_policy):
    policy = make_policy("sac_n", "vector", "continuous", lr=0.2, actor_lr=0.1)
    rates = {name: optim.param_groups[0]["lr"] for name, optim in policy.optimizers.items()}
    assert rates == {"actor": 0.1, "critic": 0.2, "alpha": 0.1}


def test_greedy_action_is_the_squashed_mean(make_policy):
    policy = make_policy("sac_n", "vector", "continuous")
    obs = torch.randn(5, 3)
    act, mean = policy.act(obs, True)
    assert torch.equal(act, torch.tanh(mean))
    assert not torch.equal(policy.act(obs, False)[0], act)


def test_density_is_that_of_the_squashed_normal_even_far_out():
    mean, std = torch.tensor([[0.3, -2.0]]), torch.tensor([[0.5, 1.5]])
    act, log_prob = tanh_normal_sample(mean, std, torch.tensor([[0.7, -0.4]]))
    given = tanh_normal_log_prob(mean, std, act)
    grid = torch.linspace(-0.9999, 0.9999, 200_001).unsqueeze(1)
    mass = tanh_normal_log_prob(mean[:, :1], std[:, :1], grid).exp().mean() * 2 * 0.9999
    assert mass.item() == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(log_prob, given, atol=1e-4)
    noise = torch.tensor([[40.0]], requires_grad=True)
    _, far = tanh_normal_sample(torch.zeros(1, 1), torch.ones(1, 1), noise)
    assert torch.isfinite(far).all()
    # log(1 - tanh(u)^2) goes to log 4 - 2u, where tanh(u) is 1 to every digit.
    expected = -800.0 - 0.5 * math.log(2 * math.pi) - (math.log(4.0) - 80.0)
    assert far.item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_256_makes_lb_sac_a_step_of_sac_n(make_policy, make_buffer):
    config = lb_sac_config(256)
    assert config == SACNConfig(num_critics=4, small_init=False, wide_init=True)
    assert lb_sac_config().lr == pytest.approx(3e-4 * math.sqrt(10_000 / 256))
    assert lb_sac_config(num_critics=25, layer_norm="before").num_critics == 25
    policies = [
        make_policy("sac_n", "vector", "continuous", lr=lr, num_critics=4, small_init=False)
        for lr in (config.lr, 3e-4)
    ]
    for policy in policies:
        update(policy, make_buffer("vector", "continuous"), times=3)
    assert same(policies[0].state_dict(), policies[1].state_dict())


def test_a_run_goes_on_whatever_its_first_weights_were(make_policy, make_buffer, tmp_path):
    """As one of LB-SAC that began before its critics started wide."""
    before = make_policy("sac_n", "vector", "continuous", wide_init=False)
    update(before, make_buffer("vector", "continuous"), times=2)
    save_checkpoint(before, tmp_path / "a.pt")
    after = make_policy("sac_n", "vector", "continuous", wide_init=True)
    load_checkpoint(after, tmp_path / "a.pt")
    assert same(before.state_dict(), after.state_dict())


@pytest.mark.parametrize(("small_init", "head", "bias"), [(False, 1.0, 0.25), (True, 3e-3, 0.1)])
def test_lb_sacs_critics_start_as_wide_as_the_official_codes(small_init, head, bias):
    """Its ensemble's first disagreement is all its pessimism."""
    config = lb_sac_config(num_critics=8, hidden_sizes=(16, 64), small_init=small_init)
    spaces = Box(-1.0, 1.0, (16,)), Box(-1.0, 1.0, (4,))
    critic = SACNPolicy.build(*spaces, config=config).critic
    first, second, last = linear_layers(critic)
    bounds = [float(layer.weight.detach().abs().max()) for layer in (first, second, last)]
    assert bounds == pytest.approx([1 / 4, 1 / 8, head], rel=0.05)
    assert float(first.bias.detach().abs().max()) == pytest.approx(bias, rel=0.1)
    assert not torch.equal(first.weight[0], first.weight[1])


def test_layer_norm_keeps_critics_bounded_where_it_stands(make_policy):
    """Inputs a million times as large change a normalised critic little, a plain one greatly."""
    obs, act = torch.randn(4, 3), torch.zeros(4, 2)
    for norm, bounded in (("none", False), ("before", True), ("after", True)):
        critic = make_policy("sac_n", "vector", "continuous", layer_norm=norm).critic
        assert bool((critic(1e6 * obs, act).abs() < 100.0).all()) is bounded


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_critics": 0}, "expected num_critics at least 1, got 0"),
        ({"actor_lr": 0.0}, "expected actor_lr above 0, got 0.0"),
        ({"tau": 0.0}, r"expected tau in \(0, 1\], got 0.0"),
        ({"init_alpha": 0.0}, "expected init_alpha above 0"),
        ({"layer_norm": "middle"}, "expected layer_norm one of none, before, after"),
    ],
)
def test_values_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        SACNConfig(**options)


def test_learns_the_best_action_of_a_one_step_task(make_policy):
    """Rewards -(a - 0.5)^2 for random actions: the policy finds 0.5."""
    rng = np.random.default_rng(0)
    act = rng.uniform(-1, 1, (256, 2)).astype(np.float32)
    rew = -np.square(act - 0.5).sum(1)
    policy = make_policy(
        "sac_n", "vector", "continuous", num_critics=2, hidden_sizes=(32, 32), target_entropy=-6.0
    )
    zeros = [0] * 256
    batch = transitions(zeros, act.tolist(), rew.tolist(), [True] * 256, zeros)
    batch.obs = batch.obs_next = torch.zeros(256, 3)
    for _ in range(150):
        policy.learn(batch)
    assert policy.act(torch.zeros(1, 3), True)[0].flatten().tolist() == pytest.approx(
        [0.5, 0.5], abs=0.15
    )
