"""What the Jacobian says at an optimum: covariance, leverage, and the noise of the runs."""

import numpy as np

from flopsfit_ds.fit.losses import FloatArray, LossFunction, huber_moments
from flopsfit_ds.fit.solve.solver import Problem

_RANK = 1e-10
"""A singular value this far below the largest is rounding: those of isoFLOP grids lie within a factor of 66, the root
of their largest condition number (`calibrate_fit.py figures`)."""


def leverage(jacobian: FloatArray) -> FloatArray:
    """Diagonal of the projection onto the columns of a Jacobian (parameters, points), between 0 and 1, (points,)."""
    _, singular, basis = np.linalg.svd(
        jacobian / np.maximum(np.abs(jacobian).max(axis=1, keepdims=True), 1e-300), full_matrices=False
    )
    kept = basis[singular > _RANK * singular[0]]
    return (kept**2).sum(axis=0)


def asymptotic_covariance(problem: Problem, theta: FloatArray, keep: np.ndarray, noise: float) -> FloatArray:
    """Covariance of theta under normal noise, (parameters, parameters).

    That of an M-estimator, E[psi^2] / E[psi']^2 (J^T J)^-1 (Huber 1964), on the points in `keep`.
    """
    jacobian = problem.law.evaluate(theta[None], problem.inputs).jacobian()[0][:, keep]
    jacobian[problem.lower >= problem.upper] = 0.0  # what is given does not vary
    if not problem.loss.on_log:
        jacobian = jacobian * np.exp(problem.log_loss[keep])
    return m_estimator_variance(problem.loss, noise) * np.linalg.pinv(
        jacobian @ jacobian.T, rcond=1e-12, hermitian=True
    )


def m_estimator_variance(loss: LossFunction, noise: float) -> float:
    """E[psi^2] / E[psi']^2 under normal residuals of standard deviation `noise`: noise^2 for a squared loss."""
    square, inside = huber_moments(loss, noise)
    return square / max(inside, 1e-12) ** 2


def run_noise(residuals: FloatArray, num_parameters: int, weights: FloatArray | None = None) -> float:
    """Standard deviation of ln L of one run about the law, from residuals winsorised at three robust sigmas.

    A robust sigma is the median size of the residuals over the upper quartile of a normal, 1 / 1.4826. Winsorising at
    three makes a normal's standard deviation 0.25% smaller.

    Args:
        residuals: (points,) of ln L.
        num_parameters: Of the law.
        weights: (points,) that sum to their number; without them, ones.
    """
    robust = 1.4826 * float(np.median(np.abs(residuals)))
    kept = np.clip(residuals, -3.0 * robust, 3.0 * robust) if robust > 0 else residuals
    squares = kept**2 if weights is None else weights * kept**2
    return float(np.sqrt(squares.sum() / max(1, residuals.shape[0] - num_parameters)))
