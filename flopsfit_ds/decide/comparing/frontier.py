"""The loss that a recipe reaches at each compute, with its resamples, and the compute at which it reaches a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.fit.scaling import fit_scaling_law

SAMPLES = 400
"""Resamples: the 5% ends of an interval have 20 of them beyond."""
_STEPS = 240
"""Over nine decades a step is 9%, between which ln L and ln C are taken for a line."""
_REACH = math.log(1e3)
"""E-folds below and above both recipes within which a multiplier is looked for."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """One recipe.

    Attributes:
        fit: Its law.
        log_compute: (grid,), rising.
        own: (grid,) ln L* of the fit.
        drawn: (draws, grid) ln L* of its resamples.
    """

    fit: ScalingFit
    log_compute: FloatArray
    own: FloatArray
    drawn: FloatArray

    @classmethod
    def of(cls, points: Sequence[Point], name: str, log_compute: FloatArray, law: str, seed: int) -> Frontier:
        """Fit and resample.

        Raises:
            FitError: The runs carry no law with an optimum; the message names the recipe.
        """
        try:
            fit = fit_scaling_law(
                points, law=law, bootstrap_samples=SAMPLES, seed=seed, other_forms=False, diagnostics=False
            )
        except FitError as error:
            raise FitError(f"{name}: {error}") from error
        assert fit.draws is not None
        own = _optimal_loss(fit, fit.at.theta[None], log_compute)[0]
        if not np.isfinite(own).all():
            raise FitError(f"{name}: the {law} law of these runs has no compute-optimal size, so no frontier")
        drawn = _optimal_loss(fit, fit.draws.theta, log_compute)
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        if len(drawn) < SAMPLES // 2:
            raise FitError(f"{name}: {SAMPLES - len(drawn)} of {SAMPLES} resamples have no compute-optimal size")
        return cls(fit, log_compute, own, drawn)

    @property
    def data_range(self) -> tuple[float, float]:
        """Smallest and largest ln C of the runs."""
        return self.range_of(0.0)

    def range_of(self, tail: float) -> tuple[float, float]:
        """ln C that leaves this share of the runs on either side."""
        log_c = np.log([point.compute_flops for point in self.fit.points])
        low, high = np.quantile(log_c, [tail, 1.0 - tail])
        return float(low), float(high)

    def beyond(self, log_compute: FloatArray) -> FloatArray:
        """Standard deviation of ln L that extrapolation adds: nought among the runs."""
        past = np.maximum(0.0, log_compute - self.data_range[1])
        return self.fit.prediction.growth * past


def grid_of(both: Sequence[Point]) -> FloatArray:
    """ln C from a thousandth of the smallest to a thousandfold of the largest run of two recipes."""
    flops = np.log([point.compute_flops for point in both])
    return np.linspace(flops.min() - _REACH, flops.max() + _REACH, _STEPS)


def _optimal_loss(fit: ScalingFit, theta: FloatArray, log_compute: FloatArray) -> FloatArray:
    """ln L* of each row of theta, (rows, grid)."""
    law, inputs, rule = fit.at.law, fit.at.inputs, fit.at.rule
    log_n = law.log_optimum(theta, log_compute, rule, inputs)
    log_d = rule.log_tokens(log_compute[None, :], log_n)
    found = np.full(log_n.shape, np.nan)
    for k, row in enumerate(theta):
        sizes = Inputs(log_n[k] - inputs.centre_n, log_d[k] - inputs.centre_d, inputs.centre_n, inputs.centre_d)
        found[k] = law.log_loss(row[None], sizes)[0]
    return found


def log_multipliers(a: Frontier, b: Frontier, log_compute: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ln of the compute that A needs to be as good as B at these computes, over them.

    Infinite where A never gets there within the grid, minus infinite where it does so below it.

    Returns:
        (computes,) of the fits, and (draws, computes) of paired resamples.
    """
    own = _needed(a.log_compute, a.own, np.interp(log_compute, b.log_compute, b.own)) - log_compute
    count = min(len(a.drawn), len(b.drawn))
    rng = np.random.default_rng(0)
    spread = np.hypot(a.beyond(log_compute), b.beyond(log_compute))
    drawn = np.empty((count, len(log_compute)))
    for k in range(count):
        wanted = np.interp(log_compute, b.log_compute, b.drawn[k]) + spread * rng.standard_normal()
        drawn[k] = _needed(a.log_compute, a.drawn[k], wanted) - log_compute
    return own, drawn


def _needed(log_compute: FloatArray, log_loss: FloatArray, wanted: FloatArray) -> FloatArray:
    """ln C at which a falling frontier reaches each loss."""
    return np.interp(-wanted, -log_loss, log_compute, left=-np.inf, right=np.inf)
