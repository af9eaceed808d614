"""The one exception for input that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its message is one sentence: what was expected, what came, what to do. Commands print it
    and leave with exit code 2.
    """
