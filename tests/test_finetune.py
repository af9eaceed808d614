"""From a data set to acting: one run over both phases, resumed in either."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Batch
from tianshou.env import DummyVectorEnv

from tianshou_ext.data.mixing import MixedReplay, Mixing
from tianshou_ext.errors import InputError
from tianshou_ext.online import offline_to_online_trainer
from tianshou_ext.policy import METHODS, OfflinePolicy
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import PROGRESS, offline_trainer, read_progress

SETTINGS = {
    "offline_epoch": 2,
    "update_per_epoch": 20,
    "online_epoch": 2,
    "step_per_epoch": 30,
    "batch_size": 8,
    "episode_per_test": 1,
}
SMALL = {
    "hidden_sizes": (8,),
    "vae_hidden_sizes": (8,),
    "vae_steps": 5,
    "num_quantiles": 5,
    "lr": 1e-2,
}


def env(task: str = "Pendulum-v1") -> Any:
    return gymnasium.make(task, max_episode_steps=20)


def envs(count: int = 1, task: str = "Pendulum-v1") -> DummyVectorEnv:
    return DummyVectorEnv([lambda: env(task)] * count)


def build(method: str = "td3_bc", task: str = "Pendulum-v1", **options: Any) -> OfflinePolicy:
    kind = METHODS[method].policy_class
    known = {key: value for key, value in SMALL.items() if hasattr(kind.config_class, key)}
    one = env(task)
    return kind.build(one.observation_space, one.action_space, seed=0, **{**known, **options})


def data(task: str = "Pendulum-v1", rows: int = 200) -> ReplayBuffer:
    one = env(task)
    one.action_space.seed(0)
    buffer = ReplayBuffer(rows)
    obs, _ = one.reset(seed=0)
    while len(buffer) < rows:
        act = one.action_space.sample()
        after, rew, terminated, truncated, _ = one.step(act)
        scaled = act if np.ndim(act) == 0 else act / one.action_space.high
        row = Batch(obs=obs, act=scaled, rew=rew, obs_next=after, info={})
        row.update(terminated=terminated, truncated=truncated)
        buffer.add(row)
        obs = one.reset()[0] if terminated or truncated else after
    return buffer


def train(
    policy: OfflinePolicy,
    folder: Path | None = None,
    num_envs: int = 1,
    task: str = "Pendulum-v1",
    **options: Any,
) -> list[dict[str, float]]:
    return offline_to_online_trainer(
        policy,
        data(task),
        envs(num_envs, task),
        test_envs=envs(1, task),
        logdir=folder,
        show_progress=False,
        verbose=False,
        **{**SETTINGS, **options},
    )


class KilledError(Exception):
    """Stands for a killed process: what is not on the disk is lost."""


def interrupt_at(policy: OfflinePolicy, update: int) -> None:
    step = policy.gradient_step

    def interrupted(batch: Any) -> Any:
        if policy.num_updates == update:
            raise KilledError
        return step(batch)

    policy.gradient_step = interrupted  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("moment", "num_envs", "mixing"),
    [
        (25, 1, Mixing()),  # offline
        (45, 1, Mixing(kind="balanced", data_share=0.5, min_data_rows=0)),  # the first epoch online
        (85, 2, Mixing(kind="priority", half_life=50)),  # the second
    ],
)
def test_a_run_killed_in_either_phase_ends_with_the_same_weights(
    moment, num_envs, mixing, tmp_path: Path
):
    options = {"mixing": mixing, "warm_up_steps": 4, "num_envs": num_envs}
    whole = build()
    rows = train(whole, tmp_path / "whole", **options)
    broken = build()
    interrupt_at(broken, moment)
    with pytest.raises(KilledError):
        train(broken, tmp_path / "broken", **options)
    resumed = build()
    again = train(resumed, tmp_path / "broken", **options)
    assert resumed.num_updates == whole.num_updates == 40 + 60
    assert resumed.online_steps == whole.online_steps == 64
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    drop = ("seconds",)
    assert [{k: v for k, v in r.items() if k not in drop} for r in rows] == [
        {k: v for k, v in r.items() if k not in drop} for r in again
    ]


def test_one_table_tells_of_both_phases(tmp_path: Path):
    rows = train(build(), tmp_path, update_per_step=2, warm_up_steps=10, random_steps=5)
    assert [(r["epoch"], r["step"], r["env_step"]) for r in rows] == [
        (0, 0, 0),
        (1, 20, 0),
        (2, 40, 0),
        (3, 100, 45),
        (4, 160, 75),
    ]
    assert read_progress(tmp_path / PROGRESS)[-1]["env_step"] == 75


ONLINE = sorted(
    name
    for name, m in METHODS.items()
    if m.policy_class.learns_online and m.actions in ("continuous", "both")
)
DISCRETE = sorted(
    name
    for name, m in METHODS.items()
    if m.policy_class.learns_online and m.actions in ("discrete", "both")
)


@pytest.mark.parametrize(
    ("method", "task"),
    [*((name, "Pendulum-v1") for name in ONLINE), *((name, "CartPole-v1") for name in DISCRETE)],
)
def test_every_method_that_can_goes_online(method, task):
    policy = build(method, task)
    episodes: list[tuple[float, int]] = []
    told = policy.on_episode_end
    policy.on_episode_end = lambda *one: (episodes.append(one), told(*one))  # type: ignore
    started: list[Any] = []
    start = policy.on_online_start
    policy.on_online_start = lambda r: (started.append((policy.num_updates, r)), start(r))  # type: ignore
    rows = train(policy, task=task, update_per_step=1, online_epoch=1, offline_epoch=1)
    assert [row["env_step"] for row in rows] == [0, 0, 30]
    assert started == [(20, rows[1]["return_mean"])]
    assert policy.num_updates == 50
    assert isinstance(policy.staged, MixedReplay)
    assert episodes
    assert all(1 <= length <= 20 for _, length in episodes)
    for name, parameter in policy.named_parameters():
        assert parameter.isfinite().all(), name


class Blinking(gymnasium.Env[Any, Any]):
    """Stacked frames of one grey level, which is the step's number."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 36, 36), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def frames(self) -> Any:
        levels = np.maximum(np.arange(self.step_number - 3, self.step_number + 1), 0)
        return np.broadcast_to(levels[:, None, None], (4, 36, 36)).astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.step_number = 0
        return self.frames(), {}

    def step(self, action: int) -> Any:
        self.step_number += 1
        end = self.np_random.random()
        return self.frames(), float(action), end < 0.1, 0.1 <= end < 0.2, {}


