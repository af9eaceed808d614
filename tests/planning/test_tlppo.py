"""The planner of cellworld: that it survives, in time, knowing only what the mouse knows."""

import os
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tianshou_ext.envs.cellworld import DiscreteToContinuous, make_cellworld_env
from tianshou_ext.envs.cellworld_cache import world_files
from tianshou_ext.errors import InputError
from tianshou_ext.planning import TLPPOPlanner
from tianshou_ext.planning.belief import RobotBelief

if find_spec("cellworld_gym") is None:
    pytest.skip("needs the cellworld-gym package", allow_module_level=True)

CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
needs_files = pytest.mark.skipif(
    not (CACHE / world_files("21_05")[0]).exists(),
    reason="needs the files of world 21_05 in the folder CELLWORLD_CACHE",
)


@cache
def make(**options: Any) -> Any:
    return make_cellworld_env(fast=True, **options)


def play(env: Any, planner: TLPPOPlanner, seed: int, steps: int = 300) -> tuple[list[int], dict]:
    """Return the planner's actions in an episode, and the last info."""
    _, info = env.reset(seed=seed)
    planner.reset()
    actions: list[int] = []
    for _ in range(steps):
        actions.append(planner.act())
        _, _, terminated, truncated, info = env.step(actions[-1])
        planner.observe()
        if terminated or truncated:
            break
    return actions, info


def line(count: int, reach: float) -> RobotBelief:
    """Return a belief over ``count`` cells in a row, which all see each other."""
    places = np.arange(count) * 0.05
    distance = np.abs(places[:, None] - places)
    return RobotBelief(distance, distance < 0.12, reach)


def test_what_is_believed_spreads_is_cleared_by_sight_and_gathers_where_the_robot_is_seen():
    belief = line(9, 0.05)
    assert np.allclose(belief.probability, 1 / 9)
    belief.see(0, None)  # sees cells 0, 1 and 2
    assert np.allclose(belief.probability[:3], 0.0)
    assert np.allclose(belief.probability[3:], 1 / 6)
    belief.see(4, 6)
    assert belief.probability.argmax() == 6
    assert belief.probability.sum() == 1.0
    belief.spread()
    assert belief.probability[6] < 1.0
    assert belief.probability[5] == pytest.approx(belief.probability[7])
    assert belief.probability[0] == 0.0
    assert belief.probability.sum() == pytest.approx(1.0)


def test_a_robot_that_vanished_from_where_it_must_be_is_looked_for_everywhere_out_of_sight():
    belief = line(9, 0.05)
    belief.see(4, 1)
    belief.see(1, None)
    assert np.isfinite(belief.probability).all()
    assert np.allclose(belief.probability[:4], 0.0)
    assert np.allclose(belief.probability[4:], 1 / 5)


def test_a_faster_robot_spreads_farther_and_one_that_stands_not_at_all():
    ahead = []
    for reach in (0.0, 0.02, 0.1):
        belief = line(21, reach)
        belief.see(10, 10)
        ahead.append(belief.predict(6))
        assert ahead[-1].shape == (7, 21)
        assert np.array_equal(ahead[-1][0], belief.probability)
    away = np.abs(np.arange(21) - 10)
    still, slow, fast = (float((one[-1] * away).sum()) for one in ahead)
    assert still == 0.0
    assert 0.0 < slow < fast


@needs_files
@pytest.mark.parametrize(("ratio", "seed"), [(0.15, 1), (0.15, 2), (0.33, 3), (1.0, 1), (1.0, 5)])
def test_the_mouse_comes_home_uncaught(ratio, seed):
    env = make(robot_speed_ratio=ratio)
    actions, info = play(env, TLPPOPlanner(env), seed)
    assert info["survived"] == 1.0
    assert len(actions) < 150


@needs_files
def test_the_same_episode_gives_the_same_actions_whatever_was_played_before():
    env = make()
    planner = TLPPOPlanner(env)
    first, _ = play(env, planner, 3, 25)
    play(env, planner, 4, 5)
    again, _ = play(env, planner, 3, 25)
    fresh, _ = play(env, TLPPOPlanner(env), 3, 25)
    assert first == again == fresh


@needs_files
def test_a_decision_takes_less_than_15_ms_of_processor_time():
    env = make(robot_speed_ratio=1.0)
    planner = TLPPOPlanner(env)
    env.reset(seed=0)
    planner.reset()
    start = time.thread_time()
    for _ in range(20):
        planner.act()
        planner.observe()
    assert (time.thread_time() - start) / 20 < 0.015


@needs_files
def test_where_a_hidden_robot_is_changes_nothing():
    env = make()
    planner = TLPPOPlanner(env)
    acts = []
    for place in (None, (0.75, 0.25), (0.75, 0.75)):
        env.reset(seed=0)
        model = env.unwrapped.model
        assert not model.line_of_sight["prey", "predator"]
        if place is not None:
            model.predator.state.location = place
        planner.reset()
        acts.append((planner.act(), planner.belief.probability.tolist()))
    assert acts[0] == acts[1] == acts[2]


