"""Cellworld: episodes that repeat, observations that tell no secrets, and the fast arithmetic."""

import json
import os
import random
import subprocess
import sys
import urllib.error
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tianshou.env import DummyVectorEnv, SubprocVectorEnv

from tianshou_ext.envs import cellworld_cache
from tianshou_ext.envs.cellworld import (
    OBSERVATION_NAMES,
    ContinuousToDiscrete,
    DiscreteToContinuous,
    make_cellworld_env,
    nearest_action,
    use_cache,
)
from tianshou_ext.envs.cellworld_cache import nearest_map, world_files
from tianshou_ext.errors import InputError

if find_spec("cellworld_gym") is None:
    pytest.skip("needs the cellworld-gym package", allow_module_level=True)

CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
needs_files = pytest.mark.skipif(
    not (CACHE / world_files("21_05")[0]).exists(),
    reason="needs the files of world 21_05 in the folder CELLWORLD_CACHE",
)
AT = {name: k for k, name in enumerate(OBSERVATION_NAMES)}
GOALS = [(0.9, 0.5), (0.5, 0.2), (0.5, 0.8)]


@pytest.fixture
def env():
    return make_cellworld_env(fast=True)


def play(env, seed, steps=40):
    """Return the rows of an episode of random actions: observation, reward, ends, captures."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    rows = [np.append(obs, info["captures"])]
    for _ in range(steps):
        action = int(rng.integers(len(env.locations)))
        if isinstance(env.action_space, gymnasium.spaces.Box):
            action = env.locations[action]
        obs, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(obs) and isinstance(reward, float)
        assert {type(value) for value in info.values()} == {float}
        assert set(info) == {"captures", "survived", "success"}
        rows.append(np.array([*obs, reward, terminated, truncated, *info.values()]))
        if terminated or truncated:
            break
    return rows


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@needs_files
@pytest.mark.parametrize(
    "options", [{}, {"world": "00_00"}, {"task": "Oasis", "goal_locations": GOALS}], ids=str
)
def test_fast_plays_the_exact_episodes_to_the_bit(options):
    exact, fast = make_cellworld_env(**options), make_cellworld_env(fast=True, **options)
    assert all(same(play(exact, seed, 12), play(fast, seed, 12)) for seed in (2, 5))


@needs_files
@pytest.mark.parametrize("world", ["21_05", "00_00"])
def test_fast_draws_the_packages_polygons_and_answers_as_they_do(world):
    exact = make_cellworld_env(world=world).model
    fast = make_cellworld_env(world=world, fast=True).model
    rng = np.random.default_rng(0)
    cells = np.array(exact.loader.open_locations)
    seen = 0
    for k in range(100):
        place = cells[rng.integers(len(cells))] + rng.uniform(-0.03, 0.03, 2) * (k % 2)
        other = tuple(map(float, cells[rng.integers(len(cells))]))
        place, turn = tuple(map(float, place)), float(rng.uniform(-720, 720))
        theirs = exact.visibility.get_visibility_polygon(src=place, direction=0.0)
        assert np.array_equal(theirs.vertices.numpy(), fast.visibility.polygon(place))
        body = exact.predator._body_polygon.translate_rotate(other, turn)
        ours = fast.predator._body_polygon.translate_rotate(other, turn)
        assert torch.equal(body.vertices, ours.vertices)
        view = fast.visibility.get_visibility_polygon(src=place, direction=0.0)
        answer = bool(view.intersects(ours))
        assert answer == bool(theirs.intersects(body))
        assert bool(fast.arena.contains(ours)) == bool(exact.arena.contains(body))
        assert torch.equal(view.contains(body.vertices), theirs.contains(body.vertices))
        seen += answer
    assert world == "00_00" or 10 < seen < 90


@needs_files
def test_who_listens_hears_of_the_robot_in_a_fast_environment_too():
    """The planner's belief follows the events of the line of sight."""
    heard = []
    for fast in (False, True):
        env, places = make_cellworld_env(fast=fast), []
        env.model.line_of_sight.add_event_handler(
            "prey_predator", lambda state, places=places: places.append(state.location)
        )
        play(env, 1, 10)
        heard.append(places)
    assert len(heard[0]) > 5 and heard[0] == heard[1]


