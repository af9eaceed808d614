"""SPOT: density and steps by hand, pre-training that is killed, dropout, cooling, its limits."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import Lookup, choose, random_obs, same, sgd, transitions, update
from gymnasium.spaces import Box
from tables import CriticTable
from tianshou.data import Batch
from tianshou.utils.net import continuous
from tianshou.utils.net.common import MLP, Net
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tianshou_ext.checkpoint import load_checkpoint, load_policy, policy_state, save_checkpoint
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import DeterministicActor
from tianshou_ext.nn.nets import make_adam
from tianshou_ext.nn.vae import VAE
from tianshou_ext.policy import SPOTConfig, SPOTPolicy, TD3BCPolicy
from tianshou_ext.tianshou_api import ReplayBuffer, training_step
from tianshou_ext.trainer import offline_trainer

ACTIONS, TARGET_ACTIONS = [[0.5], [0.9]], [[0.1], [-0.4]]
"""The actor's and its target's, in states 0 and 1."""
CRITICS = [([1.0, 4.0], 2.0), ([0.5, 5.0], -1.0)]
"""Values of the states, and slope in the action."""
TARGETS = [([0.0, 3.0], 1.0), ([0.0, 2.0], -2.0)]
BATCH = ([0, 0], [[0.5], [-1.0]], [1.0, -3.0], [False, True], [1, 1])
GAIN, LOG_STD, NOISE = 0.8, -0.5, [0.3, -0.7]


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
        return 0.0 * hidden + LOG_STD

    def decode(self, obs, latent):
        return self.gain * latent


def nlb(act: float, noise: float, beta: float) -> float:
    """Return the density's loss by ``Gain``, by hand."""
    mean, std = 0.5 * act, math.exp(LOG_STD)
    divergence = -0.5 * (1.0 + 2.0 * LOG_STD - mean**2 - std**2)
    return (GAIN * (mean + std * noise) - act) ** 2 + beta * divergence


def make(**options) -> SPOTPolicy:
    actor, vae = Lookup(ACTIONS), Gain()
    critics = [CriticTable(*c) for c in CRITICS]
    known = {"policy_noise": 0.0, "dropout": 0.0, "vae_steps": 0, **options}
    policy = SPOTPolicy(
        actor=actor,
        actor_optim=sgd(actor, lr=0.1),
        critic=critics[0],
        critic_optim=sgd(critics[0], lr=0.1),
        critic2=critics[1],
        critic2_optim=sgd(critics[1], lr=0.1),
        vae=vae,
        vae_optim=sgd(vae),
        action_space=Box(-2.0, 4.0, (1,)),
        **known,
    )
    with torch.no_grad():
        policy.actor_target.rows[0].copy_(torch.tensor(TARGET_ACTIONS))
        for critic, (rows, slope) in zip(policy.critic_target.critics, TARGETS, strict=True):
            critic.rows.copy_(torch.tensor(rows))
            critic.slope.fill_(slope)
    return policy


# ---- losses by hand -------------------------------------------------------------------------


