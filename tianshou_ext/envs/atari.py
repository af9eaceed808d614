"""Atari games under the DQN protocol, on gymnasium 0.28 and 1.x alike.

The games are made from ``ale_py`` itself, whose wheel carries the ROMs: ale-py registers its ids
with gymnasium 1.x only. Mnih et al., "Human-level control through deep reinforcement learning",
Nature 2015: 1 to 30 no-ops at reset, FIRE at reset where the game has it, each action repeated for
4 emulator frames, the observation the pixel maximum of the last two, 84x84 grey, 4 frames stacked.

Every usual id resolves to the game, always with our skip of 4 and the maximum; only the
probability that the console repeats the last action ("sticky") depends on the id:

* ``PongNoFrameskip-v4``, ``PongDeterministic-v4``, ``Pong-v4``, ``Pong``: sticky 0;
* ``PongNoFrameskip-v0``, ``PongDeterministic-v0``, ``Pong-v0``, ``ALE/Pong-v5``: sticky 0.25.
  (Gymnasium's ``Pong-v4`` and ``Pong-v0`` skip 2 to 4 frames at random; ours skip 4.)

Differences from Tianshou's ``atari_wrapper``: the maximum is taken on the grey frames of the ALE,
as in Dopamine (Tianshou: on RGB, then grey by OpenCV), so pixels differ by a few grey levels.
"""

import difflib
import re
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from tianshou.env import BaseVectorEnv, DummyVectorEnv, ShmemVectorEnv

from tianshou_ext.errors import InputError

FRAME_SKIP = 4
FRAME_SIZE = 84
MAX_NOOPS = 30
MAX_EPISODE_FRAMES = 108_000  # 30 minutes at 60 Hz: Machado et al., JAIR 2018, Table 1

Frames = np.ndarray[Any, Any]

_TASK_ID = re.compile(
    r"(?:(?P<new>(?:ALE/)?(?P<name5>\w+?)-v5)|"
    r"(?P<name>\w+?)(?:NoFrameskip|Deterministic)?(?:-v(?P<version>[04]))?)"
)


def _import_backends() -> tuple[Any, Any]:
    """Import the optional packages.

    :raises ImportError: if ale_py or cv2 is missing.
    """
    try:
        import ale_py
        import cv2
    except ImportError as error:
        raise ImportError(
            f"Atari games need ale-py and opencv-python-headless, but {error.name!r} cannot be "
            'imported; run `pip install "tianshou_ext[atari]"`.'
        ) from error
    return ale_py, cv2


def resolve_task(task: str) -> tuple[str, float]:
    """Turn an id such as ``PongNoFrameskip-v4`` into the ROM's name and the sticky probability.

    :param task: see the module docstring; case and underscores of the game's name do not matter.
    :return: for example ``("pong", 0.0)``.
    :raises InputError: if no game of that name exists or the id has another form.
    """
    _import_backends()
    from ale_py import roms

    games = {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids()}
    match = _TASK_ID.fullmatch(task)
    name = (match["name5"] or match["name"]).replace("_", "").lower() if match else ""
    if match and name in games:
        return games[name], 0.25 if match["new"] or match["version"] == "0" else 0.0
    stem = name or re.sub(r"^ALE/|[-_ ]|NoFrameskip.*|Deterministic.*|v\d+$", "", task).lower()
    close = [games[n] for n in difflib.get_close_matches(stem, games, n=3)]
    names = [rom.title().replace("_", "") for rom in close]
    hint = " or ".join(f"{n}NoFrameskip-v4" for n in names) or "PongNoFrameskip-v4"
    raise InputError(
        f"expected an Atari id such as PongNoFrameskip-v4, Pong-v4 or ALE/Pong-v5, got {task!r}; "
        f"{'did you mean' if names else 'write for example'} {hint}{'?' if names else '.'}"
    )


