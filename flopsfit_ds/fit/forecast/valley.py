"""The valley of loss over size at fixed compute, as a sum of two powers: loss = e + a N^-p + b N^q.

That is what every law with one term of size and one of data is at fixed compute, so its minimum is without bias; a
parabola in ln N leans towards the flatter side. The powers are shared by all budgets, the amplitudes are each budget's
own: three coefficients a budget, as a parabola has. Nothing is assumed of how loss falls with compute.

Between the powers and a parabola few runs can tell. So the powers are drawn to those of published laws, as strongly as
the runs scatter: exact losses give exact minima, noisy ones lean on what is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray

_USUAL_POWER = 0.35
"""Exponents of size and data in table 1 of Besiroglu et al. 2024, arXiv:2404.10102: .3478 and .3658."""
_PRIOR_WIDTH = 0.5
"""Standard deviation of the logarithm of a power: published ones lie between .15 and .8."""
_POWERS = (0.02, 2.0)
_SHRINK = 4.0
"""Degrees of freedom that the other budgets' scatter counts for beside a budget's own."""
_EXACT = 1e-24
"""Variance of ln L that rounding leaves: weights of points without noise stay finite."""
_NUDGE = 1e-4
"""Of a coefficient, for differences: their error is of its order, that of rounding 1e-12."""
_PASSES = 12
"""Of a weighted fit: each follows the variances of the last; where they have not settled, the last counts."""
_SETTLED = 1e-9
"""Of the logarithm of a power: far below its standard error."""
_STILL = 1e-12  # likewise, of a step within one pass
_MOST_STEPS = 100
_FIRST_DAMPING = 1e-3  # Marquardt 1963 began at 1e-2 and went by factors of ten
_DAMPING_FACTOR = 10.0


@dataclass(frozen=True, eq=False)
class Valley:
    """The valley of one budget about x = ln N - centre.

    Attributes:
        floor: e.
        fall: a, the amplitude of exp(-p x).
        rise: b, the amplitude of exp(q x).
        powers: (p, q).
        log_size: x of the minimum; infinite where the losses only fall, or only rise.
        loss: There.
        curved: Whether the losses curve upwards at all.
        standard_error: Of log_size, from the budget's own scatter; None where there is nothing to judge it by.
        loss_standard_error: Of loss, likewise.
    """

    floor: float
    fall: float
    rise: float
    powers: tuple[float, float]
    log_size: float
    loss: float
    curved: bool
    standard_error: float | None
    loss_standard_error: float | None


def fit_valleys(sizes: Sequence[FloatArray], losses: Sequence[FloatArray]) -> list[Valley]:
    """The valleys of budgets with three sizes or more each, with powers that they share.

    Args:
        sizes: Budget -> ln N less the budget's centre.
        losses: Budget -> losses.
    """
    stack = _Stack.of(sizes, losses)
    powers, spread = _shared_powers(stack)
    coefficients, inverses, squares = stack.solve(powers)
    variances = _variances(squares, stack.spare)
    found: list[Valley] = []
    for k, own in enumerate(coefficients):
        at = _minimum(own, powers)
        variance, step = (None if variances is None else float(variances[k])), None
        if variance is not None and math.isfinite(at[0]):
            step = _errors(own, powers, variance * inverses[k], spread, stack, k)
        scale = stack.scales[k]
        fall, rise, floor = _amplitudes(own, powers)
        found.append(
            Valley(
                floor * scale,
                fall * scale,
                rise * scale,
                powers,
                at[0],
                at[1] * scale,
                bool(own[2] > 0),
                None if step is None else step[0],
                None if step is None else step[1] * scale,
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class _Stack:
    """All budgets, padded to one length, losses over their budget's mean."""

    x: FloatArray
    y: FloatArray
    mask: FloatArray
    scales: FloatArray
    spare: FloatArray

    @classmethod
    def of(cls, sizes: Sequence[FloatArray], losses: Sequence[FloatArray]) -> "_Stack":
        shape = (len(sizes), max(len(values) for values in sizes))
        x, y, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        scales = np.array([float(values.mean()) for values in losses])
        for k, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
            x[k, : len(size)], y[k, : len(size)], mask[k, : len(size)] = size, loss / scales[k], 1.0
        return cls(x, y, mask, scales, mask.sum(axis=1) - 3.0)

    def basis(self, powers: tuple[float, float]) -> FloatArray:
        """(budgets, points, 3): 1 and two combinations of the powers that become x and x^2 as both vanish."""
        p, q = powers
        down, up = np.exp(-p * self.x), np.exp(q * self.x)
        slope, curve = (up - down) / (p + q), 2.0 * (p * up + q * down - (p + q)) / (p * q * (p + q))
        return np.stack([np.ones_like(self.x), slope, curve], axis=2) * self.mask[:, :, None]

    def residuals(self, powers: tuple[float, float]) -> FloatArray:
        """(budgets, points) that the best amplitudes leave."""
        basis, _ = np.linalg.qr(self.basis(powers))
        return self.y - (basis @ (basis.transpose(0, 2, 1) @ self.y[:, :, None]))[:, :, 0]

    def solve(self, powers: tuple[float, float]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Coefficients (budgets, 3), their covariances over the variance, and summed squares of each budget."""
        inverse = np.linalg.pinv(self.basis(powers))
        coefficients = (inverse @ self.y[:, :, None])[:, :, 0]
        return coefficients, inverse @ inverse.transpose(0, 2, 1), (self.residuals(powers) ** 2).sum(axis=1)


def _shared_powers(stack: _Stack) -> tuple[tuple[float, float], FloatArray]:
    """The powers (p, q), and the covariance of their logarithms.

    Budgets count by their own scatter, so that a bad row of one does not spoil the others. It is judged about the
    powers found before, and where losses are exact it vanishes with every pass.
    """
    prior = math.log(_USUAL_POWER)
    found, spread = np.full(2, prior), np.eye(2) * _PRIOR_WIDTH**2
    for _ in range(_PASSES):
        p, q = np.exp(found)
        variances = _variances(stack.solve((float(p), float(q)))[2], stack.spare)
        if variances is None:
            break
        noise = np.sqrt(np.maximum(variances, _EXACT))
        end, slopes = _weighted_powers(stack, noise, found)
        moved, found = float(np.abs(end - found).max()), end
        spread = np.linalg.pinv(slopes.T @ slopes)
        if moved < _SETTLED:
            break
    p, q = np.exp(found)
    return (float(p), float(q)), spread


def _weighted_powers(stack: _Stack, noise: FloatArray, start: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Logarithms of the powers that fit best where budgets scatter by `noise`, and the Jacobian (residuals, 2) there.

    Levenberg-Marquardt within the bounds: a power that would pass one stops there.
    """
    prior, (low, high) = math.log(_USUAL_POWER), np.log(_POWERS)

    def residuals(log_powers: FloatArray) -> FloatArray:
        p, q = np.exp(log_powers)
        left = stack.residuals((float(p), float(q))) / noise[:, None]
        return np.concatenate([left.ravel(), (log_powers - prior) / _PRIOR_WIDTH])

    def slopes_at(log_powers: FloatArray) -> FloatArray:
        rows = _NUDGE * np.eye(2)
        return np.stack([(residuals(log_powers + r) - residuals(log_powers - r)) / (2 * _NUDGE) for r in rows], axis=1)

    here, left, damping = start, residuals(start), _FIRST_DAMPING
    slopes = slopes_at(here)
    for _ in range(_MOST_STEPS):
        square, pull = slopes.T @ slopes, slopes.T @ left
        free = ~(((here <= low) & (pull > 0.0)) | ((here >= high) & (pull < 0.0)))
        step = np.zeros(2)
        damped = square + damping * np.diag(np.diag(square))
        step[free] = -np.linalg.solve(damped[np.ix_(free, free)], pull[free])
        there = np.clip(here + step, low, high)
        if float(np.abs(there - here).max()) <= _STILL:
            break
        then = residuals(there)
        if then @ then < left @ left:
            here, left, damping = there, then, damping / _DAMPING_FACTOR
            slopes = slopes_at(here)
        else:
            damping *= _DAMPING_FACTOR
    return here, slopes


def _variances(squares: FloatArray, spare: FloatArray) -> FloatArray | None:
    """Variance about each budget's valley, from its own scatter, drawn to the median of all budgets'.

    The median of a chi-square variable over its degrees of freedom is (1 - 2/(9 v))^3 (Wilson and Hilferty 1931). The
    two powers that all budgets share take two degrees of freedom from all of them.
    """
    known = spare > 0
    if not known.any():
        return None
    own = squares[known] / spare[known] / (1.0 - 2.0 / (9.0 * spare[known])) ** 3
    usual = float(np.median(own))
    total = float(spare[known].sum())
    return (_SHRINK * usual + squares) / (_SHRINK + spare) * (total / max(1.0, total - 2.0))


def _amplitudes(own: FloatArray, powers: tuple[float, float]) -> tuple[float, float, float]:
    """(a, b, e) of the coefficients of the basis."""
    p, q = powers
    _, slope, curve = (float(value) for value in own)
    fall = -slope / (p + q) + 2.0 * curve / (p * (p + q))
    rise = slope / (p + q) + 2.0 * curve / (q * (p + q))
    return fall, rise, float(own[0]) - 2.0 * curve / (p * q)


def _minimum(own: FloatArray, powers: tuple[float, float]) -> tuple[float, float]:
    """x of the minimum and the loss there; infinite x where there is none."""
    p, q = powers
    fall, rise, floor = _amplitudes(own, powers)
    if fall <= 0.0 or rise <= 0.0:
        return (-math.inf if rise > 0.0 else math.inf), math.nan
    x = math.log(p * fall / (q * rise)) / (p + q)
    if abs(max(p, q) * x) > 300.0:
        return math.copysign(math.inf, x), math.nan
    return x, floor + fall * math.exp(-p * x) + rise * math.exp(q * x)


def _errors(
    own: FloatArray,
    powers: tuple[float, float],
    covariance: FloatArray,
    spread: FloatArray,
    stack: _Stack,
    number: int,
) -> tuple[float, float] | None:
    """Standard errors of x and of the loss: of the coefficients, and of the powers that all budgets share."""
    at = np.array(_minimum(own, powers))
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    by_own = [
        (np.array(_minimum(own + row, powers)) - at) / step
        for row, step in zip(_NUDGE * np.diag(scale), _NUDGE * scale, strict=True)
    ]
    part = _Stack(*(array[number : number + 1] for array in (stack.x, stack.y, stack.mask, stack.scales, stack.spare)))
    by_power: list[FloatArray] = []
    for row in np.eye(2):
        moved = np.exp(np.log(powers) + _NUDGE * row)
        other = (float(moved[0]), float(moved[1]))
        by_power.append((np.array(_minimum(part.solve(other)[0][0], other)) - at) / _NUDGE)
    slopes, tilts = np.array(by_own), np.array(by_power)
    total = np.einsum("ik,ij,jk->k", slopes, covariance, slopes) + np.einsum("ik,ij,jk->k", tilts, spread, tilts)
    return (float(np.sqrt(total[0])), float(np.sqrt(total[1]))) if np.isfinite(total).all() else None
