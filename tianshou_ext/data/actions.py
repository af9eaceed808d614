"""Actions in [-1, 1], as Tianshou's buffers hold them before ``map_action`` scales them."""

from __future__ import annotations

from typing import Any

import numpy as np

ACT_SLACK = 1e-3
"""By which an action may exceed 1, for rounding."""


def unit_actions(act: Any, low: Any, high: Any) -> np.ndarray[Any, Any]:
    """Return actions (..., A) with the bounds ``low`` and ``high`` scaled to -1 and 1, float64."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    scaled: np.ndarray[Any, Any] = 2.0 * (act - low) / (high - low) - 1.0
    return scaled
