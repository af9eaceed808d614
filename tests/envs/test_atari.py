"""Atari environments: what a user would notice if the DQN protocol broke."""

import pickle

import numpy as np
import pytest

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from tianshou_ext.envs.atari import make_atari_env, make_atari_venv, resolve_task

PONG = "PongNoFrameskip-v4"
BREAKOUT = "BreakoutNoFrameskip-v4"


def rollout(env, num_steps, seed=None, action_seed=0):
    """Return the frames, rewards and flags of a game with fixed random actions."""
    rng = np.random.default_rng(action_seed)
    obs, _ = env.reset(seed=seed)
    frames, rewards = [obs], []
    for _ in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        frames.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            obs, _ = env.reset()
            frames.append(obs)
    return np.array(frames), np.array(rewards)


def lose_a_life(env):
    """Fire until the episode ends or a life is gone; return the last step and the lives."""
    _, info = env.reset(seed=0)
    lives = info["lives"]
    for _ in range(500):
        step = env.step(1)
        if step[2] or step[4]["lives"] < lives:
            return step, lives
    raise AssertionError("no life was lost in 500 steps")


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_spaces(frame_stack):
    env = make_atari_env(PONG, seed=0, frame_stack=frame_stack)
    assert env.observation_space.shape == (frame_stack, 84, 84)
    assert env.observation_space.dtype == np.uint8
    assert env.action_space.n == 6
    assert env.get_action_meanings()[:4] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    obs, info = env.reset()
    obs_next, reward, terminated, truncated, info_next = env.step(np.int64(0))
    assert env.observation_space.contains(obs) and env.observation_space.contains(obs_next)
    assert isinstance(reward, float) and not terminated and not truncated
    assert info.keys() == info_next.keys()  # Tianshou's buffers need the same keys each step
    assert env.ram().shape == (128,) and env.ram().dtype == np.uint8


def test_stack_repeats_the_first_frame_and_then_rolls():
    env = make_atari_env(PONG, seed=0)
    first, _ = env.reset()
    assert all((first[i] == first[0]).all() for i in range(4))
    kept = first.copy()
    second, *_ = env.step(2)
    np.testing.assert_array_equal(second[:3], first[1:])
    assert (second[3] != first[3]).any()
    np.testing.assert_array_equal(first, kept)  # observations are not overwritten later


@pytest.mark.parametrize("task", [BREAKOUT, "ALE/Breakout-v5"])
def test_same_seed_gives_the_same_game(task):
    frames, rewards = rollout(make_atari_env(task, seed=3), 150)
    again, rewards_again = rollout(make_atari_env(task, seed=3), 150)
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(rewards, rewards_again)
    by_reset, _ = rollout(make_atari_env(task), 150, seed=3)
    np.testing.assert_array_equal(frames, by_reset)


def test_reset_with_a_seed_forgets_the_past():
    env = make_atari_env("ALE/Breakout-v5", training=True)
    frames, _ = rollout(env, 120, seed=1)
    rollout(env, 77, action_seed=9)
    again, _ = rollout(env, 120, seed=1)
    np.testing.assert_array_equal(frames, again)


def test_seeds_and_games_differ():
    env = make_atari_env(PONG, seed=0)
    starts = {env.reset()[1]["episode_frame_number"] for _ in range(12)}
    assert len(starts) > 3  # 1 to 30 no-ops, in evaluation too
    assert min(starts) >= 1 + 4 and max(starts) <= 30 + 4
    starts = {make_atari_env(PONG, seed=s).reset()[1]["episode_frame_number"] for s in range(8)}
    assert len(starts) > 2


def test_sticky_actions_only_in_v0_and_v5():
    def game(task):
        env = make_atari_env(task)
        finals = []
        for seed in range(3):
            _, info = env.reset(seed=seed)
            rng, n = np.random.default_rng(0), (40 - info["episode_frame_number"])
            for _ in range(n):  # to emulator frame 40, whatever the no-ops were
                env.ale.act(env._actions[0])
            for _ in range(80):
                obs, *_ = env.step(rng.integers(6))
            finals.append(obs)
        return finals

    plain, sticky = game("Pong-v4"), game("Pong-v0")
    assert (plain[0] == plain[1]).all() and (plain[0] == plain[2]).all()
    assert (sticky[0] != sticky[1]).any() or (sticky[0] != sticky[2]).any()