def test_a_step_by_hand():
    """TD3's critics; the actor with the new first critic and the frozen density; then targets."""
    policy = make(lam=0.7, beta=0.3, tau=0.25)
    policy.randn = lambda *shape: torch.tensor(NOISE).view(shape)
    metrics = policy.learn(transitions(*BATCH)).metrics

    v_next = min(rows[1] + slope * TARGET_ACTIONS[1][0] for rows, slope in TARGETS)
    targets = [1.0 + 0.5 * v_next, -3.0]
    loss, critics = 0.0, []
    for rows, slope in CRITICS:
        value, new_slope = rows[0], slope
        for (act,), y in zip(BATCH[1], targets, strict=True):
            error = rows[0] + slope * act - y
            loss += error**2 / 2
            value, new_slope = value - 0.1 * error, new_slope - 0.1 * error * act
        critics.append((value, new_slope))
    assert metrics["loss/critic"] == pytest.approx(loss, rel=1e-6)
    got = [(c.rows[0].item(), c.slope.item()) for c in policy.critic.critics]
    assert got == [pytest.approx(c, rel=1e-6) for c in critics]

    value, slope = critics[0]
    size = abs(value + slope * 0.5)  # both observations are of state 0

    def actor_loss(act: float) -> float:
        density = np.mean([nlb(act, n, 0.3) for n in NOISE])
        return 0.7 * density - (value + slope * act) / size

    assert metrics["loss/actor"] == pytest.approx(actor_loss(0.5), rel=1e-6)
    assert metrics["nlb"] == pytest.approx(np.mean([nlb(0.5, n, 0.3) for n in NOISE]), rel=1e-6)
    gradient = (actor_loss(0.5 + 1e-5) - actor_loss(0.5 - 1e-5)) / 2e-5
    new_act = 0.5 - 0.1 * gradient
    assert policy.actor.rows[0][0].item() == pytest.approx(new_act, rel=1e-5)
    followed = 0.75 * TARGET_ACTIONS[0][0] + 0.25 * new_act
    assert policy.actor_target.rows[0][0].item() == pytest.approx(followed, rel=1e-5)
    assert torch.equal(policy.vae.vae.gain, torch.tensor(GAIN))


@pytest.mark.parametrize("beta", [0.5, 0.1, 2.0])
def test_the_density_is_minus_the_evidence_bound_up_to_scale_and_a_constant(beta):
    """Of a decoder of variance beta / 4, where latents have twice the action's dimensions."""
    vae, dims = VAE((3,), 2, (16,), latent_dim=4), 2
    policy = SPOTPolicy.build(Box(-9, 9, (3,)), Box(-1, 1, (2,)), beta=beta, vae_steps=0)
    policy.vae = vae
    obs, act, noise = torch.randn(50, 3), torch.rand(50, dims), torch.randn(50, 4)
    recon, mean, std = vae(obs, act, noise)
    decoder = Normal(recon, math.sqrt(beta / 4))
    prior = Normal(torch.zeros_like(mean), torch.ones_like(std))
    bound = decoder.log_prob(act).sum(1) - kl_divergence(Normal(mean, std), prior).sum(1)
    constant = -0.5 * dims * math.log(2 * math.pi * beta / 4)
    scaled = beta / (2 * dims) * -(bound - constant)
    assert torch.allclose(policy.elbo_loss(obs, act, noise), scaled, atol=1e-5)


def test_several_latents_are_averaged_for_each_action():
    policy = make(num_samples=3, beta=0.3)
    act, noise = torch.tensor([[0.5], [-0.2]]), torch.randn(6, 1)
    by_hand = [
        np.mean([nlb(a, n, 0.3) for n in noise[3 * k : 3 * k + 3, 0].tolist()])
        for k, a in enumerate((0.5, -0.2))
    ]
    assert policy.elbo_loss(torch.zeros(2, 1), act, noise).tolist() == pytest.approx(by_hand)
    assert math.isfinite(policy.learn(transitions(*BATCH)).metrics["nlb"])


def test_the_density_steers_the_actor_and_leaves_the_vae_alone():
    policy = make()
    act = torch.tensor([[0.5], [-0.2]], requires_grad=True)
    density = policy.elbo_loss(torch.zeros(2, 1), act, torch.zeros(2, 1))
    policy.actor_loss(torch.zeros(1, 2) + 1.0, density, 1.0).backward()
    assert act.grad.abs().min() > 0.0
    assert policy.vae.vae.gain.grad is None


def test_the_size_of_rewards_does_not_change_the_weight_of_the_density():
    density = torch.tensor([0.3, 0.5])
    q = torch.tensor([[2.0, -1.0], [9.0, 9.0]])
    losses = [SPOTPolicy.actor_loss(scale * q, density, 0.7).item() for scale in (1e-3, 1.0, 1e3)]
    assert losses == pytest.approx([0.7 * 0.4 - 0.5 / 1.5] * 3, rel=1e-6)


