"""Behavioural cloning: its loss by hand."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from contract import Lookup, choose, random_obs, sgd, transitions, update
from gymnasium.spaces import Box, Discrete
from tables import ActorTable, log_density

from tianshou_ext.checkpoint import load_checkpoint, policy_state, save_checkpoint
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.policy import BCPolicy


def make(outputs: list[list[float]], space) -> BCPolicy:
    actor = Lookup(outputs)
    return BCPolicy(actor=actor, optim=sgd(actor, lr=0.5), action_space=space)


def states_with(act: list):
    """Return one transition from each state."""
    count = len(act)
    return transitions([*range(count)], act, [0.0] * count, [False] * count, [0] * count)


def test_discrete_loss_and_step_by_hand():
    logits, act = [[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]], [0, 2]
    policy = make(logits, Discrete(3))
    loss, moved = 0.0, []
    for row, a in zip(logits, act, strict=True):
        total = sum(math.exp(x) for x in row)
        loss -= math.log(math.exp(row[a]) / total) / 2
        gradient = [(math.exp(x) / total - (k == a)) / 2 for k, x in enumerate(row)]
        moved.append([x - 0.5 * g for x, g in zip(row, gradient, strict=True)])
    stats = policy.learn(states_with(act))
    assert stats.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert stats.metrics["accuracy"] == 0.5
    assert torch.allclose(policy.actor.rows[0], torch.tensor(moved), atol=1e-6)


def test_loss_at_uniform_logits_is_the_log_of_the_number_of_actions():
    policy = make([[0.7] * 6] * 4, Discrete(6))
    stats = policy.learn(states_with([0, 1, 2, 5]))
    assert stats.metrics["loss"] == pytest.approx(math.log(6), rel=1e-6)


def test_continuous_loss_and_step_by_hand():
    out, act = [[0.3, -2.0], [1.0, 0.0]], [[0.5, -1.0], [0.0, 0.25]]
    policy = make(out, Box(-5.0, 5.0, (2,)))
    assert choose(policy, np.zeros((1, 1), np.float32)).act.tolist() == [[pytest.approx(0.3), -1.0]]
    loss, moved = 0.0, np.array(out)
    for b in range(2):
        for a in range(2):
            loss += (out[b][a] - act[b][a]) ** 2 / 4
            moved[b, a] -= 0.5 * 2 * (out[b][a] - act[b][a]) / 4
    stats = policy.learn(states_with(act))
    assert stats.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert np.allclose(policy.actor.rows[0].detach().numpy(), moved, atol=1e-6)


def test_our_actor_ends_in_tanh(make_policy):
    policy = make_policy("bc", actions="continuous")
    seen = policy.normalize(random_obs(policy, 5))
    raw = policy.actor.head(policy.actor.trunk(seen))
    assert torch.equal(policy.act(seen, True)[0], torch.tanh(raw))


def test_stochastic_loss_and_step_by_hand():
    mean, std = [[0.3, -0.9], [0.5, 0.0]], [[0.5, 2.0], [1.0, 0.1]]
    act = [[0.5, -1.0], [0.0, 0.25]]
    actor, space = ActorTable(mean, std), Box(-5.0, 5.0, (2,))
    policy = BCPolicy(actor=actor, optim=sgd(actor, lr=0.01), action_space=space, stochastic=True)
    loss, moved, widened = 0.0, np.array(mean), np.array(std)
    for b in range(2):
        loss -= log_density(mean[b], std[b], act[b]) / 2
        z = (np.array(act[b]) - mean[b]) / np.array(std[b])
        moved[b] += 0.01 * z / std[b] / 2
        widened[b] += 0.01 * (z**2 - 1) / std[b] / 2
    stats = policy.learn(states_with(act))
    assert stats.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert np.allclose(actor.mean.detach(), moved, atol=1e-6)
    assert np.allclose(actor.std.detach(), widened, atol=1e-6)


def test_stochastic_cloning_learns_the_spread_and_keeps_the_bounds(make_policy, continuous_buffer):
    """Actions on a bound, which a squashed distribution has no density for, have one here."""
    rng = np.random.default_rng(0)
    continuous_buffer._meta["act"] = np.stack(
        [np.ones(27), 0.2 + 0.1 * rng.normal(size=27)], axis=1
    ).astype(np.float32)
    policy = make_policy("bc", actions="continuous", stochastic=True)
    metrics = update(policy, continuous_buffer, times=400, sample_size=27)
    assert all(math.isfinite(m["loss"]) for m in metrics)
    (mean, std), _ = policy.actor(policy.normalize(continuous_buffer.obs))
    assert mean.mean(0).tolist() == pytest.approx([1.0, 0.2], abs=0.1)
    assert (std[0] >= math.exp(-5.0)).all()
    assert (std[0] < 0.2).all()
    assert torch.equal(std, std[:1].expand_as(std))
    act, _ = policy.act(policy.normalize(random_obs(policy, 300)), deterministic=False)
    assert act.abs().max() <= 1.0
    assert act[:, 1].unique().numel() > 200
    obs = random_obs(policy, 5)
    assert np.array_equal(choose(policy, obs).act, choose(policy, obs).act)


def test_stochastic_cloning_on_frames_and_from_a_checkpoint(make_policy, make_buffer, tmp_path):
    buffer = make_buffer("pixel", "continuous")
    policy, other = (
        make_policy("bc", "pixel", "continuous", seed=seed, stochastic=True) for seed in (1, 2)
    )
    update(policy, buffer, times=2)
    save_checkpoint(policy, tmp_path / "a.pt")
    load_checkpoint(other, tmp_path / "a.pt")
    for p in (policy, other):
        update(p, buffer, times=2)
    states = [policy_state(p)["policy"] for p in (policy, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_stochastic_cloning_of_discrete_actions_is_refused(make_policy):
    with pytest.raises(InputError, match=r"expected continuous actions .*Discrete.*leave"):
        make_policy("bc", actions="discrete", stochastic=True)


def test_rewards_and_ends_do_not_matter(make_policy, discrete_buffer):
    policy, other = make_policy("bc"), make_policy("bc")
    update(policy, discrete_buffer, times=3)
    discrete_buffer._meta["rew"] = discrete_buffer.rew * -3.0
    discrete_buffer._meta["terminated"] = ~discrete_buffer.terminated
    update(other, discrete_buffer, times=3)
    assert all(map(torch.equal, policy.state_dict().values(), other.state_dict().values()))


def test_it_learns_a_rule_that_the_data_follow(make_policy, discrete_buffer):
    discrete_buffer._meta["act"] = np.digitize(discrete_buffer.obs[:, 0], [-0.5, 0.0, 0.5])
    policy = make_policy("bc")
    update(policy, discrete_buffer, times=200, sample_size=27)
    replay = Replay(discrete_buffer)
    act, _ = policy.act(policy.normalize(replay.obs), deterministic=True)
    assert (act == replay.act).float().mean() > 0.9


@pytest.mark.parametrize("method", ["bc", "discrete_iql", "discrete_crr"])
def test_actions_are_drawn_by_their_probabilities_where_that_is_asked_for(make_policy, method):
    likeliest, drawing = (
        make_policy(method, actions="discrete", sample_actions=drawn) for drawn in (False, True)
    )
    obs = np.repeat(random_obs(drawing, 1), 4000, axis=0)
    chosen = choose(drawing, obs)
    shares = np.bincount(chosen.act, minlength=chosen.logits.shape[1]) / len(obs)
    expected = chosen.logits[0].softmax(0).numpy()
    assert np.allclose(shares, expected, atol=0.04) and (expected > 0.05).sum() > 1
    chosen = choose(likeliest, obs)
    assert (chosen.act == int(chosen.logits[0].argmax())).all()


def test_actions_in_the_environments_own_units_are_warned_about(continuous_buffer):
    """Learned as they are, a policy would do a fraction of what was done."""
    buffer = copy.deepcopy(continuous_buffer)
    shape = buffer.act.shape[1:]
    spaces = Box(-5.0, 5.0, buffer.obs.shape[1:]), Box(-0.4, 0.4, shape)
    with warnings.catch_warnings(action="error"):  # some are above 0.4: they are scaled
        BCPolicy.build(*spaces).process_buffer(buffer)
    buffer.act[:] *= 0.4
    with pytest.warns(UserWarning, match=r"within the space's own bounds.*relabel FILE --act-low"):
        BCPolicy.build(*spaces).process_buffer(buffer)
