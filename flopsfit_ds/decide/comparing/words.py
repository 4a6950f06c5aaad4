"""Multipliers in words, the same in the terminal and on the page."""

from __future__ import annotations

import math

from flopsfit_ds.fit.solve.intervals import Interval


def times(value: float) -> str:
    """A multiplier as people read it."""
    return f"{value:.3g}x" if math.isfinite(value) else "never"


def ends(interval: Interval) -> str:
    """An interval of multipliers."""
    if math.isfinite(interval.high):
        return f"{times(interval.low)} to {times(interval.high)}"
    return f"above {times(interval.low)}"
