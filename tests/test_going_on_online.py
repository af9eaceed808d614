"""A run that has begun to act goes on with its own settings, buffer and environments, or not."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from test_finetune import SETTINGS, build, data, env, envs, train
from tianshou.env import DummyVectorEnv

from tianshou_ext.data.mixing import Mixing
from tianshou_ext.errors import InputError
from tianshou_ext.online import offline_to_online_trainer

SHORT = {"offline_epoch": 1, "update_per_epoch": 3, "step_per_epoch": 18}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_run_prolonged_is_as_one_that_was_as_long_from_the_start(num_envs, tmp_path: Path):
    options = {**SHORT, "num_envs": num_envs, "random_steps": 5, "warm_up_steps": 4}
    whole, part, prolonged = build(), build(), build()
    rows = train(whole, online_epoch=3, **options)
    train(part, tmp_path, online_epoch=1, **options)
    again = train(prolonged, tmp_path, online_epoch=3, **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, prolonged.state_dict()[key]), key
    for row in (*rows, *again):
        row.pop("seconds")
    assert again == rows


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"warm_up_steps": 1000}, "warm_up_steps was 0, is 1000"),
        ({"update_per_step": 2}, "update_per_step was 1.0, is 2"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"mixing": Mixing(kind="balanced")}, "kind was append, is balanced"),
        ({"offline_epoch": 9}, "offline_epoch was 1, is 9"),
        ({"update_per_epoch": 100}, "update_per_epoch was 3, is 100"),
    ],
)
def test_other_settings_do_not_go_on(changed, sentence, tmp_path: Path):
    train(build(), tmp_path, online_epoch=1, **SHORT)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=sentence):
        train(build(), tmp_path, online_epoch=2, **{**SHORT, **changed})
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_buffer_that_cannot_be_read_gets_one_sentence(damage, tmp_path: Path):
    train(build(), tmp_path, online_epoch=1, **SHORT)
    (path,) = tmp_path.glob("buffer_*.hdf5")
    content = path.read_bytes()[:1000] if damage == "truncated" else b"nothing"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected an HDF5 file at .*buffer_"):
        train(build(), tmp_path, online_epoch=2, **SHORT)
    assert path.read_bytes() == content


def test_actions_of_other_bounds_are_refused():
    def other() -> gymnasium.Env:
        one = gymnasium.make("Pendulum-v1")
        one.unwrapped.action_space = Box(-1.0, 1.0, (1,))
        return one

    with pytest.raises(InputError, match=r"environments with actions of Box\(-2.*got Box\(-1"):
        offline_to_online_trainer(build(), data(), DummyVectorEnv([other]), **SETTINGS)


def test_test_environments_of_other_spaces_are_refused_before_the_offline_phase():
    policy, others = build(), envs(1, "MountainCarContinuous-v0")
    with pytest.raises(InputError, match="expected environments with observations of"):
        offline_to_online_trainer(policy, data(), envs(), test_envs=others, **SETTINGS)
    assert policy.num_updates == 0


def test_collections_that_cut_a_round_of_environments_are_refused():
    with pytest.raises(InputError, match="whole rounds of 2 environments, got 3"):
        train(build(), num_envs=2, step_per_collect=3)


@pytest.mark.parametrize("name", ["step_per_epoch", "save_epochs", "log_interval"])
def test_counts_below_one_are_refused_before_the_offline_phase(name):
    policy = build()
    with pytest.raises(InputError, match=f"expected {name} of at least 1, got 0"):
        train(policy, **{name: 0})
    assert policy.num_updates == 0


class Broken(gymnasium.Wrapper):
    """An environment whose observations or rewards are NaN from some step on."""

    def __init__(self, env: gymnasium.Env, what: str) -> None:
        super().__init__(env)
        self.what, self.steps = what, 0

    def step(self, action):
        obs, rew, terminated, truncated, info = super().step(action)
        self.steps += 1
        if self.steps > 4:
            obs, rew = (obs * np.nan, rew) if self.what == "obs_next" else (obs, np.nan)
        return obs, rew, terminated, truncated, info


@pytest.mark.parametrize("what", ["obs_next", "rew"])
def test_environments_that_break_are_named_in_one_sentence(what):
    broken = DummyVectorEnv([lambda: Broken(env(), what)])
    with pytest.raises(InputError, match=f"finite numbers in the buffer's {what}, got .* row 4;"):
        offline_to_online_trainer(
            build(), data(), broken, **SETTINGS, show_progress=False, verbose=False
        )
