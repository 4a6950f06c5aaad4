"""Batched Newton and Levenberg-Marquardt: all starts and all resamples are rows of one array.

Each row minimises sum_i weight_i * score(log L(theta, x_i), log L_i). A step solves (H + damping * M) step = -gradient:
H is the exact Hessian of the score, and M that of reweighted least squares, which bounds a Huber score from above. With
damping 1 and more the step is the cautious one of reweighting, with damping near 0 it is Newton's, so the same
iteration is safe far from the optimum and quadratic at its end, where plain reweighting would crawl.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flopsfit_ds.fit.laws.base import FLOOR, Inputs, Law
from flopsfit_ds.fit.losses import FloatArray, LossFunction

# Each by `calibrate_fit.py constant --laws 8 --samples 200`: 48 problems of every form, half with spoilt losses,
# and 9,600 resamples. No value below missed a fit that another found.
_BLOCK_ELEMENTS = 12_000  # bounds memory; 1,500 to 200,000 took 2.8 to 3.1 CPU s
_MAX_DAMPING = 1e10  # 1e4 to 1e13: the same ends in the same passes
_NEWTON_DAMPING = 0.3  # 0.03, 0.3, 3: resamples missed 0.17%, 0.11%, 0.07%
_REWEIGHT_DAMPING = 1e-2  # 1e-4, 1e-2, 1: the same ends in 90, 85, 91 passes
_SLOW_GAIN = 0.02  # 0.002, 0.02, 0.2: the same ends in 93, 85, 99 passes
_RELATIVE_DECREASE = 1e-12  # 1e-8 to 1e-14: the same ends in 85 passes
_RIDGE = 1e-12  # 1e-15 to 1e-9: the same ends in the same passes
_STEEP = 1e-2  # 1e-4, 1e-2, 1: 0.14%, 0.10%, 0.06% of resamples count as not converged


@dataclass(frozen=True, eq=False)
class Solution:
    """Where each row ended.

    Attributes:
        theta: (rows, parameters).
        objective: (rows,) summed weighted score.
        gradient_norm: (rows,) largest cosine of the angle between the weighted residuals and a column of the
            Jacobian of a free parameter (More 1978, the gtol of MINPACK): nought at a minimum, whatever the units.
        converged: (rows,) whether no step promises a decrease of more than 1e-12 of the objective, and the slope
            agrees.
        at_bound: (rows, parameters) whether a bound is active.
        moved: (rows,) whether any step was taken from the start.
        iterations: Number of passes over the batch.
    """

    theta: FloatArray
    objective: FloatArray
    gradient_norm: FloatArray
    converged: np.ndarray
    at_bound: np.ndarray
    moved: np.ndarray
    iterations: int


class Problem(NamedTuple):
    """The data that every row shares, and the law and loss that score them.

    Attributes:
        log_loss: (points,), or (rows, points) where each row has its own losses (wild bootstrap).
        weights: (rows, points) weights, or None for ones.
        floor: The loss floor where it is given rather than fitted.
        precision: (points,) weights of the points in every row, from what is known of their errors; None for ones.
    """

    law: Law
    inputs: Inputs
    log_loss: FloatArray
    loss: LossFunction
    lower: FloatArray
    upper: FloatArray
    weights: FloatArray | None = None
    floor: float | None = None
    precision: FloatArray | None = None

    def under(self, law: Law) -> "Problem":
        """The same points under another form, its bounds with the given floor."""
        lower, upper = law.bounds(self.log_loss)
        if self.floor is not None and FLOOR in law.parameter_names:
            lower[law.parameter_names.index(FLOOR)] = upper[law.parameter_names.index(FLOOR)] = self.floor
        return self._replace(law=law, lower=lower, upper=upper)

    def points(self, index: np.ndarray | slice) -> "Problem":
        """The same problem of these points alone."""
        return self._replace(
            inputs=self.inputs.rows(index),
            log_loss=self.log_loss[..., index],
            weights=None if self.weights is None else self.weights[:, index],
            precision=None if self.precision is None else self.precision[index],
        )

    def weights_of(self, rows: np.ndarray | slice) -> FloatArray | None:
        """Weights of the points in these rows, (rows, points) or (points,); None for ones."""
        if self.weights is None:
            return self.precision
        return self.weights[rows] if self.precision is None else self.weights[rows] * self.precision


class _Local(NamedTuple):
    objective: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    majorant: FloatArray


def objective_of(problem: Problem, theta: FloatArray) -> FloatArray:
    """Summed weighted score of each row of theta, (rows,)."""
    value = problem.loss.score(problem.law.log_loss(theta, problem.inputs), problem.log_loss).value
    weights = problem.weights_of(slice(None))
    return value.sum(axis=1) if weights is None else (value * weights).sum(axis=1)


def local_model(problem: Problem, theta: FloatArray, rows: np.ndarray) -> _Local:
    """Objective, gradient, exact Hessian and majorant of the rows `rows`, computed in blocks that stay in cache."""
    points = problem.inputs.n.shape[0]
    if points > _BLOCK_ELEMENTS:
        pieces = (problem.points(slice(k, k + _BLOCK_ELEMENTS)) for k in range(0, points, _BLOCK_ELEMENTS))
        sums = [local_model(piece, theta, rows) for piece in pieces]
        return _Local(*(np.sum(column, axis=0) for column in zip(*sums, strict=True)))
    block = max(1, _BLOCK_ELEMENTS // points)
    parts = [_local_block(problem, theta[k : k + block], rows[k : k + block]) for k in range(0, len(rows), block)]
    if len(parts) == 1:
        return parts[0]
    return _Local(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _local_block(problem: Problem, theta: FloatArray, rows: np.ndarray) -> _Local:
    evaluation = problem.law.evaluate(theta, problem.inputs)
    log_loss = problem.log_loss if problem.log_loss.ndim == 1 else problem.log_loss[rows]
    value, first, second, majorant = problem.loss.score(evaluation.log_loss, log_loss)
    weight = problem.weights_of(rows)
    if weight is not None:
        value, first, second, majorant = value * weight, first * weight, second * weight, majorant * weight
    jacobian = evaluation.jacobian()
    transposed = jacobian.transpose(0, 2, 1)
    gradient = (jacobian @ first[:, :, None])[:, :, 0]
    bound = (jacobian * majorant[:, None, :]) @ transposed
    curved = (jacobian * (second - first)[:, None, :]) @ transposed + evaluation.term_curvature(first)
    return _Local(value.sum(axis=1), gradient, curved, bound)


def solve_symmetric(matrix: FloatArray, vector: FloatArray) -> tuple[FloatArray, np.ndarray]:
    """Solve matrix x = vector for each row by a Cholesky factorisation over the whole batch.

    Args:
        matrix: (rows, p, p), symmetric.
        vector: (rows, p).

    Returns:
        X (rows, p), and whether each matrix is positive definite; x is meaningless where it is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        solution, positive = _eliminate(matrix, vector)
    return solution, positive & np.isfinite(solution).all(axis=1)


