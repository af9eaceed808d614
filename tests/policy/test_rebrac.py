"""ReBRAC: target and losses by hand, its networks, what it shares with TD3+BC, the next action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import Lookup, sgd, transitions
from gymnasium.spaces import Box
from torch import Tensor, nn

from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import EnsembleLayerNorm
from tianshou_ext.nn.nets import EnsembleHead, EnsembleLinear
from tianshou_ext.policy import ReBRACConfig, ReBRACPolicy, TD3BCPolicy

TARGET_ACTIONS = [[0.0, 0.0], [0.75, -0.5]]
NEXT = [[0.25, 0.25], [0.0, 0.0]]
"""The data's next actions; the second transition is terminal."""
DATA = [[0.5, 0.5], [-1.0, 0.0]]
BATCH = ([0, 0], DATA, [1.0, -3.0], [False, True], [1, 1])
VALUES = [[2.0, -1.0], [0.5, 3.0]]
"""(2 critics, 2 transitions)."""


class Constant(nn.Module):
    """A critic whose value is its one parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.value.expand(len(obs), 1)


def make(method: type[TD3BCPolicy] = ReBRACPolicy, **options) -> TD3BCPolicy:
    actor, critic, critic2 = Lookup(TARGET_ACTIONS), Constant(4.0), Constant(3.0)
    return method(
        actor=actor,
        actor_optim=sgd(actor),
        critic=critic,
        critic_optim=sgd(critic),
        critic2=critic2,
        critic2_optim=sgd(critic2),
        action_space=Box(-1.0, 1.0, (2,)),
        **options,
    )


def test_target_by_hand():
    """The least value less the summed squared distance of the noisy, clipped action."""
    policy = make(critic_bc_coef=0.1, policy_noise=0.2, noise_clip=0.5)
    policy.randn_like = lambda like: torch.tensor([[1.0, -50.0]]).expand_as(like)
    batch = replace(transitions(*BATCH), act_next=torch.tensor(NEXT))
    act = [0.75 + 0.2, -1.0]  # the noise of the second is clipped to -0.5
    distance = (act[0] - 0.25) ** 2 + (act[1] - 0.25) ** 2
    expected = [1.0 + 0.5 * (3.0 - 0.1 * distance), -3.0]
    assert policy.critic_targets(batch).tolist() == pytest.approx(expected, rel=1e-6)
    assert not policy.critic_targets(batch).requires_grad


def test_no_penalty_where_the_next_action_is_the_datas_or_unknown():
    policy = make(critic_bc_coef=10.0, policy_noise=0.0)
    batch = transitions(*BATCH)
    known = replace(batch, act_next=torch.tensor([TARGET_ACTIONS[1]] * 2))
    for each in (known, batch):
        assert policy.critic_targets(each).tolist() == [1.0 + 0.5 * 3.0, -3.0]


def test_terminals_do_not_pay_for_a_next_action_that_is_another_episodes():
    policy = make(critic_bc_coef=10.0, policy_noise=0.0)
    batch = replace(transitions(*BATCH), act_next=torch.tensor(NEXT))
    other = replace(batch, act_next=torch.tensor([NEXT[0], [-1.0, 1.0]]))
    assert torch.equal(policy.critic_targets(batch), policy.critic_targets(other))


@pytest.mark.parametrize("normalize_q", [True, False])
def test_actor_loss_by_hand(normalize_q):
    """Distances are summed over dimensions; the least value counts, by its mean size."""
    policy = make(actor_bc_coef=0.3, normalize_q=normalize_q)
    act, q = [[0.0, 1.0], [-0.5, 0.5]], np.array(VALUES)
    distance = np.square(np.array(act) - np.array(DATA)).sum(1)
    least = q.min(0)
    size = np.abs(least).mean() if normalize_q else 1.0
    expected = np.mean(0.3 * distance - least / size)
    values = torch.tensor(VALUES, requires_grad=True)
    loss = policy.actor_loss(torch.tensor(act), torch.tensor(DATA), values)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    # The divisor has no gradient, and the greater value of each pair none.
    slope = -1.0 / (2 * size)
    assert values.grad.flatten().tolist() == pytest.approx([0.0, slope, slope, 0.0])


def test_one_critic_and_mean_weight_is_td3_bc_up_to_scale():
    alpha, act_dim = 2.5, 2
    ours = make(actor_bc_coef=1.0 / (alpha * act_dim))
    theirs = make(TD3BCPolicy, alpha=alpha)
    act, data, q = torch.rand(6, act_dim), torch.rand(6, act_dim), torch.randn(1, 6)
    loss = alpha * ours.actor_loss(act, data, q)
    assert torch.allclose(loss, theirs.actor_loss(act, data, q))
    batch = replace(transitions(*BATCH), act_next=torch.tensor(NEXT))
    free = make(critic_bc_coef=0.0)
    assert torch.equal(free.critic_targets(batch), theirs.critic_targets(batch))


def test_a_huge_actor_weight_is_cloning():
    policy = make(actor_bc_coef=1e6)
    act = torch.rand(2, 2, requires_grad=True)
    q = act.sum(1).expand(2, 2)
    policy.actor_loss(act, torch.tensor(DATA), q).backward()
    cloning = act.detach() - torch.tensor(DATA)  # of half the squared distance, summed over A
    assert torch.allclose(act.grad / 1e6, cloning, atol=1e-5)


def test_networks_and_initial_weights_are_the_papers(make_policy):
    options = {"hidden_sizes": (16, 16, 16), "lr": 1e-3, "critic_lr": 5e-5}
    policy = make_policy("rebrac", actions="continuous", **options)
    kinds = [type(layer) for layer in policy.critic.members]
    assert kinds == [EnsembleLinear, nn.ReLU, EnsembleLayerNorm] * 3 + [EnsembleHead]
    norms = [m for m in policy.critic.modules() if isinstance(m, EnsembleLayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert not any(isinstance(m, nn.LayerNorm) for m in policy.actor.modules())
    for network, bound in ((policy.critic.members, 3e-3), (policy.actor, 1e-3)):
        *hidden, head = [m for m in network.modules() if isinstance(m, nn.Linear | EnsembleLinear)]
        assert len(hidden) == 3
        assert all((layer.bias == 0.1).all() for layer in hidden)
        assert 0.5 * bound < head.weight.abs().max() <= bound
        assert head.bias.abs().max() <= bound
    rates = {name: o.param_groups[0]["lr"] for name, o in policy.optimizers.items()}
    assert rates == {"actor": 1e-3, "critic": 5e-5}
    plain = make_policy("rebrac", actions="continuous", layer_norm="none")
    assert not any(isinstance(m, nn.LayerNorm) for m in plain.critic.modules())


def test_the_next_action_is_of_the_same_episode(make_policy, continuous_buffer):
    """A truncated row's next action was never taken, so that row is left out."""
    policy = make_policy("rebrac", actions="continuous")
    replay = policy._replay(continuous_buffer)
    assert int(continuous_buffer.truncated.sum()) == len(continuous_buffer) - len(replay) > 0
    goes_on = ~torch.from_numpy(np.asarray(continuous_buffer.done))[replay.rows]
    following = torch.from_numpy(continuous_buffer.act)[replay.rows[goes_on] + 1]
    assert torch.equal(replay.sample(0).act_next[goes_on], following)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("actor_bc_coef", -1.0), ("critic_bc_coef", -1.0), ("layer_norm", "both"), ("tau", 2.0)],
)
def test_values_out_of_range_give_one_sentence(field, wrong):
    with pytest.raises(InputError, match=f"expected {field} .*, got {wrong}"):
        ReBRACConfig(**{field: wrong})


@pytest.mark.parametrize(("steps", "share"), [(0, 1.0), (1, 0.9), (3, 0.7), (50, 0.5)])
def test_online_the_actors_penalty_falls_and_the_critics_is_gone(steps, share):
    policy = make(actor_bc_coef=2.0, critic_bc_coef=0.1, cooling_steps=10, cooling_end=0.5)
    policy.online_steps = steps
    policy.learn(replace(transitions(*BATCH), act_next=torch.tensor(NEXT)))
    act, q = torch.tensor([[0.5, 0.0]]), torch.ones(1, 1)
    assert policy.actor_loss(act, torch.zeros(1, 2), q).item() == pytest.approx(
        2.0 * share * 0.25 - 1.0
    )
    batch = replace(transitions(*BATCH), act_next=torch.tensor(NEXT))
    penalised = policy.next_value(batch, torch.zeros(2, 2))
    free = policy.next_value(replace(batch, act_next=None), torch.zeros(2, 2))
    assert torch.equal(penalised, free) == (steps > 0)
