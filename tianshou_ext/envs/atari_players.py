"""Scripted players that read the console's memory, to log behaviour data without a download.

A player sees the 128 bytes of memory and the action that was carried out last (noise included),
and names an action of the game's minimal set. What it goes by can be read from about the last
four frames: where things are, and where they were one to three steps ago.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tianshou_ext.envs.atari import resolve_task
from tianshou_ext.errors import InputError


class ScriptedPlayer(Protocol):
    """What every player has."""

    def act(self, ram: np.ndarray[Any, Any], last_act: int | None) -> int:
        """Choose an action.

        :param ram: uint8 (128,), the console's memory now.
        :param last_act: what was carried out in the step before; None at an episode's start, where
            the player forgets the episode before.
        """


class PongPlayer:
    """Pong: be just above where the ball arrives, and hit it with the paddle's lower part.

    The paddle goes on moving after a key is released: one step of a key moves it 24 pixels in the
    end, 8.5 of them at once (measured on the console), and what keys move adds up. So the player
    reckons with the keys of the last four steps and presses one only if the paddle would otherwise
    miss its aim by more than ``SLACK``. That is too coarse to choose where on the paddle the ball
    hits; so in the last step it takes whichever of no key, up and down brings the contact nearest
    to ``CONTACT``, from where few balls come back, and fewer if FIRE, which makes them faster, is
    held in the lower part of the field (counted over 48,000 contacts).

    The constants were chosen for what a clone needs: to win without noise in every way a game can
    start (20.5), with 2 % of noise (20.2), and with the ball seen a few pixels off. A player that
    plans the last five steps exactly wins as high, but clones of it lose: they miss its timing.
    """

    BALL_X, BALL_Y, PADDLE_Y = 49, 54, 51  # memory bytes
    NOOP, UP, DOWN = 0, 2, 3
    TOP, BOTTOM = 44.5, 205.5  # walls, in the ball's coordinate
    MIDDLE = 125.0
    ARRIVAL_X = 189.0  # the ball's column at our paddle
    CENTRE = 8.0  # from the paddle's byte to its middle
    AIM, CONTACT = 4.0, 8.0  # pixels below the paddle's middle: on the way, in the last step
    FIRE_ROW = 120.0  # arrivals below this row are hit with FIRE
    LAST = 7.0  # pixels within reach at which the last step has come
    SLACK = 6.0  # pixels
    # Pixels that one key press has moved the paddle after 0, 1, ... emulator frames.
    TRAVEL = (0, 0, 1.5, 4.5, 8.5, 13, 16.5, 19, 20.5, 21.8, 22.6, 23.2, 23.6, 24.0)

    def __init__(self) -> None:
        self._ball: list[tuple[int, int]] = []  # newest first
        self._keys: list[float] = []  # newest first; 1 is down

    def act(self, ram: np.ndarray[Any, Any], last_act: int | None) -> int:
        if last_act is None:
            self._ball, self._keys = [], [0.0] * 4
        else:
            self._keys = [self._direction(last_act), *self._keys[:3]]
        x, y, paddle = (int(ram[k]) for k in (self.BALL_X, self.BALL_Y, self.PADDLE_Y))
        self._ball = [(x, y), *self._ball[:3]]
        if len(self._ball) < 4:
            return self.NOOP
        (x_before, y_before), (x_earlier, y_earlier) = self._ball[1:3]
        vx, vy, vy_before = x - x_before, y - y_before, y_before - y_earlier
        coming = x > 0 and x_before > 0 and 0 < vx < 40 and x < self.ARRIVAL_X + 2
        if not coming:
            return self.NOOP
        if vx == x_before - x_earlier and abs(vy) < abs(vy_before):  # a wall within the step
            vy = abs(vy_before) if y < self.MIDDLE else -abs(vy_before)
        steps = max(self.ARRIVAL_X - x, 0.0) / vx
        arrival, frames = self._folded(y + vy * steps), 4 * steps
        reach = self._travel(frames)
        resting = paddle + sum(
            key * (self._travel(frames + 4 * k + 4) - self._travel(4 * k + 4))
            for k, key in enumerate(self._keys)
        )
        contact, key = arrival - self.CENTRE - resting, self.NOOP
        if 2 <= reach <= self.LAST:
            contacts = {self.NOOP: contact, self.UP: contact + reach, self.DOWN: contact - reach}
            key = min(contacts, key=lambda k: abs(contacts[k] - self.CONTACT))
        elif reach > self.LAST:
            miss = min(max(arrival - self.CENTRE, 38.0), 203.0) - self.AIM - resting
            if abs(miss) > max(0.5 * reach, self.SLACK):
                key = self.UP if miss < 0 else self.DOWN
        if arrival < self.FIRE_ROW:
            return key
        return key + (1 if key == self.NOOP else 2)  # the same key with FIRE

    def _direction(self, act: int) -> float:
        return {self.UP: -1.0, self.UP + 2: -1.0, self.DOWN: 1.0, self.DOWN + 2: 1.0}.get(act, 0.0)

    def _travel(self, frames: float) -> float:
        return float(np.interp(frames, np.arange(len(self.TRAVEL)), self.TRAVEL))

    def _folded(self, y: float) -> float:
        """Reflect a row at the walls."""
        span = self.BOTTOM - self.TOP
        y = (y - self.TOP) % (2 * span)
        return self.TOP + span - abs(span - y)


class BreakoutPlayer:
    """Breakout: serve, follow the rising ball loosely, be under the place where the falling lands.

    The paddle is as slow as Pong's: 12 of 21 pixels in the step of the key, the rest after it. Its
    last three places say where it will stop.
    """

    BALL_X, BALL_Y, PADDLE_X = 99, 101, 72  # memory bytes; BALL_Y is 0 with no ball in play
    NOOP, FIRE, RIGHT, LEFT = 0, 1, 2, 3
    LEFT_WALL, RIGHT_WALL = 55.0, 202.0  # in the ball's coordinate
    LANDING_Y = 181.0  # the ball's row at the paddle
    CENTRE = 8.0  # from the paddle's byte to its middle
    FIRST_PLACE, LAST_PLACE = 55.0, 191.0  # of the paddle
    SLACK, LOOSE = 5.0, 16.0  # pixels off the aim that are left alone: falling, rising ball
    # Pixels that one key press has moved the paddle after 0, 1, ... emulator frames.
    TRAVEL = (0, 0, 3, 7, 12, 17, 19, 20, 21, 21)

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int]] = []  # ball x, ball y, paddle x; newest first

    def act(self, ram: np.ndarray[Any, Any], last_act: int | None) -> int:
        if last_act is None:
            self._seen = []
        x, y, paddle = (int(ram[k]) for k in (self.BALL_X, self.BALL_Y, self.PADDLE_X))
        self._seen = [(x, y, paddle), *self._seen[:2]]
        if y == 0:
            return self.FIRE
        if len(self._seen) < 3:
            return self.NOOP
        (x_before, y_before, paddle_before), (_, _, paddle_earlier) = self._seen[1:]
        vx, vy = x - x_before, y - y_before
        arrival, frames, slack = float(x), 40.0, self.LOOSE
        if y_before > 0 and vy > 0 and y < self.LANDING_Y + 4:
            steps = max(self.LANDING_Y - y, 0.0) / vy
            arrival, frames = self._folded(x + vx * steps), 4 * steps
            reach = float(np.interp(frames, np.arange(len(self.TRAVEL)), self.TRAVEL))
            if reach < 2:
                return self.NOOP
            slack = max(0.5 * reach, self.SLACK)
        # Weights fitted by hand to a few key presses.
        resting = paddle + 0.75 * (paddle - paddle_before) - 0.42 * (paddle_before - paddle_earlier)
        resting = min(max(resting, self.FIRST_PLACE), self.LAST_PLACE)
        aim = min(max(arrival - self.CENTRE, self.FIRST_PLACE), self.LAST_PLACE)
        miss = aim - (paddle + (resting - paddle) * (1 - 0.6**frames))
        if abs(miss) <= slack:
            return self.NOOP
        return self.RIGHT if miss > 0 else self.LEFT

    def _folded(self, x: float) -> float:
        """Reflect a column at the walls."""
        span = self.RIGHT_WALL - self.LEFT_WALL
        x = (x - self.LEFT_WALL) % (2 * span)
        return self.LEFT_WALL + span - abs(span - x)


PLAYERS: dict[str, type[Any]] = {"pong": PongPlayer, "breakout": BreakoutPlayer}


def make_player(task: str) -> ScriptedPlayer:
    """Return the scripted player for a task.

    :raises InputError: if there is none for its game.
    """
    game, _ = resolve_task(task)
    if game not in PLAYERS:
        raise InputError(
            f"expected a game with a scripted player ({', '.join(sorted(PLAYERS))}) when no buffer "
            f"is given, got {task!r}; there are three ways to get a buffer: train the online "
            "expert with examples/atari/atari_qrdqn.py and save its play with --save-buffer-name, "
            "load an RL Unplugged buffer with --buffer-from-rl-unplugged and --load-buffer-name, "
            "or pass your own HDF5 with --load-buffer-name"
        )
    player: ScriptedPlayer = PLAYERS[game]()
    return player
