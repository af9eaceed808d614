"""Change the rewards or the actions' range of a buffer file, or add noise to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.actions import ACT_SLACK, unit_actions
from tianshou_ext.data.blocks import BufferFile, mapped_leaves
from tianshou_ext.data.convert.common import Report
from tianshou_ext.data.rewrite import Rows, check_seed, rewrite
from tianshou_ext.data.writer import Compression, flat_columns
from tianshou_ext.errors import InputError

__all__ = ["relabel"]

Array = np.ndarray[Any, Any]
LARGEST = 1e30  # number in an option of relabel; rewards must stay within float32


def relabel(
    file: Path,
    /,
    *,
    out: Path,
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
    reward_clip: tuple[float, float] | None = None,
    obs_noise: float = 0.0,
    act_noise: float = 0.0,
    clip_actions: bool = False,
    act_low: tuple[float, ...] = (),
    act_high: tuple[float, ...] = (),
    seed: int = 0,
    compression: Compression = "none",
    progress: bool = True,
) -> Report:
    """Change rewards, scale actions, or add noise to observations or actions.

    A reward becomes clip(scale * reward + shift). Rows that are no transitions (the final
    observation of a truncated episode) keep their reward, and their action but for its scale.

    :param file: the buffer file.
    :param out: the file to make.
    :param reward_scale: factor of the rewards.
    :param reward_shift: added to the scaled rewards.
    :param reward_clip: lowest and highest reward, applied last.
    :param obs_noise: standard deviation of Gaussian noise on observations, in their units. A next
        observation gets the noise of the row it belongs to, so both still agree.
    :param act_noise: standard deviation of Gaussian noise on actions, in their units.
    :param clip_actions: keep noisy actions within the range recorded for each dimension.
    :param act_low: least actions of the environment, one number for all dimensions or one for each:
        actions are scaled from these bounds to [-1, 1], as Tianshou's buffers hold them.
    :param act_high: greatest actions of the environment.
    :param seed: of the noise.
    :param compression: none can be mapped instead of read; gzip, zstd save disk.
    :param progress: show progress bars.
    :raises InputError: if nothing would change, noise or bounds are asked for on whole numbers, or
        an action lies outside the bounds.
    """
    check_seed(seed)
    numbers = [reward_scale, reward_shift, obs_noise, act_noise, *(reward_clip or ())]
    numbers += [*act_low, *act_high]
    if not all(abs(number) <= LARGEST for number in numbers):
        raise InputError(f"expected finite numbers of at most {LARGEST:g}, got {numbers}")
    if min(obs_noise, act_noise) < 0:
        raise InputError(f"expected noise of 0 or more, got {min(obs_noise, act_noise)}")
    if reward_clip is not None and reward_clip[0] >= reward_clip[1]:
        raise InputError(f"expected reward_clip as LOW HIGH, got {reward_clip}")
    if act_noise and (act_low or act_high):
        raise InputError(
            "expected --act-noise, or --act-low and --act-high, not both: noise leaves the bounds; "
            "scale first, then add noise to the new file"
        )
    if clip_actions and not act_noise:
        raise InputError("expected --act-noise with --clip-actions, got none")
    asked = (reward_scale, reward_shift, reward_clip, obs_noise, act_noise, act_low, act_high)
    if asked == (1, 0, None, 0, 0, (), ()):
        raise InputError("expected something to change, got no option that does")
    options = {
        "reward_scale": reward_scale,
        "reward_shift": reward_shift,
        "reward_clip": None if reward_clip is None else list(reward_clip),
        "obs_noise": obs_noise,
        "act_noise": act_noise,
        "clip_actions": clip_actions,
        "act_low": list(act_low),
        "act_high": list(act_high),
        "seed": seed,
    }
    with BufferFile(file) as source:
        _check_noise(source, obs_noise, act_noise)
        obs_change = _ObsNoise(source, obs_noise, seed) if obs_noise else None
        act_change = _ActNoise(source, act_noise, clip_actions, seed) if act_noise else None
        act_scale = _ActScale(source, act_low, act_high) if act_low or act_high else None

        def change(rows: Rows) -> None:
            usable = source.transitions[rows.start : rows.stop]
            reward = rows.columns["rew"].astype(np.float64) * reward_scale + reward_shift
            if reward_clip is not None:
                reward = np.clip(reward, *reward_clip)
            before = rows.columns["rew"]
            with np.errstate(over="ignore"):  # infinity is refused below
                rows.columns["rew"] = np.where(usable, reward, before).astype(np.float32)
            lost = np.isfinite(before) & ~np.isfinite(rows.columns["rew"])
            if lost.any():
                raise InputError(
                    f"expected rewards that float32 can hold, got {reward[lost][0]:g} in row "
                    f"{rows.start + int(np.argmax(lost))} of {source.path}; scale or shift by less"
                )
            if obs_change is not None:
                obs_change.apply(rows)
            if act_change is not None:
                act_change.apply(rows, usable)
            if act_scale is not None:
                act_scale.apply(rows, usable)

        return rewrite(
            "relabel",
            [source],
            out,
            {key: value for key, value in options.items() if value not in (None, False, [])},
            change=change,
            compression=compression,
            progress=progress,
        )


def _check_noise(source: BufferFile, obs_noise: float, act_noise: float) -> None:
    for noise, names in ((obs_noise, ("obs", "obs_next", "frames")), (act_noise, ("act",))):
        for path, (_, dtype) in source.specs.items():
            if noise and path.split("/")[0] in names and np.dtype(dtype).kind != "f":
                raise InputError(
                    f"expected floats to add noise to, got {path} of {dtype} in {source.path}; "
                    "leave the noise out"
                )


class _ObsNoise:
    """Adds noise to observations; the same to a row and to the next observation before it."""

    def __init__(self, source: BufferFile, std: float, seed: int) -> None:
        self.source, self.std = source, std
        paths = [path for path in source.specs if path.split("/")[0] == "obs"]
        seeds = np.random.SeedSequence(seed).spawn(2 * len(paths))
        draws = [np.random.default_rng(one) for one in seeds]
        self._of_rows = dict(zip(paths, draws[::2], strict=True))
        self._of_ends = dict(zip(paths, draws[1::2], strict=True))
        self._upcoming: dict[str, Array] = {}  # noise of the row after the block, (1, ...)

    def apply(self, rows: Rows) -> None:
        """Change ``rows``, which must come block by block."""
        following: dict[str, Array] = {}
        ends = self.source.ends[rows.start : rows.stop]

        def on_obs(path: str, values: Array) -> Array:
            shape = values.shape[1:]
            if path not in self._upcoming:
                self._upcoming[path] = self._of_rows[path].normal(0, self.std, (1, *shape))
            fresh = self._of_rows[path].normal(0, self.std, values.shape)
            noise = np.concatenate([self._upcoming[path], fresh])
            self._upcoming[path] = noise[-1:]
            following[path] = noise[1:].copy()
            after_ends = self._of_ends[path].normal(0, self.std, (int(ends.sum()), *shape))
            following[path][ends] = after_ends
            noisy: Array = values + noise[:-1].astype(values.dtype)
            return noisy

        def on_obs_next(path: str, values: Array) -> Array:
            noise = following[path.replace("obs_next", "obs", 1)]
            noisy: Array = values + noise.astype(values.dtype)
            return noisy

        rows.columns["obs"] = mapped_leaves(on_obs, rows.columns["obs"], "obs")
        if "obs_next" in rows.columns:
            rows.columns["obs_next"] = mapped_leaves(
                on_obs_next, rows.columns["obs_next"], "obs_next"
            )


class _ActNoise:
    """Adds noise to actions."""

    def __init__(self, source: BufferFile, std: float, clip: bool, seed: int) -> None:
        self.std = std
        self._draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1 << 16,)))
        self._low: dict[str, Array] = {}
        self._high: dict[str, Array] = {}
        if clip:
            for start, stop in source.blocks():
                usable = source.transitions[start:stop]
                for path, values in flat_columns(source.read(start, stop, "act")).items():
                    if usable.any():
                        low, high = values[usable].min(0), values[usable].max(0)
                        self._low[path] = np.minimum(self._low.get(path, low), low)
                        self._high[path] = np.maximum(self._high.get(path, high), high)

    def apply(self, rows: Rows, usable: Array) -> None:
        """Change those of ``rows`` that are transitions."""

        def noisy(path: str, values: Array) -> Array:
            noise = self._draw.normal(0, self.std, values.shape)
            changed: Array = values + noise.astype(values.dtype)
            if path in self._low:
                changed = np.clip(changed, self._low[path], self._high[path])
            changed[~usable] = values[~usable]
            return changed

        rows.columns["act"] = mapped_leaves(noisy, rows.columns["act"], "act")


class _ActScale:
    """Scales actions from an environment's bounds to [-1, 1].

    :raises InputError: if the bounds do not fit the actions.
    """

    def __init__(self, source: BufferFile, low: Sequence[float], high: Sequence[float]) -> None:
        shape, dtype = source.specs.get("act", ((), "a Batch"))
        sizes = {len(low), len(high)} - {1}
        is_vector = len(shape) == 1 and np.dtype(dtype).kind == "f"
        if not is_vector or not low or not high or not sizes <= {*shape}:
            raise InputError(
                f"expected --act-low and --act-high of 1 number, or one for each of an action's, "
                f"got {len(low)} and {len(high)} for act of shape {shape} and {dtype} in "
                f"{source.path}"
            )
        self.path = source.path
        self.low, self.high = np.broadcast_arrays(np.array(low), np.array(high))
        if not (self.low < self.high).all():
            raise InputError(f"expected --act-low below --act-high, got {low} and {high}")

    def apply(self, rows: Rows, usable: Array) -> None:
        """Change ``rows``; of those that are no transitions the action means nothing."""
        act = rows.columns["act"]
        scaled = unit_actions(act, self.low, self.high)
        outside = (np.abs(scaled) > 1.0 + ACT_SLACK) & usable[:, None]
        if outside.any():
            row, place = np.argwhere(outside)[0]
            raise InputError(
                f"expected actions within --act-low and --act-high, got {act[row, place]:g} in "
                f"dimension {place} of row {rows.start + row} of {self.path}; give the "
                "environment's bounds"
            )
        rows.columns["act"] = np.clip(scaled, -1.0, 1.0).astype(act.dtype)
