"""The exceptions for what cannot be used, or not gone on with."""

from __future__ import annotations

from collections.abc import Mapping


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its message is one sentence: what was expected, what came, what to do. Commands print it
    and leave with exit code 2.
    """


class DivergenceError(InputError):
    """Training left what can be right: NaN, or values that no rewards of the data add up to."""


def at_least_one(counts: Mapping[str, int]) -> None:
    """Check numbers, by their names.

    :raises InputError: if one is less than 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"expected {name} of at least 1, got {count}; change it")