# ---- limits ---------------------------------------------------------------------------------


class NormalizedTD3(TD3BCPolicy):
    """TD3 whose actor climbs the first critic divided by its mean size."""

    def actor_loss(self, act: Tensor, data_act: Tensor, q: Tensor) -> Tensor:
        return -q[0].mean() / q[0].abs().mean().detach()


def td3_like(spot: SPOTPolicy) -> NormalizedTD3:
    """Return TD3 with the networks and random streams of ``spot``."""
    actor, critic = copy.deepcopy(spot.actor), copy.deepcopy(spot.critic)
    td3 = NormalizedTD3(
        actor=actor,
        actor_optim=make_adam(actor, lr=1e-2),
        critic=critic,
        critic_optim=make_adam(critic, lr=1e-2),
        action_space=spot.action_space,
        policy_noise=spot.config.policy_noise,
    )
    td3.generators["learn"].set_state(spot.generators["learn"].get_state())
    return td3


@pytest.mark.parametrize(("policy_noise", "steps"), [(0.0, 6), (0.2, 1)])
def test_lambda_0_is_td3_with_normalised_values_to_the_bit(policy_noise, steps, make_policy):
    """With target noise for one step: then SPOT has drawn latents from the same stream."""
    options = {"lam": 0.0, "dropout": 0.0, "vae_steps": 0, "policy_noise": policy_noise}
    spot = make_policy("spot", actions="continuous", obs_norm="none", **options)
    td3 = td3_like(spot)
    for k in range(steps):
        batch = transitions(
            [k] * 4, torch.rand(4, 2).tolist(), [1.0, 2, 3, 4], [False] * 4, [k] * 4
        )
        batch.obs = batch.obs_next = torch.randn(4, 3)
        spot.learn(batch)
        td3.learn(batch)
    for name in ("actor", "critic", "actor_target", "critic_target"):
        assert same(getattr(spot, name).state_dict(), getattr(td3, name).state_dict()), name


def test_a_huge_lambda_stays_with_the_data_and_none_leaves_them():
    """Actions of the data are near 0.3; the critics would rather have greater ones."""
    rng = np.random.default_rng(0)
    acts = (0.3 + 0.05 * rng.normal(size=(500, 1))).astype(np.float32)
    buffer = ReplayBuffer(500)
    for act in acts:
        row = Batch(obs=np.zeros(2, np.float32), act=act, rew=float(act[0]), info={})
        row.update(terminated=True, truncated=False, obs_next=np.zeros(2, np.float32))
        buffer.add(row)
    found, options = {}, {"lr": 1e-2, "hidden_sizes": (32,), "vae_hidden_sizes": (32,)}
    for lam in (0.0, 100.0):
        options |= {"vae_lr": 1e-2, "vae_steps": 100, "vae_batch_size": 64, "obs_norm": "none"}
        spaces = Box(-9, 9, (2,)), Box(-1, 1, (1,))
        policy = SPOTPolicy.build(*spaces, lam=lam, **options)
        update(policy, buffer, times=100, sample_size=64)
        found[lam] = choose(policy, np.zeros((1, 2), np.float32)).act[0, 0]
    assert found[100.0] == pytest.approx(0.3, abs=0.15)
    assert found[0.0] > 0.8


# ---- cooling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "share"),
    [(0, 1.0), (500_000, 0.5), (800_000, 0.2), (1_000_000, 0.2), (3_000_000, 0.2)],
)
def test_lambda_cools_down_to_a_fifth_over_a_million_steps_online(steps, share):
    policy = make(lam=0.25)
    policy.online_steps = steps
    assert policy.cooled_weight() == pytest.approx(0.25 * share)


