"""What ``inspect`` finds in the actions: which occur, and how far they go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import BufferFile
from tianshou_ext.data.findings import SHOWN, Finding, Spread
from tianshou_ext.data.writer import flat_columns

__all__ = ["look_at_actions"]

Array = np.ndarray[Any, Any]
DISTINCT = 10_000  # whole numbers that are still counted one by one
KEPT_ACTIONS = 100_000  # for the picture


def look_at_actions(
    source: BufferFile, figures: dict[str, Any]
) -> tuple[dict[str, Array], list[Finding]]:
    """Put the figures of the actions into ``figures``.

    :return: up to ``KEPT_ACTIONS`` evenly spaced actions by path, and what is wrong with them.
    """
    every = -(-source.rows // KEPT_ACTIONS)
    kept: dict[str, list[Array]] = {}
    counts: dict[str, dict[int, int]] = {}
    spreads: dict[str, Spread] = {}
    for start, stop in source.blocks():
        rows = start + np.nonzero(source.transitions[start:stop])[0]
        for path, values in flat_columns(source.read(start, stop, "act")).items():
            values = values[rows - start]
            kept.setdefault(path, []).append(values[::every])
            if values.ndim == 1 and values.dtype.kind in "iu":
                known = counts.setdefault(path, {})
                if len(known) <= DISTINCT:
                    for value, times in zip(*np.unique(values, return_counts=True), strict=True):
                        known[int(value)] = known.get(int(value), 0) + int(times)
            else:
                spreads.setdefault(path, Spread()).add(values, rows)
    findings: list[Finding] = []
    figures["action"] = {}
    for path, known in counts.items():
        figures["action"][path] = {"counts": {str(k): known[k] for k in sorted(known)}}
        findings += _of_discrete(path, known)
    for path, spread in spreads.items():
        figures["action"][path] = spread.figures()
        findings += _of_continuous(path, spread)
    return {path: np.concatenate(parts) for path, parts in kept.items()}, findings


def _of_discrete(path: str, counts: Mapping[int, int]) -> Iterator[Finding]:
    if not counts:
        return
    if len(counts) > DISTINCT:
        yield Finding(
            "warning",
            f"{path} has more than {DISTINCT:,} different whole numbers",
            "store continuous actions as floats",
        )
        return
    if min(counts) < 0:
        yield Finding(
            "error",
            f"{path} holds negative actions, down to {min(counts)}",
            "number the actions from 0",
        )
        return
    never = sorted(set(range(max(counts) + 1)) - set(counts)) if max(counts) <= DISTINCT else []
    if max(counts) > DISTINCT or never:
        yield Finding(
            "note",
            f"{path} goes up to {max(counts)}, but only {len(counts)} actions occur"
            + (f", never {', '.join(map(str, never[:SHOWN]))}" if never else ""),
            "values of actions without data are guesses; check that actions are numbered from 0",
        )
    if len(counts) == 1:
        yield Finding(
            "warning", f"{path} is always {max(counts)}", "there is no other action to compare with"
        )


def _of_continuous(path: str, spread: Spread) -> Iterator[Finding]:
    yield from spread.not_finite(path)
    if spread.seen and np.max(spread.outside) > 0:
        share = 100 * np.max(spread.outside) / spread.seen
        yield Finding(
            "warning",
            f"{path} leaves [-1, 1], in up to {share:.3g} % of the rows of a dimension",
            "policies act in [-1, 1]: scale the actions by the bounds of the action space, with "
            "tianshou-ext relabel --act-low LOW --act-high HIGH",
        )
    if spread.constant():
        yield Finding(
            "warning",
            f"{spread.constant()} dimensions of {path} never change",
            "check that the right columns were converted",
        )
