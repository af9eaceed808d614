"""A planner that hands over to an agent: who acts, what is counted, and that runs resume."""

from __future__ import annotations

import csv
import json
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Batch, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv

from tianshou_ext.checkpoint import load_checkpoint, save_checkpoint
from tianshou_ext.data.mixing import Mixing
from tianshou_ext.errors import InputError
from tianshou_ext.online import offline_to_online_trainer, online_trainer
from tianshou_ext.planning import AGENT, PLANNER, RANDOM, Schedule, sources
from tianshou_ext.policy import BCPolicy, DiscreteCQLPolicy, DiscreteIQLPolicy, TD3BCPolicy
from tianshou_ext.policy.planner_greedy import PlannerGreedyPolicy
from tianshou_ext.tianshou_api import BasePolicy, Collector, ReplayBuffer, training_step
from tianshou_ext.trainer import PROGRESS

SMALL = {"hidden_sizes": (8,), "lr": 1e-2}
ALWAYS, NEVER = Schedule(start=1.0, end=1.0), Schedule(start=0.0, end=0.0)


class Balancer:
    """Balances CartPole by looking at the pole, and writes down what it is told."""

    def __init__(self, env: Any) -> None:
        self.inside = env.unwrapped
        self.told: list[str] = []
        self.acts: list[int] = []

    def reset(self) -> None:
        self.told.append("reset")

    def observe(self) -> None:
        self.told.append("observe")

    def act(self) -> int:
        _, _, angle, turning = self.inside.state
        self.acts.append(int(angle + turning > 0.0))
        return self.acts[-1]


class Swinger(Balancer):
    """Pushes Pendulum with a torque of its own."""

    def act(self) -> Any:
        return np.array([1.5])


def envs(count: int = 1, name: str = "CartPole-v1", **options: Any) -> DummyVectorEnv:
    return DummyVectorEnv([lambda: gymnasium.make(name, **options)] * count)


def build(agent: type[Any] = DiscreteCQLPolicy, name: str = "CartPole-v1", seed: int = 0) -> Any:
    env = gymnasium.make(name)
    return agent.build(env.observation_space, env.action_space, seed=seed, **SMALL)


def mixed(schedule: Schedule = ALWAYS, **options: Any) -> PlannerGreedyPolicy:
    agent = options.pop("agent", None) or build()
    return PlannerGreedyPolicy(options.pop("planner", Balancer), agent, schedule, **options)


def collect(policy: Any, venv: Any, steps: int, noise: bool = False) -> VectorReplayBuffer:
    """Return what Tianshou's own collector collects."""
    venv.seed(list(range(len(venv))))
    buffer = VectorReplayBuffer(steps, len(venv))
    collector: Any = Collector(policy, venv, buffer, exploration_noise=noise)
    collector.reset_env()
    collector.reset_stat()
    with training_step(policy):
        collector.collect(n_step=steps)
    assert len(buffer) == steps
    return buffer


