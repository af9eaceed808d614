"""``offline_trainer``: what it measures, writes, and goes on from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.env import DummyVectorEnv

from tianshou_ext.checkpoint import load_policy, policy_state
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.save import save_buffer
from tianshou_ext.errors import InputError
from tianshou_ext.policy import DiscreteCQLPolicy, OfflinePolicy
from tianshou_ext.tianshou_api import Collector, ReplayBuffer
from tianshou_ext.trainer import CHECKPOINT, PROGRESS, RunLogger, offline_trainer, read_progress

COUNTS = {"max_epoch": 3, "update_per_epoch": 5, "batch_size": 8}
QUIET = {"show_progress": False, "verbose": False}


def build(env: gymnasium.Env, seed: int = 0) -> OfflinePolicy:
    options = {"hidden_sizes": (16,), "num_quantiles": 5, "target_update_freq": 4, "lr": 1e-2}
    spaces = (env.observation_space, env.action_space)
    return DiscreteCQLPolicy.build(*spaces, seed=seed, **options)


def games_of(policy: OfflinePolicy) -> Collector:
    """Return a collector of test episodes that are the same each time it is made."""
    envs = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
    envs.seed(0)
    return Collector(policy, envs)


def train(policy: OfflinePolicy, buffer: ReplayBuffer, tested: bool = True, **options: Any) -> Any:
    chosen = {**COUNTS, **QUIET, **options}
    if tested:
        chosen = {"test_collector": games_of(policy), "episode_per_test": 2, **chosen}
    return offline_trainer(policy, buffer, **chosen)


def stop_at(policy: OfflinePolicy, step: int) -> None:
    """Let the policy be interrupted within that gradient step."""
    learn = policy.gradient_step

    def interrupted(batch: Any) -> Any:
        if policy.num_updates == step - 1:
            raise KeyboardInterrupt
        return learn(batch)

    policy.gradient_step = interrupted


def test_a_row_for_each_test_also_in_the_csv(cartpole, cartpole_buffer, tmp_path: Path):
    policy = build(cartpole)
    rows = train(policy, cartpole_buffer, logdir=tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows] == [0, 5, 10, 15]
    assert all(row["episodes"] == 2 and row["return_mean"] >= 1.0 for row in rows)
    assert all(row["return_std"] >= 0.0 for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert read_progress(tmp_path / "run" / PROGRESS) == rows
    assert RunLogger.restore_logged_data(str(tmp_path / "run")) == {"progress": rows}
    with (tmp_path / "run" / PROGRESS).open() as file:
        metrics = [json.loads(row["metrics"]) for row in csv.DictReader(file)]
    assert metrics[0] == {}
    assert metrics[3] == policy.metrics
    assert {"loss", "loss/td", "q/mean"} <= metrics[1].keys()


def test_returns_are_those_of_the_policy(cartpole, cartpole_buffer):
    rows = train(build(cartpole), cartpole_buffer, max_epoch=1)
    collector = games_of(build(cartpole))
    collector.reset()
    returns = collector.collect(n_episode=2).returns
    assert rows[0]["return_mean"] == pytest.approx(returns.mean())
    assert rows[0]["return_std"] == pytest.approx(returns.std())


def test_run_json_says_what_was_run(cartpole, cartpole_buffer, tmp_path: Path):
    train(build(cartpole), cartpole_buffer, logdir=tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["method"] == "discrete_cql"
    assert about["config"]["num_quantiles"] == 5
    assert about["transitions"] == 200
    assert COUNTS.items() <= about.items()
    assert {"torch", "tianshou", "tianshou_ext"} <= about["versions"].keys()


def test_policy_pth_is_the_policy_at_its_best_test(cartpole, cartpole_buffer, tmp_path: Path):
    """Returns of 3, 9, 5, 9: the best is after epoch 1, and a tie keeps the first."""
    policy = build(cartpole)
    collector, scripted, weights = games_of(policy), iter([3.0, 9.0, 5.0, 9.0]), []
    collect = collector.collect

    def scored(*args: Any, **kwargs: Any) -> Any:
        stats = collect(*args, **kwargs)
        weights.append({key: value.clone() for key, value in policy.state_dict().items()})
        mean = next(scripted)
        stats.returns[:] = mean
        stats.returns_stat.mean = mean
        return stats

    collector.collect = scored
    train(policy, cartpole_buffer, test_collector=collector, logdir=tmp_path)
    best = build(cartpole, seed=1)
    load_policy(best, tmp_path / "policy.pth")
    assert all(torch.equal(weights[1][key], value) for key, value in best.state_dict().items())
    assert not all(torch.equal(weights[3][key], value) for key, value in best.state_dict().items())


def test_best_policy_survives_a_resumed_run_that_is_worse(
    cartpole, cartpole_buffer, tmp_path: Path
):
    policy = build(cartpole)
    train(policy, cartpole_buffer, logdir=tmp_path, max_epoch=1)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["run"]["best"] = 1e6
    torch.save(state, tmp_path / CHECKPOINT)
    before = (tmp_path / "policy.pth").read_bytes()
    train(build(cartpole), cartpole_buffer, logdir=tmp_path)
    assert (tmp_path / "policy.pth").read_bytes() == before


def test_save_best_fn_and_stop_fn_are_called_as_in_tianshou(cartpole, cartpole_buffer):
    policy, best, asked = build(cartpole), [], []

    def stop(mean: float) -> bool:
        asked.append(mean)
        return len(asked) == 2

    rows = train(policy, cartpole_buffer, save_best_fn=best.append, stop_fn=stop)
    assert best
    assert all(given is policy for given in best)
    assert asked[0] == rows[0]["return_mean"]
    assert policy.num_updates < 15


def test_tensorboard_gets_metrics_and_returns(cartpole, cartpole_buffer, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = train(
        build(cartpole), cartpole_buffer, logdir=tmp_path, tensorboard=True, log_interval=3
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "loss/td", "q/mean", "eval/return_mean"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [3, 6, 9, 12, 15]
    assert [e.step for e in events.Scalars("eval/return_mean")] == [0, 5, 10, 15]
    means = [e.value for e in events.Scalars("eval/return_mean")]
    assert means == pytest.approx([row["return_mean"] for row in rows])


def test_training_needs_no_environment(cartpole, cartpole_buffer, tmp_path: Path):
    policy = build(cartpole)
    assert train(policy, cartpole_buffer, tested=False, logdir=tmp_path) == []
    assert policy.num_updates == 15
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {CHECKPOINT, "run.json"}


def test_without_a_folder_nothing_is_written(cartpole, cartpole_buffer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = build(cartpole)
    assert len(train(policy, cartpole_buffer)) == 4
    assert [*tmp_path.iterdir()] == []


def test_testing_does_not_change_what_is_learned(cartpole, cartpole_buffer):
    with_tests, without = build(cartpole), build(cartpole)
    train(with_tests, cartpole_buffer)
    train(without, cartpole_buffer, tested=False)
    a, b = with_tests.state_dict().values(), without.state_dict().values()
    assert all(map(torch.equal, a, b))


def test_a_finished_run_is_left_as_it_is(cartpole, cartpole_buffer, tmp_path: Path):
    policy = build(cartpole)
    rows = train(policy, cartpole_buffer, logdir=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    again = build(cartpole, seed=1)
    assert train(again, cartpole_buffer, logdir=tmp_path) == rows
    assert again.num_updates == 15
    assert all(map(torch.equal, policy.state_dict().values(), again.state_dict().values()))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_finished_run_goes_on_with_more_epochs(cartpole, cartpole_buffer, tmp_path: Path):
    straight = build(cartpole)
    train(straight, cartpole_buffer, max_epoch=5)
    train(build(cartpole), cartpole_buffer, logdir=tmp_path)
    longer = build(cartpole, seed=1)
    rows = train(longer, cartpole_buffer, logdir=tmp_path, max_epoch=5)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20, 25]
    a, b = policy_state(straight), policy_state(longer)
    assert all(map(torch.equal, a["policy"].values(), b["policy"].values()))


@pytest.mark.parametrize("column", ["obs", "act", "rew", "terminated", "truncated", "fewer rows"])
def test_a_run_does_not_go_on_with_other_data(column, cartpole, cartpole_buffer, tmp_path: Path):
    train(build(cartpole), cartpole_buffer, logdir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    columns = {
        name: np.array(cartpole_buffer[:][name])
        for name in ("obs", "act", "rew", "terminated", "truncated", "done", "obs_next")
    }
    if column == "fewer rows":
        columns = {name: values[:-1] for name, values in columns.items()}
    else:
        columns[column][-1] = 1 - columns[column][-1]
    other = ReplayBuffer.from_data(**columns)
    sentence = r"expected the data set of the run at .*\), got another \(.*choose another --logdir"
    with pytest.raises(InputError, match=sentence):
        train(build(cartpole), other, logdir=tmp_path, max_epoch=4)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_data_read_again_are_the_same(cartpole, cartpole_buffer, tmp_path: Path):
    save_buffer(cartpole_buffer, tmp_path / "data.hdf5")
    for epochs, mapped in ((1, False), (2, True)):
        buffer = load_buffer(tmp_path / "data.hdf5", mapped=mapped)
        rows = train(build(cartpole), buffer, logdir=tmp_path / "run", max_epoch=epochs)
    assert [row["step"] for row in rows] == [0, 5, 10]


def test_epochs_end_where_they_would_have_after_an_interruption(
    cartpole, cartpole_buffer, tmp_path
):
    """Interrupted in step 9, saved at 8: the second epoch still ends at 10."""
    straight = build(cartpole)
    train(straight, cartpole_buffer)
    broken = build(cartpole)
    stop_at(broken, 9)
    with pytest.raises(KeyboardInterrupt):
        train(broken, cartpole_buffer, logdir=tmp_path, save_interval=4)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["num_updates"] == 8
    resumed = build(cartpole, seed=1)
    rows = train(resumed, cartpole_buffer, logdir=tmp_path, save_interval=4)
    steps = [row["step"] for row in rows]
    assert steps == [0, 5, 10, 15]  # as if it had never been interrupted
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_a_resumed_csv_goes_on_with_rows_and_seconds(cartpole, cartpole_buffer, tmp_path: Path):
    train(build(cartpole), cartpole_buffer, logdir=tmp_path, max_epoch=1)
    first = (tmp_path / PROGRESS).read_text()
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["run"]["seconds"] = 1000.0
    torch.save(state, tmp_path / CHECKPOINT)
    train(build(cartpole), cartpole_buffer, logdir=tmp_path)
    assert (tmp_path / PROGRESS).read_text().startswith(first)
    assert read_progress(tmp_path / PROGRESS)[-1]["seconds"] >= 1000.0


@pytest.mark.parametrize(
    "name", ["max_epoch", "update_per_epoch", "batch_size", "episode_per_test"]
)
def test_counts_below_one_give_one_sentence(name, cartpole, cartpole_buffer, tmp_path: Path):
    with pytest.raises(InputError, match=f"expected {name} of at least 1, got 0; change it"):
        train(build(cartpole), cartpole_buffer, logdir=tmp_path / "run", **{name: 0})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("interval", [0, -3])
def test_save_intervals_below_one_give_one_sentence(interval, cartpole, cartpole_buffer, tmp_path):
    with pytest.raises(InputError, match="expected save_interval of at least 1"):
        train(build(cartpole), cartpole_buffer, logdir=tmp_path, save_interval=interval)


def wrong(buffer: ReplayBuffer, key: str, value: Any) -> ReplayBuffer:
    buffer._meta[key] = value
    return buffer


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("obs", np.zeros((200, 5)), r"expected observations of shape \(4,\), got \(5,\)"),
        ("act", np.full(200, 2), "expected actions from 0 to 1, got 2 to 2"),
        ("act", np.zeros((200, 1)), "expected one whole-numbered action a step"),
        ("rew", np.full(200, np.nan), "expected finite numbers in the buffer's rew"),
    ],
    ids=["other observations", "other actions", "continuous actions", "NaN rewards"],
)
def test_data_of_another_task_are_refused_before_anything_is_written(
    key, value, sentence, cartpole, cartpole_buffer, tmp_path: Path
):
    buffer = wrong(cartpole_buffer, key, value)
    with pytest.raises(InputError, match=sentence) as caught:
        train(build(cartpole), buffer, logdir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
