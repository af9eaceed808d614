"""EDAC: the diversity term by hand, its gradient, and SAC-N as its limit."""

from __future__ import annotations

import pytest
import torch
from contract import random_obs, same, transitions, update
from test_sac_n import BATCH, make

from tianshou_ext.errors import InputError
from tianshou_ext.policy import EDACConfig, EDACPolicy

similarity = EDACPolicy.similarity


def by_pairs(slopes: torch.Tensor) -> float:
    """Return the similarity as the paper writes it: a sum over ordered pairs."""
    num, total = len(slopes), 0.0
    units = slopes / slopes.norm(dim=2, keepdim=True)
    for i in range(num):
        for j in range(num):
            if i != j:
                total += (units[i] * units[j]).sum(1).mean().item()
    return total / (num - 1)


def test_similarity_is_the_sum_over_ordered_pairs():
    slopes = torch.randn(5, 7, 3)
    assert similarity(slopes).item() == pytest.approx(by_pairs(slopes), rel=1e-4)


def test_similarity_knows_only_directions():
    slopes = torch.randn(4, 6, 3)
    scaled = slopes * torch.rand(4, 6, 1) * 100
    assert similarity(scaled).item() == pytest.approx(similarity(slopes).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ([[[2.0, 0.0]], [[5.0, 0.0]], [[0.1, 0.0]]], 3.0),  # N critics that agree: N
        ([[[2.0, 0.0]], [[0.0, 5.0]]], 0.0),
        ([[[2.0, 0.0]], [[-5.0, 0.0]]], -2.0),  # the least possible, -N / (N - 1)
    ],
    ids=["equal", "orthogonal", "opposite"],
)
def test_limits_of_similarity(slopes, expected):
    assert similarity(torch.tensor(slopes)).item() == pytest.approx(expected, abs=1e-6)


def test_a_flat_critic_gives_finite_gradients():
    slopes = torch.zeros(3, 4, 2, requires_grad=True)
    similarity(slopes).backward()
    assert torch.isfinite(slopes.grad).all()


@pytest.mark.parametrize("obs", ["vector", "pixel"])
def test_without_weight_it_is_sac_n_to_the_bit(obs, make_policy, make_buffer):
    buffer = make_buffer(obs, "continuous")
    states = []
    for name, options in (("sac_n", {}), ("edac", {"eta": 0.0}), ("edac", {"eta": 1.0})):
        policy = make_policy(name, obs, "continuous", num_critics=3, **options)
        update(policy, buffer, times=4)
        states.append(policy.state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_term_is_at_the_datas_actions_and_reaches_the_critics_weights(make_policy):
    policy = make_policy("edac", "vector", "continuous", num_critics=3, eta=2.0, small_init=False)
    obs = torch.from_numpy(random_obs(policy, 6))
    batch = transitions([0] * 6, [[0.3, -0.7]] * 6, [0.0] * 6, [False] * 6, [0] * 6)
    batch.obs = batch.obs_next = obs
    pair = policy.actor(obs)[0]
    q, terms = policy.critic_terms(batch, pair, pair)
    assert torch.equal(q, policy.critic(obs, batch.act))
    acts = batch.act.expand(3, 6, 2).clone().requires_grad_(True)
    (slopes,) = torch.autograd.grad(policy.critic(obs, acts).sum(), acts)
    assert terms["diversity"].item() == pytest.approx(2.0 * by_pairs(slopes), rel=1e-4)
    assert not batch.act.requires_grad
    actor, critic = [*policy.actor.parameters()], [*policy.critic.parameters()]
    gradients = torch.autograd.grad(terms["diversity"], actor + critic, allow_unused=True)
    assert all(g is None for g in gradients[: len(actor)])
    weights = gradients[len(actor) :: 2]  # biases do not change slopes
    assert all(g is not None and g.abs().sum() > 0 for g in weights)


def test_gradient_of_the_term_is_its_slope_in_a_weight(make_policy):
    policy = make_policy("edac", "vector", "continuous", num_critics=3, small_init=False).double()
    obs = torch.randn(5, 3, dtype=torch.float64)
    batch = transitions([0] * 5, [[0.3, -0.7]] * 5, [0.0] * 5, [False] * 5, [0] * 5)
    batch.obs, batch.act = obs, batch.act.double()
    pair, weight = policy.actor(obs)[0], policy.critic.members[0].weight

    def term() -> torch.Tensor:
        return policy.critic_terms(batch, pair, pair)[1]["diversity"]

    (gradient,) = torch.autograd.grad(term(), weight)
    step = 1e-6
    with torch.no_grad():
        weight[1, 3, 2] += step
        up = term().item()
        weight[1, 3, 2] -= 2 * step
        down = term().item()
    assert gradient[1, 3, 2].item() == pytest.approx((up - down) / (2 * step), rel=1e-4)


def test_training_makes_the_critics_differ(make_policy, make_buffer):
    buffer, last = make_buffer("vector", "continuous"), {}
    for eta in (1e-6, 10.0):
        policy = make_policy("edac", "vector", "continuous", num_critics=4, eta=eta)
        last[eta] = update(policy, buffer, times=60)[-1]["loss/diversity"] / eta
    assert last[10.0] < last[1e-6] - 0.5


def test_tianshous_pair_of_critics_will_do():
    metrics = make(EDACPolicy, eta=3.0).learn(transitions(*BATCH)).metrics
    # Slopes 0.5 and 0.25 in the only action dimension: the two agree, N = 2.
    assert metrics["loss/diversity"] == pytest.approx(3.0 * 2.0)


def test_values_out_of_range():
    with pytest.raises(InputError, match="expected num_critics at least 2, got 1"):
        EDACConfig(num_critics=1)
    with pytest.raises(InputError, match="expected eta at least 0, got -1"):
        EDACConfig(eta=-1)
