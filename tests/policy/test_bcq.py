"""BCQ: targets and losses by hand, the candidates, who gets a gradient, Tianshou's networks."""

from __future__ import annotations

import inspect

import pytest
import torch
from contract import random_obs, sgd, transitions, update
from gymnasium.spaces import Box
from tables import CriticTable
from tianshou.utils.net import continuous
from tianshou.utils.net.common import MLP
from torch import nn

from tianshou_ext.errors import InputError
from tianshou_ext.policy import BCQConfig, BCQPolicy

CRITICS = [([1.0, 4.0], 2.0), ([0.5, 5.0], -1.0)]
"""Values of the states, and slope in the action."""
TARGETS = [([0.0, 3.0], 1.0), ([0.0, 2.0], -2.0)]
BATCH = ([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, True], [1, 1])
SHIFT, TARGET_SHIFT, GAIN = 0.1, -0.2, 0.8
"""Of the perturbation and its target; of the decoder."""


class Shift(nn.Module):
    """A perturbation that adds a number."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(SHIFT))

    def forward(self, obs, act):
        return act + self.shift


class Gain(nn.Module):
    """A VAE as Tianshou's, of one latent: the mean is half the action, actions are 0.8 latents."""

    latent_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(GAIN))

    def encoder(self, x):
        return x[:, 1:]

    def mean(self, hidden):
        return 0.5 * hidden

    def log_std(self, hidden):
        return 0.0 * hidden - 0.5

    def decode(self, obs, latent):
        return self.gain * latent


def make(**options) -> BCQPolicy:
    actor, vae, tables = Shift(), Gain(), [CriticTable(*c) for c in CRITICS]
    policy = BCQPolicy(
        actor_perturbation=actor,
        actor_perturbation_optim=sgd(actor, lr=0.1),
        critic=tables[0],
        critic_optim=sgd(tables[0], lr=0.1),
        critic2=tables[1],
        critic2_optim=sgd(tables[1], lr=0.1),
        vae=vae,
        vae_optim=sgd(vae, lr=0.1),
        action_space=Box(-2.0, 4.0, (1,)),
        **options,
    )
    policy.actor_target.net.shift.data.fill_(TARGET_SHIFT)
    for table, (rows, slope) in zip(policy.critic_target.critics, TARGETS, strict=True):
        table.rows.copy_(torch.tensor(rows))
        table.slope.fill_(slope)
    return policy


def expected_target(latents: list[float], gain: float, lmbda: float) -> float:
    """Return y of the first row of ``BATCH``."""
    values = []
    for latent in latents:
        act = gain * min(max(latent, -0.5), 0.5) + TARGET_SHIFT
        q = [rows[1] + slope * act for rows, slope in TARGETS]
        values.append(lmbda * min(q) + (1 - lmbda) * max(q))
    return 1.0 + 0.5 * max(values)


@pytest.mark.parametrize("lmbda", [1.0, 0.75, 0.0])
def test_target_is_the_best_candidate_moved_by_the_target_perturbation(lmbda):
    """Tianshou's target leaves the decoded action as it is."""
    policy, latents = make(lmbda=lmbda, num_sampled_action=3), [-3.0, 0.2, 0.4]
    policy.randn = lambda *shape: torch.tensor(latents).view(1, 3, 1).expand(shape)
    y = policy.critic_targets(transitions(*BATCH))
    assert y.tolist() == pytest.approx([expected_target(latents, GAIN, lmbda), -3.0], rel=1e-5)
    assert y.grad_fn is None