def counts(policy: Any) -> dict[str, int]:
    report = policy.handover.report()
    return {k: int(report[k]) for k in ("steps", "episodes", "planner", "agent", "failed", "late")}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_at_rate_1_only_the_planner_acts_and_the_buffer_says_so(num_envs):
    policy, venv = mixed(ALWAYS), envs(num_envs)
    assert isinstance(policy, BasePolicy)
    policy.attach(venv)
    buffer = collect(policy, venv, 60)
    assert (sources(buffer) == PLANNER).all()
    assert counts(policy)["planner"] == counts(policy)["steps"] == 60
    assert counts(policy)["agent"] == 0
    for k, worker in enumerate(venv.workers):
        rows = np.arange(60 // num_envs) + k * 60 // num_envs
        assert buffer.act[rows].tolist() == worker.env.planner.acts


def test_at_rate_0_the_agent_acts_as_if_there_were_no_planner():
    policy, venv = mixed(NEVER), envs(2)
    policy.attach(venv)
    buffer = collect(policy, venv, 60)
    alone = collect(build(), envs(2), 60)
    assert (sources(buffer) == AGENT).all()
    assert np.array_equal(buffer.act, alone.act)
    assert np.array_equal(buffer.obs, alone.obs)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_share_of_the_planner_is_the_rate(num_envs):
    policy, venv = mixed(Schedule(start=0.7, end=0.1, duration=1200, unit="steps")), envs(num_envs)
    policy.attach(venv)
    share = (sources(collect(policy, venv, 600)) == PLANNER).mean()
    rates = np.array([policy.schedule.rate(t) for t in range(600)])
    deviation = np.sqrt((rates * (1 - rates)).sum()) / 600
    assert abs(share - rates.mean()) < 4 * deviation
    assert policy.rate == pytest.approx(0.4)


@pytest.mark.parametrize("unit", ["steps", "episodes"])
def test_time_passes_alike_whatever_the_number_of_environments(unit):
    told = []
    for num_envs in (1, 2, 5):
        policy, venv = mixed(Schedule(duration=300, unit=unit)), envs(num_envs)
        policy.attach(venv)
        buffer = collect(policy, venv, 100)
        assert counts(policy)["steps"] == 100
        told.append(counts(policy)["episodes"])
        begun = sum(len(np.unique(np.cumsum(b.done) - b.done)) for b in buffer.buffers)
        assert counts(policy)["episodes"] == begun
        passed = 100 if unit == "steps" else told[-1]
        assert policy.rate == pytest.approx(1 - passed / 300)


def test_episodes_are_played_by_one_of_the_two_where_asked():
    policy = mixed(Schedule(start=0.5, end=0.5), mixture="episode")
    venv = envs(2, max_episode_steps=60)
    policy.attach(venv)
    buffer = collect(policy, venv, 800)
    who = set()
    for sub, notes in zip(buffer.buffers, np.split(sources(buffer), 2), strict=True):
        episode = np.cumsum(sub.done) - sub.done
        for k in np.unique(episode):
            assert len(np.unique(notes[episode == k])) == 1
            who.add(int(notes[episode == k][0]))
    assert who == {AGENT, PLANNER}
    report = policy.handover.report()
    assert report["score_planner"] > report["score_agent"]
    assert "score_mixture" not in report


def test_the_planner_is_told_of_every_step_and_reset_whoever_acts():
    policy, venv = mixed(NEVER), envs()
    policy.attach(venv)
    buffer = collect(policy, venv, 50)
    told = venv.workers[0].env.planner.told
    assert told.count("observe") == 50
    assert told.count("reset") == 2 + buffer.done.sum()  # seeding resets too
    assert told[:3] == ["reset", "reset", "observe"]


def test_in_other_environments_the_agent_acts_alone():
    policy, venv = mixed(ALWAYS), envs()
    policy.attach(venv)
    buffer = VectorReplayBuffer(100, 2)
    Collector(policy, envs(2), buffer).collect(n_episode=4, reset_before_collect=True)
    assert sources(buffer) is None
    assert counts(policy)["steps"] == 0
    assert venv.workers[0].env.planner.acts == []
    obs = np.zeros((3, 4), np.float32)
    act = policy(Batch(obs=obs, info=Batch())).act
    assert np.array_equal(act, policy.agent(Batch(obs=obs, info=Batch())).act)


def test_the_agents_noise_leaves_the_planners_actions_alone():
    agent = build(TD3BCPolicy, "Pendulum-v1")
    object.__setattr__(agent.config, "exploration_noise", 0.5)
    policy = mixed(Schedule(start=0.5, end=0.5), agent=agent, planner=Swinger)
    venv = envs(2, "Pendulum-v1")
    policy.attach(venv)
    buffer = collect(policy, venv, 200, noise=True)
    planned = sources(buffer) == PLANNER
    assert 0 < planned.sum() < 200
    assert np.allclose(buffer.act[planned], 0.75)  # a torque of 1.5, where actions span [-1, 1]
    assert len(np.unique(buffer.act[~planned])) > 20


class BrokenError(Exception):
    pass


def broken(moment: str, value: Any = None) -> type[Balancer]:
    def fail(self: Any) -> Any:
        if value is None:
            raise BrokenError("no plan")
        return value

    return type("Broken", (Balancer,), {moment: fail})


@pytest.mark.parametrize(
    "planner",
    [
        broken("act"),
        broken("observe"),
        broken("reset"),
        broken("act", 2),
        broken("act", 0.5),
        broken("act", "left"),
        broken("act", [0, 1]),
        broken("act", np.nan),
    ],
    ids=["act", "observe", "reset", "other action", "fraction", "text", "two", "nan"],
)
def test_where_the_planner_fails_the_agent_acts_and_it_is_counted(planner):
    policy, venv = mixed(ALWAYS, planner=planner), envs()
    policy.attach(venv)
    with pytest.warns(UserWarning, match="the planner failed .*; the agent acts") as caught:
        buffer = collect(policy, venv, 30)
    assert len(caught) == 1
    told = counts(policy)
    assert told["failed"] > 15
    assert told["failed"] == told["agent"] == (sources(buffer) == AGENT).sum()
    assert told["planner"] == 30 - told["failed"]


def test_where_the_planner_is_slow_the_agent_acts_and_it_is_counted():
    class Slow(Balancer):
        def act(self) -> int:
            time.sleep(0.02 if len(self.told) % 2 else 0.0)
            return super().act()

    policy, venv = mixed(ALWAYS, planner=Slow, time_limit=0.015), envs()
    policy.attach(venv)
    with pytest.warns(UserWarning, match="longer than 0.015 s; the agent acts"):
        buffer = collect(policy, venv, 20)
    assert counts(policy)["late"] == (sources(buffer) == AGENT).sum() >= 5
    assert counts(policy)["failed"] == 0
    patient, venv = mixed(ALWAYS, planner=Slow, time_limit=None), envs()
    patient.attach(venv)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(patient, venv, 6)
    assert counts(patient)["planner"] == 6


def test_environments_that_a_planner_cannot_look_into_are_refused():
    venv = SubprocVectorEnv([lambda: gymnasium.make("CartPole-v1")])
    try:
        with pytest.raises(InputError, match="in this process.* got SubprocVectorEnv; use"):
            mixed().attach(venv)
    finally:
        venv.close()
    with pytest.raises(InputError, match="in this process.* got TimeLimit; use"):
        mixed().attach(gymnasium.make("CartPole-v1"))
    same = envs()
    with pytest.raises(InputError, match="expected test environments of their own"):
        mixed().attach(same, same)


def test_a_list_of_planners_must_be_as_long_as_the_environments():
    venv = envs(2)
    planners = [Balancer(worker.env) for worker in venv.workers]
    policy = mixed(ALWAYS, planner=planners)
    policy.attach(venv)
    collect(policy, venv, 10)
    assert [len(one.acts) for one in planners] == [5, 5]
    with pytest.raises(InputError, match="a planner for each of 3 environments, got 2"):
        policy.attach(envs(3))


def test_training_without_planners_is_refused():
    with pytest.raises(InputError, match="expected environments with planners .*; call attach"):
        collect(mixed(), envs(), 10)


def test_attaching_again_puts_no_wrapper_around_a_wrapper():
    policy, venv, tests = mixed(ALWAYS), envs(), envs()
    for _ in range(3):
        policy.attach(venv, tests)
    assert not isinstance(venv.workers[0].env.env, type(venv.workers[0].env))
    assert not isinstance(tests.workers[0].env.env, type(tests.workers[0].env))
    collect(policy, venv, 10)
    assert counts(policy)["steps"] == 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"agent": "iql"}, "expected a policy of this package as agent, got str"),
        ({"schedule": 0.5}, "expected a Schedule as schedule, got float"),
        ({"planner": 3}, "expected a function that makes the planner .* got int"),
        ({"mixture": "week"}, "expected mixture of step, episode, got 'week'"),
        ({"store": "none"}, "expected store of all, planner, agent, got 'none'"),
        ({"time_limit": 0.0}, "expected a time_limit above 0 seconds, got 0.0"),
    ],
)
def test_what_cannot_be_mixed_gives_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        mixed(**options)