@needs_files
def test_the_map_to_the_nearest_cell_is_the_packages(env):
    points = env.loader.locations
    ours = nearest_map(points, 1000)
    where = np.array([point or (-1, -1) for point in points], np.float32)
    grid = np.arange(1000, dtype=np.float32) / np.float32(1000) + np.float32(0.0005)
    for row in range(0, 1000, 37):
        squares = (grid[row] - where[:, 0]) ** 2 + (grid[:, None] - where[:, 1]) ** 2
        assert np.array_equal(ours[row], np.argmin(squares, axis=1))
    assert np.array_equal(env.loader.navigation.points.point_map, ours)


@needs_files
def test_a_seed_gives_one_episode_whatever_was_played_before(env):
    first = play(env, 3)
    random.seed(99)
    play(env, 4, 7)
    env.step(5)  # ends in the middle of a run
    assert same(play(env, 3), first)
    assert same(play(make_cellworld_env(fast=True), 3), first)
    assert not same(play(env, 4), first)


@needs_files
def test_two_environments_in_turn_do_not_disturb_each_other_or_the_global_generator():
    envs = [make_cellworld_env(fast=True) for _ in range(2)]
    alone = [play(env, seed, 20) for seed, env in enumerate(envs)]
    random.seed(5)
    before = random.getstate()
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    rows = [[env.reset(seed=seed)[0]] for seed, env in enumerate(envs)]
    for _ in range(20):
        for env, rng, kept in zip(envs, rngs, rows, strict=True):
            kept.append(env.step(int(rng.integers(295)))[0])
    assert random.getstate() == before
    for kept, expected in zip(rows, alone, strict=True):
        assert all(np.array_equal(a, b[:11]) for a, b in zip(kept, expected, strict=True))


@needs_files
def test_without_a_seed_episodes_and_environments_differ():
    envs = [make_cellworld_env(fast=True) for _ in range(2)]
    random.seed(0)
    places = set()
    for _ in range(6):
        for env in envs:
            env.reset()
            places.add(env.model.predator.state.location)
    assert len(places) > 3


WORKER = """
import hashlib, sys
from tianshou_ext.envs.cellworld import make_cellworld_env
env = make_cellworld_env(fast=True)
with open("/proc/self/status") as file:
    memory = int(next(line for line in file if line.startswith("VmHWM")).split()[1])
other, found = make_cellworld_env(fast=True), []
for seed in map(int, sys.argv[1:]):
    text = repr(env.reset(seed=seed)[0].tolist())
    for k in range(15):
        text += repr(env.step((37 * k + seed) % 295)[0].tolist())
    other.reset()
    other.step(5)
    found.append(f"{seed} {hashlib.md5(text.encode()).hexdigest()}")
print(memory, *sorted(found), sep=",")
"""


@needs_files
@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_fresh_processes_play_the_same_episodes_in_any_order_start_small_and_print_nothing():
    """The package alone takes 9.2 GB, and tells that there is no GPU."""
    lines = []
    for seeds in ("1", "2"), ("2", "1"):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, *seeds], capture_output=True, text=True, check=True
        )
        lines.append(done.stdout.strip().split(","))
    memory, *episodes = lines[0]
    assert len(set(episodes)) == 2 and lines[1][1:] == episodes
    assert int(memory) < 500_000  # kB, of which torch has half