def test_a_step_by_hand():
    """VAE first; the target decodes with the new one, the perturbation asks the new critic."""
    policy = make(num_sampled_action=2, tau=0.25)
    draws = iter([[0.3, -0.1], [0.4, -0.4, -0.2, 0.1], [0.25, -2.0]])
    policy.randn = lambda *shape: torch.tensor(next(draws)).view(shape)
    metrics = policy.learn(transitions(*BATCH)).metrics

    acts, std = [0.5, -1.0], torch.tensor(-0.5).exp().item()
    latents = [0.5 * a + std * e for a, e in zip(acts, (0.3, -0.1), strict=True)]
    kl = [-0.5 * (1 - 1.0 - (0.5 * a) ** 2 - std**2) for a in acts]
    errors = [GAIN * z - a for z, a in zip(latents, acts, strict=True)]
    loss = sum(e**2 + 0.5 * k for e, k in zip(errors, kl, strict=True)) / 2
    assert metrics["loss/vae"] == pytest.approx(loss, rel=1e-5)
    gain = GAIN - 0.1 * sum(2 * e * z for e, z in zip(errors, latents, strict=True)) / 2
    assert policy.vae.vae.gain.item() == pytest.approx(gain, rel=1e-5)

    targets, loss, slopes = [expected_target([0.4, -0.4], gain, 0.75), -3.0], 0.0, []
    for table, (rows, slope) in zip(policy.critic.critics, CRITICS, strict=True):
        errors = [rows[0] + slope * a - y for a, y in zip(acts, targets, strict=True)]
        loss += sum(e**2 for e in errors) / 2
        slopes.append(slope - 0.1 * sum(e * a for e, a in zip(errors, acts, strict=True)))
        assert table.rows.tolist() == pytest.approx([rows[0] - 0.1 * sum(errors), rows[1]])
        assert table.slope.item() == pytest.approx(slopes[-1], rel=1e-5)
    assert metrics["loss/critic"] == pytest.approx(loss, rel=1e-5)

    moved = [gain * z + SHIFT for z in (0.25, -0.5)]
    first = policy.critic.critics[0]
    q = [first.rows[0].item() + slopes[0] * a for a in moved]
    assert metrics["loss/actor"] == pytest.approx(-sum(q) / 2, rel=1e-5)
    shift = SHIFT + 0.1 * slopes[0]
    assert policy.actor.net.shift.item() == pytest.approx(shift, rel=1e-5)
    followed = 0.75 * TARGET_SHIFT + 0.25 * shift
    assert policy.actor_target.net.shift.item() == pytest.approx(followed, rel=1e-5)


def test_perturbation_learns_from_the_first_critic_and_leaves_the_vae_alone():
    policy = make()
    loss = policy.actor_loss(torch.zeros(2, 1), torch.zeros(2, 1))
    others = [*policy.vae.parameters(), *policy.critic.parameters()]
    gradients = torch.autograd.grad(loss, [policy.actor.net.shift, *others], allow_unused=True)
    assert gradients[0].item() == pytest.approx(-CRITICS[0][1])
    assert all(g is None for g in gradients[1:])


def test_policy_takes_the_candidate_of_greatest_first_value():
    policy = make(forward_sampled_times=20)
    act, q = policy.act(torch.zeros(3, 1), True)
    candidates = GAIN * policy.latents.flatten() + SHIFT
    assert q.shape == (3, 20)
    assert act.flatten().tolist() == pytest.approx([candidates.max().item()] * 3)
    policy.critic.critics[0].slope.data.neg_()
    act, _ = policy.act(torch.zeros(3, 1), True)
    assert act.flatten().tolist() == pytest.approx([candidates.min().item()] * 3)


def test_latents_are_clipped_to_the_half_unit(make_policy):
    policy = make_policy("bcq", "vector", "continuous")
    assert policy.latents.abs().max() == 0.5
    assert policy.latents.shape == (100, 4)
    asked = []
    decode = policy.vae.decode
    policy.vae.decode = lambda obs, latent: asked.append(latent) or decode(obs, latent)
    policy.act(torch.zeros(5, 3), False)
    assert asked[0].abs().max() == 0.5
    assert not torch.equal(asked[0][0], asked[0][1])  # each state has its own


def test_greedy_actions_repeat_and_drawn_ones_follow_the_acting_generator(make_policy):
    one, other = (make_policy("bcq", "vector", "continuous", phi=1.0) for _ in range(2))
    obs = torch.randn(6, 3)
    greedy = one.act(obs, True)[0]
    drawn = one.act(obs, False)[0]
    assert torch.equal(one.act(obs, True)[0], greedy)
    assert torch.equal(other.act(obs, False)[0], drawn)
    assert not torch.equal(other.act(obs, False)[0], drawn)


