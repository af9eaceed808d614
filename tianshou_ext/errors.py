"""The exceptions for what cannot be used, or not gone on with."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its message is one sentence: what was expected, what came, what to do. Commands print it
    and leave with exit code 2.
    """


class DivergenceError(InputError):
    """Training left what can be right: NaN, or values that no rewards of the data add up to."""
