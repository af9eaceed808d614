"""A finding about a buffer file, and the figures that findings are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tianshou_ext.data.blocks import flat_rows

__all__ = ["SEVERITIES", "SHOWN", "WIDE", "Finding", "Severity", "Spread", "some_rows", "summary"]

Array = np.ndarray[Any, Any]
Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")
WIDE = 256  # dimensions up to which each has its own figures
SHOWN = 5  # rows named


@dataclass(frozen=True)
class Finding:
    """Something to know about a file.

    ``error`` would ruin training, ``warning`` may, ``note`` does not.
    """

    severity: Severity
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}; {self.advice}"


def some_rows(rows: Any) -> str:
    """Name the first rows of many."""
    shown = ", ".join(f"{row:,}" for row in list(rows)[:SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > SHOWN else ''}"


def summary(values: Array) -> dict[str, Any]:
    """Return mean, spread, quantiles and histogram of the finite ``values`` (N,)."""
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) == 0:
        return {"count": 0}
    quantiles = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9))
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, 11 if high > low else 2)
    if np.array_equal(values, np.round(values)) and abs(low) + abs(high) < 1e15:
        width = np.ceil((high - low + 1) / 10)
        edges = np.arange(low, high + 1 + width, width)
    counts = np.histogram(values, edges)[0] if high > low else np.array([len(values)])
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": low,
        "max": high,
        "quantiles": dict(zip(("10", "25", "50", "75", "90"), quantiles.tolist(), strict=True)),
        "histogram": {"counts": counts.tolist(), "edges": edges[: len(counts) + 1].tolist()},
    }


class Spread:
    """Range of every dimension of a column, and the rows that are not finite."""

    def __init__(self) -> None:
        self.seen = self.bad = 0
        self.bad_rows: list[int] = []
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)
        self.at_bounds: Any = 0
        self.outside: Any = 0

    def add(self, values: Array, rows: Array) -> None:
        """Take in ``values`` (K, ...) of ``rows`` (K,)."""
        flat = flat_rows(values)
        if values.dtype.kind == "f":
            finite = np.isfinite(flat).all(1)
            self.bad += int((~finite).sum())
            self.bad_rows += rows[~finite][: SHOWN + 1].tolist()
            flat = flat if finite.all() else flat[finite]
        if flat.size == 0:
            return
        low, high = flat.min(0), flat.max(0)
        self.low = np.minimum(self.low, low) if self.seen else low
        self.high = np.maximum(self.high, high) if self.seen else high
        self.seen += len(flat)
        if values.dtype.kind == "f":
            self.at_bounds = self.at_bounds + (np.abs(np.abs(flat) - 1) <= 1e-6).sum(0)
            self.outside = self.outside + (np.abs(flat) > 1 + 1e-6).sum(0)

    def not_finite(self, path: str) -> Iterator[Finding]:
        """Yield a finding if rows of the column ``path`` are not finite."""
        if self.bad:
            yield Finding(
                "error",
                f"{path} is NaN or infinite in {self.bad:,} rows ({some_rows(self.bad_rows)})",
                "repair the source and convert again",
            )

    def constant(self) -> int:
        """Return how many dimensions never change."""
        return int((self.low == self.high).sum()) if self.seen > 1 else 0

    def figures(self) -> dict[str, Any]:
        """Return range and share of rows at -1 or 1 and beyond, per dimension; wide ones in all."""
        if not self.seen:
            return {"not_finite": self.bad}
        found: dict[str, Any] = {"min": self.low, "max": self.high}
        if len(self.low) > WIDE:
            found = {"min": self.low.min(), "max": self.high.max()}
        elif not np.isscalar(self.at_bounds):
            found["at_bounds"] = self.at_bounds / self.seen
            found["outside"] = self.outside / self.seen
        plain = {key: np.asarray(values).tolist() for key, values in found.items()}
        return {**plain, "constant_dimensions": self.constant(), "not_finite": self.bad}
