"""Log frames of an Atari game: one uint8 frame a step, in a file that both Tianshou lines open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.envs.atari import make_atari_env
from tianshou_ext.errors import InputError

BLOCK = 1024
"""Rows written at once."""

Choose = Callable[[Any, np.ndarray[Any, Any], int | None], int]
"""From the environment, its stacked frames (S, 84, 84) and the last action that was carried out
(None at an episode's start) to an action."""


def collect_atari(
    task: str,
    path: str | Path,
    size: int,
    choose: Choose,
    *,
    eps: float,
    seed: int,
    frame_stack: int = 4,
    max_episode_frames: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Play and log ``size`` rows.

    Rewards are stored sign-clipped, as methods learn from them; the scores are in the provenance.
    The last row, and one after each time-out, holds the final observation of a cut-off episode
    and is no transition.

    :param choose: picks an action; with probability ``eps`` a uniformly random one replaces it.
    :param seed: of the game and of the random actions.
    :param max_episode_frames: emulator frames until a time-out; the protocol's 108,000 if None.
    :return: the provenance: behaviour's scores, seed, and what was passed in.
    :raises InputError: if ``eps`` is no share.
    """
    if not 0.0 <= eps <= 1.0:
        raise InputError(f"expected a share of random actions in [0, 1], got {eps}; change it")
    limit: dict[str, Any] = {}
    if max_episode_frames is not None:
        limit["max_episode_frames"] = max_episode_frames
    env: Any = make_atari_env(task, seed=seed, frame_stack=frame_stack, **limit)
    rng = np.random.default_rng(seed)
    num_actions = int(env.action_space.n)
    scores: list[float] = []
    about: dict[str, Any] = {"task": task, "seed": seed, "eps": eps, **(provenance or {})}
    writer = BufferWriter(
        path,
        size,
        stack_num=frame_stack,
        save_obs_next=False,
        provenance=about,
    )
    block: list[tuple[Any, int, float, bool, bool]] = []
    with writer, tqdm(total=size, desc=f"logging {task}", disable=not show_progress) as bar:

        def add(frame: Any, act: int, rew: float, terminated: bool, truncated: bool) -> None:
            block.append((frame, act, rew, terminated, truncated))
            if len(block) == BLOCK or writer.rows + len(block) == size:
                names = ("obs", "act", "rew", "terminated", "truncated")
                columns = zip(*block, strict=True)
                writer.append(**{k: np.array(v) for k, v in zip(names, columns, strict=True)})
                bar.update(len(block))
                block.clear()

        def left() -> int:
            return size - writer.rows - len(block)

        while left() > 0:
            obs, _ = env.reset()
            score, over, act = 0.0, False, None
            while not over and left() > 1:
                random = rng.random() < eps
                chosen = choose(env, obs, act)
                act = int(rng.integers(num_actions)) if random else chosen
                obs_next, rew, terminated, truncated, _ = env.step(act)
                score += float(rew)
                add(obs[-1], act, float(np.sign(rew)), bool(terminated), False)
                obs, over = obs_next, bool(terminated or truncated)
                if terminated:
                    scores.append(score)
            if not (over and terminated):
                if over:
                    scores.append(score)
                if left() > 0:
                    add(obs[-1], 0, 0.0, False, True)  # the final observation
            bar.set_postfix(episodes=len(scores), score=f"{np.mean(scores or [np.nan]):.1f}")
        writer.provenance.update(
            episodes=len(scores),
            score_mean=float(np.mean(scores)) if scores else None,
            score_std=float(np.std(scores)) if scores else None,
        )
    env.close()
    return writer.provenance
