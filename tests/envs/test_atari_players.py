"""Scripted players: they must play well, alike each time, and with noise."""

import numpy as np
import pytest

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from tianshou_ext.envs.atari import make_atari_env
from tianshou_ext.envs.atari_players import PLAYERS, make_player


def play(game, eps, max_steps, seed=0):
    """Play one game without making frames; return the score, the choices and whether it ended."""
    env = make_atari_env(game, seed=seed)
    env._frame = lambda: np.zeros((84, 84), np.uint8)
    env.reset()
    player, rng = make_player(game), np.random.default_rng(seed)
    score, choices, last_act = 0.0, [], None
    for _ in range(max_steps):
        act = player.act(env.ram(), last_act)
        choices.append(act)
        last_act = int(rng.integers(env.action_space.n)) if rng.random() < eps else act
        _, reward, terminated, truncated, _ = env.step(last_act)
        score += reward
        if terminated or truncated:
            return score, choices, True
    return score, choices, False


@pytest.mark.parametrize("game", sorted(PLAYERS))
def test_choices_are_actions_and_repeat(game):
    score, choices, _ = play(game, 0.2, 150, seed=1)
    assert set(choices) <= set(range(make_atari_env(game).action_space.n))
    assert len(set(choices)) > 2
    assert play(game, 0.2, 150, seed=1)[:2] == (score, choices)


@pytest.mark.parametrize("game", sorted(PLAYERS))
def test_a_new_episode_forgets(game):
    _, first, _ = play(game, 0.0, 1, seed=2)
    player = make_player(game)
    env = make_atari_env(game, seed=2)
    env.reset()
    for _ in range(5):
        player.act(np.full(128, 90, np.uint8), 3)
    assert player.act(env.ram(), None) == first[0]


def test_breakout_serves_when_no_ball_is_in_play():
    ram = np.zeros(128, np.uint8)
    assert make_player("Breakout").act(ram, None) == 1


def test_breakout_scores_without_noise():
    score, _, _ = play("breakout", 0.0, 1500)
    assert score >= 50


@pytest.mark.parametrize("seed", range(2))
def test_pong_beats_the_console_without_noise(seed):
    # What a perfect clone would score; a rally that lasts for ever would show as a low score.
    assert play("pong", 0.0, 2500, seed=seed)[0] >= 18


@pytest.mark.slow
def test_pong_beats_the_console_with_a_little_noise():
    scores = [play("pong", 0.05, 8000, seed=s)[0] for s in range(2)]
    assert np.mean(scores) > 10


@pytest.mark.parametrize("task", ["SeaquestNoFrameskip-v4", "ALE/Boxing-v5"])
def test_a_game_without_a_player_says_how_to_get_a_buffer(task):
    with pytest.raises(ValueError, match="three ways") as error:
        make_player(task)
    message = str(error.value)
    assert task in message and "\n" not in message
    for way in (
        "examples/atari/atari_qrdqn.py",
        "--save-buffer-name",
        "--buffer-from-rl-unplugged",
        "--load-buffer-name",
    ):
        assert way in message