def _eliminate(matrix: FloatArray, vector: FloatArray) -> tuple[FloatArray, np.ndarray]:
    size = vector.shape[1]
    packed = np.ascontiguousarray(matrix.transpose(1, 2, 0))
    right = np.ascontiguousarray(vector.T)
    positive = np.ones(vector.shape[0], dtype=bool)
    for j in range(size):
        pivot = packed[j, j]
        good = pivot > 0
        positive &= good
        inverse = 1.0 / np.where(good, pivot, 1.0)
        for i in range(j + 1, size):
            factor = packed[i, j] * inverse
            packed[i, j + 1 :] -= factor * packed[j, j + 1 :]
            right[i] -= factor * right[j]
        packed[j, j] = inverse
    solution = np.empty_like(right)
    for j in range(size - 1, -1, -1):
        total = right[j]
        for i in range(j + 1, size):
            total = total - packed[j, i] * solution[i]
        solution[j] = total * packed[j, j]
    return solution.T, positive


def _free_mask(problem: Problem, theta: FloatArray, gradient: FloatArray, held: np.ndarray | None) -> np.ndarray:
    """Parameters that may move: not those held at a bound by their gradient."""
    held_low = (theta <= problem.lower) & (gradient > 0)
    held_high = (theta >= problem.upper) & (gradient < 0)
    free = ~(held_low | held_high)
    return free if held is None else free & ~held


def _damped_system(
    local: _Local, free: np.ndarray, damping: FloatArray, newton: np.ndarray
) -> tuple[FloatArray, FloatArray]:
    """Damped matrix and gradient; parameters that are not free get a unit row and no gradient."""
    both = free[:, :, None] & free[:, None, :]
    diagonal = np.arange(free.shape[1])
    blend = np.where(newton, damping, 1.0)[:, None, None]
    matrix = np.where(both, local.hessian * newton[:, None, None] + blend * local.majorant, 0.0)
    scale = local.majorant[:, diagonal, diagonal]
    marquardt = np.where(newton, _RIDGE * (1.0 + damping), damping)[:, None]
    ridge = marquardt * (scale + scale.max(axis=1, keepdims=True) * 1e-6) + 1e-300
    matrix[:, diagonal, diagonal] += np.where(free, ridge, 1.0)
    return matrix, np.where(free, local.gradient, 0.0)


