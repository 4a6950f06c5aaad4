"""Shapes that should not be there: trends in the residuals, heaps among the resampled values."""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import PointArrays
from flopsfit_ds.fit.quantiles import f_tail_of_two


@dataclass(frozen=True)
class ResidualTrend:
    """Regression of the residuals on a centred coordinate and its square.

    Attributes:
        against: "N", "D", "C" or "D/N" (logarithms).
        slope: Change of the residual for each factor e.
        curvature: Coefficient of the square.
        p_value: Of the F test that both are nought.
    """

    against: str
    slope: float
    curvature: float
    p_value: float


def residual_trends(arrays: PointArrays, residuals: FloatArray, num_parameters: int) -> tuple[ResidualTrend, ...]:
    """Trends of the residuals (winsorised at four robust sigmas) with N, D, C and D/N."""
    robust = 1.4826 * float(np.median(np.abs(residuals)))
    values = np.clip(residuals, -4 * robust, 4 * robust) if robust > 0 else residuals
    values = values - values.mean()
    spare = len(values) - num_parameters - 2
    log_n, log_d, log_c = np.log(arrays.num_params), np.log(arrays.num_tokens), np.log(arrays.flops)
    trends: list[ResidualTrend] = []
    for name, x in (("N", log_n), ("D", log_d), ("C", log_c), ("D/N", log_d - log_n)):
        if spare < 1 or np.ptp(x) < 1e-9:
            continue
        x = x - x.mean()
        design = np.stack([x, x * x - (x * x).mean()], axis=1)
        (slope, curvature), *_ = np.linalg.lstsq(design, values, rcond=None)
        left = float(((values - design @ np.array([slope, curvature])) ** 2).sum())
        explained = float((values**2).sum()) - left
        p_value = f_tail_of_two(spare, max(0.0, explained) / 2 / max(left / spare, 1e-300))
        trends.append(ResidualTrend(name, float(slope), float(curvature), p_value))
    return tuple(trends)


def two_modes(values: FloatArray) -> tuple[float, float] | None:
    """Centres of two separate heaps of resampled values, or None for one heap.

    Two heaps: splitting the sorted values where it explains most variance leaves both sides with at least a tenth of
    them, and their centres are more than four times the larger of their spreads apart (two halves of one normal: 2.6).
    """
    values = np.sort(values[np.isfinite(values)])
    count = len(values)
    if count < 50 or values[-1] - values[0] <= 1e-12 * max(1.0, abs(float(values[0]))):
        return None
    sizes = np.arange(1, count)
    left = np.cumsum(values)[:-1] / sizes
    right = (values.sum() - np.cumsum(values)[:-1]) / (count - sizes)
    gain = sizes * (count - sizes) * (right - left) ** 2
    k = int(gain.argmax()) + 1
    if min(k, count - k) < count // 10:
        return None
    low, high = values[:k], values[k:]
    spread = max(float(low.std()), float(high.std()))
    centres = float(low.mean()), float(high.mean())
    return centres if centres[1] - centres[0] > 4.0 * max(spread, 1e-300) else None
