"""Online training: what it collects, and that an interrupted run ends as one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Batch, VectorReplayBuffer
from tianshou.env import DummyVectorEnv

from tianshou_ext import acting, online
from tianshou_ext.checkpoint import save_checkpoint
from tianshou_ext.data.online_buffer import cut_episodes, restore_rows, save_rows
from tianshou_ext.errors import InputError
from tianshou_ext.online import online_trainer
from tianshou_ext.policy import OfflinePolicy, SACNPolicy
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import CHECKPOINT, PROGRESS, read_progress

SETTINGS = {
    "max_epoch": 3,
    "step_per_epoch": 60,
    "batch_size": 8,
    "buffer_size": 400,
    "random_steps": 20,
    "episode_per_test": 1,
}


def build(seed: int = 0, **options: Any) -> OfflinePolicy:
    env = gymnasium.make("Pendulum-v1")
    options = {"hidden_sizes": (8,), "num_critics": 2, "lr": 1e-2} | options
    return SACNPolicy.build(env.observation_space, env.action_space, seed=seed, **options)


def envs(count: int = 1) -> DummyVectorEnv:
    return DummyVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * count)


def train(policy: OfflinePolicy, folder: Path | None = None, num_envs: int = 1, **options: Any):
    return online_trainer(
        policy,
        envs(num_envs),
        test_envs=envs(),
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


@pytest.mark.parametrize(("num_envs", "moment"), [(1, 30), (2, 61), (1, 119)])
def test_an_interrupted_run_ends_with_the_same_weights_and_tests(num_envs, moment, tmp_path: Path):
    whole = build()
    rows = train(whole, tmp_path / "whole", num_envs)
    broken = build()
    interrupt_at(broken, moment)
    with pytest.raises(KilledError):
        train(broken, tmp_path / "broken", num_envs)
    resumed = build()
    again = train(resumed, tmp_path / "broken", num_envs)
    assert resumed.num_updates == whole.num_updates == 180
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert [row["return_mean"] for row in rows] == [row["return_mean"] for row in again]
    assert len(read_progress(tmp_path / "broken" / PROGRESS)) == 4


def test_a_run_killed_between_its_buffer_and_its_checkpoint_resumes(tmp_path: Path, monkeypatch):
    whole = build()
    train(whole, tmp_path / "whole")
    saves = iter([False, True])

    def dying(*args: Any, **kwargs: Any) -> None:
        if args[1].name == CHECKPOINT and next(saves):
            raise KilledError
        save_checkpoint(*args, **kwargs)

    monkeypatch.setattr("tianshou_ext.trainer.save_checkpoint", dying)
    with pytest.raises(KilledError):
        train(build(), tmp_path / "broken")
    monkeypatch.undo()
    assert len([*(tmp_path / "broken").glob("buffer_*.hdf5")]) == 2
    resumed = build()
    train(resumed, tmp_path / "broken")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert len([*(tmp_path / "broken").glob("buffer_*.hdf5")]) == 1


def test_steps_updates_and_the_cuts_between_epochs_are_as_asked(tmp_path: Path, monkeypatch):
    kept: list[ReplayBuffer] = []
    cut = cut_episodes
    monkeypatch.setattr(acting, "cut_episodes", lambda b: (kept.append(b), cut(b)))
    epochs: list[int] = []
    policy = build()
    options = {"update_per_step": 0.5, "step_per_collect": 2}
    train(policy, tmp_path, on_epoch=lambda epoch, p: epochs.append(epoch), **options)
    assert policy.num_updates == 90
    assert epochs == [1, 2, 3]
    (buffer,) = {id(b): b for b in kept}.values()
    assert len(buffer) == 20 + 3 * 60
    ends = np.flatnonzero(buffer.truncated[:200])
    assert ends.tolist() == [19, 79, 139]  # an epoch is shorter than Pendulum's 200 steps
    assert not buffer.terminated[:200].any()
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["method"] == "sac_n"
    assert about["random_steps"] == 20


def test_the_first_steps_are_random_and_the_others_the_policys(monkeypatch):
    """Two policies of other weights do the same in the first steps, and something else then."""
    acts = []
    for seed in (0, 1):
        kept: list[ReplayBuffer] = []
        monkeypatch.setattr(acting, "cut_episodes", kept.append)
        rows = train(build(seed), max_epoch=1)
        assert [row["step"] for row in rows] == [0, 60]
        acts.append(kept[0].act[:80].copy())
    assert np.array_equal(acts[0][:20], acts[1][:20])
    assert np.unique(acts[0][:20]).size == 20
    assert not np.isclose(acts[0][20:], acts[1][20:]).any()


def test_a_buffer_that_cannot_hold_the_random_steps_is_refused():
    with pytest.raises(InputError, match="buffer_size of at least random_steps .*, 20, got 10"):
        train(build(), buffer_size=10)


def test_without_a_number_all_steps_are_kept_and_no_more_reserved_also_in_a_prolonged_run(
    tmp_path: Path, monkeypatch
):
    """A million rows of pictures took half a minute and gigabytes, in a run of 20 steps too."""
    reserved, make = [], online.make_online_buffer

    def count(space: Any, rows: int, *args: Any, **options: Any) -> ReplayBuffer:
        reserved.append(rows)
        return make(space, rows, *args, **options)

    monkeypatch.setattr(online, "make_online_buffer", count)
    settings = {name: value for name, value in SETTINGS.items() if name != "buffer_size"}
    runs = []
    for name, epochs in (("whole", 3), ("longer", 1), ("longer", 3)):
        runs.append(build())
        options = {**settings, "max_epoch": epochs, "show_progress": False, "verbose": False}
        online_trainer(runs[-1], envs(), logdir=tmp_path / name, **options)
    assert reserved == [200, 80, 200]
    whole, _, longer = (policy.state_dict() for policy in runs)
    assert all(torch.equal(longer[key], value) for key, value in whole.items())


def test_training_without_tests_needs_no_environment_for_them(tmp_path: Path):
    policy = build()
    options = {**SETTINGS, "max_epoch": 1, "show_progress": False, "verbose": False}
    assert online_trainer(policy, envs(), logdir=tmp_path, **options) == []
    assert policy.num_updates == 60
    assert (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("options", [{"obs_norm": "standard"}, {"reward_norm": "standard"}])
def test_normalisers_are_not_fitted_to_a_single_transition(options):
    """A standard deviation of 0 made the networks' inputs a thousand times too large."""
    (name,) = options
    with pytest.raises(InputError, match=f"expected data to fit {name} standard to, got none"):
        train(build(**options), random_steps=0)
    policy = build(**options)
    train(policy, random_steps=50)
    assert policy.obs_norm is None or float(policy.obs_norm.scale.min()) > 0.01