@pytest.mark.parametrize(("store", "source"), [("planner", PLANNER), ("agent", AGENT)])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_agent_learns_only_from_whom_it_is_to_learn(store, source, num_envs):
    policy = mixed(Schedule(start=0.5, end=0.5), store=store)
    venv = envs(num_envs)
    policy.attach(venv)
    buffer = collect(policy, venv, 60)
    mine = buffer.obs[sources(buffer) == source]
    assert 0 < len(mine) < 60
    with training_step(policy):
        policy.update(buffer=buffer, sample_size=8)
    batch = policy.agent.sample(buffer, 200)
    seen = np.unique(batch.obs.numpy(), axis=0)
    assert np.array_equal(seen, np.unique(mine.astype(np.float32), axis=0))
    staged = policy.agent.staged
    newest = staged.rows_by_age(torch.arange(len(staged)))
    assert sorted(newest.tolist()) == np.flatnonzero(sources(buffer) == source).tolist()


def test_learning_from_one_who_has_not_acted_yet_gives_one_sentence():
    policy, venv = mixed(ALWAYS, store="agent"), envs()
    policy.attach(venv)
    buffer = collect(policy, venv, 20)
    with (
        training_step(policy),
        pytest.raises(InputError, match="of the agent to learn from, got none yet; begin with"),
    ):
        policy.update(buffer=buffer, sample_size=8)


