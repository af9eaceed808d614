"""Everything of a run in one file, written atomically and read without unpickling code.

A checkpoint holds the policy's weights, targets and normaliser, its optimizers, scheduler and
generators, the number of gradient steps, the trainer's counters, the method's name and config,
and the versions that wrote it. ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tianshou
import torch

from tianshou_ext import __version__
from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.registry import method_name

FORMAT = 1
"""Version of the layout of a checkpoint."""
RESTORED = (
    "optimizers",
    "scheduler",
    "generators",
    "global_generator",
    "num_updates",
    "eps",
    "run",
)
"""What a checkpoint of that layout must hold beside the method, its config and the weights."""


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    return {
        "tianshou_ext": __version__,
        "tianshou": tianshou.__version__,
        "torch": str(torch.__version__),  # a str, not the TorchVersion that cannot be read back
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "python": platform.python_version(),
    }


def policy_state(policy: OfflinePolicy) -> dict[str, Any]:
    """Return all state of a policy as tensors and plain values."""
    scheduler = policy.lr_scheduler
    return {
        "format": FORMAT,
        "method": method_name(policy),
        "config": asdict(policy.config),
        "versions": versions(),
        "policy": policy.state_dict(),
        "optimizers": {k: _plain(optim.state_dict()) for k, optim in policy.optimizers.items()},
        "scheduler": None if scheduler is None else _plain(scheduler.state_dict()),
        "generators": {name: g.get_state() for name, g in policy.generators.items()},
        "global_generator": torch.get_rng_state(),
        "num_updates": policy.num_updates,
        "online_steps": policy.online_steps,
        "eps": policy.eps,
        "metrics": {key: float(value) for key, value in policy.metrics.items()},
    }


def save_checkpoint(
    policy: OfflinePolicy, path: str | Path, run: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint.

    :param run: the trainer's own counters; plain values.
    :raises OSError: if it cannot be written; an older file at ``path`` is then untouched.
    """
    state = {**policy_state(policy), "run": dict(run or {})}
    atomic_write(path, lambda partial: torch.save(state, partial))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint or a bare ``state_dict`` as a dictionary.

    :raises InputError: if the file is missing, damaged, or holds more than tensors and values.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"expected a checkpoint at {path}, found none; check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise anything
        # torch's first line tells how to load the file unsafely; what follows says why it fails.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0]
        first = next(iter(reason.strip().splitlines()), type(error).__name__)
        raise InputError(
            f"expected a checkpoint of tensors and plain values at {path}, got a file that cannot "
            f"be read as one ({first}); it is foreign or truncated, use another"
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"expected a checkpoint at {path}, got a {type(state).__name__}; use another file"
        )
    return state


def _check(state: Mapping[str, Any], policy: OfflinePolicy, path: str | Path) -> None:
    name = method_name(policy)
    if state["format"] != FORMAT:
        writer = dict(state.get("versions") or {}).get("tianshou_ext", "of another version")
        raise InputError(
            f"expected a checkpoint of format {FORMAT} at {path}, got format {state['format']}; "
            f"it was written by tianshou_ext {writer}, use that one"
        )
    missing = [key for key in ("method", "config", "policy", *RESTORED) if key not in state]
    if missing:
        raise InputError(
            f"expected a complete checkpoint at {path}, got one without {', '.join(missing)}; "
            "it is foreign or damaged, use another"
        )
    if state["method"] != name:
        raise InputError(
            f"expected a checkpoint of {name} at {path}, got one of {state['method']}; "
            "use that method, or another checkpoint"
        )


def _load_weights(policy: OfflinePolicy, weights: Mapping[str, Any], path: str | Path) -> None:
    try:
        policy.load_state_dict(dict(weights))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(
            f"expected weights of this policy's networks at {path}, got others ({detail}); "
            "use the task, method and sizes that the checkpoint was made with"
        ) from error


def load_policy(policy: OfflinePolicy, path: str | Path) -> None:
    """Load weights and normaliser, from a checkpoint or a bare ``state_dict``, to act or go on.

    :raises InputError: if the file is no checkpoint, or one of another method or other sizes.
    """
    state = read_checkpoint(path)
    if "format" in state:
        _check(state, policy, path)
        state = state["policy"]
    _load_weights(policy, state, path)


def load_checkpoint(policy: OfflinePolicy, path: str | Path) -> dict[str, Any]:
    """Restore all state of a run, exactly, and return the trainer's counters.

    :raises InputError: if the file is no checkpoint, or one of another method, config or size.
    """
    state = read_checkpoint(path)
    if "format" not in state:
        raise InputError(
            f"expected a complete checkpoint at {path}, got bare weights; "
            "pass it as --resume-path to start from these weights"
        )
    _check(state, policy, path)
    here = asdict(policy.config)
    there = {**asdict(type(policy.config)()), **state["config"]}  # a newer field has its default
    differing = {
        key: (there[key], value)
        for key, value in here.items()
        if _comparable(there[key]) != _comparable(value) and key not in policy.config.FREE_TO_CHANGE
    }
    if differing:
        changes = ", ".join(f"{k} was {old}, is {new}" for k, (old, new) in differing.items())
        raise InputError(
            f"expected the settings of the run at {path} ({changes}); use the old ones, choose "
            "another --logdir, or delete the folder"
        )
    if policy.lr_scheduler is None and state["scheduler"] is not None:
        raise InputError(
            f"expected the run at {path} to go on with a learning-rate schedule, as it began, got "
            "none, so that rates would stay where it left them; do as before, choose another "
            "--logdir, or delete the folder"
        )
    _load_weights(policy, state["policy"], path)
    try:
        for name, optim in policy.optimizers.items():
            optim.load_state_dict(state["optimizers"][name])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"expected the optimizers {', '.join(policy.optimizers)} at {path}, got others "
            f"({error}); use the policy that the checkpoint was made with"
        ) from error
    if policy.lr_scheduler is not None and state["scheduler"] is not None:
        policy.lr_scheduler.load_state_dict(state["scheduler"])
    for name, generator in policy.generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["global_generator"])
    policy.num_updates = state["num_updates"]
    policy.online_steps = state.get("online_steps", 0)  # older files have none
    policy.eps = state["eps"]
    policy.metrics = state.get("metrics", {})
    run: dict[str, Any] = state["run"]
    return run


def _plain(value: Any) -> Any:
    """Return a nested state without numpy's numbers, as schedules leave them in learning rates."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
