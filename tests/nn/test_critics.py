"""Values of many actions for each observation, by critics of ours and of Tianshou's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tianshou_ext.nn.actor_critic import CriticList, EnsembleCritic, as_ensemble

SHAPES = [(3,), (4, 44, 44)]


@pytest.mark.parametrize("layer_norm", ["none", "before", "after"])
@pytest.mark.parametrize("hidden_sizes", [(), (16,), (16, 8)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=["vector", "frames"])
def test_values_are_those_of_one_action_at_a_time(shape, hidden_sizes, layer_norm):
    """The first layer's product with the observation is shared; values and gradients are equal."""
    critic = EnsembleCritic(shape, 2, hidden_sizes, 3, layer_norm=layer_norm)
    obs, acts = torch.randn(5, *shape), torch.rand(5, 4, 2)
    together = critic.values(obs, acts)
    singly = torch.stack([critic(obs, acts[:, k]) for k in range(4)], dim=2)
    assert together.shape == (3, 5, 4)
    assert torch.allclose(together, singly, atol=1e-5)
    weights = torch.randn(3, 5, 4)
    parameters = list(critic.parameters())
    one, other = (torch.autograd.grad((q * weights).sum(), parameters) for q in (together, singly))
    assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(one, other, strict=True))


class Single(nn.Module):
    """A critic as Tianshou's: (B, D) and (B, A) to (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)

    def forward(self, obs, act):
        return self.net(torch.cat([obs, act], dim=1))


def test_values_of_tianshous_critics():
    singles = [Single(), Single()]
    critic = CriticList(*singles)
    obs, acts = torch.randn(5, 3), torch.rand(5, 4, 2)
    q = critic.values(obs, acts)
    assert q.shape == (2, 5, 4)
    assert torch.allclose(q[1, 3, 2], singles[1](obs[3:4], acts[3:4, 2])[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "critic",
    [CriticList(Single(), Single()), EnsembleCritic((3,), 2, (8,), 2)],
    ids=["Tianshou's", "ours"],
)
def test_each_critic_may_have_actions_of_its_own(critic):
    obs, acts = torch.randn(5, 3), torch.rand(2, 5, 2)
    q = critic(obs, acts)
    for k in range(2):
        assert torch.allclose(q[k], critic(obs, acts[k])[k], atol=1e-6)


@pytest.mark.parametrize("layer_norm", ["none", "before", "after"])
@pytest.mark.parametrize("obs_shape", [(5,), (4, 44, 44)])
def test_one_member_answers_what_it_answers_among_all(obs_shape, layer_norm):
    critic = EnsembleCritic(obs_shape, 2, (8, 8), 3, layer_norm=layer_norm)
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    obs, act = torch.rand(6, *obs_shape), torch.rand(6, 2)
    every = critic(obs, act)
    for member in range(3):
        assert torch.allclose(critic(obs, act, member), every[member : member + 1], atol=1e-5)


def test_one_of_tianshous_critics_answers_what_it_answers_among_all():
    class Sum(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
            return self.factor * (obs.sum(1, keepdim=True) + act.sum(1, keepdim=True))

    critic = as_ensemble(Sum(1.0), Sum(2.0))
    obs, act = torch.rand(4, 3), torch.rand(4, 2)
    assert torch.equal(critic(obs, act, 1), critic(obs, act)[1:])
