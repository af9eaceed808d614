"""Mice in Cellworld: what is read, what the simulator makes of it, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tianshou_ext.cli import main
from tianshou_ext.data.convert.cellworld import convert, high_centrality_cells
from tianshou_ext.data.convert.cellworld_files import (
    ASSUMED,
    HELD,
    NO_ROBOT,
    RECORDED,
    Recording,
    outside_arena,
    read_recordings,
)
from tianshou_ext.data.convert.cellworld_tables import read_table
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.inspect import inspect
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
needs_world = pytest.mark.skipif(
    find_spec("cellworld_gym") is None or "CELLWORLD_CACHE" not in os.environ,
    reason="needs cellworld-gym, and CELLWORLD_CACHE with the files of its worlds",
)
needs_mice = pytest.mark.skipif(
    not (CACHE / "mouse").exists(), reason="needs recordings in mouse/ of CELLWORLD_CACHE"
)
NAME = "PEEK_20230101_1200_MMM1_21_05_R1_episode_003.json"


def step(agent: str, time: float, x: float, y: float, frame: int = 0, turn: float = 0) -> Any:
    return {
        "agent_name": agent,
        "time_stamp": time,
        "frame": frame,
        "location": {"x": x, "y": y},
        "rotation": turn,
        "data": "",
    }


def run_of(places: Any, robot: Any = None, dt: float = 0.05, **fields: Any) -> dict[str, Any]:
    """Return an Episode of a mouse at ``places`` (N, 2), ``dt`` s apart."""
    steps = [step("prey", 10 + k * dt, x, y, k) for k, (x, y) in enumerate(places)]
    if robot is not None:
        robots = np.broadcast_to(np.array(robot, float), (len(places), 2)).tolist()
        steps += [step("predator", 10 + k * dt, x, y, k, 90) for k, (x, y) in enumerate(robots)]
    return {"trajectories": steps, "captures": [], **fields}


def line(x: float, to: float, y: float = 0.5, rows: int = 41) -> Any:
    return np.stack([np.linspace(x, to, rows), np.full(rows, y)], axis=1).tolist()


def save(path: Path, data: Any) -> Path:
    text = json.dumps(data).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read_one(path: Path) -> Recording:
    (found,), _ = read_recordings(path)
    assert isinstance(found, Recording), found
    return found


def columns(path: Path) -> Any:
    return load_buffer(path, mapped=False)._meta


# Files


@pytest.mark.parametrize("name", [NAME, NAME + ".gz", NAME.replace(".json", ".JSON")])
def test_an_episode_says_its_world_run_and_times(name: str, tmp_path: Path):
    one = read_one(save(tmp_path / name, run_of(line(0.1, 0.5), robot=(0.7, 0.5))))
    assert (one.world, one.run) == ("21_05", "PEEK_20230101_1200_MMM1_21_05_R1 episode 3")
    assert one.prey.times[[0, -1]] == pytest.approx([10, 12])
    assert one.robot is not None and one.robot.directions is not None
    assert one.robot_known == RECORDED and (one.robot.directions == 0).all()  # 90 - rotation


def test_an_experiment_gives_its_episodes_with_a_mouse(tmp_path: Path):
    runs = [run_of(line(0.1, 0.5)), {"trajectories": []}, run_of(line(0.2, 0.5))]
    runs[1]["trajectories"] = [step("predator", 0, 0.5, 0.5)]
    data = {"name": "MICE_20220418_1830_MMM8_00_00_H1", "occlusions": "00_00", "episodes": runs}
    found, empty = read_recordings(save(tmp_path / "iteration_01.json", data))
    assert empty == 1 and [(one.episode, one.world) for one in found] == [  # type: ignore
        (0, "00_00"),
        (2, "00_00"),
    ]


def test_the_tables_of_runs_and_segments(tmp_path: Path):
    table = {
        "experiment": "PEEK_20221121_1336_MMM10_21_05_RT6",
        "episode": 7,
        "frame": [0, 1, 4],
        "prey": [[0.1, 0.5], [0.11, 0.5], [0.14, 0.5]],
        "predator": [[0.7, 0.5], None, [0.7, 0.6], [0.7, 0.7], None],
        "frame_time": [[1, 45.0], [9, 45.2]],
        "fps": 40.0,
    }
    one = read_one(save(tmp_path / "bait.json", [table]))
    assert one.prey.times == pytest.approx([44.975, 45.0, 45.075])
    assert one.robot is not None and one.robot.times == pytest.approx([44.975, 45.025, 45.05])
    assert (one.world, one.run) == ("21_05", "PEEK_20221121_1336_MMM10_21_05_RT6 episode 7")
    del table["predator"]
    assert read_one(save(tmp_path / "peek.json", [table])).robot_known == NO_ROBOT
    segment = {"t": [1.0, 1.1], "x": [0.5, 0.5], "y": [0.5, 0.6], "reference": [0.5, 0.3]}
    one = read_one(save(tmp_path / "puff.json", {"segments": [segment]}))
    assert one.robot_known == ASSUMED and one.world == "21_05"
    assert one.robot is not None and one.robot.directions == pytest.approx([90])  # at the mouse


def test_rows_out_of_order_repeated_or_of_another_time_are_repaired_and_counted(tmp_path: Path):
    data = run_of(line(0.1, 0.5, rows=9))
    steps = data["trajectories"]
    stale = [step("prey", time, 0.1, 0.5, 0) for time in (60.0, 60.1)]
    steps[3], steps[5] = steps[5], steps[3]
    data["trajectories"] = [*stale, *steps, dict(steps[7])]
    one = read_one(save(tmp_path / NAME, data))
    assert np.array_equal(
        one.prey.times,
        read_one(save(tmp_path / "a.json", run_of(line(0.1, 0.5, rows=9)))).prey.times,
    )
    assert sorted(count for count in one.repairs.values()) == [1, 2, 3]


def test_the_arena_is_a_hexagon():
    inside = [(0, 0.5), (1, 0.5), (0.25, 0.067), (0.75, 0.933), (0.5, 0.93)]
    outside = [(-0.05, 0.5), (0.1, 0.9), (0.5, 0.97), (0.97, 0.3)]
    assert not outside_arena(np.array(inside)).any() and outside_arena(np.array(outside)).all()


BAD_RUNS = {
    "no prey": ([step("predator", 0, 0.5, 0.5)], "there is no prey"),
    "nan": ([*run_of(line(0.1, 0.5))["trajectories"], step("prey", 20, math.nan, 0.5)], "NaN"),
    "nan time": (
        [*run_of(line(0.1, 0.5))["trajectories"], step("prey", math.nan, 0.4, 0.5)],
        "NaN",
    ),
    "robot nan": (
        [*run_of(line(0.1, 0.5))["trajectories"], step("predator", 9, 0.5, 0.5, turn=math.inf)],
        "predator is NaN or infinite",
    ),
    "mice": (run_of([(2.34 * (x - 0.5), 0.0) for x, _ in line(0.1, 0.9)])["trajectories"], "mice"),
    "cm": (run_of([(234 * x, 117.0) for x, _ in line(0.1, 0.9)])["trajectories"], "centimetres"),
    "pixels": (run_of([(800 * x, 900.0) for x, _ in line(0.1, 0.9)])["trajectories"], "no other"),
    "no place": ([{"agent_name": "prey", "time_stamp": 0.0}], "not laid out"),
    "text": ([step("prey", "soon", 0.5, 0.5)], "not laid out"),  # type: ignore[arg-type]
    "null": ([step("prey", None, 0.5, 0.5)], "not laid out"),  # type: ignore[arg-type]
    "a number": ([3], "not laid out"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_damaged_run_is_refused_in_one_sentence(name: str, tmp_path: Path):
    steps, words = BAD_RUNS[name]
    path = save(tmp_path / NAME, {"trajectories": steps})
    with pytest.raises(InputError, match=words) as error:
        convert((path,), tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(error.value) and NAME in str(error.value)
    assert not (tmp_path / "b.hdf5").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\x1f\x8b\x08garbage", "cannot be read as JSON"),
        (b"[" * 100000, "cannot be read as JSON"),
        (b"{}", "neither an Episode"),
        (b"[1]", "neither an Episode"),
        (b"3", "neither an Episode"),
        (b"[]", "holds no runs"),
        (b'{"segments": []}', "holds no segments"),
        (b'{"episodes": []}', "no episode with a prey"),
        (b'{"name": "x", "episodes": [{"trajectories": []}]}', "no episode with a prey"),
    ],
)
def test_a_foreign_file_is_refused_in_one_sentence(content: bytes, words: str, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=words):
        convert((tmp_path,), tmp_path / "b.hdf5", progress=False)


def test_paths_that_cannot_be_meant_are_refused(tmp_path: Path):
    path = save(tmp_path / NAME, run_of(line(0.1, 0.5)))
    for paths, words in [
        ((), "got 0 paths"),
        ((path,), "got 1 paths"),
        ((path, path), "buffer file to make as the last path"),
        ((path, tmp_path / "data.pkl"), "buffer file to make as the last path"),
        ((tmp_path / "none", tmp_path / "b.hdf5"), "found nothing"),
    ]:
        with pytest.raises(InputError, match=words):
            convert(paths, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none"):
        convert((tmp_path / "empty",), tmp_path / "b.hdf5", progress=False)
    for wrong in ({"horizon": 0}, {"time_step": 0.0}, {"copies": 2}, {"world": "banana"}):
        with pytest.raises(InputError):
            convert((path,), tmp_path / "b.hdf5", progress=False, **wrong)  # type: ignore


def test_a_world_that_no_cache_has_is_refused_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("CELLWORLD_CACHE", str(tmp_path / "cache"))
    path = save(tmp_path / NAME, run_of(line(0.1, 0.5)))
    with pytest.raises(InputError, match="no network"):
        convert((path,), tmp_path / "b.hdf5", progress=False)


@needs_world
def test_the_command_takes_many_recordings_and_options_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("tyro")
    paths = [
        str(save(tmp_path / f"A_21_05_R1_episode_{k}.json", run_of(line(0.1, 0.5)))) for k in (1, 2)
    ]
    out = str(tmp_path / "b.hdf5")
    for args in ([*paths, out, "--no-progress"], ["--horizon", "2", "--no-progress", *paths, out]):
        with pytest.raises(SystemExit) as stop:
            main(["convert", "cellworld", *args])
        assert stop.value.code == 0 and "16 rows, 2 episodes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["convert", "cellworld", *paths])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: expected the buffer")


@needs_world
def test_runs_of_one_name_in_two_folders_are_two_unless_it_has_the_date(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "mouse_episode_1.json", run_of(line(0.1, 0.5)))
        save(tmp_path / folder / NAME, run_of(line(0.1, 0.5)))
    report = convert((tmp_path, tmp_path / "a"), tmp_path / "b.hdf5", progress=False)
    assert report.episodes == 3


# Tables of transitions


def transitions(rows: int = 8) -> dict[str, Any]:
    """Return two episodes: one reaches the goal, one is cut off by done alone."""
    states = np.full((rows + 1, 1, 11), 0.5)
    states[:, 0, 0] = np.linspace(0.1, 0.9, rows + 1)
    states[:, 0, 8:] = 0
    obs, obs_next = states[:-1].copy(), states[1:].copy()
    obs_next[3, 0, 10] = 1
    reward, done = np.zeros((rows, 1)), np.zeros((rows, 1))
    done[[3, rows - 1]] = 1
    reward[3], reward[1] = 10, -100
    return {
        "observations": obs,
        "actions": np.arange(rows)[:, None],
        "rewards": reward,
        "next_observations": obs_next,
        "dones": done,
    }


def save_pickle(path: Path, data: Any) -> Path:
    path.write_bytes(pickle.dumps(data))
    return path


def save_csv(path: Path, data: dict[str, Any], commas: bool) -> Path:
    import pandas

    def text(values: Any) -> list[str]:
        return [str(row.tolist()) if commas else str(row) for row in values[:, 0]]

    names = ("obs", "action", "reward", "next_obs", "done")
    values = [data[k] for k in ("observations", "actions", "rewards", "next_observations", "dones")]
    frame = {
        name: text(one) if one.ndim == 3 else one[:, 0]
        for name, one in zip(names, values, strict=True)
    }
    pandas.DataFrame(frame).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["pickle", "list", "csv", "csv with commas"])
def test_older_tables_are_read_with_rewards_of_today(kind: str, tmp_path: Path):
    data, notes = transitions(), []  # type: ignore[var-annotated]
    if kind == "pickle":
        path = save_pickle(tmp_path / "first_try.pkl", data)
    elif kind == "list":
        path = save_pickle(tmp_path / "first_try.pickle", [*data.values()])
    else:
        path = save_csv(tmp_path / "data.csv", data, "commas" in kind)
    found = read_table(path, notes)
    assert np.array_equal(found["rew"], [0, -1, 0, 1, 0, 0, 0, 0])
    assert np.array_equal(np.flatnonzero(found["terminated"]), [3])
    assert np.array_equal(np.flatnonzero(found["truncated"]), [7])  # done, but not at the goal
    assert np.array_equal(found["act"], np.arange(8)) and found["act"].dtype == np.int64
    assert np.allclose(found["obs"], data["observations"][:, 0], atol=1e-6)
    assert any("-100 became -1" in note for note in notes)


def test_done_is_terminated_where_observations_mark_no_goal(tmp_path: Path):
    data, notes = transitions(), []  # type: ignore[var-annotated]
    data["next_observations"][3, 0, 10] = 0
    data["next_observations"][5] += 0.01  # the row below does not follow
    found = read_table(save_pickle(tmp_path / "a.pkl", data), notes)
    assert np.array_equal(np.flatnonzero(found["terminated"]), [3, 7])
    assert np.array_equal(np.flatnonzero(found["truncated"]), [5])
    assert any("WRONG" in note for note in notes)


class Custom:
    """Stands for the buffer class that an older pickle names."""


def changed(**columns: Any) -> dict[str, Any]:
    return {k: v for k, v in (transitions() | columns).items() if v is not None}


BAD_TABLES = {
    "object": (Custom(), "pickle of numpy arrays"),
    "number": (3, "a dict of the arrays"),
    "no done": (changed(dones=None), "one of the columns done"),
    "two obs": (changed(obs=np.zeros((8, 11))), "one of the columns obs"),
    "unequal": (changed(actions=np.arange(5)), "one length"),
    "no rows": ({key: one[:0] for key, one in transitions().items()}, "one length|many in every"),
    "width": (changed(observations=np.zeros((8, 4))), "of 11 numbers"),
    "nan": (changed(rewards=np.full(8, np.nan)), "NaN"),
    "done of 2": (changed(dones=np.full(8, 2)), "done of 0 and 1"),
    "half actions": (changed(actions=np.full(8, 0.5)), "numbers of cells"),
    "negative": (changed(actions=np.full(8, -1)), "numbers of cells"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_damaged_table_is_refused_in_one_sentence(name: str, tmp_path: Path):
    data, words = BAD_TABLES[name]
    path = save_pickle(tmp_path / "a.pkl", data)
    with pytest.raises(InputError, match=words) as error:
        convert((path,), tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(error.value) and "a.pkl" in str(error.value)


def test_a_csv_that_is_none_is_refused(tmp_path: Path):
    for content, words in [(b"", "what cannot"), (b"\x00\xff\xfe", "what cannot|columns obs")]:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(InputError, match=words):
            convert((tmp_path / "a.csv",), tmp_path / "b.hdf5", progress=False)


@needs_world
def test_tables_become_buffers_in_the_form_of_the_environment(tmp_path: Path):
    data = transitions()
    data["observations"][2, 0, :2] = 0.1015625, 0.3782151775928133  # a cell of high centrality
    data["observations"][:, 0, 2] = 7.0  # never wrapped
    data["next_observations"][:, 0, 3:5] = 0  # out of sight, its distance told all the same
    path = save_pickle(tmp_path / "a.pkl", data)
    report = convert((path,), tmp_path / "b.hdf5", progress=False)
    found = columns(tmp_path / "b.hdf5")
    assert (report.rows, report.terminated) == (8, 1)
    assert found.obs[:, 2] == pytest.approx(7.0 - 2 * math.pi, abs=1e-5)
    assert (found.obs_next[:, 7] == 1).all() and (found.obs[:, 7] == 0.5).all()
    convert((path,), tmp_path / "c.hdf5", actions="continuous", progress=False)
    act = columns(tmp_path / "c.hdf5").act
    assert act.shape == (8, 2) and act[0] == pytest.approx([0.03125, 0.5])
    convert((path,), tmp_path / "d.hdf5", emphasise="high-centrality", copies=2, progress=False)
    copy = columns(tmp_path / "d.hdf5").info.copy
    assert (
        (copy == 0).sum() == 8
        and set(copy.tolist()) == {0, 1, 2}
        and (copy == 1).sum() == (copy == 2).sum()
    )
    for augment, act, words in [("jitter", 3, "replays"), ("none", 295, "below 295")]:
        save_pickle(path, changed(actions=np.full(8, act)))
        with pytest.raises(InputError, match=words):
            convert((path,), tmp_path / "e.hdf5", augment=augment, progress=False)  # type: ignore


# Rows


def play(env: Any, seed: int, chase: bool) -> tuple[list[Any], Any]:
    """Play the environment; return its steps and the log of it, ten sub-steps or more a step."""
    from tianshou_ext.envs.cellworld import nearest_action

    rng = np.random.default_rng(seed)
    log, played = [], []
    obs, _ = env.reset(seed=seed)

    def look(time: float) -> None:
        for agent, one in env.model.agents.items():
            (x, y), turn = one.state.location, 90 - one.state.direction
            log.append(step(agent, time, x, y, len(log), turn))

    look(0.0)
    passed: list[Any] = []
    env.model.add_event_handler("after_step", lambda _: passed.append(snapshot(env)))
    for k in range(9 if chase else 20):
        passed.clear()
        at = env.model.predator.state.location if chase else rng.uniform(0.2, 0.8, 2)
        act = 294 if k >= 8 and not chase else int(nearest_action(env.locations, np.array([at]))[0])
        obs_next, rew, terminated, _, _ = env.step(act)
        for j, states in enumerate(passed):
            time = 0.25 * (k + (j + 1) / len(passed))
            log += [step(a, time, *place, len(log), 90 - turn) for a, place, turn in states]
        played.append((obs, rew, terminated, obs_next))
        obs = obs_next
        if terminated:
            break
    return played, {"trajectories": log, "captures": []}


def snapshot(env: Any) -> list[Any]:
    return [(a, one.state.location, one.state.direction) for a, one in env.model.agents.items()]


@needs_world
@pytest.mark.parametrize(("seed", "chase"), [(0, False), (1, False), (3, False), (5, True)])
def test_rows_of_a_log_are_what_the_environment_returned(seed: int, chase: bool, tmp_path: Path):
    from tianshou_ext.envs.cellworld import make_cellworld_env

    env = make_cellworld_env(fast=True)
    played, data = play(env, seed, chase)
    convert((save(tmp_path / NAME, data),), tmp_path / "b.hdf5", progress=False)
    found = columns(tmp_path / "b.hdf5")
    obs, rew, terminated, obs_next = (np.array(one) for one in zip(*played, strict=True))
    assert len(found.rew) == len(rew)
    assert np.array_equal(found.terminated, terminated)
    assert np.array_equal(found.rew, rew.astype(np.float32))
    assert (found.rew == -1).any() or not chase
    assert found.terminated.any() or chase
    same = [0, 1, 3, 4, 5, 6, 8, 10]  # but the mouse's direction, which a log does not know
    for mine, its in ((found.obs, obs), (found.obs_next, obs_next)):
        assert np.allclose(mine[:, same], its[:, same], atol=1e-5)
        calm = np.cumsum(its[:, 8]) == 0
        assert np.allclose(mine[calm, 7], its[calm, 7], atol=1e-5)
        # A step of the environment has 10 or 11 sub-steps, of which a capture is at one.
        assert np.allclose(mine[:, 7], its[:, 7], atol=0.02)
        assert np.allclose(mine[:, 9], its[:, 9], atol=0.1)


@needs_world
def test_a_run_to_the_goal_is_one_episode_with_the_mouses_own_way(tmp_path: Path):
    named = save(tmp_path / "A_00_00_R1_episode_1.json", run_of(line(0.1, 0.98, rows=81)))
    report = convert((named,), tmp_path / "b.hdf5", progress=False)
    found = columns(tmp_path / "b.hdf5")
    rows = len(found.rew)
    assert report.episodes == report.terminated == 1 and not report.truncated
    assert np.array_equal(found.obs[1:], found.obs_next[:-1])
    assert found.obs_next[-1, 10] == 1 and found.rew[-1] == 1 and (found.rew[:-1] == 0).all()
    assert found.obs_next[-1, 6] <= 0.1 < found.obs_next[-2, 6]
    assert np.allclose(found.obs[:, 0], 0.1 + 0.88 / 4 * found.info.time - 0.88 / 4 * 10)
    assert np.allclose(found.obs[:, 2], 0, atol=1e-6) and (found.obs[:, 7] == 1).all()
    assert (found.info.robot == NO_ROBOT).all() and rows == 15  # ceil(0.8 / 0.055)
    convert((named,), tmp_path / "c.hdf5", actions="continuous", horizon=4, progress=False)
    act = columns(tmp_path / "c.hdf5").act
    assert act.dtype == np.float32
    assert np.allclose(act[:-4, 0], found.obs[4:, 0]) and np.allclose(act[-4:], act[-1])
    assert np.allclose(act[-1], found.obs_next[-1, :2])  # not beyond the end of the episode
    convert((named,), tmp_path / "d.hdf5", actions="gateways", progress=False)
    assert columns(tmp_path / "d.hdf5").act.max() < 36


@needs_world
def test_gaps_cut_episodes_and_the_robot_is_held_where_it_was_lost(tmp_path: Path):
    data = run_of(line(0.1, 0.5, rows=81), robot=(0.9, 0.5))
    data["trajectories"] = [
        one
        for one in data["trajectories"]
        if not 11.0 < one["time_stamp"] < 11.8
        and (one["agent_name"] == "prey" or one["time_stamp"] < 13)
    ]
    report = convert((save(tmp_path / NAME, data),), tmp_path / "b.hdf5", progress=False)
    found = columns(tmp_path / "b.hdf5")
    assert (report.episodes, report.terminated, report.truncated) == (2, 0, 2)
    assert np.array_equal(np.flatnonzero(found.truncated), [3, len(found.rew) - 1])
    assert found.info.time[:5] == pytest.approx([10, 10.25, 10.5, 10.75, 11.8])
    assert np.array_equal(found.obs[1:4], found.obs_next[:3])
    lost = found.info.time + 0.25 > 13.45
    assert np.array_equal(found.info.robot == HELD, lost)
    assert (found.info.robot[~lost] == RECORDED).all()


@needs_world
def test_recorded_captures_take_the_place_of_the_rule(tmp_path: Path):
    data = run_of(line(0.2, 0.4, rows=61), robot=(0.3, 0.55), captures=[24])
    data["occlusions"] = "00_00"
    path = save(tmp_path / "A_00_00_R1_episode_1.json", data)
    rewards = {}
    for captures in ("simulated", "recorded"):
        convert((path,), tmp_path / "b.hdf5", captures=captures, progress=False)  # type: ignore
        found = columns(tmp_path / "b.hdf5")
        assert np.array_equal(found.rew == -1, found.obs_next[:, 8] == 1)
        rewards[captures] = np.flatnonzero(found.rew == -1)
    assert np.array_equal(rewards["recorded"], [4])  # at 1.2 s
    assert len(rewards["simulated"]) and rewards["simulated"][0] != 4


@needs_world
def test_the_same_run_twice_is_counted_once_with_the_robot(tmp_path: Path):
    table = {
        "experiment": "PEEK_20230101_1200_MMM1_21_05_R1",
        "episode": 3,
        "frame": [*range(41)],
        "prey": line(0.1, 0.5),
        "frame_time": [[0, 10.0]],
        "fps": 20.0,
    }
    save(tmp_path / "a_peek.json", [table])
    save(tmp_path / NAME, run_of(line(0.1, 0.5), robot=(0.7, 0.5)))
    report = convert((tmp_path,), tmp_path / "b.hdf5", progress=False)
    assert report.rows == 8 and any("counted once" in note for note in report.notes)
    assert (columns(tmp_path / "b.hdf5").info.robot == RECORDED).all()
    assert read_provenance(tmp_path / "b.hdf5")["files"] == [NAME, "a_peek.json"]


@needs_world
def test_of_two_worlds_one_is_converted_and_the_other_named(tmp_path: Path):
    save(tmp_path / NAME, run_of(line(0.1, 0.5)))
    save(tmp_path / "B_00_00_R1_episode_1.json", run_of(line(0.1, 0.3)))
    save(tmp_path / "c.json", run_of(line(0.1, 0.2)))  # says nothing
    for world, asked in (("21_05", None), ("00_00", "00_00")):
        report = convert((tmp_path,), tmp_path / "b.hdf5", world=asked, progress=False)
        assert report.rows == 16 and read_provenance(report.dst)["world"] == world
        assert sum("left out" in n or "do not say their world" in n for n in report.notes) == 2
    with pytest.raises(InputError, match="got those of 21_05"):
        convert((tmp_path / NAME,), tmp_path / "b.hdf5", world="00_00", progress=False)


@needs_world
def test_a_faulty_run_can_be_skipped_and_stays_named(tmp_path: Path):
    runs = [run_of(line(0.1, 0.5)), run_of([(5.0, 5.0)] * 41), run_of(line(0.2, 0.5))]
    data = {"name": "MICE_20220418_1830_MMM8_21_05_R1", "occlusions": "21_05", "episodes": runs}
    path = save(tmp_path / "a.json", data)
    with pytest.raises(InputError, match="episode 1"):
        convert((path,), tmp_path / "b.hdf5", progress=False)
    report = convert((path,), tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert report.episodes == 2 and [fault.record for fault in report.faults] == ["episode 1"]
    assert set(columns(report.dst).info.episode.tolist()) == {0, 2}


@needs_world
def test_the_cells_of_high_centrality_are_42_free_ones():
    from tianshou_ext.data.convert.cellworld_replay import world_cells

    cells, (_, occluded) = high_centrality_cells("21_05"), world_cells("21_05")
    assert len(cells) == 42 and not occluded[list(cells)].any()
    assert high_centrality_cells("21_05", first_two=False) == cells[2:]


@needs_world
@pytest.mark.parametrize("augment", ["none", "jitter"])
@pytest.mark.parametrize("emphasise", ["none", "high-centrality"])
def test_copies_are_whole_episodes_and_leave_the_real_rows_alone(
    augment: Any, emphasise: Any, tmp_path: Path
):
    from tianshou_ext.data.convert.cellworld_replay import world_cells

    wave = [(x, 0.5 + 0.02 * math.sin(9 * x)) for x, _ in line(0.06, 0.3, rows=201)]
    data = run_of(wave, robot=(0.5, 0.2))
    path = save(tmp_path / NAME, data)
    convert((path,), tmp_path / "plain.hdf5", progress=False)
    plain = columns(tmp_path / "plain.hdf5")
    if augment == emphasise:
        assert (plain.info.copy == 0).all()
        return
    options = {"augment": augment, "emphasise": emphasise, "copies": 2}
    report = convert((path,), tmp_path / "b.hdf5", progress=False, **options)
    found = columns(report.dst)
    real = found.info.copy == 0
    for key in ("obs", "act", "rew", "obs_next", "terminated", "truncated"):
        assert np.array_equal(found[key][real], plain[key]), key
    ends = found.terminated | found.truncated
    inner = np.flatnonzero(~ends)
    assert np.array_equal(found.obs_next[inner], found.obs[inner + 1])
    assert np.array_equal(found.info.copy[inner], found.info.copy[inner + 1]) and ends[-1]
    first, second = (found.obs[found.info.copy == k, :2] for k in (1, 2))
    assert len(first) == len(second) > 0
    here = np.isin(plain.info.time, found.info.time[found.info.copy == 1])
    moved = np.linalg.norm(first - plain.obs[here, :2], axis=1)
    if augment == "none":
        assert (moved == 0).all()
    else:
        assert 0 < moved.max() < 0.05 and not np.array_equal(first, second)
    if emphasise != "none":
        centres, _ = world_cells("21_05")
        away = np.linalg.norm(plain.obs[:, None, :2] - centres, axis=2)
        inside = np.isin(away.argmin(1), high_centrality_cells("21_05"))
        assert np.array_equal(here, inside) and 0 < inside.sum() < len(inside)
    assert any("copies" in note for note in report.notes)


@needs_world
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_command_writes_the_same_bytes_in_any_number_of_processes(
    jobs: int, tmp_path: Path
):
    for k in range(3):
        save(tmp_path / f"A_21_05_R1_episode_{k}.json", run_of(line(0.06, 0.3 + 0.1 * k)))
    convert((tmp_path,), tmp_path / "a", augment="jitter", progress=False)
    convert((tmp_path,), tmp_path / "b", augment="jitter", jobs=jobs, progress=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    convert((tmp_path,), tmp_path / "c", augment="jitter", seed=1, progress=False)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@needs_world
@needs_mice
def test_a_real_mouse_reaches_the_goal_in_a_buffer_that_everybody_reads(tmp_path: Path):
    source = CACHE / "mouse" / "PEEK_20221129_1124_MMM11_21_05_RT8_episode_8.json.gz"
    report = convert((source,), tmp_path / "b.hdf5", progress=False)
    assert (report.rows, report.episodes, report.terminated) == (53, 1, 1)
    assert any("from after the run" in note for note in report.notes)
    for buffer in (load_buffer(report.dst), ReplayBuffer.load_hdf5(str(report.dst))):
        assert len(buffer) == 53 and buffer.obs.shape == (53, 11) and buffer.act.dtype == np.int64
        assert buffer.info.time[0] == pytest.approx(39.32, abs=0.02)
        assert buffer.terminated[-1] and buffer.obs_next[-1, 10] == 1
        assert 0 < (buffer.obs[:, 3] > 0).sum() < 53  # the robot in sight, and not
        assert (np.abs(buffer.obs[:, [2, 5]]) <= math.pi + 1e-6).all()
        buffer.sample(8)
    assert inspect(report.dst, progress=False).exit_code == 0
    with h5py.File(report.dst) as file:
        assert json.loads(file.attrs["tianshou_ext"])["files"] == [source.name]