def test_gradient_steps_use_the_cooled_lambda():
    losses = {}
    for steps in (0, 10, 60):
        policy = make(lam=2.0, lam_end=0.5, cooling_steps=100, update_actor_freq=1)
        policy.online_steps = steps
        policy.randn = lambda *shape: torch.zeros(shape)
        losses[steps] = policy.learn(transitions(*BATCH)).metrics
    plain = losses[0]["loss/actor"] - 2.0 * losses[0]["nlb"]
    for steps, weight in ((10, 1.8), (60, 1.0)):
        expected = plain + weight * losses[steps]["nlb"]
        assert losses[steps]["loss/actor"] == pytest.approx(expected, rel=1e-5)


# ---- pre-training ---------------------------------------------------------------------------


def test_the_vae_learns_once_on_normalised_observations(make_policy, continuous_buffer):
    policy = make_policy("spot", actions="continuous", vae_steps=40, vae_batch_size=64)
    seen, forward = [], policy.vae.forward
    policy.vae.forward = lambda obs, act, noise: (seen.append(obs), forward(obs, act, noise))[1]
    first = policy.vae.decoder[0].weight.clone()
    policy.process_buffer(continuous_buffer)
    policy.vae.forward = forward
    assert len(seen) == int(policy.num_vae_steps) == 40
    rows = torch.cat(seen)
    assert rows.shape == (40 * 64, 3)
    assert torch.allclose(rows.mean(0), torch.zeros(3), atol=0.1)
    assert torch.allclose(rows.std(0), torch.ones(3), atol=0.1)
    trained = copy.deepcopy(policy.vae.state_dict())
    assert not torch.equal(first, trained["decoder.0.weight"])
    update(policy, continuous_buffer, times=3)
    policy.process_buffer(copy.deepcopy(continuous_buffer))  # as when it goes online
    assert same(policy.vae.state_dict(), trained)


def test_pre_training_draws_from_the_policys_own_generator(make_policy, continuous_buffer):
    def vae(seed: int) -> dict[str, Tensor]:
        policy = make_policy("spot", actions="continuous", seed=seed)
        policy.vae.load_state_dict(weights)
        policy.process_buffer(continuous_buffer)
        return policy.vae.state_dict()

    weights = make_policy("spot", actions="continuous").vae.state_dict()
    torch.manual_seed(1)
    first = vae(3)
    torch.manual_seed(2)
    assert same(first, vae(3))
    drawn = torch.rand(2)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(2))
    assert not same(first, vae(4))


def test_pre_training_shows_how_long_it_takes(make_policy, continuous_buffer, capsys):
    make_policy("spot", actions="continuous").process_buffer(continuous_buffer)
    shown = capsys.readouterr().err
    assert "VAE: 100%" in shown and "5/5" in shown and "loss 0." in shown
    make_policy("spot", actions="continuous", vae_steps=0).process_buffer(continuous_buffer)
    assert capsys.readouterr().err == ""


class KilledError(Exception):
    """Stands for a killed process: what is not on the disk is lost."""


def interrupt_at(policy: SPOTPolicy, step: int) -> None:
    def interrupted(data):
        if int(policy.num_vae_steps) == step:
            raise KilledError
        return SPOTPolicy.vae_step(policy, data)

    policy.vae_step = interrupted


def train(policy: SPOTPolicy, buffer: ReplayBuffer, folder: Path) -> dict:
    options = {"show_progress": False, "verbose": False, "logdir": folder}
    offline_trainer(policy, buffer, max_epoch=2, update_per_epoch=5, batch_size=8, **options)
    return policy_state(policy)


@pytest.mark.parametrize("moment", [0, 3, 4])
def test_a_run_that_is_killed_in_pre_training_ends_as_one_that_is_not(
    moment, make_policy, continuous_buffer, tmp_path: Path
):
    whole = train(make_policy("spot", actions="continuous"), continuous_buffer, tmp_path / "whole")
    killed = make_policy("spot", actions="continuous")
    interrupt_at(killed, moment)
    with pytest.raises(KilledError):
        train(killed, continuous_buffer, tmp_path / "broken")
    again = make_policy("spot", actions="continuous")
    assert same(train(again, continuous_buffer, tmp_path / "broken"), whole)


