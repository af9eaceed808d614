"""A run that has begun to act goes on with its own settings, buffer and environments, or not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from test_finetune import SETTINGS, KilledError, build, data, env, envs, train
from tianshou.data import Batch
from tianshou.env import DummyVectorEnv, SubprocVectorEnv

from tianshou_ext.acting import Acting
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.errors import InputError
from tianshou_ext.online import offline_to_online_trainer, online_trainer
from tianshou_ext.policy import DiscreteCQLPolicy
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import CHECKPOINT, PROGRESS, RunLogger

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
        ({"optimism": (5, 0.2)}, r"optimism was None, is \[5, 0.2\]"),
        ({"mixing": Mixing(kind="balanced")}, "kind was append, is balanced"),
        ({"offline_epoch": 9}, "offline_epoch was 1, is 9"),
        ({"update_per_epoch": 100}, "update_per_epoch was 3, is 100"),
    ],
)
def test_other_settings_do_not_go_on(changed, sentence, tmp_path: Path):
    train(build(), tmp_path, online_epoch=1, **SHORT)
    before = (tmp_path / "run.json").read_bytes()
    policy, options = build(), {**SHORT, **changed}
    if "optimism" in options:
        policy.set_optimism(*options.pop("optimism"))
    with pytest.raises(InputError, match=sentence):
        train(policy, tmp_path, online_epoch=2, **options)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_run_asked_for_less_than_it_has_done_gives_what_it_did(tmp_path: Path):
    rows = train(build(), tmp_path, online_epoch=2, **SHORT)
    assert train(build(), tmp_path, online_epoch=1, **SHORT) == rows


def test_the_buffer_of_another_run_is_refused(tmp_path: Path):
    for name in ("own", "other"):
        train(build(), tmp_path / name, online_epoch=1, **SHORT)
    (path,), (other,) = ((tmp_path / name).glob("buffer_*.hdf5") for name in ("own", "other"))
    path.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="the buffer that the run saved at .*, got one of another"):
        train(build(), tmp_path / "own", online_epoch=2, **SHORT)


def test_a_kill_between_buffer_and_checkpoint_does_no_harm(monkeypatch, tmp_path: Path):
    """A run's buffers have one name, as the last save writes that of the last epoch's end again."""
    train(build(), tmp_path, online_epoch=1, **SHORT)
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)["run"]["buffer"]
    monkeypatch.setattr("tianshou_ext.trainer.save_checkpoint", lambda *args: None)
    train(build(), tmp_path, online_epoch=2, **SHORT)
    (path,) = tmp_path.glob("buffer_*.hdf5")
    with h5py.File(path) as file:
        assert kept and file.attrs["name"] == kept


@pytest.mark.parametrize("damage", ["rew", "obs"])
def test_a_buffer_that_lacks_a_column_or_rows_is_refused(damage, tmp_path: Path):
    train(build(), tmp_path, online_epoch=1, **SHORT)
    (path,) = tmp_path.glob("buffer_*.hdf5")
    with h5py.File(path, "a") as file:
        column = file[damage][:-1]
        del file[damage]
        if damage == "obs":
            file[damage] = column
    with pytest.raises(InputError, match="expected 18 rows of act, done, obs, .* is damaged"):
        train(build(), tmp_path, online_epoch=2, **SHORT)


@pytest.mark.parametrize("kind", [DummyVectorEnv, SubprocVectorEnv])
def test_random_steps_are_the_same_each_time(kind, monkeypatch):
    """In processes the collector draws from copies of the action spaces that nobody had seeded."""
    monkeypatch.setattr("test_finetune.DummyVectorEnv", kind)
    options = {**SHORT, "num_envs": 2, "random_steps": 8, "online_epoch": 1}
    first, second = build(), build()
    assert drop_seconds(train(first, **options)) == drop_seconds(train(second, **options))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def drop_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_half_an_update_for_each_step():
    """Environments act until the updates are a whole number."""
    policy = build()
    rows = train(policy, online_epoch=2, update_per_step=0.5, **SHORT)
    assert [(row["step"], row["env_step"]) for row in rows[1:]] == [(3, 0), (12, 18), (21, 36)]
    for share, collect in ((0.07, 100), (0.55, 100), (1 / 49, 49)):
        acting = Acting(
            max_epoch=1,
            step_per_epoch=4900,
            batch_size=1,
            update_per_step=share,
            step_per_collect=collect,
        )
        assert acting.collect(1) == collect


def test_metrics_of_a_run_killed_in_a_test_are_those_of_its_last_step(monkeypatch, tmp_path: Path):
    """The test that was played again had none in progress.csv: no step had been taken since."""
    log = RunLogger.log_test_data

    def killed(logger: RunLogger, *args: Any) -> None:
        if logger.policy.num_updates == 3:
            raise KilledError
        log(logger, *args)

    train(build(), tmp_path / "whole", online_epoch=1, **SHORT)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(RunLogger, "log_test_data", killed)
        train(build(), tmp_path / "broken", online_epoch=1, **SHORT)
    train(build(), tmp_path / "broken", online_epoch=1, **SHORT)
    columns = [
        [row["metrics"] for row in csv.DictReader((tmp_path / name / PROGRESS).open())]
        for name in ("whole", "broken")
    ]
    assert columns[0] == columns[1] and "q/data" in columns[0][1]


class Screen(gymnasium.Env):
    """A picture whose channels are no frames: the step, a hundred more, and a constant."""

    observation_space = Box(0, 255, (3, 36, 36), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return self.picture(), {}

    def step(self, action):
        self.now += 1
        return self.picture(), 1.0, False, self.now == 10, {}

    def picture(self):
        channels = [self.now, 100 + self.now, 200]
        return np.tile(np.array(channels, np.uint8)[:, None, None], (1, 36, 36))


def test_pictures_that_are_no_stacks_of_frames_are_kept_whole():
    """They were taken for three frames, of which the last is kept; now that is refused."""
    one, rows = Screen(), 40
    buffer = ReplayBuffer(rows)
    obs, _ = one.reset()
    for _ in range(rows):
        after, rew, terminated, truncated, _ = one.step(0)
        row = Batch(obs=obs, act=0, rew=rew, obs_next=after, info={})
        row.update(terminated=terminated, truncated=truncated)
        buffer.add(row)
        obs = one.reset()[0] if truncated else after
    options = {"hidden_sizes": (8,), "num_quantiles": 5}
    policy = DiscreteCQLPolicy.build(one.observation_space, one.action_space, **options)
    common = {"batch_size": 4, "step_per_epoch": 20, "show_progress": False, "verbose": False}
    both = {"offline_epoch": 1, "update_per_epoch": 2, "online_epoch": 1, **common}
    with pytest.raises(InputError, match="to be frames, the newest last.*stacked_frames=False"):
        offline_to_online_trainer(policy, buffer, DummyVectorEnv([Screen]), **both)
    policy = DiscreteCQLPolicy.build(one.observation_space, one.action_space, **options)
    offline_to_online_trainer(
        policy, buffer, DummyVectorEnv([Screen]), stacked_frames=False, **both
    )
    seen = policy.staged.online.sample(8)
    for batch, extra in ((seen.obs, 0), (seen.obs_next, 1)):
        assert (batch[:, 1] - batch[:, 0] == 100).all() and (batch[:, 2] == 200).all()
        assert (seen.obs[:, 0] + extra == batch[:, 0]).all()
    common |= {"max_epoch": 1, "random_steps": 8}
    with pytest.raises(InputError, match="to be frames, the newest last.*stacked_frames=False"):
        online_trainer(policy, DummyVectorEnv([Screen]), **common)
    online_trainer(policy, DummyVectorEnv([Screen]), stacked_frames=False, **common)


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
