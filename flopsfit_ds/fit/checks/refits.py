"""What could be wrong with a fit: sensitivity to delta, trends in residuals, influential points, collinear design."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flopsfit_ds.fit.losses import FloatArray, make_loss
from flopsfit_ds.fit.points.points import Point
from flopsfit_ds.fit.solve.certificate import CertifiedFit
from flopsfit_ds.fit.solve.covariance import asymptotic_covariance, leverage, run_noise
from flopsfit_ds.fit.solve.solver import Problem, minimise
from flopsfit_ds.fit.solve.thinned import best_end

_DELTA_FACTORS = (0.1, 0.3, 3.0, 10.0, 100.0)
"""From the default delta: 1e-4 is all but least deviations for runs that scatter by 0.2%, 0.1 is least squares."""
_SUSPECT_RESIDUAL = 4.0  # sigmas: 6e-5 of normal residuals
_SUSPECT_LEVERAGE = 3.0  # the largest of an isoFLOP grid is 3.3 to 4.7 times the mean (`calibrate_fit.py figures`)
_LEAST_REST = 0.05  # of one minus leverage, which is nought where a point alone decides
_MOST_SUSPECTS = 12  # bounds the refits; the worst come first
_SMALL_SHARE = 0.3
_REFIT_SPARE = 3
_LEAST_SMALL = 3
_REFIT_STARTS = 4


@dataclass(frozen=True)
class DeltaRefit:
    """The law refitted with another delta.

    Attributes:
        huber_delta: The other delta.
        alpha: Exponent of size.
        beta: Exponent of data.
        loss_floor: E.
        a: Exponent of N*.
        log_loss_change: Change of predicted ln L at the target.
    """

    huber_delta: float
    alpha: float
    beta: float
    loss_floor: float
    a: float
    log_loss_change: float


@dataclass(frozen=True)
class Suspect:
    """A point with a large residual or a large leverage, and the fit without it; it stays in the fit.

    Attributes:
        row: Its row.
        name: Its label or run id.
        residual_sigmas: Size of the residual over the noise.
        log_residual: ln of its loss over the law's.
        leverage: Diagonal of the projection matrix.
        studentised: Residual over the standard error that its leverage leaves to it.
        a_without: Exponent of N* without it.
        a_with: Exponent of N* with it.
        log_loss_change: Change of predicted ln L at the target when it is left out.
    """

    row: int | None
    name: str | None
    residual_sigmas: float
    log_residual: float
    leverage: float
    studentised: float
    a_without: float
    a_with: float
    log_loss_change: float


@dataclass(frozen=True, eq=False)
class Target:
    """Where changes of a prediction are judged: ln N and ln D of the optimum at the target compute."""

    log_n: float
    log_d: float

    def log_loss(self, problem: Problem, theta: FloatArray) -> FloatArray:
        """ln L there for each row of theta."""
        return problem.law.log_loss(theta, problem.inputs.at(np.array([self.log_n]), np.array([self.log_d])))[:, 0]


def delta_refits(problem: Problem, fit: CertifiedFit, target: Target) -> tuple[DeltaRefit, ...]:
    """Refits with delta from a tenth to a hundredfold, from several starts; none for a squared loss."""
    if not math.isfinite(problem.loss.delta):
        return ()
    own = float(target.log_loss(problem, fit.theta[None])[0])
    refits: list[DeltaRefit] = []
    for factor in _DELTA_FACTORS:
        other = problem._replace(loss=make_loss(problem.loss.name, factor * problem.loss.delta))
        theta = best_end(other, np.concatenate([fit.minima, fit.starts[:_REFIT_STARTS]]))[None]
        natural = problem.law.natural(theta, problem.inputs)
        refits.append(
            DeltaRefit(
                other.loss.delta,
                float(natural["alpha"][0]),
                float(natural["beta"][0]),
                float(natural["loss_floor"][0]),
                float(problem.law.size_exponent_of_compute(theta)[0]),
                float(target.log_loss(problem, theta)[0]) - own,
            )
        )
    return tuple(refits)


def suspects(
    problem: Problem,
    fit: CertifiedFit,
    points: Sequence[Point],
    residuals: FloatArray,
    noise: float,
    target: Target,
) -> tuple[Suspect, ...]:
    """Points with residuals beyond four sigmas or leverage beyond thrice the mean, each with the fit without it."""
    hat = leverage(problem.law.evaluate(fit.theta[None], problem.inputs).jacobian()[0])
    sigmas = np.abs(residuals) / max(noise, 1e-300)
    mean = problem.law.num_parameters / len(points)
    excess = np.maximum(sigmas / _SUSPECT_RESIDUAL, hat / (_SUSPECT_LEVERAGE * mean))
    chosen = [int(k) for k in np.argsort(-excess)[:_MOST_SUSPECTS] if excess[k] > 1.0]
    if not chosen or len(points) <= problem.law.num_parameters + 1:
        return ()
    weights = np.ones((len(chosen), len(points)))
    weights[np.arange(len(chosen)), chosen] = 0.0
    solution = minimise(problem._replace(weights=weights), np.repeat(fit.theta[None], len(chosen), axis=0), warm=True)
    a_without = problem.law.size_exponent_of_compute(solution.theta)
    a_with = float(problem.law.size_exponent_of_compute(fit.theta[None])[0])
    change = target.log_loss(problem, solution.theta) - target.log_loss(problem, fit.theta[None])
    return tuple(
        Suspect(
            points[k].row,
            points[k].label or points[k].run_id,
            float(sigmas[k]),
            -float(residuals[k]),
            float(hat[k]),
            float(sigmas[k] / math.sqrt(max(1.0 - float(hat[k]), _LEAST_REST))),
            float(a_without[j]),
            a_with,
            float(change[j]),
        )
        for j, k in enumerate(chosen)
    )


@dataclass(frozen=True)
class SmallRuns:
    """The smallest sizes against the law of the others: above it where their learning rate is not at its best.

    Attributes:
        up_to: Largest number of parameters among the small.
        num_points: How many they are.
        log_excess: Mean of ln(observed / predicted).
        standard_error: Of that mean: delta method and noise.
    """

    up_to: float
    num_points: int
    log_excess: float
    standard_error: float


def small_runs(problem: Problem, fit: CertifiedFit) -> SmallRuns | None:
    """The smallest third of the sizes against the law of the rest; None with too few points on either side."""
    n, law = problem.inputs.n, problem.law
    sizes = np.unique(np.round(n, 3))
    cut = float(sizes[max(0, int(_SMALL_SHARE * len(sizes)) - 1)]) + 1e-3
    small = n <= cut
    large = ~small
    if small.sum() < _LEAST_SMALL or large.sum() < law.num_parameters + _REFIT_SPARE or len(sizes) < 2 * _LEAST_SMALL:
        return None
    starts = np.concatenate([fit.theta[None], fit.minima[1:_REFIT_STARTS], fit.starts[:_REFIT_STARTS]])
    theta = best_end(problem.points(large), starts)
    evaluation = law.evaluate(theta[None], problem.inputs)
    excess: FloatArray = problem.log_loss - evaluation.log_loss[0]
    noise = run_noise(excess[large], law.num_parameters)
    scale = noise if problem.loss.on_log else noise * float(np.exp(problem.log_loss[large]).mean())
    covariance = asymptotic_covariance(problem, theta, large, scale)
    slope = evaluation.jacobian()[0][:, small].mean(axis=1)
    variance = max(0.0, float(slope @ covariance @ slope)) + noise**2 / int(small.sum())
    up_to = math.exp(float(n[small].max()) + problem.inputs.centre_n)
    return SmallRuns(up_to, int(small.sum()), float(excess[small].mean()), math.sqrt(variance))