class AtariEnv(gym.Env[Frames, Any], gym.utils.EzPickle):
    """One Atari game with the whole DQN preprocessing in a single class.

    Observations are uint8 (frame_stack, 84, 84), oldest frame first. Pickling keeps the arguments,
    not the state of a game under way. Parameters are those of :func:`make_atari_env`.
    """

    metadata = {  # noqa: RUF012 (no ClassVar in gymnasium either)
        "render_modes": ["human", "rgb_array"],
        "render_fps": 60 // FRAME_SKIP,
    }

    def __init__(
        self,
        task: str,
        *,
        seed: int | None = None,
        frame_stack: int = 4,
        training: bool = False,
        render_mode: str | None = None,
        max_episode_frames: int = MAX_EPISODE_FRAMES,
    ) -> None:
        gym.utils.EzPickle.__init__(
            self,
            task,
            seed=seed,
            frame_stack=frame_stack,
            training=training,
            render_mode=render_mode,
            max_episode_frames=max_episode_frames,
        )
        if frame_stack < 1:
            raise InputError(f"expected frame_stack >= 1, got {frame_stack}; the usual value is 4.")
        self.game, sticky = resolve_task(task)
        ale_py, self._cv2 = _import_backends()
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
        self._console = ale_py.AtariEnv(
            self.game, frameskip=1, repeat_action_probability=sticky, render_mode=render_mode
        )
        self.ale = self._console.ale
        self.training = training
        self.render_mode = render_mode
        self.max_episode_frames = max_episode_frames
        self.action_space = gym.spaces.Discrete(len(self._console._action_set))
        shape = (frame_stack, FRAME_SIZE, FRAME_SIZE)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self._actions = list(self._console._action_set)
        meanings = self.get_action_meanings()
        self._fire = meanings.index("FIRE") if "FIRE" in meanings else None
        self._screens = np.zeros((2, *self.ale.getScreenDims()), np.uint8)
        self._stack = np.zeros(shape, np.uint8)
        self._pending_seed = seed
        self._lives = 0
        self._next_life = False  # a life was lost in training, but the game goes on

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions, in the order of the action space."""
        meanings: list[str] = self._console.get_action_meanings()
        return meanings

    def ram(self) -> Frames:
        """Return a copy of the console's memory, uint8 (128,), for scripted players."""
        memory: Frames = self.ale.getRAM()
        return memory

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Start an episode: a new game or, in training after a lost life, the next life.

        :param seed: seeds the no-ops and the console, and starts a new game; without it the first
            reset takes the constructor's seed and later ones go on with the same generator.
        """
        seed, self._pending_seed = (self._pending_seed if seed is None else seed), None
        super().reset(seed=seed)
        if seed is not None:
            self._console.seed_game(seed)
            self._console.load_game()
            self._next_life = False
        if self._next_life:
            self._emulate(0)
        if not self._next_life or self.ale.game_over():
            self._new_game()
        if self._fire is not None:
            self._emulate(self._fire)
            if self.ale.game_over():
                self._new_game()
        self._lives = self.ale.lives()
        self._next_life = False
        self._stack[:] = self._frame()
        return self._stack.copy(), self._info()

    def step(self, action: int) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """Repeat one action for 4 emulator frames."""
        score = self._emulate(int(action))
        game_over = self.ale.game_over()
        truncated = not game_over and self.ale.getEpisodeFrameNumber() >= self.max_episode_frames
        lives = self.ale.lives()
        life_lost = self.training and 0 < lives < self._lives
        self._lives = lives
        self._next_life = life_lost and not truncated
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._frame()
        reward = float(np.sign(score) if self.training else score)
        return self._stack.copy(), reward, game_over or life_lost, truncated, self._info()

    def render(self) -> Any:
        """Return the screen, uint8 (210, 160, 3), if ``render_mode`` is ``rgb_array``."""
        return self.ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    def _new_game(self) -> None:
        self.ale.reset_game()
        for _ in range(self.np_random.integers(1, MAX_NOOPS + 1)):
            self.ale.act(self._actions[0])
            if self.ale.game_over():
                self.ale.reset_game()
        self.ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = self._screens[0]

    def _emulate(self, action: int) -> int:
        """Act for 4 frames, keep the last two screens and return the summed reward."""
        reward = 0
        for k in range(FRAME_SKIP):
            reward += self.ale.act(self._actions[action])
            if k >= FRAME_SKIP - 2:
                self.ale.getScreenGrayscale(self._screens[k - FRAME_SKIP])
            if self.ale.game_over():
                self.ale.getScreenGrayscale(self._screens[0])
                self._screens[1] = self._screens[0]
                break
        return reward

    def _frame(self) -> Frames:
        screen = np.maximum(self._screens[0], self._screens[1])
        size = (FRAME_SIZE, FRAME_SIZE)
        frame: Frames = self._cv2.resize(screen, size, interpolation=self._cv2.INTER_AREA)
        return frame  # (84, 84)

    def _info(self) -> dict[str, Any]:
        return {"lives": self._lives, "episode_frame_number": self.ale.getEpisodeFrameNumber()}


def make_atari_env(
    task: str,
    *,
    seed: int | None = None,
    frame_stack: int = 4,
    training: bool = False,
    render_mode: str | None = None,
    max_episode_frames: int = MAX_EPISODE_FRAMES,
) -> AtariEnv:
    """Make one Atari environment.

    :param task: for example ``PongNoFrameskip-v4``; the module docstring says how ids resolve.
    :param seed: used by the first reset; the same seed and actions give the same frames.
    :param frame_stack: frames per observation; at an episode's start the first one is repeated.
    :param training: episodes end with a life and rewards are clipped to their sign; False: the
        full game and the true score.
    :param render_mode: ``rgb_array``, ``human`` or None.
    :param max_episode_frames: emulator frames of a game, no-ops included, after which it is
        ``truncated``; 108,000 frames are 27,000 agent steps.
    :raises InputError: if the task is unknown.
    :raises ImportError: if ale_py or cv2 is missing.
    """
    return AtariEnv(
        task,
        seed=seed,
        frame_stack=frame_stack,
        training=training,
        render_mode=render_mode,
        max_episode_frames=max_episode_frames,
    )


def make_atari_venv(
    task: str,
    num_envs: int,
    *,
    seed: int | None = None,
    frame_stack: int = 4,
    training: bool = False,
    max_episode_frames: int = MAX_EPISODE_FRAMES,
) -> BaseVectorEnv:
    """Make a Tianshou vector environment; more than one environment run in subprocesses.

    :param num_envs: number of environments; each gets its own seed derived from ``seed``.
    :raises InputError: if the task is unknown or ``num_envs`` is not positive.
    """
    resolve_task(task)  # fail here rather than in a subprocess
    if num_envs < 1:
        raise InputError(f"expected num_envs >= 1, got {num_envs}; one environment needs 1.")
    seeds: list[int | None] = [None] * num_envs
    if seed is not None:
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(num_envs)]
    make = partial(
        make_atari_env,
        task,
        frame_stack=frame_stack,
        training=training,
        max_episode_frames=max_episode_frames,
    )
    venv = DummyVectorEnv if num_envs == 1 else ShmemVectorEnv
    return venv([partial(make, seed=s) for s in seeds])