def frames_buffer() -> ReplayBuffer:
    one = Blinking()
    buffer = ReplayBuffer(80, stack_num=4, ignore_obs_next=True, save_only_last_obs=True)
    obs, _ = one.reset(seed=0)
    for t in range(80):
        after, rew, terminated, truncated, _ = one.step(t % 3)
        row = Batch(obs=obs, act=t % 3, rew=rew, obs_next=after, info={})
        row.update(terminated=terminated, truncated=truncated)
        buffer.add(row)
        obs = one.reset()[0] if terminated or truncated else after
    return buffer


def test_frames_go_online_too_and_resume_to_the_bit(tmp_path: Path):
    def run(policy: OfflinePolicy, folder: Path) -> None:
        offline_to_online_trainer(
            policy,
            frames_buffer(),
            DummyVectorEnv([Blinking, Blinking]),
            logdir=folder,
            show_progress=False,
            verbose=False,
            **{**SETTINGS, "offline_epoch": 1, "update_per_epoch": 4, "step_per_epoch": 10},
        )

    def make() -> OfflinePolicy:
        kind = METHODS["discrete_cql"].policy_class
        small = {"hidden_sizes": (8,), "num_quantiles": 5, "obs_norm": "255", "n_step": 2}
        return kind.build(Blinking.observation_space, Blinking.action_space, seed=0, **small)

    whole = make()
    run(whole, tmp_path / "whole")
    online = whole.staged.online  # type: ignore[union-attr]
    batch = online.sample(0, gamma=0.9, n_step=2)
    first, last = batch.obs[:, -1, 0, 0].long(), batch.obs_next[:, -1, 0, 0].long()
    goes_on = batch.terminated == 0
    steps = torch.where(batch.discount > 0.85, 1, 2)
    assert 5 < int(goes_on.sum()) < len(batch)
    assert torch.equal(last[goes_on], (first + steps)[goes_on])  # never into the next episode
    assert (batch.obs_next[goes_on, -2, 0, 0].long() == last[goes_on] - 1).all()
    broken = make()
    interrupt_at(broken, 19)
    with pytest.raises(KilledError):
        run(broken, tmp_path / "broken")
    resumed = make()
    run(resumed, tmp_path / "broken")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_rewards_and_observations_are_transformed_online_as_the_data_sets_are():
    policy = build("iql", reward_norm="return_range", obs_norm="standard")
    train(policy)
    replay = policy.staged
    assert isinstance(replay, MixedReplay)
    raw = torch.as_tensor(replay.online.buffer.rew[:60], dtype=torch.float32)
    staged = replay.online.gather(torch.arange(60)).rew
    assert torch.allclose(staged, policy.reward_norm(raw))
    assert not torch.allclose(staged, raw)