def test_a_data_set_is_learned_from_whole_whatever_is_stored(cartpole_buffer):
    policy = mixed(ALWAYS, store="agent")
    with training_step(policy):
        policy.update(buffer=cartpole_buffer, sample_size=8)
    assert policy.num_updates == policy.agent.num_updates == 1


def test_updates_outside_a_training_step_are_refused(cartpole_buffer):
    with pytest.raises(RuntimeError, match="inside a training step"):
        mixed().update(buffer=cartpole_buffer, sample_size=8)


# ---- runs -------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "max_epoch": 3,
    "step_per_epoch": 60,
    "batch_size": 8,
    "buffer_size": 400,
    "random_steps": 20,
    "episode_per_test": 2,
    "show_progress": False,
    "verbose": False,
}


def train(policy: Any, folder: Path | None = None, num_envs: int = 1, **options: Any) -> Any:
    venv, tests = envs(num_envs, max_episode_steps=30), envs()
    policy.attach(venv, tests)
    settings = {**SETTINGS, **options}
    online_trainer(policy, venv, test_envs=tests, logdir=folder, **settings)
    return venv


class KilledError(Exception):
    """Stands for a killed process."""


def interrupt_at(policy: Any, update: int) -> None:
    step = policy.agent.gradient_step

    def interrupted(batch: Any) -> Any:
        if policy.num_updates == update:
            raise KilledError
        return step(batch)

    policy.agent.gradient_step = interrupted


@pytest.mark.parametrize(
    ("schedule", "options", "num_envs"),
    [
        (Schedule(duration=150, unit="steps"), {}, 1),
        (Schedule(kind="exponential", duration=9), {"mixture": "episode"}, 2),
        (Schedule(kind="performance", duration=500, window=2, low=0.0), {"store": "planner"}, 1),
    ],
    ids=["linear", "exponential", "performance"],
)
def test_an_interrupted_run_ends_with_the_same_weights_rate_and_record(
    schedule, options, num_envs, tmp_path: Path
):
    whole = mixed(schedule, **options)
    train(whole, tmp_path / "whole", num_envs)
    killed = mixed(schedule, **options)
    interrupt_at(killed, 130)
    with pytest.raises(KilledError):
        train(killed, tmp_path / "killed", num_envs)
    resumed = mixed(schedule, **options)
    train(resumed, tmp_path / "killed", num_envs)
    assert resumed.num_updates == whole.num_updates == 180
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert resumed.rate == whole.rate < 1.0
    assert counts(resumed) == counts(whole)
    notes = whole.get_extra_state().numpy()
    assert (notes == PLANNER).sum() == counts(whole)["planner"]
    assert (notes == AGENT).sum() == counts(whole)["agent"]
    assert (notes == RANDOM).sum() == len(notes) - 180


def test_a_run_is_not_resumed_with_another_schedule(tmp_path: Path):
    policy = mixed(Schedule(duration=10))
    save_checkpoint(policy, tmp_path / "c.pt")
    load_checkpoint(mixed(Schedule(duration=10)), tmp_path / "c.pt")
    with pytest.raises(InputError, match="expected the settings of the run .*schedule was"):
        load_checkpoint(mixed(Schedule(duration=20)), tmp_path / "c.pt")
    other = mixed(Schedule(duration=10), agent=build(DiscreteIQLPolicy))
    with pytest.raises(InputError, match="expected the settings of the run .*method was"):
        load_checkpoint(other, tmp_path / "c.pt")


def test_what_a_trainer_sets_reaches_the_agent():
    """Else the training of SPOT's VAE, say, is saved by nobody, and lost with a killed run."""
    policy = mixed()
    agent = policy.agent
    policy.show_progress, policy.metrics_interval, policy.on_progress = False, 7, lambda: None
    assert (agent.show_progress, agent.metrics_interval) == (False, 7)
    assert agent.on_progress is policy.on_progress


