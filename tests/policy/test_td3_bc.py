"""TD3+BC: a whole step by hand, its limits, who gets a gradient, noise, Tianshou's spellings."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract import Lookup, sgd, transitions
from gymnasium.spaces import Box
from tianshou.data import Batch
from tianshou.exploration import GaussianNoise, OUNoise
from torch import Tensor, nn

from tianshou_ext.errors import InputError
from tianshou_ext.policy import TD3BCConfig, TD3BCPolicy

ACTIONS = [[0.5, -0.25], [0.9, -0.9]]
"""The actor's, in states 0 and 1."""
TARGET_ACTIONS = [[0.0, 0.0], [0.75, -0.5]]
CRITICS = [([2.0, 1.0], 0.5), ([1.0, -3.0], 0.0)]
"""Weights of the two action dimensions, and the bias."""
TARGET_CRITICS = [([1.0, 1.0], 1.0), ([-1.0, 2.0], 3.0)]
DATA = [[0.5, 0.5], [-1.0, 0.0]]
BATCH = ([0, 0], DATA, [1.0, -3.0], [False, True], [1, 1])


class Linear(nn.Module):
    """A critic as Tianshou's: (B, A) actions to (B, 1) values, whatever is observed."""

    def __init__(self, weight: list[float], bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return (act @ self.weight + self.bias).unsqueeze(1)


def make(**options) -> TD3BCPolicy:
    actor, critics = Lookup(ACTIONS), [Linear(*c) for c in CRITICS]
    policy = TD3BCPolicy(
        actor=actor,
        actor_optim=sgd(actor, lr=0.1),
        critic=critics[0],
        critic_optim=sgd(critics[0], lr=0.1),
        critic2=critics[1],
        critic2_optim=sgd(critics[1], lr=0.1),
        action_space=Box(-2.0, 4.0, (2,)),
        **{"policy_noise": 0.0, **options},
    )
    with torch.no_grad():
        policy.actor_target.rows[0].copy_(torch.tensor(TARGET_ACTIONS))
        for critic, (weight, bias) in zip(
            policy.critic_target.critics, TARGET_CRITICS, strict=True
        ):
            critic.weight.copy_(torch.tensor(weight))
            critic.bias.fill_(bias)
    return policy


def value(critic: tuple[np.ndarray, float], act: list[float]) -> float:
    return float(np.dot(critic[0], act) + critic[1])


def test_a_step_by_hand():
    """Critics on the target's least value; the actor with the new first critic; then targets."""
    policy = make(alpha=2.0, tau=0.25)
    stats = policy.learn(transitions(*BATCH))

    v_next = min(value(critic, TARGET_ACTIONS[1]) for critic in TARGET_CRITICS)
    targets = [1.0 + 0.5 * v_next, -3.0]
    critic_loss, critics = 0.0, []
    for weight, bias in CRITICS:
        moved, moved_bias = np.array(weight), bias
        for act, y in zip(DATA, targets, strict=True):
            error = value((weight, bias), act) - y
            critic_loss += error**2 / 2
            moved = moved - 0.1 * error * np.array(act)
            moved_bias -= 0.1 * error
        critics.append((moved, moved_bias))
    assert stats.metrics["loss/critic"] == pytest.approx(critic_loss, rel=1e-6)
    for mine, (weight, bias) in zip(policy.critic.critics, critics, strict=True):
        assert mine.weight.tolist() == pytest.approx(weight, rel=1e-6)
        assert mine.bias.item() == pytest.approx(bias, rel=1e-6)

    q = value(critics[0], ACTIONS[0])
    gap = np.array(ACTIONS[0]) - np.array(DATA)  # (B, A)
    actor_loss = -2.0 / abs(q) * q + (gap**2).mean()
    slope = -2.0 / abs(q) * critics[0][0] + 2.0 * gap.sum(0) / 4
    new_act = np.array(ACTIONS[0]) - 0.1 * slope
    assert stats.metrics["loss/actor"] == pytest.approx(actor_loss, rel=1e-6)
    assert policy.actor.rows[0][0].tolist() == pytest.approx(new_act, rel=1e-5)
    assert policy.actor.rows[0][1].tolist() == pytest.approx(ACTIONS[1])

    followed = 0.75 * np.array(TARGET_ACTIONS[0]) + 0.25 * new_act
    assert policy.actor_target.rows[0][0].tolist() == pytest.approx(followed, rel=1e-5)
    for mine, old, new in zip(policy.critic_target.critics, TARGET_CRITICS, critics, strict=True):
        expected = 0.75 * np.array(old[0]) + 0.25 * new[0]
        assert mine.weight.tolist() == pytest.approx(expected, rel=1e-5)


def actor_gradient(policy: TD3BCPolicy, scale: float = 1.0) -> Tensor:
    """Return the gradient of the actor's loss in the actor's actions, with Q times ``scale``."""
    act = torch.tensor([ACTIONS[0], ACTIONS[1]], requires_grad=True)
    q = scale * policy.critic(torch.zeros(2, 1), act)
    policy.actor_loss(act, torch.tensor(DATA), q).backward()
    return act.grad.flatten()


def test_alpha_zero_is_cloning():
    act = torch.tensor([ACTIONS[0], ACTIONS[1]], requires_grad=True)
    nn.functional.mse_loss(act, torch.tensor(DATA)).backward()
    assert torch.allclose(actor_gradient(make(alpha=0.0)), act.grad.flatten())


def test_a_huge_alpha_climbs_the_first_critic():
    uphill = torch.tensor(CRITICS[0][0] * 2)
    cosine = nn.functional.cosine_similarity(-actor_gradient(make(alpha=1e6)), uphill, dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-6)


def test_the_size_of_rewards_does_not_change_the_weight_of_cloning():
    policy = make()
    small, large = actor_gradient(policy, 1e-3), actor_gradient(policy, 1e3)
    assert torch.allclose(small, large, rtol=1e-5)
    assert not torch.allclose(small, actor_gradient(policy, -1.0))


def test_the_second_critic_does_not_steer_the_actor():
    policy, other = make(), make()
    with torch.no_grad():
        other.critic.critics[1].weight.add_(5.0)
    assert torch.equal(actor_gradient(policy), actor_gradient(other))


def test_each_loss_reaches_its_own_networks_only():
    policy, batch = make(), transitions(*BATCH)
    target = policy.critic_targets(batch)
    assert not target.requires_grad
    act, _ = policy.actor(batch.obs)
    q_act = policy.frozen(policy.critic)(batch.obs, act)
    policy.actor_loss(act, batch.act, q_act).backward()
    assert all(p.grad is None for p in policy.critic.parameters())
    assert policy.actor.rows[0].grad is not None
    policy.actor.rows[0].grad = None
    policy.critic_loss(policy.critic(batch.obs, batch.act), target).backward()
    assert all(p.grad is not None for p in policy.critic.parameters())
    assert policy.actor.rows[0].grad is None


def test_actor_and_targets_move_every_third_step_and_keep_their_metrics_between():
    policy, batch = make(update_actor_freq=3), transitions(*BATCH)
    moved: dict[str, list[bool]] = {"actor": [], "actor_target": [], "critic_target": []}
    critic_moved = []
    for _ in range(7):
        before = {name: next(getattr(policy, name).parameters()).clone() for name in moved}
        critic = policy.critic.critics[0].bias.clone()
        metrics = policy.learn(batch).metrics
        assert {"loss/critic", "loss/actor"} <= metrics.keys()
        for name, steps in moved.items():
            steps.append(not torch.equal(before[name], next(getattr(policy, name).parameters())))
        critic_moved.append(not torch.equal(critic, policy.critic.critics[0].bias))
    assert all(critic_moved)
    expected = [True, False, False, True, False, False, True]
    assert moved == dict.fromkeys(moved, expected)


@pytest.mark.parametrize(
    ("noise_clip", "furthest"), [(0.3, 0.3), (0.0, 10.0)], ids=["clipped", "0 is no bound"]
)
def test_target_noise_has_its_bound_and_actions_stay_within_theirs(noise_clip, furthest):
    policy = make(policy_noise=1.0, noise_clip=noise_clip)
    seen: list[Tensor] = []
    policy.next_value = lambda batch, act: (seen.append(act), act.sum(1))[1]
    policy.critic_targets(transitions([0] * 500, DATA * 250, [0.0] * 500, [False] * 500, [1] * 500))
    noise = seen[0] - torch.tensor(TARGET_ACTIONS[1])
    assert seen[0].abs().max() <= 1.0
    assert noise.abs().max() <= furthest + 1e-6
    if noise_clip:
        assert noise[:, 1].min().item() == pytest.approx(-noise_clip)
    else:
        assert noise.abs().max() > 1.0


def test_deviation_of_the_target_noise_is_policy_noise():
    policy = make(policy_noise=0.1)
    seen: list[Tensor] = []
    policy.next_value = lambda batch, act: (seen.append(act), act.sum(1))[1]
    policy.critic_targets(
        transitions([0] * 4000, DATA * 2000, [0.0] * 4000, [False] * 4000, [0] * 4000)
    )
    assert seen[0].std().item() == pytest.approx(0.1, rel=0.05)


def test_an_actor_beyond_the_bounds_acts_within_them():
    """Tianshou's actors may span the environment's range, such as [-2, 2]."""
    policy = make()
    with torch.no_grad():
        policy.actor.rows[0].mul_(3.0)
    act = policy(Batch(obs=np.zeros((1, 1), np.float32), info={})).act
    assert act.tolist() == [[1.0, -0.75]]


@pytest.mark.parametrize(
    ("noise", "deviation"),
    [(None, 0.0), (0.3, 0.3), (GaussianNoise(sigma=0.2), 0.2), ("default", 0.1)],
    ids=["none", "number", "Gaussian", "default"],
)
def test_exploration_noise_in_every_spelling_of_tianshou(noise, deviation):
    policy = make(exploration_noise=noise)
    act = np.zeros((5000, 2), np.float32)
    noisy = policy.exploration_noise(act, Batch())
    assert noisy.dtype == np.float32
    assert noisy.std() == pytest.approx(deviation, rel=0.05)
    assert np.abs(policy.exploration_noise(act + 0.99, Batch())).max() <= 1.0
    repeated = make(exploration_noise=noise).exploration_noise(act, Batch())
    assert np.array_equal(repeated, noisy)


@pytest.mark.parametrize(("noise", "deviation"), [(None, 0.0), (GaussianNoise(sigma=0.2), 0.2)])
def test_exploration_noise_of_tianshous_policy_object(noise, deviation):
    """2.x: a policy without noise explores without noise."""
    actor, critic = Lookup(ACTIONS), Linear(*CRITICS[0])
    held = SimpleNamespace(actor=actor, action_space=Box(-2.0, 4.0, (2,)), exploration_noise=noise)
    options = {"critic": critic, "critic_optim": sgd(critic), "policy_optim": sgd(actor)}
    assert TD3BCPolicy(policy=held, **options).config.exploration_noise == deviation
    given = TD3BCPolicy(policy=held, **options, exploration_noise=0.3)
    assert given.config.exploration_noise == 0.3


@pytest.mark.parametrize("noise", [OUNoise(), GaussianNoise(mu=0.5), "much"])
def test_other_exploration_noise_is_refused_in_one_sentence(noise):
    with pytest.raises(InputError, match="expected exploration_noise as a number or as Gaussian"):
        make(exploration_noise=noise)


def test_half_of_the_arguments_is_refused_in_one_sentence():
    critic = Linear(*CRITICS[0])
    with pytest.raises(InputError, match="expected actor, actor_optim and action_space, or policy"):
        TD3BCPolicy(actor=Lookup(ACTIONS), critic=critic, critic_optim=sgd(critic))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("alpha", -1.0),
        ("critic_lr", 0.0),
        ("tau", 0.0),
        ("policy_noise", -0.1),
        ("noise_clip", -0.1),
        ("exploration_noise", -0.1),
        ("update_actor_freq", 0),
    ],
)
def test_values_out_of_range_give_one_sentence(field, wrong):
    with pytest.raises(InputError, match=f"expected {field} .*, got {wrong}"):
        TD3BCConfig(**{field: wrong})


def test_it_finds_the_best_action_where_cloning_gives_the_mean(make_policy):
    """Rewards peak at 0.5 in each dimension; the mean of the data is 0."""
    rng = np.random.default_rng(0)
    acts = rng.uniform(-1.0, 1.0, (2000, 2)).astype(np.float32)
    rews = 1.0 - np.square(acts - 0.5).sum(1)
    obs = np.zeros((64, 3), np.float32)
    ended = np.ones(64, bool)
    found = {}
    for alpha in (0.0, 10.0):
        options = {"alpha": alpha, "lr": 3e-3, "hidden_sizes": (64, 64), "obs_norm": "none"}
        policy = make_policy("td3_bc", actions="continuous", **options)
        for _ in range(300):
            rows = rng.integers(2000, size=64)
            policy.learn(
                Batch(obs=obs, act=acts[rows], rew=rews[rows], terminated=ended, obs_next=obs)
            )
        found[alpha] = policy(Batch(obs=obs[:1], info={})).act[0]
    assert found[0.0] == pytest.approx(0.0, abs=0.15)
    assert found[10.0] == pytest.approx(0.5, abs=0.15)
