"""Whether a data set and its spaces suit a method."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer

from tianshou_ext.data.actions import ACT_SLACK
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.policy.registry import METHODS, method_name
from tianshou_ext.tianshou_api import ReplayBuffer

if TYPE_CHECKING:
    from tianshou_ext.policy.base import OfflinePolicy

SCALE_ACTIONS = "tianshou-ext relabel FILE --act-low LOW --act-high HIGH --out NEW"


def check_spaces(observation_space: Any, action_space: Any, actions: str) -> None:
    """Check that the spaces are of a kind that a method can use.

    :param actions: the method's: ``discrete``, ``continuous`` or ``both``.
    :raises InputError: if observations are no Box, or actions of another kind, no vectors or
        unbounded.
    """
    if not isinstance(observation_space, Box):
        raise InputError(
            f"expected a Box observation space, got {observation_space}; flatten it first, "
            "for example with gymnasium.wrappers.FlattenObservation"
        )
    kinds = {"discrete": (Discrete,), "continuous": (Box,), "both": (Discrete, Box)}[actions]
    if not isinstance(action_space, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"expected a {names} action space, got {action_space}; use another method or task"
        )
    if isinstance(action_space, Box) and len(action_space.shape) != 1:
        raise InputError(
            f"expected actions that are vectors, of shape (A,), got {action_space}; flatten them "
            "in a wrapper of the environment"
        )
    if isinstance(action_space, Box) and not action_space.is_bounded():
        raise InputError(
            f"expected actions with bounds, onto which [-1, 1] is mapped, got {action_space}; "
            "bound them, for example with a Box of the least and largest actions of the data"
        )
    if isinstance(action_space, Discrete) and action_space.start != 0:
        raise InputError(
            f"expected actions that count from 0, got {action_space}; "
            "wrap the environment so that they do"
        )


def check_buffer(buffer: ReplayBuffer) -> None:
    """Warn if a buffer's priorities would be expected to count."""
    if isinstance(buffer, PrioritizedReplayBuffer | PrioritizedVectorReplayBuffer):
        warnings.warn(
            f"expected a buffer that is sampled uniformly, got a {type(buffer).__name__}; its "
            "priorities are neither used nor updated",
            stacklevel=4,
        )


def check_data(
    replay: Replay, observation_space: Any, action_space: Any, *, scales: bool = True
) -> None:
    """Check that a buffer's transitions are of the policy's spaces.

    :param scales: whether the policy maps its actions from [-1, 1] to the space.
    :raises InputError: if observations or actions are of another shape, or outside the space.
    """
    if observation_space is not None and replay.obs_shape != tuple(observation_space.shape):
        raise InputError(
            f"expected observations of shape {tuple(observation_space.shape)}, got "
            f"{replay.obs_shape} in the buffer; use the data set of this task, or make the "
            "environment with the data set's shape"
        )
    act = replay.act[replay.rows.to(replay.act.device)]
    if isinstance(action_space, Discrete):
        low, high = int(act.min()), int(act.max())
        if act.ndim != 1 or act.dtype != torch.int64:
            raise InputError(
                f"expected one whole-numbered action a step, got shape {tuple(act.shape)} and "
                f"{act.dtype}; use a data set with discrete actions"
            )
        if low < 0 or high >= int(action_space.n):
            raise InputError(
                f"expected actions from 0 to {int(action_space.n) - 1}, got {low} to {high} in "
                "the buffer; use the data set of this task"
            )
    elif tuple(act.shape[1:]) != tuple(action_space.shape):
        raise InputError(
            f"expected actions of shape {tuple(action_space.shape)}, got {tuple(act.shape[1:])} "
            "in the buffer; use the data set of this task"
        )
    elif float(act.abs().max()) > 1.0 + ACT_SLACK:
        raise InputError(
            "expected actions in [-1, 1], as Tianshou's buffers hold them before map_action scales "
            f"them to the space, got {float(act.min()):g} to {float(act.max()):g} in the buffer; "
            f"scale them: {SCALE_ACTIONS}"
        )
    elif scales:
        warn_of_unscaled(act, action_space)


def warn_of_unscaled(act: torch.Tensor, action_space: Any) -> None:
    """Warn if actions (N, A) lie within bounds narrower than [-1, 1], as unscaled ones would."""
    low, high = (
        torch.as_tensor(b, device=act.device) for b in (action_space.low, action_space.high)
    )
    narrow = bool((low >= -1.0).all() and (high <= 1.0).all() and (high - low < 1.9).any())
    if narrow and bool(((act >= low - ACT_SLACK) & (act <= high + ACT_SLACK)).all()):
        warnings.warn(
            "expected actions in [-1, 1], as Tianshou's buffers hold them before map_action scales "
            f"them to the space, got {float(act.min()):g} to {float(act.max()):g} in the buffer, "
            "all within the space's own bounds; if they are the environment's, scale them: "
            f"{SCALE_ACTIONS}",
            stacklevel=2,
        )


def check_environment(policy: OfflinePolicy, envs: Any) -> None:
    """Check that vector environments, if there are any, have the policy's spaces.

    :raises InputError: if they have other ones.
    """
    for kind in ("observation", "action") if envs is not None else ():
        mine, given = getattr(policy, f"{kind}_space"), getattr(envs, f"{kind}_space")
        theirs = given[0] if isinstance(given, list) else given
        if mine is None:
            continue
        same = (mine.shape, getattr(mine, "n", 0)) == (theirs.shape, getattr(theirs, "n", 0))
        if same and kind == "action" and isinstance(mine, Box):
            same = np.allclose(mine.low, theirs.low) and np.allclose(mine.high, theirs.high)
        if not same:
            raise InputError(
                f"expected environments with {kind}s of {mine}, as the policy and its data have, "
                f"got {theirs}; make the environment that the data are from"
            )


def check_learns_online(policy: OfflinePolicy) -> None:
    """Check that the method can go on online.

    :raises InputError: if it only clones; the sentence names methods that can.
    """
    if policy.learns_online:
        return
    kind = "discrete" if isinstance(policy.action_space, Discrete) else "continuous"
    able = [
        name
        for name, method in METHODS.items()
        if method.policy_class.learns_online and method.actions in (kind, "both")
    ]
    raise InputError(
        f"expected a method that gets better by acting ({', '.join(sorted(able))}), got "
        f"{method_name(policy)}; choose one of those to go online"
    )