def test_rewards_are_clipped_only_in_training():
    def rewards(training):  # action 1 fires; the top row of Space Invaders is worth more than 1
        env = make_atari_env("SpaceInvadersNoFrameskip-v4", training=training)
        return rollout(env, 400, seed=0)[1]

    assert set(rewards(True)) <= {-1.0, 0.0, 1.0}
    assert rewards(False).max() > 1


def test_a_lost_life_ends_the_episode_only_in_training():
    step, lives = lose_a_life(make_atari_env(BREAKOUT))
    assert not step[2] and step[4]["lives"] == lives - 1

    env = make_atari_env(BREAKOUT, training=True)
    step, lives = lose_a_life(env)
    assert step[2] and not step[3] and step[4]["lives"] == lives - 1
    _, info = env.reset()  # the next life of the same game
    assert info["lives"] == lives - 1
    env = make_atari_env(BREAKOUT, training=True)
    env.reset(seed=0)
    env.step(0)
    assert env.reset()[1]["lives"] == 5  # no life lost: a new game


@pytest.mark.parametrize("training", [False, True])
def test_time_limit_truncates(training):
    env = make_atari_env(PONG, training=training, max_episode_frames=120)
    _, info = env.reset(seed=0)
    for _ in range(40):
        *_, terminated, truncated, info = env.step(0)
        assert not terminated
        assert truncated == (info["episode_frame_number"] >= 120)
        if truncated:
            break
    assert truncated
    assert env.reset()[1]["episode_frame_number"] < 40  # a new game


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("PongNoFrameskip-v4", ("pong", 0.0)),
        ("PongNoFrameskip-v0", ("pong", 0.25)),
        ("PongDeterministic-v4", ("pong", 0.0)),
        ("PongDeterministic-v0", ("pong", 0.25)),
        ("Pong-v4", ("pong", 0.0)),
        ("Pong-v0", ("pong", 0.25)),
        ("ALE/Pong-v5", ("pong", 0.25)),
        ("Pong", ("pong", 0.0)),
        ("space_invaders", ("space_invaders", 0.0)),
        ("MsPacmanNoFrameskip-v4", ("ms_pacman", 0.0)),
        ("QbertNoFrameskip-v4", ("qbert", 0.0)),
    ],
)
def test_ids_resolve(task, expected):
    assert resolve_task(task) == expected


@pytest.mark.parametrize("task", ["PomgNoFrameskip-v4", "CartPole-v1", "PongNoFrameskip-v7", ""])
def test_unknown_ids_say_what_to_write(task):
    with pytest.raises(ValueError, match="expected an Atari id such as") as error:
        make_atari_env(task)
    assert repr(task) in str(error.value) and "\n" not in str(error.value)
    assert "PongNoFrameskip-v4" in str(error.value).split("got")[1]
    with pytest.raises(ValueError, match="expected an Atari id"):
        make_atari_venv(task, 2, seed=0)  # in this process, not in a worker


def test_render_and_pickle():
    env = make_atari_env(PONG, seed=5, render_mode="rgb_array", frame_stack=2)
    obs, _ = env.reset()
    assert env.render().shape == (210, 160, 3)
    copy = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(copy.reset()[0], obs)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_vector_env(num_envs):
    venv = make_atari_venv(PONG, num_envs, seed=0)
    try:
        obs, info = venv.reset()
        assert obs.shape == (num_envs, 4, 84, 84) and obs.dtype == np.uint8
        for _ in range(3):
            obs, reward, terminated, truncated, _ = venv.step(np.zeros(num_envs, int))
        assert obs.shape == (num_envs, 4, 84, 84) and reward.shape == (num_envs,)
        assert not terminated.any() and not truncated.any()
        if num_envs > 1:
            frames = [i["episode_frame_number"] for i in info]
            assert frames[0] != frames[1]  # each environment has its own seed
    finally:
        venv.close()
    with pytest.raises(ValueError, match="num_envs >= 1"):
        make_atari_venv(PONG, 0, seed=0)