def test_the_table_of_a_run_has_the_rate_and_the_scores_of_all_three(tmp_path: Path):
    policy = mixed(Schedule(duration=150, unit="steps"))
    train(policy, tmp_path)
    with (tmp_path / PROGRESS).open() as file:
        rows = [json.loads(row["metrics"]) for row in csv.DictReader(file)]
    rates = [row["planner_greedy/rate"] for row in rows]
    assert rates == pytest.approx([1.0, 0.6, 0.2, 0.0])
    assert rows[-1]["planner_greedy/steps"] == 180
    assert {"score_test", "score_mixture"} <= {key.rpartition("/")[2] for key in rows[-1]}


def test_a_cloning_agent_goes_online_with_a_planner_and_its_data(tmp_path: Path, cartpole_buffer):
    """BC alone does not learn online; from a planner it does."""
    policy = mixed(Schedule(duration=60, unit="steps"), agent=build(BCPolicy), store="planner")
    venv, tests = envs(2), envs()
    policy.attach(venv, tests)
    rows = offline_to_online_trainer(
        policy,
        cartpole_buffer,
        venv,
        offline_epoch=1,
        update_per_epoch=5,
        online_epoch=2,
        step_per_epoch=40,
        batch_size=16,
        test_envs=tests,
        episode_per_test=1,
        logdir=tmp_path,
        show_progress=False,
        verbose=False,
    )
    assert rows[-1]["env_step"] == 80
    assert policy.num_updates == 85
    assert policy.rate == 0.0
    staged = policy.agent.staged
    assert len(staged) == len(cartpole_buffer) + counts(policy)["planner"]


def fine_tune(policy: Any, folder: Path, data: Any, **mixing: Any) -> None:
    venv, tests = envs(2, max_episode_steps=30), envs()
    policy.attach(venv, tests)
    offline_to_online_trainer(
        policy,
        data,
        venv,
        offline_epoch=2,
        update_per_epoch=10,
        online_epoch=3,
        step_per_epoch=40,
        batch_size=16,
        mixing=Mixing(**mixing),
        test_envs=tests,
        episode_per_test=1,
        logdir=folder,
        show_progress=False,
        verbose=False,
    )


@pytest.mark.parametrize("moment", [15, 25, 90])
def test_a_run_from_a_data_set_that_is_killed_in_either_phase_ends_alike(
    moment, tmp_path: Path, cartpole_buffer
):
    def make() -> Any:
        schedule = Schedule(kind="performance", duration=60, start=0.6, low=0.0, window=1)
        return mixed(schedule, store="agent", mixture="episode", seed=3)

    whole, killed, resumed = make(), make(), make()
    fine_tune(whole, tmp_path / "whole", cartpole_buffer, kind="priority", half_life=50)
    interrupt_at(killed, moment)
    with pytest.raises(KilledError):
        fine_tune(killed, tmp_path / "killed", cartpole_buffer, kind="priority", half_life=50)
    fine_tune(resumed, tmp_path / "killed", cartpole_buffer, kind="priority", half_life=50)
    assert whole.num_updates == resumed.num_updates == 140
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert counts(whole) == counts(resumed)
    assert 0 < counts(whole)["agent"] < 120


def test_the_planner_teaches_and_the_agent_alone_can_do_it_then():
    """Cloning what the planner does beats a beginner, tested alone."""
    env = gymnasium.make("CartPole-v1")
    options = {**SMALL, "obs_norm": "none"}
    agent = BCPolicy.build(env.observation_space, env.action_space, **options)
    policy = mixed(Schedule(duration=500, unit="steps"), agent=agent, store="planner")
    train(policy, max_epoch=2, step_per_epoch=300, buffer_size=1000, random_steps=0)
    first, last = policy.handover.first_test[1], policy.handover.report()["score_test"]
    assert last > 2 * first


def test_a_buffer_keeps_who_acted_in_a_file(tmp_path: Path):
    policy, venv = mixed(Schedule(start=0.5, end=0.5)), envs()
    policy.attach(venv)
    buffer = collect(policy, venv, 30)
    buffer.save_hdf5(str(tmp_path / "b.hdf5"))
    again = ReplayBuffer.load_hdf5(str(tmp_path / "b.hdf5"))
    assert np.array_equal(sources(again), sources(buffer))
