"""Standard errors and intervals from resampled fits."""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.quantiles import normal_quantile, student_quantile

POSITIVE = frozenset({"A", "B", "R", "R_N", "num_params", "num_tokens", "loss", "tokens_per_parameter"})
"""Quantities whose intervals are taken on the logarithm."""


@dataclass(frozen=True)
class Interval:
    """From low to high, both included; infinite where the data set no bound."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the value lies within."""
        return self.low <= value <= self.high


def student_factor(num_spare: int, level: float) -> float:
    """Student over normal quantile at this level; degrees of freedom are the points less the parameters."""
    tail = 0.5 + 0.5 * level
    return student_quantile(max(1, num_spare), tail) / normal_quantile(tail)


def standard_errors(draws: dict[str, FloatArray]) -> dict[str, float]:
    """Standard deviation of each quantity over the resamples."""
    return {name: float(values.std(ddof=1)) for name, values in draws.items()}


def percentile_interval(estimate: float, draws: FloatArray, level: float, factor: float, positive: bool) -> Interval:
    """Percentiles of the resamples, widened by `factor` about the estimate.

    Args:
        estimate: The value fitted to all points.
        draws: (samples,), the values fitted to resamples; those that are not finite count as unbounded.
        level: Probability, such as 0.9.
        factor: 1 for plain percentiles.
        positive: Whether to work on the logarithm.
    """
    tail = 0.5 - 0.5 * level
    if positive and estimate <= 0:
        positive = False
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(draws) if positive else draws
    centre = float(np.log(estimate)) if positive else estimate
    missing = ~np.isfinite(values)
    if missing.mean() > tail:
        return Interval(0.0 if positive else -np.inf, np.inf)
    low, high = np.quantile(values[~missing], [tail, 1 - tail])
    low, high = centre + factor * (low - centre), centre + factor * (high - centre)
    low, high = min(low, centre), max(high, centre)
    return Interval(float(np.exp(low)), float(np.exp(high))) if positive else Interval(float(low), float(high))