def test_a_checkpoint_from_within_pre_training_goes_on_to_the_bit(
    make_policy, continuous_buffer, tmp_path: Path
):
    whole = make_policy("spot", actions="continuous")
    whole.process_buffer(continuous_buffer)
    killed = make_policy("spot", actions="continuous")
    interrupt_at(killed, 3)
    with pytest.raises(KilledError):
        killed.process_buffer(continuous_buffer)
    save_checkpoint(killed, tmp_path / "a.pt")
    again = make_policy("spot", actions="continuous", seed=9)
    load_checkpoint(again, tmp_path / "a.pt")
    again.process_buffer(continuous_buffer)
    assert same(policy_state(again), policy_state(whole))


def test_what_is_loaded_is_not_trained_again(make_policy, continuous_buffer, tmp_path: Path):
    policy = make_policy("spot", actions="continuous")
    update(policy, continuous_buffer)
    save_checkpoint(policy, tmp_path / "a.pt")
    for load in (load_checkpoint, load_policy):
        other = make_policy("spot", actions="continuous", seed=1)
        load(other, tmp_path / "a.pt")
        interrupt_at(other, 5)
        update(other, continuous_buffer)
        assert same(other.vae.state_dict(), policy.vae.state_dict())


def test_a_batch_without_data_to_learn_the_density_from_is_refused():
    policy = make(vae_steps=10)
    with pytest.raises(InputError, match=r"expected the data set before .*process_buffer") as error:
        policy.learn(transitions(*BATCH))
    assert "\n" not in str(error.value)


# ---- dropout --------------------------------------------------------------------------------


def test_dropped_units_are_as_if_they_were_not_there():
    actor = DeterministicActor((3,), 2, (4, 5))
    obs = torch.randn(6, 3)
    whole = actor(obs)[0]
    assert torch.allclose(actor(obs, keep=torch.ones(6, 9))[0], whole)
    keep = torch.full((6, 9), 2.0)
    keep[:, [1, 6]] = 0.0  # the second unit of the first layer, the third of the second
    less = copy.deepcopy(actor)
    with torch.no_grad():
        for layer, unit in ((less.trunk[1], 1), (less.trunk[3], 2)):
            layer.weight[unit] = layer.bias[unit] = 0.0
    first, second = (2.0 * torch.relu(x) for x in (less.trunk[1](obs), torch.zeros(6, 5)))
    second = 2.0 * torch.relu(less.trunk[3](first))
    assert torch.allclose(actor(obs, keep=keep)[0], torch.tanh(less.head(second)), atol=1e-6)


def test_a_tenth_is_dropped_and_the_rest_makes_up_for_it(make_policy):
    policy = make_policy("spot", actions="continuous", dropout=0.1, hidden_sizes=(16, 8))
    seen, forward = [], policy.actor.forward
    policy.actor.forward = lambda obs, keep: (seen.append(keep), forward(obs))[1]
    policy.dropped(policy.actor, torch.zeros(2000, 3))
    (keep,) = seen
    assert keep.shape == (2000, 24)
    assert keep.unique().tolist() == pytest.approx([0.0, 1.0 / 0.9])
    assert (keep == 0.0).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_acting_drops_nothing_and_learning_drops_in_actor_and_target(make_policy):
    policy = make_policy("spot", actions="continuous", dropout=0.5, vae_steps=0, policy_noise=0.0)
    obs = random_obs(policy, 8)
    policy.train()
    acts = [choose(policy, obs).act for _ in range(2)]
    with training_step(policy):
        acts.append(choose(policy, obs).act)
    assert np.array_equal(acts[0], acts[1]) and np.array_equal(acts[0], acts[2])
    seen = policy.normalize(obs)
    for actor in (policy.actor, policy.actor_target):
        drawn = [policy.dropped(actor, seen) for _ in range(2)]
        assert not torch.equal(*drawn)
    batch = transitions([0] * 8, [[0.0, 0.0]] * 8, [0.0] * 8, [False] * 8, [0] * 8)
    batch.obs = batch.obs_next = seen
    assert not torch.equal(policy.critic_targets(batch), policy.critic_targets(batch))


