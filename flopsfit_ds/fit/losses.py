"""How a misfit is scored: Huber, one-sided Huber or squared, on the logarithm of the loss or on the loss itself.

Every law predicts the logarithm of the loss, f. A score is a function of f and the observed loss L, so the solver needs
only its value and its derivatives with respect to f, whatever the scale on which the residual is taken.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.quantiles import normal_quantile
from flopsfit_ds.spec.fit_options import DEFAULTS, LossName

FloatArray = NDArray[np.float64]

LOWER = "lower_huber_log"
"""Mistuning only ever raises a loss, so runs above the law pull less than runs below it: the law of the better runs."""
HUBER_NAMES = ("huber_log", "huber", LOWER)
_ABOVE = 0.25
"""Of delta, where runs above the law stop to pull harder. Where runs scatter by much more than delta four of five then
lie above the law and one below; with 0.1 it would be ten of eleven, which a few runs decide."""
_NORMAL_STEPS = 2001
"""Quantiles of a normal; with ten times as many moments change by two in a thousand at most."""
_WIDE = 40.0  # sigmas: exp(-40^2 / 2) is below the smallest double, 5e-324
LOSS_NAMES: tuple[str, ...] = get_args(LossName)


class Score(NamedTuple):
    """Value and derivatives of the score with respect to the predicted log loss, each of shape (batch, points).

    Attributes:
        value: The score of each point, not yet weighted.
        first: First derivative.
        second: Second derivative (zero outside the quadratic zone of a Huber score).
        majorant: Curvature of the quadratic that touches the score from above (the weight of reweighted least squares).
    """

    value: FloatArray
    first: FloatArray
    second: FloatArray
    majorant: FloatArray


@dataclass(frozen=True)
class LossFunction:
    """A summed robust or squared loss.

    Attributes:
        name: One of LOSS_NAMES.
        delta: Half width of the quadratic zone of a Huber score, in the unit of its residual
            (log loss: about a relative error). Infinite for squared scores.
        delta_above: The same where the observed loss lies above the law; smaller for the one-sided score.
    """

    name: str
    delta: float
    delta_above: float

    @property
    def on_log(self) -> bool:
        """Whether the residual is taken on the logarithm of the loss."""
        return self.name.endswith("_log")

    def residuals(self, log_prediction: FloatArray, log_loss: FloatArray) -> FloatArray:
        """Prediction minus observation, on the scale of this loss."""
        if self.on_log:
            return log_prediction - log_loss
        return np.exp(log_prediction) - np.exp(log_loss)

    def value(self, residuals: FloatArray) -> FloatArray:
        """Score of each residual (elementwise)."""
        if not np.isfinite(self.delta):
            return 0.5 * residuals * residuals
        clipped = np.clip(residuals, -self.delta_above, self.delta)
        return clipped * (residuals - 0.5 * clipped)

    def score(self, log_prediction: FloatArray, log_loss: FloatArray) -> Score:
        """Score and its derivatives with respect to the predicted log loss.

        Args:
            log_prediction: (batch, points).
            log_loss: (points,) or (batch, points), logarithm of the observed loss.
        """
        prediction = None if self.on_log else np.exp(log_prediction)
        residual = log_prediction - log_loss if prediction is None else prediction - np.exp(log_loss)
        if np.isfinite(self.delta):
            pull = np.clip(residual, -self.delta_above, self.delta)
            value = pull * (residual - 0.5 * pull)
            width = (
                self.delta if self.delta_above == self.delta else np.where(residual < 0.0, self.delta_above, self.delta)
            )
            size = np.abs(residual)
            second = (size < width).astype(np.float64)
            majorant = width / np.maximum(size, width)
        else:
            pull = residual
            value = 0.5 * residual * residual
            second = np.ones_like(residual)
            majorant = second
        if prediction is None:
            return Score(value, pull, second, majorant)
        slope = pull * prediction
        return Score(value, slope, second * prediction**2 + slope, majorant * prediction**2)


def huber_moments(loss: LossFunction, noise: float) -> tuple[float, float]:
    """E[psi^2] and E[psi'] of the score's derivative under normal residuals of standard deviation `noise`.

    A one-sided score is taken where its pulls balance, which is below the mean.
    """
    if loss.delta_above != loss.delta:
        return _one_sided_moments(loss, noise)
    ratio = min(loss.delta / max(noise, 1e-300), _WIDE)
    if ratio == _WIDE:
        return noise**2, 1.0
    inside = math.erf(ratio / math.sqrt(2.0))
    density = math.exp(-0.5 * ratio**2) / math.sqrt(2.0 * math.pi)
    return noise**2 * (inside - 2.0 * ratio * density) + loss.delta**2 * (1.0 - inside), inside


def _one_sided_moments(loss: LossFunction, noise: float) -> tuple[float, float]:
    residuals = noise * np.array([normal_quantile((k + 0.5) / _NORMAL_STEPS) for k in range(_NORMAL_STEPS)])
    low, high = float(residuals[0]), float(residuals[-1])
    for _ in range(60):  # halves the range to less than a double's rounding
        shift = 0.5 * (low + high)
        low, high = (
            (low, shift)
            if float(np.clip(residuals + shift, -loss.delta_above, loss.delta).mean()) > 0.0
            else (shift, high)
        )
    pull = np.clip(residuals + low, -loss.delta_above, loss.delta)
    inside = (pull > -loss.delta_above) & (pull < loss.delta)
    return float((pull**2).mean()), float(inside.mean())


def make_loss(name: str, huber_delta: float) -> LossFunction:
    """Build the loss function called `name`.

    Args:
        name: One of LOSS_NAMES.
        huber_delta: Used by the Huber losses only.

    Raises:
        FitError: An unknown name, or a delta that is not positive and finite.
    """
    if name not in LOSS_NAMES:
        raise FitError(f"unknown loss {name!r}: choose one of {', '.join(LOSS_NAMES)}")
    if name not in HUBER_NAMES:
        return LossFunction(name, math.inf, math.inf)
    if not (np.isfinite(huber_delta) and huber_delta > 0):
        raise FitError(
            f"huber_delta must be positive and finite, got {huber_delta!r}; the usual value is {DEFAULTS.huber_delta:g}"
        )
    delta = float(huber_delta)
    return LossFunction(name, delta, _ABOVE * delta if name == LOWER else delta)