@needs_files
def test_a_robot_in_sight_is_believed_where_it_is():
    env = make()
    planner = TLPPOPlanner(env)
    for seed in range(5):
        env.reset(seed=seed)
        planner.reset()
        for _ in range(60):
            over = env.step(planner.act())[2]
            planner.observe()
            model = env.unwrapped.model
            if model.line_of_sight["prey", "predator"]:
                cell = int(planner.arena.nearest(model.predator.state.location))
                assert planner.belief.probability[cell] == 1.0
                return
            if over:
                break
    pytest.fail("the robot was never seen")


@needs_files
def test_an_episode_that_began_without_reset_is_noticed():
    env = make()
    planner = TLPPOPlanner(env)
    play(env, planner, 1, 10)
    env.reset(seed=2)
    forgotten = planner.act()
    planner.reset()
    assert planner.act() == forgotten
    env.step(forgotten)
    env.reset(seed=3)
    planner.observe()
    believed = planner.belief.probability.copy()
    planner.reset()
    assert np.array_equal(planner.belief.probability, believed)


@needs_files
def test_without_a_robot_the_mouse_runs_home_at_once():
    env = make(use_predator=False)
    actions, info = play(env, TLPPOPlanner(env), 0)
    assert info["survived"] == 1.0
    assert len(actions) <= 8


@needs_files
@pytest.mark.parametrize("world", ["21_05", "00_00"])
def test_the_few_gateways_suffice_and_a_world_without_obstacles_is_played(world):
    env = make(actions="gateways", world=world)
    planner = TLPPOPlanner(env)
    actions, _ = play(env, planner, 1, 30)
    assert all(env.action_space.contains(act) for act in actions)


@needs_files
def test_actions_that_are_places_need_the_wrapper_and_then_mean_the_same():
    places = make(actions="continuous")
    with pytest.raises(InputError, match="discrete actions, got .*; make it with"):
        TLPPOPlanner(places)
    few = make().locations[::-1]
    env = DiscreteToContinuous(places, few)
    planner = TLPPOPlanner(env)
    env.reset(seed=1)
    planner.reset()
    chosen = few[planner.act()]
    cells = make()
    other = TLPPOPlanner(cells)
    cells.reset(seed=1)
    other.reset()
    assert np.allclose(chosen, cells.locations[other.act()])


@needs_files
def test_other_environments_give_one_sentence():
    with pytest.raises(InputError, match="expected cellworld's BotEvade .* got .*CartPole"):
        TLPPOPlanner(gymnasium.make("CartPole-v1"))
    with pytest.raises(InputError, match="expected cellworld's BotEvade"):
        TLPPOPlanner(make(task="Oasis", goal_locations=((0.9, 0.5), (0.5, 0.2), (0.5, 0.8))))


@needs_files
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": -1}, "expected budget of at least 0, got -1"),
        ({"horizon": 0}, "expected horizon of at least 1, got 0"),
        ({"pull": float("nan")}, "expected pull of at least 0, got nan"),
        ({"patience": 0}, "expected patience above 0 steps, got 0"),
        ({"haste": 0.0}, "expected haste in .0, 1., got 0.0"),
    ],
)
def test_numbers_out_of_range_give_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        TLPPOPlanner(make(), **options)


@needs_files
@pytest.mark.parametrize("options", [{"budget": 0}, {"horizon": 1}, {"budget": 60, "horizon": 12}])
def test_the_shortest_and_longest_looks_ahead_give_actions(options):
    env = make()
    planner = TLPPOPlanner(env, **options)
    actions, _ = play(env, planner, 1, 5)
    assert all(env.action_space.contains(act) for act in actions)


@needs_files
def test_tables_move_the_mouse_as_the_simulator_does():
    """One that is wrong about time or way lets the mouse run into the robot."""
    env = make(use_predator=False)
    planner = TLPPOPlanner(env)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    model, arena = env.unwrapped.model, planner.arena
    apart = []
    for _ in range(12):
        state = model.prey.state
        target = int(rng.choice(arena.options[int(arena.nearest(state.location))][1:]))
        legs = arena.legs_from(state.location, state.direction, np.array([target]))
        for cells in legs.cells[0, : int(legs.steps[0])]:
            env.step(target)
            apart.append(np.hypot(*(arena.places[cells[-1]] - model.prey.state.location)))
            if not model.running:
                env.reset(seed=0)
                break
    assert len(apart) > 30
    assert np.mean(apart) < 0.06  # cells are 0.047 apart
    assert max(apart) < 0.25  # at up to 2.5 a second