@needs_files
@pytest.mark.parametrize(("context", "number"), [("fork", 2), ("spawn", 1)])
def test_environments_in_processes_play_as_those_in_this_one(context, number):
    make = partial(make_cellworld_env, fast=True)
    results = []
    for kind in (DummyVectorEnv, partial(SubprocVectorEnv, context=context)):
        venv = kind([make] * number)
        venv.seed([3, 4][:number])
        obs, _ = venv.reset()
        steps = [venv.step(np.array([k * 30, 294 - k][:number]))[0] for k in range(8)]
        venv.close()
        results.append(np.stack([obs, *steps]))
    assert np.array_equal(*results)
    assert number == 1 or not np.array_equal(results[0][:, 0], results[0][:, 1])


@needs_files
def test_observations_are_kept_apart_wrapped_and_silent_about_a_hidden_robot(env):
    rows = np.array([row[:11] for seed in range(3) for row in play(env, seed, 60)])
    assert len(np.unique(rows, axis=0)) > 100  # the package hands out one array
    assert np.abs(rows[:, [AT["prey_direction"], AT["predator_direction"]]]).max() <= np.pi + 1e-6
    hidden = (rows[:, AT["predator_x"]] == 0) & (rows[:, AT["predator_y"]] == 0)
    distance = rows[:, AT["predator_prey_distance"]]
    assert 10 < hidden.sum() < len(rows) - 10
    assert np.all(distance[hidden] == 1) and np.all(distance[~hidden] < 1)


@needs_files
def test_observe_cleans_recorded_rows_of_any_number(env):
    raw = np.zeros((2, 3, 11))
    raw[..., AT["prey_direction"]] = 7.0
    raw[..., AT["predator_prey_distance"]] = 0.3
    raw[0, :, AT["predator_x"]] = 0.5
    clean = env.observe(raw)
    assert clean.dtype == np.float32 and clean.shape == raw.shape
    assert np.allclose(clean[..., AT["prey_direction"]], 7.0 - 2 * np.pi)
    assert np.allclose(clean[0, :, 7], 0.3) and np.all(clean[1, :, 7] == 1)
    assert np.all(raw[..., 7] == 0.3)
    with pytest.raises(InputError, match="observations of 11 numbers"):
        env.observe(np.zeros(10))


@needs_files
def test_the_goal_terminates_and_pays_and_time_truncates(env):
    for seed in range(20):
        env.reset(seed=seed)
        over = False
        while not over:
            obs, reward, terminated, truncated, info = env.step(294)
            over = terminated or truncated
        assert terminated and not truncated and obs[AT["finished"]] == 1
        assert info["survived"] == info["success"] == float(info["captures"] == 0)
        assert reward == 1.0 - obs[AT["puffed"]]
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(294)
        if info["captures"]:
            break
    assert info["captures"], "no seed shows that a capture forfeits survival"
    short = make_cellworld_env(fast=True, max_steps=6)
    rows = play(short, 0)
    assert len(rows) == 7 and list(rows[-1][12:14]) == [0, 1] and rows[-1][-1] == 0
    ends = []
    for seed in range(10):  # the goal on the last step that is left
        short.reset(seed=seed)
        for _ in range(6):
            *_, terminated, truncated, _ = short.step(294)
        ends.append((terminated, truncated))
    assert (True, False) in ends and (True, True) not in ends


@needs_files
def test_a_capture_is_seen_counted_and_paid_once(env):
    rng = np.random.default_rng(1)
    env.reset(seed=1)
    puffs = reward = 0.0
    for _ in range(80):
        obs, paid, *_, info = env.step(int(rng.integers(200)))
        puffs += obs[AT["puffed"]]
        reward += paid
        assert info["captures"] == puffs
    assert puffs > 3 and reward == -puffs


