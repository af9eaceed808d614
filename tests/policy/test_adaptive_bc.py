"""Adaptive BC: losses by hand, the critics drawn, the controller by hand, what returns mean."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import Lookup, sgd, transitions, update
from gymnasium.spaces import Box
from tables import CriticTable
from tianshou.data import Batch
from torch import Tensor

from tianshou_ext.checkpoint import load_checkpoint, load_policy, save_checkpoint
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import normalized_score, reference_scores
from tianshou_ext.nn.actor_critic import CriticList
from tianshou_ext.nn.nets import EnsembleLinear
from tianshou_ext.policy import AdaptiveBCConfig, AdaptiveBCPolicy, TD3BCPolicy
from tianshou_ext.tianshou_api import ReplayBuffer

ACTIONS, TARGET_ACTIONS = [[0.5], [0.9]], [[0.1], [-0.4]]
"""The actor's and its target's, in states 0 and 1."""
CRITICS = [([1.0, 4.0], 2.0), ([0.5, 5.0], -1.0), ([-2.0, 1.0], 3.0)]
"""Values of the states, and slope in the action."""
TARGETS = [([0.0, 3.0], 1.0), ([0.0, 2.0], -2.0), ([0.0, 2.5], 4.0)]
BATCH = ([0, 1], [[0.5], [-1.0]], [1.0, -3.0], [False, True], [1, 1])


def make(
    method: type[TD3BCPolicy] = AdaptiveBCPolicy,
    num: int = 3,
    rates: tuple[float, float] = (0.1, 0.1),
    **options,
) -> TD3BCPolicy:
    """Return a policy of tables; ``rates`` are the learning rates of actor and critics."""
    actor, critic = Lookup(ACTIONS), CriticList(*(CriticTable(*c) for c in CRITICS[:num]))
    policy = method(
        actor=actor,
        actor_optim=sgd(actor, lr=rates[0]),
        critic=critic,
        critic_optim=sgd(critic, lr=rates[1]),
        action_space=Box(-2.0, 4.0, (1,)),
        **{"policy_noise": 0.0, **options},
    )
    with torch.no_grad():
        policy.actor_target.rows[0].copy_(torch.tensor(TARGET_ACTIONS))
        for table, (rows, slope) in zip(policy.critic_target.critics, TARGETS, strict=False):
            table.rows.copy_(torch.tensor(rows))
            table.slope.fill_(slope)
    return policy


def target_value(member: int) -> float:
    """Return a target critic's value of the target actor's action in state 1."""
    rows, slope = TARGETS[member]
    return rows[1] + slope * TARGET_ACTIONS[1][0]


# ---- losses by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [(0, 1), (1, 2), (2, 0)])
def test_a_step_by_hand(chosen):
    """The least of two targets; a mean over all critics; the actor with their mean; targets."""
    policy = make(alpha=0.7, tau=0.25)
    order = [*chosen, *({0, 1, 2} - set(chosen))]
    policy.rand = lambda *shape: torch.tensor([order.index(k) / 3 for k in range(3)])
    metrics = policy.learn(transitions(*BATCH)).metrics

    targets = [1.0 + 0.5 * min(map(target_value, chosen)), -3.0]
    loss, critics = 0.0, []
    for rows, slope in CRITICS:
        rows, new_slope = list(rows), slope
        for state, (act,), y in zip(BATCH[0], BATCH[1], targets, strict=True):
            error = rows[state] + slope * act - y
            loss += error**2 / 6
            rows[state] -= 0.1 * error / 3
            new_slope -= 0.1 * error * act / 3
        critics.append((rows, new_slope))
    assert metrics["loss/critic"] == pytest.approx(loss, rel=1e-6)
    for table, (rows, slope) in zip(policy.critic.critics, critics, strict=True):
        assert table.rows.tolist() == pytest.approx(rows, rel=1e-6)
        assert table.slope.item() == pytest.approx(slope, rel=1e-6)

    acts, data = (np.array(x)[:, 0] for x in (ACTIONS, BATCH[1]))
    values = np.mean([rows for rows, _ in critics], 0) + acts * np.mean([s for _, s in critics])
    size, slope = np.abs(values).mean(), np.mean([s for _, s in critics])
    expected = -values.mean() / size + 0.7 * np.square(acts - data).mean()
    assert metrics["loss/actor"] == pytest.approx(expected, rel=1e-5)
    assert metrics["alpha"] == pytest.approx(0.7)
    new_acts = acts - 0.1 * (-slope / 2 / size + 0.7 * (acts - data))
    assert policy.actor.rows[0][:, 0].tolist() == pytest.approx(new_acts, rel=1e-5)
    moved = 0.75 * np.array(TARGETS[2][0]) + 0.25 * np.array(critics[2][0])
    assert policy.critic_target.critics[2].rows.tolist() == pytest.approx(moved, rel=1e-5)


def test_losses_pair_each_value_with_its_own_target_and_action():
    """No table of every value against every target, as careless shapes give."""
    q, target = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([1.0, 4.0])
    squares = [0.0, 4.0, 4.0, 0.0, 16.0, 4.0]
    assert AdaptiveBCPolicy.critic_loss(q, target).item() == pytest.approx(sum(squares) / 6)
    act, data = torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    loss = make(alpha=2.0).actor_loss(act, data, q)
    assert loss.item() == pytest.approx(2.0 * (1.0 + 0.25) / 4 - 1.0)


def test_two_critics_are_drawn_anew_at_each_step_from_the_policys_own_generator(make_policy):
    def pairs(seed: int) -> list[tuple[int, ...]]:
        policy = make_policy("adaptive_bc", actions="continuous", seed=seed)
        seen: list[Tensor] = []
        policy.least_of = lambda q, chosen: (seen.append(chosen), q[0])[1]
        batch = transitions([0] * 4, [[0.0, 0.0]] * 4, [0.0] * 4, [False] * 4, [0] * 4)
        batch.obs = batch.obs_next = torch.randn(4, 3)
        for _ in range(400):
            policy.critic_targets(batch)
        return [tuple(sorted(chosen.tolist())) for chosen in seen]

    drawn = pairs(0)
    assert set(drawn) == set(itertools.combinations(range(10), 2))
    assert pairs(0) == drawn != pairs(1)


class MeanTD3BC(TD3BCPolicy):
    """TD3+BC whose actor climbs the mean of its critics."""

    actor_member = None

    def actor_loss(self, act: Tensor, data_act: Tensor, q: Tensor) -> Tensor:
        return super().actor_loss(act, data_act, q.mean(0, keepdim=True))


def test_two_critics_both_chosen_are_td3_bc_with_the_mean_for_its_actor():
    """Its loss is the actor's times 1 / alpha = 2.5, and the critics' times 2."""
    ours = make(num=2, num_critics=2, alpha=0.4, rates=(0.25, 0.2), policy_noise=0.2)
    theirs = make(MeanTD3BC, num=2, alpha=2.5, rates=(0.1, 0.1), policy_noise=0.2)
    batch = transitions(*BATCH)
    assert torch.equal(ours.critic_targets(batch), theirs.critic_targets(batch))
    for policy in (ours, theirs):
        policy.randn = lambda *shape: torch.linspace(-1.0, 1.0, 2).view(shape)
    for _ in range(6):
        mine, other = (p.learn(batch).metrics for p in (ours, theirs))
        assert 2.0 * mine["loss/critic"] == pytest.approx(other["loss/critic"], rel=1e-5)
        assert 2.5 * mine["loss/actor"] == pytest.approx(other["loss/actor"], rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def test_alpha_0_climbs_the_critics_and_a_huge_one_clones():
    data = torch.tensor([[0.2, 0.0], [-0.4, 1.0]])
    for alpha in (0.0, 1e6):
        act = torch.tensor([[0.5, 0.5], [0.1, -0.3]], requires_grad=True)
        q = (act @ torch.tensor([[1.0], [2.0]])).T.expand(3, 2)
        make(alpha=alpha).actor_loss(act, data, q).backward()
        way = torch.tensor([[1.0, 2.0]] * 2) if alpha == 0.0 else data - act.detach()
        cosine = torch.nn.functional.cosine_similarity(-act.grad.flatten(), way.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5)


def test_critics_start_as_the_papers(make_policy):
    policy = make_policy("adaptive_bc", actions="continuous", hidden_sizes=(64, 64))
    layers = [m for m in policy.critic.modules() if isinstance(m, EnsembleLinear)]
    assert len(layers) == 3
    for layer, inputs in zip(layers, (5, 64, 64), strict=True):
        assert layer.weight.shape[:2] == (10, inputs)
        assert layer.weight.std().item() == pytest.approx(0.5 / inputs**0.5, rel=0.15)
        assert not layer.bias.any()


# ---- the controller -------------------------------------------------------------------------


def controlled(**options) -> AdaptiveBCPolicy:
    policy = make(**{"return_low": 100.0, "return_high": 1100.0, **options})
    policy.on_online_start(None)
    return policy


def test_the_controller_over_three_episodes_by_hand():
    """From an average of 0.5: a good episode, a bad one, and one that is cut short."""
    policy = controlled(alpha=0.4)
    policy.set_average_return(600.0)
    alphas, averages = [], []
    for episode_return, length in ((1000.0, 1000), (200.0, 500), (400.0, 100)):
        policy.on_episode_end(episode_return, length)
        alphas.append(policy.alpha.item())
        averages.append(policy.average_return.item())
    # 0.9 is above the average of 0.5: only the target counts.
    first = 0.4 - 1000 * 3e-5 * (1.05 - 0.5)
    after_first = 0.95 * 0.5 + 0.05 * 0.9
    second = first + 500 * (-3e-5 * (1.05 - after_first) + 1e-4 * (after_first - 0.1))
    after_second = 0.95 * after_first + 0.05 * 0.1
    third = second + 100 * (-3e-5 * (1.05 - after_second) + 1e-4 * (after_second - 0.3))
    assert (first, second, third) == pytest.approx((0.3835, 0.39655, 0.396887), abs=1e-6)
    assert alphas == pytest.approx([first, second, third], abs=1e-6)
    last = 0.95 * after_second + 0.05 * 0.3
    assert averages == pytest.approx([after_first, after_second, last], abs=1e-6)


def test_without_gains_alpha_stays():
    policy = controlled(kp=0.0, kd=0.0)
    for episode_return in (1000.0, -500.0, 3000.0):
        policy.on_episode_end(episode_return, 1000)
    assert policy.alpha.item() == pytest.approx(0.4)


def test_constant_returns_at_the_target_leave_alpha_as_it_is():
    policy = controlled()
    policy.alpha.fill_(0.2)
    for _ in range(5):
        policy.on_episode_end(100.0 + 1.05 * 1000.0, 1000)
    assert policy.alpha.item() == pytest.approx(0.2, abs=1e-6)


def test_alpha_stays_between_0_and_where_it_started():
    policy = controlled(kd=1e-2)
    policy.set_average_return(1100.0)
    policy.on_episode_end(-2000.0, 1000)
    assert policy.alpha.item() == pytest.approx(0.4)
    policy = controlled(kd=0.0)
    for _ in range(100):
        policy.on_episode_end(100.0, 1000)
    assert policy.alpha.item() == 0.0


def test_the_average_starts_from_the_first_episode_if_no_test_gave_it():
    policy = controlled()
    policy.on_episode_end(600.0, 1000)
    assert policy.average_return.item() == pytest.approx(0.5)
    assert policy.alpha.item() == pytest.approx(0.4 - 0.03 * 0.55)


def test_the_online_phase_may_begin_with_another_alpha():
    """As on walker2d-random: 100 offline, 0.4 online."""
    policy = make(alpha=100.0, alpha_online=0.4)
    assert policy.alpha.item() == 100.0
    policy.on_online_start(None)
    assert policy.alpha.item() == pytest.approx(0.4)
    policy.alpha.fill_(0.39999)
    policy.set_average_return(50.0)
    policy.on_episode_end(-50.0, 1000)
    assert policy.alpha.item() == pytest.approx(0.4)


def test_gradient_steps_use_the_alpha_of_the_controller():
    policy, batch = make(update_actor_freq=1), transitions(*BATCH)
    update_of = {}
    for alpha in (0.4, 0.1):
        policy.alpha.fill_(alpha)
        act = torch.tensor(ACTIONS)
        update_of[alpha] = policy.actor_loss(act, batch.act, torch.ones(3, 2)).item()
    distance = (0.0 + 1.9**2) / 2
    assert update_of[0.4] - update_of[0.1] == pytest.approx(0.3 * distance, rel=1e-5)
    assert policy.learn(batch).metrics["alpha"] == pytest.approx(0.1)


def test_a_checkpoint_holds_the_controllers_state(make_policy, continuous_buffer, tmp_path: Path):
    policy = make_policy("adaptive_bc", actions="continuous")
    update(policy, continuous_buffer, times=2)
    policy.on_online_start(None)
    policy.on_episode_end(50.0, 1000)
    save_checkpoint(policy, tmp_path / "a.pt")
    other = make_policy("adaptive_bc", actions="continuous", seed=1)
    load_checkpoint(other, tmp_path / "a.pt")
    for p in (policy, other):
        update(p, continuous_buffer, times=2)
        p.on_episode_end(-20.0, 700)
    assert other.alpha.item() == policy.alpha.item() < 0.4
    assert other.average_return.item() == policy.average_return.item() != 0.0


# ---- what returns are to it -----------------------------------------------------------------


def test_weights_of_another_run_bring_no_alpha_and_no_range(
    make_policy, continuous_buffer, tmp_path: Path
):
    before = make_policy("adaptive_bc", actions="continuous")
    before.process_buffer(continuous_buffer)
    before.alpha.fill_(0.0)  # as after a long time online
    before.set_average_return(3.0)
    before.data_range.fill_(7.0)
    save_checkpoint(before, tmp_path / "before.pt")
    policy = make_policy("adaptive_bc", actions="continuous", alpha=8.0)
    load_policy(policy, tmp_path / "before.pt")
    policy.process_buffer(continuous_buffer)
    fresh = make_policy("adaptive_bc", actions="continuous", alpha=8.0)
    fresh.process_buffer(continuous_buffer)
    assert float(policy.alpha) == 8.0 and not bool(policy.has_average)
    assert policy.return_range == fresh.return_range


def test_the_references_of_d4rl_make_a_return_a_hundredth_of_its_score():
    hopper = reference_scores("hopper-medium-v0")
    policy = make(return_low=hopper.minimum, return_high=hopper.maximum)
    for episode_return in (-20.0, 0.0, 1500.0, 3500.0):
        score = float(normalized_score("hopper-medium-v0", episode_return))
        assert policy.normalized_return(episode_return) == pytest.approx(score / 100.0)


def test_without_references_the_greatest_reward_stands_for_an_expert():
    assert make(r_max=6.918).return_range == (0.0, pytest.approx(6918.0))
    assert make(r_max=2.0, episode_length=50).normalized_return(25.0) == pytest.approx(0.25)


@pytest.mark.parametrize("reward_norm", ["none", "return_range", "standard", "minus_one"])
def test_the_greatest_reward_is_the_datas_as_the_environment_gave_it(
    reward_norm, make_policy, continuous_buffer
):
    options = {"reward_norm": reward_norm, "episode_length": 200}
    policy = make_policy("adaptive_bc", actions="continuous", **options)
    policy.process_buffer(continuous_buffer)
    greatest = float(continuous_buffer.rew.max())
    assert policy.return_range == pytest.approx((0.0, 200 * greatest), rel=1e-5)


def rewarded(*rewards: float) -> ReplayBuffer:
    buffer = ReplayBuffer(len(rewards))
    for rew in rewards:
        obs = np.zeros(3, np.float32)
        row = Batch(obs=obs, act=np.zeros(2, np.float32), rew=rew, obs_next=obs, info={})
        row.update(terminated=False, truncated=True)
        buffer.add(row)
    return buffer


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [((-16.0, -1.0), (-16000.0, 0.0)), ((0.0, 0.0), (0.0, 1.0)), ((-1.0, 0.5), (0.0, 500.0))],
    ids=["all below 0", "all 0", "both signs"],
)
def test_rewards_of_any_sign_give_a_range(rewards, expected, make_policy):
    policy = make_policy("adaptive_bc", actions="continuous")
    policy.process_buffer(rewarded(*rewards))
    assert policy.return_range == expected


def test_the_range_stays_that_of_the_first_data(make_policy):
    policy = make_policy("adaptive_bc", actions="continuous")
    policy.process_buffer(rewarded(1.0, 2.0))
    policy.process_buffer(rewarded(50.0))
    assert policy.return_range == (0.0, 2000.0)


@pytest.mark.parametrize("episode_return", [float("nan"), float("inf")])
def test_a_return_that_is_no_number_is_refused_and_changes_nothing(episode_return):
    policy = controlled()
    with pytest.raises(InputError, match="expected a finite return of an episode, got"):
        policy.on_episode_end(episode_return, 10)
    assert policy.alpha.item() == pytest.approx(0.4)
    assert not policy.has_average


# ---- the rest -------------------------------------------------------------------------------


def test_a_collector_that_explores_gets_noisy_actions(make_policy):
    policy = make_policy("adaptive_bc", actions="continuous")
    act = np.zeros((5000, 2), np.float32)
    assert policy.exploration_noise(act, Batch()).std() == pytest.approx(0.1, rel=0.05)


def test_fewer_critics_than_a_subset_are_refused_in_one_sentence():
    with pytest.raises(InputError, match=r"expected at least subset_size critics, 2, got 1"):
        make(num=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": -1.0}, "expected alpha at least 0, got -1.0"),
        ({"alpha_online": -1.0}, "expected alpha_online at least 0, got -1.0"),
        ({"num_critics": 1}, "expected num_critics at least subset_size, 2, got 1"),
        ({"subset_size": 0}, "expected subset_size at least 1, got 0"),
        ({"kp": -1.0}, "expected kp at least 0"),
        ({"kd": -1.0}, "expected kd at least 0"),
        ({"return_low": 1.0}, "expected return_high and return_low both or neither"),
        ({"return_high": 1.0}, "expected return_high and return_low both or neither"),
        ({"return_low": 1.0, "return_high": 1.0}, "expected return_high above return_low, 1.0"),
        ({"r_max": 0.0}, "expected r_max above 0"),
        ({"episode_length": 0}, "expected episode_length at least 1"),
    ],
)
def test_values_out_of_range_give_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        AdaptiveBCConfig(**options)
    assert "\n" not in str(error.value)