def _propose(
    problem: Problem, theta: FloatArray, local: _Local, free: np.ndarray, damping: FloatArray, newton: np.ndarray
) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Damped step within the bounds, its predicted decrease, and whether the damped matrix is positive definite.

    Where the step leaves the bounds, the parameters that do stop at them and the others are solved for again.
    """
    matrix, gradient = _damped_system(local, free, damping, newton)
    step, positive = solve_symmetric(matrix, -gradient)
    step = np.where(positive[:, None] & free, step, 0.0)
    aim = theta + step
    over = free & ((aim < problem.lower) | (aim > problem.upper))
    rows = np.flatnonzero(over.any(axis=1))
    if rows.size:
        stopped = np.where(over[rows], np.clip(aim[rows], problem.lower, problem.upper) - theta[rows], 0.0)
        rest = free[rows] & ~over[rows]
        pulled = gradient[rows] + np.einsum("bij,bj->bi", matrix[rows], stopped)
        both = rest[:, :, None] & rest[:, None, :]
        inner = np.where(both, matrix[rows], np.eye(free.shape[1]))
        again, fine = solve_symmetric(inner, -np.where(rest, pulled, 0.0))
        step[rows] = (
            np.clip(theta[rows] + np.where(fine[:, None], again, 0.0) + stopped, problem.lower, problem.upper)
            - theta[rows]
        )
    curvature = np.where(newton[:, None, None], local.hessian, local.majorant)
    decrease = -(gradient * step).sum(axis=1) - 0.5 * np.einsum("bi,bij,bj->b", step, curvature, step)
    return step, decrease, positive


class _Search:
    """The state of every row of a minimisation."""

    def __init__(self, problem: Problem, start: FloatArray, warm: bool, held: np.ndarray | None) -> None:
        total = start.shape[0]
        self.problem = problem
        self.held = held
        self.theta = np.clip(start, problem.lower, problem.upper)
        self.local = local_model(problem, self.theta, np.arange(total))
        self.newton = np.full(total, warm)
        self.damping = np.where(self.newton, _NEWTON_DAMPING, _REWEIGHT_DAMPING)
        self.growth = np.full(total, 4.0)
        self.finished = np.zeros(total, dtype=bool)
        self.moved = np.zeros(total, dtype=bool)
        self.floor = 1e-24 * max(1, problem.inputs.n.shape[0])

    def advance(self, active: np.ndarray) -> np.ndarray:
        """One step of the rows `active`; returns those that go on."""
        here = _Local(*(part[active] for part in self.local))
        theta, damping, newton = self.theta[active], self.damping[active], self.newton[active]
        free = _free_mask(self.problem, theta, here.gradient, self.held)
        step, predicted, positive = _propose(self.problem, theta, here, free, damping, newton)
        small = predicted <= _RELATIVE_DECREASE * here.objective + self.floor
        settled = newton & positive & small & (damping <= 1e-2)
        trial = theta + step
        there = local_model(self.problem, trial, active)
        gain = here.objective - there.objective
        better = positive & (gain > 0)
        accepted = active[better]
        self.theta[accepted] = trial[better]
        self.moved[accepted] = True
        for whole, part in zip(self.local, there, strict=True):
            whole[accepted] = part[better]
        self._adapt(active, better, gain / np.maximum(predicted, 1e-300))
        slow = ~newton & (better & (gain < _SLOW_GAIN * here.objective) | (self.damping[active] > 1.0))
        self.newton[active[slow]] = True
        self.damping[active[slow]] = _NEWTON_DAMPING
        stuck = ~slow & ~better & (self.damping[active] > _MAX_DAMPING)
        self.finished[active[settled | stuck]] = True
        return active[~(settled | stuck)]

    def _adapt(self, active: np.ndarray, better: np.ndarray, ratio: FloatArray) -> None:
        """Less damping after a step that kept its promise, more after one that did not."""
        good, fair, bad = active[better & (ratio > 0.7)], active[better & (ratio < 0.25)], active[~better]
        self.damping[good] *= 0.1
        self.damping[good] = np.where(self.damping[good] < 1e-7, 0.0, self.damping[good])
        self.damping[fair] = np.maximum(self.damping[fair] * 2.0, 1e-3)
        self.damping[bad] = np.maximum(self.damping[bad] * self.growth[bad], 1e-3)
        self.growth[bad] *= 2.0
        self.growth[active[better]] = 4.0

    def slope(self) -> FloatArray:
        """Largest cosine between the weighted residuals and a free column of the Jacobian, of each row."""
        free = _free_mask(self.problem, self.theta, self.local.gradient, self.held)
        columns = np.sqrt(np.maximum(np.diagonal(self.local.majorant, axis1=1, axis2=2), 1e-300))
        length = np.sqrt(2.0 * (self.local.objective + self.floor))[:, None]
        return np.where(free, np.abs(self.local.gradient) / (columns * length), 0.0).max(axis=1)


def minimise(
    problem: Problem, start: FloatArray, max_iterations: int = 200, warm: bool = False, held: np.ndarray | None = None
) -> Solution:
    """Minimise every row from its own start.

    Args:
        problem: Data, law and loss; `problem.weights` has as many rows as `start`, or is None.
        start: (rows, parameters).
        max_iterations: Passes after which the remaining rows are left as they are, not converged.
        warm: Whether the starts are already near an optimum, so that Newton steps may begin at once.
        held: (parameters,) parameters that keep their start, for likelihood profiles; None for none.
    """
    search = _Search(problem, start, warm, held)
    active = np.arange(start.shape[0])
    passes = 0
    while active.size and passes < max_iterations:
        passes += 1
        active = search.advance(active)
    slope, objective = search.slope(), search.local.objective
    exact = objective <= search.floor * 1e3
    converged = search.finished & ((slope <= _STEEP) | exact)
    at_bound = (search.theta <= problem.lower) | (search.theta >= problem.upper)
    return Solution(search.theta, objective, slope, converged, at_bound, search.moved, passes)