@needs_files
def test_rewards_by_name_offset_and_function():
    by_name = make_cellworld_env(fast=True, reward={"prey_goal_distance": [-2.0, 1]})
    by_function = make_cellworld_env(
        fast=True, reward=lambda obs: 1 - 2 * float(obs.prey_goal_distance)
    )
    one, other = play(by_name, 0, 5), play(by_function, 0, 5)
    assert same(one, other) and np.isclose(one[1][11], 1 - 2 * one[1][AT["prey_goal_distance"]])
    secret = make_cellworld_env(fast=True, reward={"predator_prey_distance": 1.0})
    rows = play(secret, 0)
    assert all(row[11] == row[7] for row in rows[1:])  # a reward does not tell either


@needs_files
@pytest.mark.parametrize("actions", ["cells", "gateways"])
def test_actions_as_indices_and_as_places_are_the_same_episodes(actions):
    discrete = make_cellworld_env(actions=actions, fast=True)
    continuous = make_cellworld_env(actions="continuous", fast=True)
    locations = discrete.locations
    assert len(locations) == (295 if actions == "cells" else 35) == discrete.action_space.n
    assert np.array_equal(nearest_action(locations, locations), np.arange(len(locations)))
    assert np.array_equal(
        nearest_action(locations, locations.astype(np.float32)), np.arange(len(locations))
    )
    as_places = DiscreteToContinuous(continuous, locations)
    back = ContinuousToDiscrete(discrete)
    rng = np.random.default_rng(0)
    for env in (discrete, as_places, back):
        env.reset(seed=7)
    for _ in range(25):
        action = int(rng.integers(len(locations)))
        steps = [discrete.step(action), as_places.step(action)]
        assert np.array_equal(steps[0][0], steps[1][0])
        assert back.action(locations[action]) == action
        near = np.clip(locations[action] + rng.uniform(-0.01, 0.01, 2), 0, 1)
        assert back.action(near.astype(np.float32)) == action
    assert as_places.action_space == discrete.action_space
    assert back.action_space == continuous.action_space


@needs_files
def test_adapters_find_the_environment_within_other_wrappers(env):
    inner = gymnasium.wrappers.TimeLimit(env, 5)
    assert ContinuousToDiscrete(inner).locations is env.locations
    for wrap in (
        DiscreteToContinuous,
        lambda _: ContinuousToDiscrete(gymnasium.make("CartPole-v1")),
    ):
        with pytest.raises(InputError, match="expected a cellworld environment with"):
            wrap(inner)


def test_nearest_action_is_a_plain_search_and_refuses_what_is_no_place():
    rng = np.random.default_rng(0)
    locations, points = rng.uniform(size=(50, 2)), rng.uniform(size=(5000, 2))
    expected = [np.argmin(((point - locations) ** 2).sum(axis=1)) for point in points]
    assert np.array_equal(nearest_action(locations, points), expected)
    assert nearest_action([[0, 0], [2, 0]], [[1, 0]]) == [0]
    assert nearest_action(locations, np.empty((0, 2))).shape == (0,)
    for bad in (points[0], points[:, :1], points * np.nan):
        with pytest.raises(InputError, match="expected points of shape"):
            nearest_action(locations, bad)
    with pytest.raises(InputError, match="at least one location"):
        nearest_action(np.empty((0, 2)), points)


@needs_files
@pytest.mark.parametrize("action", [295, -1, 1.0, None, "a", [1], np.nan])
def test_what_is_no_action_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(InputError, match="expected an action from 0 to 294, got"):
        env.step(action)
    env.step(np.int64(3))


@needs_files
def test_places_outside_the_arena_count_as_the_nearest_cell_and_nan_is_refused():
    env = make_cellworld_env(actions="continuous", fast=True)
    env.reset(seed=0)
    for action in ((np.nan, 0.5), [0.5], None, "ab", 3):
        with pytest.raises(InputError, match="two finite numbers"):
            env.step(action)
    for _ in range(30):
        obs, *_ = env.step(np.array([0.3, 5.0]))
    assert np.allclose(
        obs[:2], env.locations[nearest_action(env.locations, [[0.3, 1.0]])[0]], atol=0.02
    )


