"""Runs on one ray: tokens that follow size along one line, so that their two effects cannot be told apart."""

import math
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.compute_rule import ComputeRule
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import PointArrays

RAY_SPREAD = 0.1
"""IsoFLOP grids scatter by 1.0 to 1.5 (`calibrate_fit.py figures`), a ray by nought."""
_LEAST_SLOPE = -0.5  # minus one is a budget, on which compute does not change
_PASSES = 60


@dataclass(frozen=True)
class Ray:
    """The line that all runs lie on: ln D = log_factor + slope * ln N.

    Attributes:
        log_factor: ln D at one parameter.
        slope: 1 where all runs have the same tokens per parameter.
        tokens_per_parameter: Median of D/N.
    """

    log_factor: float
    slope: float
    tokens_per_parameter: float

    def log_tokens(self, log_n: float) -> float:
        """ln D on the line at this ln N."""
        return self.log_factor + self.slope * log_n

    def log_params(self, log_compute: float, rule: ComputeRule) -> float:
        """ln N on the line that spends the compute."""
        log_n = (log_compute - self.log_factor) / (1.0 + self.slope)
        for _ in range(_PASSES):
            rest = log_compute - self.log_factor - float(rule.log_ratio(np.array(log_n)))
            log_n = 0.5 * (log_n + rest / (1.0 + self.slope))
        return log_n

    @property
    def in_words(self) -> str:
        """The line as people say it."""
        ratio = f"about {self.tokens_per_parameter:.3g} tokens per parameter"
        return f"one ray of {ratio}" if abs(self.slope - 1.0) < 0.05 else f"one line, D ~ N^{self.slope:.2f}, {ratio}"


def ray_of(arrays: PointArrays) -> Ray | None:
    """The ray that the points lie on; None where they leave it by a tenth of ln D or more, or are one size."""
    if not len(arrays.num_params):
        return None
    log_n, log_d = np.log(arrays.num_params), np.log(arrays.num_tokens)
    slope, scatter = _line(log_n, log_d)
    if scatter >= RAY_SPREAD or slope < _LEAST_SLOPE or np.ptp(log_n) < RAY_SPREAD:
        return None
    ratio = math.exp(float(np.median(log_d - log_n)))
    return Ray(float(log_d.mean() - slope * log_n.mean()), slope, ratio)


def tokens_scatter(log_n: FloatArray, log_d: FloatArray) -> float:
    """Standard deviation of ln D about its regression on ln N: how far the points leave a single ray."""
    return _line(log_n, log_d)[1]


def _line(log_n: FloatArray, log_d: FloatArray) -> tuple[float, float]:
    """Slope of ln D on ln N, and the standard deviation about the line."""
    n, d = log_n - log_n.mean(), log_d - log_d.mean()
    slope = float((n * d).sum() / max(1e-300, float((n * n).sum())))
    return slope, float(np.std(d - slope * n))
