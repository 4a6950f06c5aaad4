"""A fit with its certificate: how many starts there were, how many agree, and whether the end is a minimum."""

from dataclasses import dataclass

import numpy as np

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.solve.solver import Problem, Solution
from flopsfit_ds.fit.solve.starts import grid_points, grid_starts, project_amplitudes
from flopsfit_ds.fit.solve.thinned import minimise_from_afar

_SAME_OBJECTIVE = 1e-6
"""Relative. Ends of one minimum lay within 1e-13 of each other in 18 planted problems of all forms."""
_EXACT = 1e-20
"""A point: residuals of an exact law are 3e-16 (`calibrate_fit.py figures`), their squares 1e-31; the objectives of
those problems, with 0.2% of noise, are 3e-5 to 7e-4."""
_STEEP = 1e-3
"""A cosine: at the minima of those problems it was at most 1.2e-8."""
_CONFIRMATIONS = 16  # 1 to 64 found the same ends in 48 problems (`calibrate_fit.py constant`)
_NUDGE = 0.05  # 0.005 to 0.5: the same ends there


@dataclass(frozen=True)
class Certificate:
    """What supports a fit.

    Attributes:
        starts: Starts tried, without those that were put about an end already found.
        best_share: Share of them that ended within 1e-6 (relative) of the best objective.
        distinct_minima: Different objectives among the starts that converged.
        gradient_norm: Largest cosine between the weighted residuals and a column of the Jacobian, nought at a minimum
            (More 1978, the gtol of MINPACK).
        active_bounds: Names of the parameters that ended on a bound.
        iterations: Passes of the solver over the batch of starts.
    """

    starts: int
    best_share: float
    distinct_minima: int
    gradient_norm: float
    active_bounds: tuple[str, ...]
    iterations: int


@dataclass(frozen=True, eq=False)
class CertifiedFit:
    """The best parameters found, with their certificate.

    Attributes:
        theta: (parameters,).
        objective: Summed score there.
        starts: (starts, parameters) that were tried, for resamples to draw on.
        minima: (minima, parameters), one for each distinct minimum, best first.
    """

    theta: FloatArray
    objective: float
    certificate: Certificate
    starts: FloatArray
    minima: FloatArray


def certified_fit(problem: Problem) -> CertifiedFit:
    """Fit from every region of the grid of exponents, and certify the best end.

    Where a single start finds the best objective, starts about that end and from the whole grid are added.

    Raises:
        FitError: No start moved, none converged, or the end is not a minimum.
    """
    starts = grid_starts(problem)
    if starts.shape[0] == 0:
        raise FitError("no start of the solver fits these losses: are they positive, and on a sensible scale?")
    solution = minimise_from_afar(problem, starts)
    fit = _certify(problem, starts, solution, len(starts))
    if fit.certificate.best_share * fit.certificate.starts < 2:
        grid = _whole_grid(problem)
        tried = np.isclose(grid[:, None], starts[None], rtol=1e-6, atol=1e-9).all(axis=2).max(axis=1)
        independent = np.concatenate([starts, grid[~tried]])
        starts = np.concatenate([independent, _nudged(fit.theta)])
        fit = _certify(problem, starts, minimise_from_afar(problem, starts), len(independent))
    return fit


def _nudged(theta: FloatArray) -> FloatArray:
    rng = np.random.default_rng(0)
    return theta + _NUDGE * rng.standard_normal((_CONFIRMATIONS, theta.shape[0])) * (1.0 + np.abs(theta))


def _whole_grid(problem: Problem) -> FloatArray:
    shape, _ = grid_points(problem.law.grid())
    with np.errstate(all="ignore"):
        linear = problem.law.linearise(shape, problem.inputs, problem.log_loss)
        theta = problem.law.assemble(shape, project_amplitudes(linear), problem.log_loss)
    return np.clip(theta[np.isfinite(theta).all(axis=1)], problem.lower, problem.upper)


def _certify(problem: Problem, starts: FloatArray, solution: Solution, independent: int) -> CertifiedFit:
    """The best end; the certificate counts the first `independent` starts, which know of no other end."""
    if not solution.moved.any():
        raise FitError(
            f"the solver took no step from any of {starts.shape[0]} starts: the losses do not vary enough to fit a law"
        )
    if not solution.converged.any():
        raise FitError(
            f"none of {starts.shape[0]} starts converged in {solution.iterations} iterations: these points do not "
            f"determine the {problem.law.name} law; fit a form with fewer parameters, or add sizes and budgets"
        )
    objective = np.where(solution.converged, solution.objective, np.inf)
    best = int(objective.argmin())
    slack = _SAME_OBJECTIVE * objective[best] + _EXACT * problem.inputs.n.shape[0]
    if float(solution.objective.min()) < objective[best] - slack:
        raise FitError(
            f"the lowest objective found ({solution.objective.min():.6g}) belongs to a start that did not converge; "
            "fit a form with fewer parameters, or leave out points that pull the law to infinity"
        )
    norm = float(solution.gradient_norm[best])
    if norm > _STEEP and objective[best] > slack:
        raise FitError(
            f"the best end is not a minimum: the residuals have a cosine of {norm:.2g} with the Jacobian there"
        )
    reached = solution.objective[:independent] <= objective[best] + slack
    order = np.argsort(objective, kind="stable")
    minima: list[int] = []
    for index in order:
        if np.isfinite(objective[index]) and (not minima or objective[index] > objective[minima[-1]] + slack):
            minima.append(int(index))
    names = tuple(n for n, held in zip(problem.law.parameter_names, solution.at_bound[best], strict=True) if held)
    certificate = Certificate(independent, float(reached.mean()), len(minima), norm, names, solution.iterations)
    return CertifiedFit(
        solution.theta[best].copy(), float(objective[best]), certificate, starts, solution.theta[minima].copy()
    )