@needs_files
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "BotEscape"}, "expected a task of BotEvade, Oasis, DualEvade, got 'BotEscape'"),
        ({"task": "BotEvadeBelief"}, "got 'BotEvadeBelief' .*belief"),
        ({"task": "Oasis"}, "goal_locations"),
        ({"task": "DualEvade", "actions": "continuous"}, "expected actions of cells, gateways"),
        ({"actions": "all"}, "expected actions of cells, gateways, continuous"),
        ({"world": "../21_05"}, "expected a world such as"),
        ({"world": 21}, "expected a world such as"),
        ({"max_steps": 0}, "expected max_steps of at least 1, got 0"),
        ({"robot_speed_ratio": float("nan")}, "expected robot_speed_ratio"),
        ({"reward": {"caught": -1}}, "by the names of .*'caught'"),
        ({"reward": {"puffed": [1, 2, 3]}}, "coefficient, offset"),
        ({"reward": 1.0}, "or a function, got 1.0"),
        ({"colour": "red"}, "expected options among .*use_predator.*, got colour"),
    ],
)
def test_bad_input_is_one_sentence(options, words):
    with pytest.raises(InputError, match=words) as error:
        make_cellworld_env(**options)
    assert "\n" not in str(error.value)


@needs_files
def test_seeds_that_are_none_are_refused(env):
    for seed in (-1, 1.5, "1"):
        with pytest.raises(InputError, match="expected a seed"):
            env.reset(seed=seed)


@needs_files
def test_other_tasks_play_and_repeat():
    dual = make_cellworld_env("DualEvade", fast=True)
    assert dual.observation_space.shape == (14,)
    assert same(play(dual, 0, 20), play(dual, 0, 20))
    dual.reset(seed=0)
    terminated = False
    while not terminated:
        obs, reward, terminated, truncated, _ = dual.step(294)
        assert not truncated
    assert obs[-1] == 1 and reward >= 0  # the package does not show that it is finished
    alone = make_cellworld_env(use_predator=False, fast=True)
    rows = np.array([row[:11] for row in play(alone, 0, 20)])
    assert np.all(rows[:, 3:6] == 0) and np.all(rows[:, 7] == 1)


@needs_files
def test_a_faster_robot_is_faster():
    for task in ("BotEvade", "DualEvade"):
        env = make_cellworld_env(task, robot_speed_ratio=1.0)
        assert env.model.predator.max_forward_speed == 0.5


@needs_files
@pytest.mark.filterwarnings("ignore")
def test_gymnasiums_own_checks_pass(env):
    check_env(env, skip_render_check=True)
    assert env.metadata["render_fps"] == 4 and env.render_mode is None