def test_time_outs_bootstrap_online_too():
    policy = build()
    train(policy)
    online = policy.staged.online  # type: ignore[union-attr]
    batch = online.sample(0)
    assert online.buffer.truncated[: len(online)].any()
    assert batch.terminated.sum() == 0


def test_weights_of_another_run_go_online_at_once(tmp_path: Path):
    rows = train(build(), tmp_path, offline_epoch=0)
    assert [(r["epoch"], r["env_step"]) for r in rows] == [(0, 0), (1, 30), (2, 60)]


def test_a_policy_that_was_trained_before_goes_online_for_all_its_epochs(tmp_path: Path):
    """Also where it is killed there: how far it had come before is not in the way."""

    def trained() -> OfflinePolicy:
        policy = build()
        offline_trainer(
            policy,
            data(),
            max_epoch=5,
            update_per_epoch=20,
            batch_size=8,
            show_progress=False,
            verbose=False,
        )
        return policy

    whole = trained()
    train(whole, tmp_path / "whole", offline_epoch=0)
    assert (whole.num_updates, whole.online_steps) == (160, 60)
    broken = trained()
    interrupt_at(broken, 145)
    with pytest.raises(KilledError):
        train(broken, tmp_path / "broken", offline_epoch=0)
    resumed = build()
    rows = train(resumed, tmp_path / "broken", offline_epoch=0)
    assert [(r["epoch"], r["step"], r["env_step"]) for r in rows] == [
        (0, 100, 0),
        (1, 130, 30),
        (2, 160, 60),
    ]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    rows = train(whole, offline_epoch=0)  # again, in a run of its own
    assert [(r["step"], r["env_step"]) for r in rows] == [(160, 0), (190, 30), (220, 60)]


def test_an_online_phase_without_its_buffer_is_refused(tmp_path: Path):
    train(build(), tmp_path)
    (found,) = tmp_path.glob("buffer_*.hdf5")
    found.unlink()
    with pytest.raises(InputError, match="expected the run's buffer at .*buffer_100.hdf5"):
        train(build(), tmp_path, online_epoch=3)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("MountainCarContinuous-v0", "expected environments with observations of .*3.*got .*2"),
        ("CartPole-v1", "expected environments with observations of"),
    ],
)
def test_an_environment_of_other_spaces_is_refused(task, sentence):
    with pytest.raises(InputError, match=sentence):
        offline_to_online_trainer(build(), data(), envs(1, task), **SETTINGS)


def test_a_method_that_only_clones_is_told_which_can():
    with pytest.raises(InputError, match="gets better by acting .*iql.*td3_bc.*, got bc; choose"):
        train(build("bc"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"online_epoch": 0},
        {"batch_size": 0},
        {"update_per_step": 0.3, "step_per_collect": 1},
        {"update_per_step": 0.123},
        {"update_per_step": math.inf},
        {"offline_epoch": -1},
        {"update_per_step": 0},
        {"buffer_size": 0},
        {"buffer_size": 9, "warm_up_steps": 10},
        {"step_per_epoch": 0},
        {"warm_up_steps": -1},
        {"step_per_collect": 0},
        {"episode_per_test": 0},
    ],
)
def test_wrong_counts_are_refused_before_the_offline_phase(wrong):
    policy = build()
    with pytest.raises(InputError, match="expected "):
        train(policy, **wrong)
    assert policy.num_updates == 0
