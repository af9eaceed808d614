"""The methods by name: what the examples, the contract tests and the docs go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tianshou_ext.errors import InputError

if TYPE_CHECKING:
    from tianshou_ext.policy.base import OfflinePolicy
    from tianshou_ext.policy.config import PolicyConfig

TPolicy = TypeVar("TPolicy", bound="type[OfflinePolicy]")


@dataclass(frozen=True)
class Method:
    """One registered method."""

    name: str
    title: str
    paper: str
    actions: Literal["discrete", "continuous", "both"]
    needs: tuple[str, ...]
    """What the data must hold beside observations and actions."""
    policy_class: type[OfflinePolicy]

    @property
    def config_class(self) -> type[PolicyConfig]:
        """The dataclass of its hyperparameters."""
        return self.policy_class.config_class


METHODS: dict[str, Method] = {}


def register(name: str, **facts: Any) -> Callable[[TPolicy], TPolicy]:
    """Add a policy class to ``METHODS`` under ``name``."""

    def add(policy_class: TPolicy) -> TPolicy:
        METHODS[name] = Method(name=name, policy_class=policy_class, **facts)
        return policy_class

    return add


def get_method(name: str) -> Method:
    """Return the method called ``name``.

    :raises InputError: if there is none.
    """
    if name not in METHODS:
        raise InputError(f"expected a method out of {', '.join(sorted(METHODS))}, got {name!r}")
    return METHODS[name]


def method_actions(policy_class: type[OfflinePolicy]) -> str:
    """Return the kind of actions that a registered class takes, or ``both`` for another one."""
    for method in METHODS.values():
        if method.policy_class is policy_class:
            return method.actions
    return "both"


def method_name(policy: OfflinePolicy) -> str:
    """Return the name under which a policy's class is registered, or the class's own."""
    for method in METHODS.values():
        if method.policy_class is type(policy):
            return method.name
    return type(policy).__name__