def test_environments_of_neighbouring_seeds_start_apart(monkeypatch):
    seeds: list[tuple[int, ...]] = []

    class Noted(DummyVectorEnv):
        def seed(self, seed: Any = None) -> Any:
            seeds.append(tuple(seed))
            return super().seed(seed)

    for seed in (0, 1):
        venv = Noted([lambda: gymnasium.make("Pendulum-v1")])
        options = {**SETTINGS, "seed": seed, "show_progress": False, "verbose": False}
        online_trainer(build(), venv, **options)
    assert len(seeds) == 8  # the first steps and three epochs, twice
    assert len(set(seeds)) == 8


@pytest.mark.parametrize("make", [lambda: ReplayBuffer(12), lambda: VectorReplayBuffer(24, 2)])
def test_a_buffer_comes_back_as_it_was(make, tmp_path: Path):
    buffer, rng = make(), np.random.default_rng(0)
    subs = len(getattr(buffer, "buffers", [0]))
    for k in range(15):  # the rings have come round
        row = {"obs": rng.normal(size=3), "act": rng.normal(size=1), "rew": float(k)}
        row |= {"terminated": k % 5 == 4, "truncated": False, "obs_next": rng.normal(size=3)}
        one = Batch(**row, info={})
        buffer.add(one if subs == 1 else Batch([one] * subs))
    cut_episodes(buffer)
    save_rows(buffer, tmp_path / "b.hdf5")
    restored = make()
    restore_rows(restored, tmp_path / "b.hdf5")
    assert len(restored) == len(buffer)
    for key in ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next"):
        assert np.array_equal(restored._meta[key], buffer._meta[key])
    assert np.array_equal(restored.last_index, buffer.last_index)
    for both in (buffer, restored):  # and goes on in the same place
        one = Batch(obs=np.ones(3), act=np.ones(1), rew=99.0, obs_next=np.ones(3), info={})
        one.update(terminated=False, truncated=False)
        both.add(one if subs == 1 else Batch([one] * subs))
    assert np.array_equal(restored.rew, buffer.rew)


def test_a_buffer_of_other_sizes_is_refused(tmp_path: Path):
    train(build(), tmp_path, max_epoch=1)
    with pytest.raises(InputError, match="expected a buffer of 2 environments"):
        train(build(), tmp_path, 2)
    for file in tmp_path.glob("buffer_*.hdf5"):
        file.unlink()
    with pytest.raises(InputError, match="expected the run's buffer at .* found none"):
        train(build(), tmp_path)


def test_never_resuming_refuses_a_folder_with_a_run(tmp_path: Path):
    train(build(), tmp_path, max_epoch=1)
    with pytest.raises(InputError, match="expected a folder without a run"):
        train(build(), tmp_path, resume="never")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step_per_epoch": 0}, "expected step_per_epoch of at least 1, got 0"),
        ({"step_per_epoch": 61, "step_per_collect": 2}, "whole collections of 2 steps, got 61"),
        ({"update_per_step": 0}, "expected a whole number of updates after each collection"),
        ({"update_per_step": 0.5, "step_per_collect": 1}, "of 1 steps, got 0.5"),
        ({"update_per_step": 0.125}, "step_per_epoch in whole collections of 8 steps, got 60"),
    ],
)
def test_epochs_that_cannot_be_counted_give_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        train(build(), **options)
