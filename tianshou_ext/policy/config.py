"""Hyperparameters: what every method has, under our names and Tianshou's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_args

from tianshou_ext.data.normalize import ObsNorm, RewardNorm
from tianshou_ext.errors import InputError

TIANSHOU_NAMES = {
    "discount_factor": "gamma",
    "estimation_step": "n_step",
    "n_step_return_horizon": "n_step",
}
"""Tianshou's names of hyperparameters that have one name here."""

TConfig = TypeVar("TConfig", bound="PolicyConfig")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Hyperparameters that every method has; methods add theirs."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = ()
    """Fields that a run may go on with others of: they change how it acts, or its first weights."""

    gamma: float = 0.99
    """Discount factor, in [0, 1]."""
    n_step: int = 1
    """Rewards summed before bootstrapping, at least 1."""
    lr: float = 1e-4
    """Adam's learning rate."""
    hidden_sizes: tuple[int, ...] = (512,)
    """Widths of the fully connected layers (after the convolutions for frames)."""
    obs_norm: ObsNorm = "standard"
    """``standard``: by the data's mean (and std for vectors); ``255``: divide by 255; ``none``."""
    reward_norm: RewardNorm = "none"
    """``return_range``: returns span 1000; ``standard``: by mean and std; others as they say."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check ranges.

        :raises InputError: if a value is outside its range.
        """
        self.check(0.0 <= self.gamma <= 1.0, "gamma", "in [0, 1]")
        self.check(self.n_step >= 1, "n_step", "at least 1")
        self.check(self.lr > 0.0, "lr", "above 0")
        for name in [f.name for f in fields(self)]:
            value = getattr(self, name)
            self.check(not isinstance(value, float) or math.isfinite(value), name, "finite")
        for name in [f.name for f in fields(self) if f.name.endswith("hidden_sizes")]:
            widths = getattr(self, name) or ()
            self.check(all(width >= 1 for width in widths), name, "of widths of at least 1")
        for name, kinds in (("obs_norm", get_args(ObsNorm)), ("reward_norm", get_args(RewardNorm))):
            self.check(getattr(self, name) in kinds, name, f"one of {', '.join(kinds)}")

    def check(self, holds: bool, name: str, expected: str) -> None:
        """Raise ``InputError`` unless ``holds``."""
        if not holds:
            raise InputError(f"expected {name} {expected}, got {getattr(self, name)}; change it")


def make_config(
    config_class: type[TConfig], config: TConfig | None, options: Mapping[str, Any]
) -> TConfig:
    """Return ``config`` with ``options`` laid over it, by our names or by Tianshou's.

    :raises InputError: if an option, or a field of ``config``, is no field of the class.
    """
    base = asdict(config) if config is not None else {}
    named = {TIANSHOU_NAMES.get(key, key): value for key, value in options.items()}
    known = {f.name for f in fields(config_class)}
    unknown = sorted({*base, *named} - known)
    if unknown:
        raise InputError(
            f"expected options of {config_class.__name__} ({', '.join(sorted(known))}), "
            f"got {', '.join(unknown)}; rename or drop them"
        )
    return config_class(**{**base, **named})