@needs_files
def test_pictures_show_each_environments_own_state_without_a_display(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-driver")
    envs = [make_cellworld_env(render=True, fast=True) for _ in range(2)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        assert env.render_mode == "rgb_array"
    first, other = (env.render() for env in envs)
    assert first.shape == (692, 800, 3) and first.dtype == np.uint8
    assert not np.array_equal(first, other)
    assert np.array_equal(envs[0].render(), first)
    envs[0].step(100)
    assert not np.array_equal(envs[0].render(), first)
    with pytest.raises(InputError, match="render=True"):
        make_cellworld_env().render()


def test_without_the_package_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name=name)

    cellworld_cache.import_cellworld.cache_clear()
    monkeypatch.setattr(cellworld_cache.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "tianshou_ext\[cellworld\]"'):
        cellworld_cache.import_cellworld()


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """An empty cache; what cellworld is told afterwards is the old one again."""
    monkeypatch.setenv("CELLWORLD_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    monkeypatch.setenv("CELLWORLD_CACHE", str(CACHE))
    use_cache()


@needs_files
def test_files_are_fetched_once_and_only_json_is_kept(empty, monkeypatch):
    monkeypatch.setattr(cellworld_cache, "SOURCE", CACHE.as_uri())
    assert use_cache("21_05") == empty
    assert {p.relative_to(empty).as_posix() for p in empty.rglob("*.*") if p.is_file()} | {
        "world_configuration/hexagonal"
    } == set(world_files("21_05"))
    for name in world_files("21_05"):
        assert (empty / name).read_bytes() == (CACHE / name).read_bytes()
    monkeypatch.setattr(cellworld_cache, "SOURCE", "file:///nowhere")
    use_cache("21_05")
    (empty / "world_configuration/hexagonal").unlink()
    portal = empty / "portal/world_configuration"
    portal.mkdir(parents=True)
    (portal / "hexagonal").write_text("<html>please log in</html>")
    monkeypatch.setattr(cellworld_cache, "SOURCE", portal.parent.as_uri())
    with pytest.raises(InputError, match="world_configuration/hexagonal are missing"):
        use_cache("21_05")
    assert not (empty / "world_configuration/hexagonal").exists()


def test_without_network_and_files_the_variable_and_the_files_are_named(empty, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(cellworld_cache.urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match="CELLWORLD_CACHE") as error:
        make_cellworld_env()
    assert all(name in str(error.value) for name in world_files("21_05"))
    assert "no network" in str(error.value) and "\n" not in str(error.value)


def test_a_world_that_does_not_exist_is_said_to_be_unknown(empty, monkeypatch):
    def unknown(url, timeout):
        assert timeout < 60
        raise urllib.error.HTTPError(url, 404, "Not Found", None, None)

    monkeypatch.setattr(cellworld_cache.urllib.request, "urlopen", unknown)
    with pytest.raises(InputError, match="expected a world such as '21_05'.*got '99_99'"):
        make_cellworld_env(world="99_99")


@needs_files
def test_a_damaged_file_is_named(empty):
    for name in world_files("21_05"):
        copy = empty / name.replace("21_05", "77_77")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((CACHE / name).read_bytes())
    damaged = empty / "graph/hexagonal.77_77.cell_visibility"
    damaged.write_text("[[1, 2")
    with pytest.raises(InputError, match=f"expected JSON in {damaged}"):
        make_cellworld_env(world="77_77")


@needs_files
def test_a_folder_set_after_the_import_counts_and_the_web_is_never_asked(empty):
    cellworld_cache.import_cellworld()
    import cellworld

    use_cache()
    with pytest.raises(InputError, match="expected graph/hexagonal.21_05.cell_visibility below"):
        cellworld.get_resource("graph", "hexagonal", "21_05", "cell_visibility")
    (empty / "graph").mkdir(parents=True)
    (empty / "graph/hexagonal.21_05.cell_visibility").write_text(json.dumps([1]))
    assert cellworld.get_resource("graph", "hexagonal", "21_05", "cell_visibility") == [1]


def test_a_cache_that_is_a_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELLWORLD_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="expected a folder in CELLWORLD_CACHE"):
        use_cache()


@needs_files
def test_a_step_in_a_forked_process_does_not_wait_for_threads_that_are_gone():
    """With two threads, torch hangs in a process that was forked after they had been used."""
    env = make_cellworld_env(fast=True, reward=lambda obs: torch.get_num_threads())
    torch.set_num_threads(2)
    env.reset(seed=0)
    assert env.step(3)[1] == 1.0 and torch.get_num_threads() == 2


@needs_files
def test_scipy_is_whole_after_the_import():
    """While cellworld is imported something stands in for a part of it."""
    code = (
        "import sys\n"
        "from tianshou_ext.envs.cellworld import make_cellworld_env\n"
        "make_cellworld_env()\n"
        "assert 'scipy.stats' not in sys.modules\n"
        "import cellworld.info, scipy.stats\n"
        "print(scipy.stats.norm.cdf(0.0), cellworld.info.entropy([0, 1], base=2))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["0.5", "1.0"]
