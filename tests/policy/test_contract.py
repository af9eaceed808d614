"""What every registered method keeps, whatever it computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import SETTINGS, Setting, choose, ended_rows, random_obs, same, update
from gymnasium.spaces import Discrete
from tianshou.data import Batch

from tianshou_ext.checkpoint import load_checkpoint, load_policy, policy_state, save_checkpoint
from tianshou_ext.errors import InputError
from tianshou_ext.policy import METHODS, OfflinePolicy
from tianshou_ext.tianshou_api import ReplayBuffer

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)
every_td_setting = pytest.mark.parametrize(
    "setting", [s for s in SETTINGS if s.has_td_target], ids=str
)


@every_setting
def test_actions_have_the_shape_dtype_and_bounds_of_the_space(setting, make_policy):
    policy = make_policy(*setting.kinds)
    act = choose(policy, random_obs(policy, 6)).act
    if setting.actions == "discrete":
        assert act.shape == (6,)
        assert act.dtype == np.int64
        assert ((act >= 0) & (act < policy.action_space.n)).all()
    else:
        assert act.shape == (6, *policy.action_space.shape)
        assert act.dtype == np.float32
        assert (np.abs(act) <= 1.0).all()


@every_setting
def test_map_action_gives_what_the_environment_takes(setting, make_policy):
    policy = make_policy(*setting.kinds)
    act = choose(policy, random_obs(policy, 6)).act
    mapped = policy.map_action(act)
    assert all(policy.action_space.contains(a.astype(policy.action_space.dtype)) for a in mapped)
    if setting.actions == "discrete":
        assert np.array_equal(mapped, act)
    else:
        ends = np.array([[-1.0, -1.0], [1.0, 1.0]], np.float32)
        assert np.allclose(policy.map_action(ends), [[-2.0, -2.0], [4.0, 4.0]])


@every_setting
def test_losses_are_finite_and_weights_move(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    metrics = update(policy, make_buffer(*setting.kinds[1:]), times=5)
    for step in metrics:
        assert any(key.startswith("loss") for key in step)
        assert all(np.isfinite(value) for value in step.values()), step
    assert all(torch.isfinite(value).all() for value in policy.state_dict().values())
    trained = {
        id(p) for o in policy.optimizers.values() for g in o.param_groups for p in g["params"]
    }
    for key, parameter in policy.named_parameters():
        if id(parameter) in trained:
            assert not torch.equal(parameter, before[key]), f"{key} never moved"


@every_setting
def test_same_seed_same_weights_and_other_seed_other_weights(setting, make_policy, make_buffer):
    def train(seed: int) -> dict[str, torch.Tensor]:
        policy = make_policy(*setting.kinds, seed=seed)
        update(policy, make_buffer(*setting.kinds[1:]), times=5)
        return policy.state_dict()

    first, second, other = train(3), train(3), train(4)
    assert same(first, second)
    assert not same(first, other)


@every_setting
def test_building_leaves_the_global_generator_alone(setting, make_policy):
    torch.manual_seed(11)
    make_policy(*setting.kinds, seed=5)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))


@every_td_setting
def test_targets_are_frozen_and_stay_in_eval_mode(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    policy.train()
    update(policy, make_buffer(*setting.kinds[1:]), times=2)
    assert policy._targets
    for source, target in policy._targets:
        assert source.training
        assert not any(module.training for module in target.modules())
        for parameter in target.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None


@every_td_setting
def test_targets_follow_their_sources(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    before = [p.clone() for _, target in policy._targets for p in target.parameters()]
    update(policy, make_buffer(*setting.kinds[1:]), times=4)  # SMALL copies every third step
    after = [p for _, target in policy._targets for p in target.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_setting
def test_weights_carry_over_through_state_dict(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds, seed=1)
    update(policy, make_buffer(*setting.kinds[1:]), times=3)
    other = make_policy(*setting.kinds, seed=2)
    obs = random_obs(policy, 16)
    assert not same(choose(policy, obs).logits, choose(other, obs).logits)
    other.load_state_dict(policy.state_dict())
    a, b = choose(policy, obs), choose(other, obs)
    assert np.array_equal(a.act, b.act)
    assert same(a.logits, b.logits)


@every_setting
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_update_restores_train_or_eval_mode(setting, mode, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    policy.train(mode)
    update(policy, make_buffer(*setting.kinds[1:]))
    assert policy.training is mode
    targets = {id(m) for _, target in policy._targets for m in target.modules()}
    modes = {m.training for m in policy.modules() if id(m) not in targets}
    assert modes == {mode}


@every_setting
def test_batch_of_one(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    metrics = update(policy, make_buffer(*setting.kinds[1:]), sample_size=1)
    assert all(np.isfinite(value) for value in metrics[0].values())
    assert choose(policy, random_obs(policy, 1)).act.shape[0] == 1


@every_setting
def test_compute_action_answers_one_observation(setting, make_policy):
    policy = make_policy(*setting.kinds)
    act = policy.compute_action(random_obs(policy, 1)[0])
    assert policy.action_space.contains(np.asarray(act, dtype=policy.action_space.dtype)[()])


@every_setting
def test_double_precision_observations_are_accepted(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds)
    obs = random_obs(policy, 5)
    assert same(choose(policy, obs).logits, choose(policy, obs.astype(np.float64)).logits)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.obs == "vector"], ids=str)
def test_double_precision_buffers_are_accepted(setting, make_policy, make_buffer):
    wide = make_buffer(*setting.kinds[1:])
    wide._meta["obs"] = wide.obs.astype(np.float64)
    wide._meta["obs_next"] = wide.obs_next.astype(np.float64)
    policy, reference = make_policy(*setting.kinds), make_policy(*setting.kinds)
    update(policy, wide, times=2)
    update(reference, make_buffer(*setting.kinds[1:]), times=2)
    assert same(policy.state_dict(), reference.state_dict())


@every_setting
def test_dict_observations_are_refused_with_what_to_do(setting, make_policy):
    policy = make_policy(*setting.kinds)
    obs = Batch(position=np.zeros((2, 3)), goal=np.zeros((2, 2)))
    with pytest.raises(
        InputError, match=r"expected observations that are one array.*goal.*flatten"
    ):
        choose(policy, obs)
    buffer = ReplayBuffer(2)
    for k in range(2):
        one = Batch(position=np.zeros(3), goal=np.zeros(2))
        act = 0 if setting.actions == "discrete" else np.zeros(2)
        end = {"terminated": k == 1, "truncated": False}
        buffer.add(Batch(obs=one, act=act, rew=0.0, **end, obs_next=one, info={}))
    with pytest.raises(InputError, match=r"expected observations that are one array.*flatten"):
        update(policy, buffer)


@every_td_setting
def test_terminals_do_not_bootstrap(setting, make_policy):
    assert _weights_after_a_step(setting, make_policy, "terminated", 1.0) == _weights_after_a_step(
        setting, make_policy, "terminated", 150.0
    )


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.learns_from_time_outs], ids=str)
def test_time_outs_bootstrap(setting, make_policy):
    assert _weights_after_a_step(setting, make_policy, "truncated", 1.0) != _weights_after_a_step(
        setting, make_policy, "truncated", 150.0
    )


@every_td_setting
def test_discount_does_not_matter_at_terminals(setting, make_policy):
    near, far = (
        _weights_after_a_step(setting, make_policy, "terminated", 9.0, gamma=gamma)
        for gamma in (0.0, 0.99)
    )
    assert near == far


def _weights_after_a_step(
    setting: Setting, make_policy, end: str, next_value: float, **options
) -> bytes:
    """Return all weights, as bytes, after a step on transitions that each end an episode."""
    policy = make_policy(*setting.kinds, **options)
    update(policy, ended_rows(setting, end, next_value), sample_size=0)
    return b"".join(v.numpy().tobytes() for v in policy.state_dict().values())


@every_setting
def test_exploration_noise_is_what_the_policy_was_told(setting, make_policy):
    policy = make_policy(*setting.kinds)
    act = choose(policy, random_obs(policy, 200)).act
    batch = Batch(obs=random_obs(policy, 200), info={})
    deviation = getattr(policy.config, "exploration_noise", 0.0)
    if isinstance(policy.action_space, Discrete):
        assert np.array_equal(policy.exploration_noise(act, batch), act)
        policy.set_eps(1.0)
        noisy = policy.exploration_noise(act, batch)
        assert set(noisy.tolist()) == set(range(policy.action_space.n))
        policy.set_eps(0.3)
        changed = (policy.exploration_noise(act, batch) != act).mean()
        assert 0.1 < changed < 0.35
    else:
        act = np.zeros((2000, *policy.action_space.shape), np.float32)
        noisy = policy.exploration_noise(act, batch)
        assert noisy.std() == pytest.approx(deviation, rel=0.05)
        assert np.abs(noisy).max() <= 1.0


@every_setting
def test_checkpoint_restores_everything(setting, make_policy, make_buffer, tmp_path: Path):
    buffer = make_buffer(*setting.kinds[1:])
    policy = make_policy(*setting.kinds, seed=1)
    update(policy, buffer, times=4)
    policy.set_eps(0.25)
    policy.exploration_noise(np.zeros(3), None)  # moves the generator of actions
    save_checkpoint(policy, tmp_path / "a.pt", {"seconds": 2.5})
    drawn = torch.rand(3)

    other = make_policy(*setting.kinds, seed=2)
    update(other, buffer, times=1)
    run = load_checkpoint(other, tmp_path / "a.pt")
    assert run == {"seconds": 2.5}
    assert torch.equal(torch.rand(3), drawn)
    assert same(policy_state(other), policy_state(policy))
    update(policy, buffer, times=3)
    update(other, buffer, times=3)
    assert same(policy_state(other), policy_state(policy))


def test_checkpoint_restores_the_learning_rate_schedule(make_policy, discrete_buffer, tmp_path):
    def scheduled() -> OfflinePolicy:
        policy = make_policy("bc")
        policy.lr_scheduler = torch.optim.lr_scheduler.StepLR(policy.optimizers["actor"], 3, 0.1)
        return policy

    policy, other = scheduled(), scheduled()
    update(policy, discrete_buffer, times=2)
    save_checkpoint(policy, tmp_path / "a.pt")
    load_checkpoint(other, tmp_path / "a.pt")
    for p in (policy, other):
        update(p, discrete_buffer, times=1)
        assert p.optimizers["actor"].param_groups[0]["lr"] == pytest.approx(1e-3)
        update(p, discrete_buffer, times=2)
    assert same(policy.state_dict(), other.state_dict())


@every_setting
def test_a_checkpoint_is_enough_to_act(setting, make_policy, make_buffer, tmp_path: Path):
    policy = make_policy(*setting.kinds, seed=1)
    update(policy, make_buffer(*setting.kinds[1:]), times=2)
    save_checkpoint(policy, tmp_path / "run.pt")
    torch.save(policy.state_dict(), tmp_path / "bare.pth")
    obs = random_obs(policy, 8)
    for file in ("run.pt", "bare.pth"):
        other = make_policy(*setting.kinds, seed=2)
        load_policy(other, tmp_path / file)
        assert same(choose(other, obs).logits, choose(policy, obs).logits)


@every_setting
def test_n_step_returns_train_too(setting, make_policy, make_buffer):
    policy = make_policy(*setting.kinds, n_step=3)
    one = make_policy(*setting.kinds)
    for p in (policy, one):
        update(p, make_buffer(*setting.kinds[1:]), times=2)
    assert same(policy.state_dict(), one.state_dict()) is not setting.has_td_target


@every_setting
def test_learning_twice_from_one_batch_normalises_it_once(setting, make_policy, make_buffer):
    """A user who keeps a batch sees the same observations in it after ``learn``."""
    policy = make_policy(*setting.kinds)
    batch = policy.sample(make_buffer(*setting.kinds[1:]), 4)
    before = batch.obs.clone()
    policy.learn(batch)
    assert same(batch.obs, before)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_settings_that_are_not_finite_are_refused(name, number):
    config_class = METHODS[name].config_class
    for field in dataclasses.fields(config_class):
        if isinstance(field.default, float):
            with pytest.raises(InputError, match=f"expected {field.name} .*, got {number}"):
                config_class(**{field.name: number})