def test_an_actor_that_cannot_drop_units_is_refused_in_one_sentence():
    with pytest.raises(InputError, match=r"DeterministicActor .* for dropout 0.1, got Lookup"):
        make(dropout=0.1)


# ---- the rest -------------------------------------------------------------------------------


def test_a_collector_that_explores_gets_noisy_actions(make_policy):
    policy = make_policy("spot", actions="continuous")
    act = np.zeros((5000, 2), np.float32)
    noisy = policy.exploration_noise(act, Batch())
    assert noisy.std() == pytest.approx(0.1, rel=0.05)
    assert np.abs(policy.exploration_noise(act + 0.99, Batch())).max() <= 1.0


def test_small_heads_for_antmaze(make_policy):
    plain = make_policy("spot", actions="continuous")
    small = make_policy("spot", actions="continuous", small_init=True)
    for name, bound in (("actor", 1e-3), ("critic", 3e-3)):
        heads = [[*getattr(p, name).parameters()][-2:] for p in (plain, small)]
        assert heads[0][0].abs().max() > 10 * bound
        assert all(0.0 < p.abs().max() <= bound for p in heads[1])


def test_tianshous_networks_will_do(make_buffer):
    networks = tianshou_networks()
    optims = {f"{name}_optim": sgd(net, lr=1e-3) for name, net in networks.items()}
    options = {"dropout": 0.0, "vae_steps": 3, "action_space": Box(-1, 1, (2,))}
    policy = SPOTPolicy(**networks, **optims, **options, observation_space=Box(-9, 9, (3,)))
    before = copy.deepcopy(policy.state_dict())
    for metrics in update(policy, make_buffer("vector", "continuous"), times=3):
        assert all(map(math.isfinite, metrics.values()))
    for name, parameter in policy.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} never moved"


def tianshou_networks() -> dict[str, nn.Module]:
    """Return actor, critic and VAE of Tianshou's for 3 observations and 2 actions."""

    def build(names: str, **options) -> nn.Module:
        (made,) = [getattr(continuous, n) for n in names.split() if hasattr(continuous, n)][-1:]
        known = inspect.signature(made).parameters
        return made(**options, **({"device": "cpu"} if "device" in known else {}))

    body = Net(state_shape=3, hidden_sizes=(8,))
    both = Net(state_shape=3, action_shape=2, hidden_sizes=(8,), concat=True)
    vae = {
        "encoder": MLP(input_dim=5, output_dim=8),
        "decoder": MLP(input_dim=7, output_dim=2),
        "hidden_dim": 8,
        "latent_dim": 4,
        "max_action": 1.0,
    }
    return {
        "actor": build(
            "Actor ContinuousActorDeterministic", preprocess_net=body, action_shape=(2,)
        ),
        "critic": build("Critic ContinuousCritic", preprocess_net=both),
        "vae": build("VAE", **vae),
    }


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("lam", -0.1),
        ("lam_end", 1.5),
        ("cooling_steps", 0),
        ("beta", 0.0),
        ("num_samples", 0),
        ("dropout", 1.0),
        ("vae_steps", -1),
        ("vae_batch_size", 0),
        ("vae_lr", 0.0),
        ("latent_dim", 0),
        ("actor_lr", 0.0),
        ("tau", 0.0),
    ],
)
def test_values_out_of_range_give_one_sentence(field, wrong):
    with pytest.raises(InputError, match=f"expected {field} .*, got {wrong}"):
        SPOTConfig(**{field: wrong})