@pytest.mark.parametrize("phi", [0.0, 0.05])
def test_perturbation_stays_within_phi_and_within_bounds(phi, make_policy):
    policy = make_policy("bcq", "vector", "continuous", phi=phi)
    act = torch.rand(50, 2) * 2 - 1
    for parameter in policy.actor.parameters():
        parameter.data.mul_(100.0)
    moved = policy.actor(torch.randn(50, 3), act)
    assert (moved - act).abs().max().item() <= phi + 1e-6
    assert (phi == 0.0) == torch.equal(moved, act)
    assert moved.abs().max() <= 1.0


@pytest.mark.parametrize("obs", ["vector", "pixel"])
def test_many_candidates_are_as_many_single_ones(obs, make_policy):
    policy = make_policy("bcq", obs, "continuous")
    seen = policy.normalize(random_obs(policy, 3))
    acts = torch.rand(3, 5, 2) * 2 - 1
    together = policy.actor(seen, acts)
    for k in range(5):
        assert torch.allclose(together[:, k], policy.actor(seen, acts[:, k]), atol=1e-5)


def test_tianshous_networks_will_do(make_buffer):
    def place(net_class) -> dict:
        return {"device": "cpu"} if "device" in inspect.signature(net_class).parameters else {}

    def build(net_class, **sizes):
        return net_class(hidden_sizes=(16,), **sizes, **place(net_class))

    class Preprocess(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build(MLP, input_dim=5, output_dim=2)

        def forward(self, x):
            return self.net(x), None

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build(MLP, input_dim=5, output_dim=1)

        def forward(self, obs, act):
            return self.net(torch.cat([obs, act], dim=1))

    actor = continuous.Perturbation(
        preprocess_net=Preprocess(), max_action=1.0, **place(continuous.Perturbation)
    )
    vae = continuous.VAE(
        encoder=build(MLP, input_dim=5, output_dim=8),
        decoder=build(MLP, input_dim=7, output_dim=2),
        hidden_dim=8,
        latent_dim=4,
        max_action=1.0,
        **place(continuous.VAE),
    )
    critics = [Critic(), Critic()]
    policy = BCQPolicy(
        actor_perturbation=actor,
        actor_perturbation_optim=torch.optim.Adam(actor.parameters(), 1e-2),
        critic=critics[0],
        critic_optim=torch.optim.Adam(critics[0].parameters(), 1e-2),
        critic2=critics[1],
        critic2_optim=torch.optim.Adam(critics[1].parameters(), 1e-2),
        device="cpu",  # as in its example
        vae=vae,
        vae_optim=torch.optim.Adam(vae.parameters(), 1e-2),
        action_space=Box(-2.0, 4.0, (2,)),
        discount_factor=0.9,
        forward_sampled_times=7,
    )
    before = [parameter.clone() for parameter in policy.parameters()]
    update(policy, make_buffer("vector", "continuous"), times=3)
    assert not any(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    act, q = policy.act(torch.randn(4, 3), True)
    assert (act.shape, q.shape) == ((4, 2), (4, 7))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lmbda": 1.5}, r"expected lmbda in \[0, 1\], got 1.5"),
        ({"phi": -0.1}, r"expected phi in \[0, 2\], got -0.1"),
        ({"latent_dim": 0}, "expected latent_dim at least 1, got 0"),
        ({"num_sampled_action": 0}, "expected num_sampled_action at least 1, got 0"),
        ({"forward_sampled_times": 0}, "expected forward_sampled_times at least 1, got 0"),
        ({"tau": 0.0}, r"expected tau in \(0, 1\], got 0.0"),
    ],
)
def test_values_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        BCQConfig(**options)


def test_policy_stays_with_the_data_however_the_critics_err(make_policy):
    """The data hold actions near 0.5; values grow towards -1, where there are none."""
    zeros = [0] * 64
    act = 0.5 + 0.05 * torch.randn(64, 2)
    policy = make_policy("bcq", "vector", "continuous", vae_hidden_sizes=(32,), latent_dim=2)
    batch = transitions(zeros, act.tolist(), (-act.sum(1)).tolist(), [True] * 64, zeros)
    batch.obs = batch.obs_next = torch.zeros(64, 3)
    for _ in range(120):
        policy.learn(batch)
    chosen = policy.act(torch.zeros(1, 3), True)[0]
    assert ((chosen > 0.25) & (chosen < 0.6)).all()
