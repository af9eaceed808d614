"""MuJoCo environments: ids of all ages, clear words for those that are none, seeded tests."""

import sys

import gymnasium
import numpy as np
import pytest

pytest.importorskip("mujoco")

from tianshou_ext.envs import mujoco
from tianshou_ext.envs.mujoco import (
    make_mujoco_env,
    make_mujoco_venv,
    mujoco_tasks,
    resolve_task,
)
from tianshou_ext.errors import InputError


@pytest.mark.parametrize("task", ["Hopper", "Hopper-v2", "Hopper-v3"])
def test_old_ids_stand_for_what_runs(task, capsys):
    assert resolve_task(task) == "Hopper-v4"
    assert capsys.readouterr().out.splitlines() == [
        f"{task} stands for Hopper-v4, which runs on the mujoco package"
    ]


@pytest.mark.parametrize("task", ["Walker2d-v4", "HalfCheetah-v4", "Pendulum-v1", "module:Mine-v0"])
def test_other_ids_are_left_alone(task, capsys):
    assert resolve_task(task) == task
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("task", ["Hoper-v4", "Hopper-v9", "", "hopper-medium-v2"])
def test_an_unknown_id_gives_the_known_ones(task):
    with pytest.raises(InputError, match=r"expected a task .*Hopper-v4") as error:
        resolve_task(task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", mujoco_tasks())
def test_every_task_runs(task):
    if task == "Pusher-v4" and gymnasium.__version__ >= "1":
        pytest.skip("its model is not for mujoco 3, as gymnasium says")
    env = make_mujoco_env(task)
    obs, _ = env.reset(seed=0)
    assert isinstance(env.observation_space, gymnasium.spaces.Box) and len(obs.shape) == 1
    assert len(env.step(env.action_space.sample())) == 5
    env.close()


def test_without_mujoco_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(mujoco, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "tianshou_ext\[mujoco\]"'):
        make_mujoco_env("Hopper-v4")
    make_mujoco_env("Pendulum-v1").close()


def test_what_refuses_to_start_is_one_sentence():
    with pytest.raises(InputError, match="expected to make module:Mine-v0") as error:
        make_mujoco_env("module:Mine-v0")
    assert "\n" not in str(error.value)


def test_every_reset_of_all_environments_starts_the_same_episodes():
    venv = make_mujoco_venv("Hopper-v4", 3, seed=5, max_episode_steps=7)
    first, _ = venv.reset()
    assert len(np.unique(first[:, 0])) == 3
    assert np.array_equal(venv.reset()[0], first)
    alone, _ = venv.reset([1])
    assert not np.array_equal(alone[0], first[1])
    assert np.array_equal(make_mujoco_venv("Hopper-v4", 3, seed=5).reset()[0], first)
    assert not np.array_equal(make_mujoco_venv("Hopper-v4", 3, seed=6).reset()[0], first)
    venv.reset()
    over = [venv.step(np.zeros((3, 3)))[3] for _ in range(7)]
    assert np.all(over[-1]) and not np.any(over[:-1])
    with pytest.raises(InputError, match="at least one environment, got 0"):
        make_mujoco_venv("Hopper-v4", 0, seed=0)


@pytest.mark.parametrize(
    ("task", "package", "size"),
    [
        ("PointMaze_UMaze-v3", "gymnasium_robotics", 8),
        ("dm_control/cartpole-swingup-v0", "shimmy", 5),
    ],
)
def test_observations_of_several_parts_are_joined_as_gymnasium_does(task, package, size):
    pytest.importorskip(package)
    assert resolve_task(task) == task
    env = make_mujoco_env(task)
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (size,)
    parts, _ = env.unwrapped.reset(seed=0)
    assert np.array_equal(gymnasium.spaces.flatten(env.unwrapped.observation_space, parts), obs)
    length, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        length, over = length + 1, terminated or truncated
    assert truncated and not terminated and length in (300, 1000)


def test_an_environment_of_ones_own_by_the_module_that_registers_it(tmp_path, monkeypatch):
    """It has no argument at all, as those that people write for their robot often have."""
    (tmp_path / "my_robot_module.py").write_text(
        "import gymnasium, numpy as np\n"
        "from gymnasium.spaces import Box\n"
        "class MyRobot(gymnasium.Env):\n"
        "    observation_space, action_space = Box(-9, 9, (3,)), Box(-2, 2, (1,))\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return np.zeros(3, np.float32), {}\n"
        "    def step(self, act):\n"
        "        return np.zeros(3, np.float32), 1.0, False, False, {}\n"
        "gymnasium.register('MyRobot-v0', MyRobot, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = resolve_task("my_robot_module:MyRobot-v0")
    env = make_mujoco_env(task)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3] for _ in range(5)]
    assert ends == [False] * 4 + [True]


def test_a_task_that_fails_to_start_gets_one_sentence():
    def broken(**options):
        raise AssertionError

    gymnasium.register("BrokenKitchen-v0", broken)
    with pytest.raises(InputError, match=r"BrokenKitchen-v0, .*AssertionError.*mujoco<3.12") as e:
        make_mujoco_env("BrokenKitchen-v0")
    del gymnasium.registry["BrokenKitchen-v0"]
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("task", "extra"), [("PointMaze_UMaze-v3", "robotics"), ("dm_control/walker-run-v0", "dmc")]
)
def test_without_the_package_of_a_task_its_extra_is_named(task, extra, monkeypatch):
    monkeypatch.setattr(gymnasium, "registry", {})
    for package in ("gymnasium_robotics", "shimmy"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'pip install "tianshou_ext\[{extra}\]"'):
        resolve_task(task)
