"""RL Unplugged Atari, ordered episodes: one frame a row.

``gs://rl_unplugged/atari_episodes_ordered/{Game}/run_{1..5}-{shard}-of-00050``: TFRecord, gzip, one
tf.train.Example an episode. Sources: the formats as read by TensorFlow Datasets'
``rl_unplugged/atari_utils.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from tianshou_ext.data.convert.check import MAX_ACTIONS
from tianshou_ext.data.convert.common import Options, Report
from tianshou_ext.data.convert.png import PngError, decode_grey
from tianshou_ext.data.convert.records import (
    Example,
    check_discounts,
    convert_records,
    feature,
    missing_shards,
    shards,
)
from tianshou_ext.errors import InputError

__all__ = ["convert"]

FRAME = (84, 84)

Array = np.ndarray[Any, Any]
Rewards = Literal["unclipped", "clipped"]


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    rewards: Rewards = "unclipped",
    **options: Unpack[Options],
) -> Report:
    """Convert RL Unplugged Atari episodes, in order, one frame a row.

    The buffer has ``stack_num`` 4. A truncated episode ends with one extra row: its final
    observation, never sampled.

    :param src: a shard (``run_1-00000-of-00050``) or a folder of shards of one game.
    :param dst: the HDF5 file to make.
    :param rewards: the game's rewards, or those clipped to [-1, 1] by the source.
    :param options: those of every converter.
    :raises InputError: if the source is missing, damaged or of another format.
    """
    if rewards not in ("unclipped", "clipped"):
        raise InputError(f"expected rewards to be unclipped or clipped, got {rewards!r}")
    files = shards(Path(src))
    return convert_records(
        dict.fromkeys(files),
        dst,
        _Episodes(rewards),
        source="rlu-atari-episodes",
        options=options,
        stack_num=4,
        notes=missing_shards(files),
        provenance={
            "game": files[0].absolute().parent.name,
            "shards": [path.name for path in files],
            "rewards": rewards,
            "ordered": True,
        },
    )


@dataclass(frozen=True)
class _Episodes:
    """Reads one episode: T steps, of which the last brings only the observation."""

    rewards: Rewards

    def _steps(self, example: Example) -> tuple[list[bytes], Array, Array, bool]:
        frames = feature(example, "observations", "bytes")
        act = feature(example, "actions", "int")
        rew = feature(example, f"{self.rewards}_rewards", "float")
        discounts = feature(example, "discounts", "float")
        lengths = [len(frames), len(act), len(rew), len(discounts)]
        if len(set(lengths)) != 1:
            raise InputError(
                f"observations, actions, rewards and discounts have the unequal lengths {lengths}"
            )
        if len(act) < 2:
            raise InputError(f"an episode of {len(act)} steps has no transition")
        check_discounts(discounts)
        # The source's own readers look at the last discount only; the one before belongs to the
        # same transition where discounts are aligned with actions.
        if (discounts[:-2] == 0).any() or (discounts[-2] == 0 and discounts[-1] != 0):
            raise InputError("a discount is 0, but the episode goes on")
        wrong = (act[:-1] < 0) | (act[:-1] >= MAX_ACTIONS)
        if wrong.any():
            step = int(np.argmax(wrong))
            raise InputError(f"step {step}, got the action {act[step]}, expected 0 to 17")
        return frames, act, rew, bool(discounts[-1] == 0)

    def rows(self, example: Example) -> int:
        _, act, _, terminal = self._steps(example)
        return len(act) - terminal

    def columns(self, example: Example) -> dict[str, Any]:
        frames, act, rew, terminal = self._steps(example)
        count = len(act) - terminal
        last = np.arange(count) == count - 1
        if not terminal:  # the extra row
            act, rew = np.where(last, 0, act), np.where(last, 0, rew)
        obs = np.empty((len(frames), *FRAME), dtype=np.uint8)
        for k, frame in enumerate(frames):
            try:
                decode_grey(frame, obs[k])
            except PngError as error:
                raise InputError(f"step {k}, got {error.reason}") from error
        return {
            "obs": obs[:count],
            "act": act[:count],
            "rew": rew[:count],
            "terminated": last & terminal,
            "truncated": last & (not terminal),
        }
